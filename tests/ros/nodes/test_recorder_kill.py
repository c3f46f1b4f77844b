"""Twenty recorders are killed at random moments; every bag is readable up to its last chunk."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.highlevel import AnyReader
from sensor_msgs.msg import CompressedImage, JointState

from pi05_ros import messages, topics
from pi05_ros.contract import load_contract
from pi05_ros.repair import State, find_bags, repair

pytestmark = pytest.mark.ros
CONTRACT = load_contract()
CHUNK_S = 0.5
# Beyond the chunk that is lost: messages under way, a loaded machine, a disk that syncs slowly.
SLACK_S = 3.0
FRONT = topics.camera_image("front")


class Source:
    """Speaks numbered, different messages, and remembers what it said and when."""

    def __init__(self, graph: Any) -> None:
        self.said: dict[str, list[bytes]] = {topics.STATE: [], FRONT: []}
        self.times: dict[str, list[float]] = {topics.STATE: [], FRONT: []}
        self._random = random.Random(0)
        self._mouths = {topics.STATE: graph.mouth(JointState, topics.STATE), FRONT: graph.mouth(CompressedImage, FRONT)}
        graph.every(0.01, self._state)
        graph.every(0.04, self._image)

    def _state(self) -> None:
        count = len(self.said[topics.STATE])
        vector = [float(count)] * CONTRACT.dim
        self._say(topics.STATE, messages.fill_state(JointState(), CONTRACT, count + 1, vector))  # type: ignore[arg-type]

    def _image(self) -> None:
        count, noise = len(self.said[FRONT]), self._random.randbytes(5_000)
        self._say(FRONT, messages.fill_compressed(CompressedImage(), count + 1, "front", noise))

    def _say(self, topic: str, message: Any) -> None:
        self.said[topic].append(bytes(serialize_message(message)))
        self.times[topic].append(time.monotonic())
        self._mouths[topic].publish(self.said[topic][-1])  # these bytes, padding and all


@dataclass
class Victim:
    """A recorder in a process of its own."""

    directory: Path
    wait_s: float
    process: "subprocess.Popen[bytes]" = field(init=False)
    due: float | None = None
    killed_at: float | None = None

    def start(self, domain: int) -> None:
        parameters = {"directory": str(self.directory), "record_on_activate": "true", "chunk_s": str(CHUNK_S)}
        arguments = [text for name, value in parameters.items() for text in ("-p", f"{name}:={value}")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pi05_ros.nodes.recorder_node", "--ros-args", "--log-level", "fatal", *arguments],
            env={**os.environ, "ROS_DOMAIN_ID": str(domain)},
        )

    def dead(self) -> bool:
        """Kill it when it has recorded for as long as it may; return whether that is done."""
        now = time.monotonic()
        if self.due is None and next(self.directory.glob("*/*.mcap"), None) is not None:
            self.due = now + self.wait_s
        if self.killed_at is None and self.due is not None and now >= self.due:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.killed_at = now
        return self.killed_at is not None


def check(victim: Victim, source: Source) -> int:
    """Repair a victim's bag and compare it with what was said; return the number of messages in it."""
    [(folder, state)] = find_bags(victim.directory)
    assert state == State.CUT_OFF
    repaired = repair(folder)
    kept: dict[str, list[bytes]] = {topics.STATE: [], FRONT: []}
    with AnyReader([folder]) as reader:
        for connection, _, data in reader.messages():
            if connection.topic.lstrip("/") in kept:
                kept[connection.topic.lstrip("/")].append(bytes(data))
    assert victim.killed_at is not None
    for topic, got in kept.items():
        kind = JointState if topic == topics.STATE else CompressedImage
        first = messages.stamp_to_ns(deserialize_message(got[0], kind).header.stamp) - 1 if got else 0
        assert got == source.said[topic][first : first + len(got)], "a message is missing or changed"
        if got:
            last_at = source.times[topic][first + len(got) - 1]
            assert victim.killed_at - last_at < CHUNK_S + SLACK_S
    custom = yaml.safe_load((folder / "metadata.yaml").read_text())["rosbag2_bagfile_information"]["custom_data"]
    assert custom["lost"] == repaired.loss.text()
    assert custom["outcome"] == "unknown" and "contract" in custom
    # A kill in the middle of a write leaves part of one chunk at most.
    assert repaired.loss.bytes_lost < 2 << 20 and repaired.loss.broken_chunks == 0
    return repaired.loss.messages


def test_killed_at_any_moment(graph: Any, tmp_path: Path) -> None:
    source, chance = Source(graph), random.Random(1)
    victims = [Victim(tmp_path / f"{index:02d}", chance.uniform(0.0, 2.5)) for index in range(20)]
    try:
        for batch in range(0, len(victims), 4):
            running = victims[batch : batch + 4]
            for victim in running:
                victim.start(graph.context.get_domain_id())
            graph.until(lambda running=running: all([victim.dead() for victim in running]), "four kills")
    finally:
        for victim in victims:
            if hasattr(victim, "process") and victim.process.poll() is None:
                victim.process.kill()
                victim.process.wait()
    counts = [check(victim, source) for victim in victims]
    assert sum(count > 50 for count in counts) > 5, counts
