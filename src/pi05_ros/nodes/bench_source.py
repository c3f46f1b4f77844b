"""Speaks as a robot with fast cameras would, at an exact rate, and tells how often. Part of `pi05 bench`.

Every camera of the contract at one rate and `joint_states` at another, with the QoS of the drivers. It waits until
every topic is heard, so that what it counts is what a listener could have got.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import rclpy
import tyro
from rclpy.context import Context
from rclpy.node import Node
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, JointState

from pi05_ros import topics
from pi05_ros.contract import Contract, load_contract
from pi05_ros.messages import encode_jpeg, fill_compressed, set_stamp
from pi05_ros.nodes.qos import profile
from pi05_ros.qos import offered

NS = 1_000_000_000
FRAMES = 128  # different images; none repeats within a chunk of the bag, where zstd would notice
MATCH_S = 60.0


@dataclass(frozen=True)
class SourceArguments:
    """Publish images and joint states.

    Attributes:
        seconds: for how long.
        warm_up: for how long before that, uncounted.
        camera_hz: rate of each camera.
        joints_hz: rate of the joint states.
    """

    seconds: float = 60.0
    warm_up: float = 1.0
    camera_hz: float = 50.0
    joints_hz: float = 200.0


def jpegs(contract: Contract) -> list[bytes]:
    """Return images that are about as hard to compress as a camera's: smooth shapes and sensor noise."""
    rng, (height, width) = np.random.default_rng(0), (contract.image.height, contract.image.width)
    y, x = np.mgrid[:height, :width]
    images = []
    for k in range(FRAMES):
        shapes = 128 + 60 * np.sin(x / 17 + k / 5)[..., None] * np.cos(y / 23 - k / 7)[..., None] * [1.0, 0.7, -0.5]
        noisy = np.clip(shapes + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)
        images.append(encode_jpeg(noisy, contract.image.jpeg_quality))
    return images


def speak(arguments: SourceArguments, contract: Contract) -> dict[str, int]:
    """Publish for the given time; return how many messages were published, by topic, and from when on they count.

    Raises:
        TimeoutError: somebody listens to too little; names the topics.
    """
    context = Context()
    rclpy.init(context=context)
    node = Node("bench_source", context=context)
    images = [fill_compressed(CompressedImage(), 0, "camera", jpeg) for jpeg in jpegs(contract)]
    joints = JointState(name=list(contract.joint_names), position=[0.0] * len(contract.joint_names))
    publishers = {
        topic: node.create_publisher(CompressedImage, topic, profile(offered(topic)))
        for topic in topics.camera_images(contract).values()
    }
    cameras = list(publishers)
    publishers[topics.JOINT_STATES] = node.create_publisher(
        JointState, topics.JOINT_STATES, profile(offered(topics.JOINT_STATES))
    )
    _await_listeners({topic: publisher.get_subscription_count for topic, publisher in publishers.items()})
    counts = dict.fromkeys(publishers, 0)

    def say(topic: str, message: object, stamp: object) -> None:
        set_stamp(stamp, time.time_ns())
        publishers[topic].publish(bytes(serialize_message(message)))
        counts[topic] += 1

    def play(seconds: float) -> None:
        total = [round(seconds * rate) for rate in (arguments.camera_hz, arguments.joints_hz)]
        begin, done = time.monotonic(), [0, 0]
        while done != total:
            now = time.monotonic() - begin
            if done[0] < total[0] and now * arguments.camera_hz >= done[0]:
                for index, topic in enumerate(cameras):
                    message = images[(done[0] + index * FRAMES // len(cameras)) % FRAMES]
                    say(topic, message, message.header.stamp)
                done[0] += 1
            elif done[1] < total[1] and now * arguments.joints_hz >= done[1]:
                say(topics.JOINT_STATES, joints, joints.header.stamp)
                done[1] += 1
            else:
                time.sleep(2e-4)

    # A writer that knows its reader may still be unknown to it; what is said meanwhile does not count.
    play(arguments.warm_up)
    counts.update(dict.fromkeys(counts, 0))
    begin_ns = time.time_ns()
    print("begin", flush=True)
    play(arguments.seconds)
    counts["begin_ns"] = begin_ns
    counts["image_bytes"] = round(float(np.mean([len(image.data) for image in images])))
    _await_end(publishers[topics.JOINT_STATES].get_subscription_count)
    node.destroy_node()
    rclpy.shutdown(context=context)
    return counts


def _await_listeners(listeners: dict[str, Callable[[], int]]) -> None:
    end = time.monotonic() + MATCH_S
    while missing := [topic for topic, count in listeners.items() if count() == 0]:
        if time.monotonic() > end:
            raise TimeoutError(f"nobody listens to {', '.join(missing)}")
        time.sleep(0.02)


def _await_end(count: Callable[[], int]) -> None:
    """Stay until the listener has gone: what a vanished writer still had in memory would be lost."""
    print("done", flush=True)
    end = time.monotonic() + MATCH_S
    while count() and time.monotonic() < end:
        time.sleep(0.02)


def main(args: Sequence[str] | None = None) -> None:
    """Publish, then write the counts as JSON."""
    arguments = tyro.cli(SourceArguments, args=None if args is None else list(args))
    print(json.dumps(speak(arguments, load_contract())))


if __name__ == "__main__":
    main()
