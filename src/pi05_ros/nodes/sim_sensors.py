"""The simulator's sensors on the wire. JPEG encoding has a thread of its own, beside the physics."""

import queue
import threading
from typing import Any

import numpy as np
from nav_msgs.msg import Odometry
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import String

from pi05_ros import topics
from pi05_ros.control.hardware import Array, JointReading
from pi05_ros.messages import Pixels, encode_jpeg, fill_compressed, set_stamp
from pi05_ros.nodes.base import BaseNode
from pi05_ros.qos import REPORT
from pi05_ros.sim.truth import WORLD, world_to_json
from pi05_ros.sim.world import WorldState


class SimSensors:
    """Publishes what a `SimLoop` senses. Called from the loop's thread.

    Args:
        node: the node whose publishers they are.
    """

    def __init__(self, node: BaseNode[Any]) -> None:
        self._contract = contract = node.contract
        self._clock = node.publisher(Clock, topics.CLOCK)
        self._joints = node.publisher(JointState, topics.JOINT_STATES)
        self._odom = node.publisher(Odometry, topics.ODOM)
        self._world = node.publisher(String, WORLD, REPORT)
        self._images = {
            name: node.publisher(CompressedImage, topic) for name, topic in topics.camera_images(contract).items()
        }
        self.frames = dict.fromkeys(contract.cameras, 0)
        # One look in the making and one waiting: then physics waits, because no frame may be lost.
        self._looks: queue.Queue[tuple[int, dict[str, Pixels]] | None] = queue.Queue(maxsize=1)
        self._encoder = threading.Thread(target=self._encode, name="jpeg", daemon=True)
        self._encoder.start()

    def close(self) -> None:
        """Publish what is waiting and end the thread. After the loop has stopped."""
        self._looks.put(None)
        self._encoder.join()

    def clock(self, now_ns: int) -> None:
        """Publish /clock."""
        message = Clock()
        set_stamp(message.clock, now_ns)
        self._clock.publish(message)

    def joints(self, reading: JointReading, base_pose: Array) -> None:
        """Publish joint_states and odom (the simulator knows the pose exactly: no drift)."""
        message = JointState(name=list(self._contract.joint_names))
        set_stamp(message.header.stamp, reading.stamp_ns)
        message.position = reading.position.tolist()
        message.velocity = reading.velocity.tolist()
        self._joints.publish(message)
        self._odom.publish(self._odometry(reading, base_pose))

    def look(self, images: dict[str, Pixels], world: WorldState) -> None:
        """Publish the ground truth, and hand the images to the encoder."""
        self._world.publish(String(data=world_to_json(world)))
        self._looks.put((world.stamp_ns, images))

    def _odometry(self, reading: JointReading, base_pose: Array) -> Odometry:
        message = Odometry(child_frame_id="base_link")
        message.header.frame_id = "odom"
        set_stamp(message.header.stamp, reading.stamp_ns)
        x, y, yaw = map(float, base_pose)
        pose, twist = message.pose.pose, message.twist.twist
        pose.position.x, pose.position.y = x, y
        pose.orientation.z, pose.orientation.w = float(np.sin(yaw / 2)), float(np.cos(yaw / 2))
        twist.linear.x, twist.linear.y, twist.angular.z = map(float, reading.base_twist)
        return message

    def _encode(self) -> None:
        quality = self._contract.image.jpeg_quality
        while (look := self._looks.get()) is not None:
            stamp_ns, images = look
            for name, pixels in images.items():
                frame, jpeg = self._contract.cameras[name].frame, encode_jpeg(pixels, quality)
                message = fill_compressed(CompressedImage(), stamp_ns, frame, jpeg)
                self._images[name].publish(message)
                self.frames[name] += 1
