"""The controller's hardware over topics: a real robot's drivers, ros2_control, Gazebo."""

from typing import Any

import numpy as np
from geometry_msgs.msg import TwistStamped
from nav_msgs.msg import Odometry
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from pi05_ros import topics
from pi05_ros.control.hardware import Array, JointReading
from pi05_ros.messages import set_stamp, stamp_to_ns
from pi05_ros.nodes.base import BaseNode
from pi05_ros.nodes.qos import profile
from pi05_ros.qos import offered


class TopicHardware:
    """Hears `joint_states` and `odom`; says efforts and a base velocity.

    A reading exists once every joint was heard. It is as old as its oldest joint: one silent driver makes it stale.
    The publishers are plain ones: a deactivated controller still holds the robot.

    Args:
        node: the node whose topics they are.
    """

    def __init__(self, node: BaseNode[Any]) -> None:
        self._node = node
        names = node.contract.joint_names
        self._index = {name: i for i, name in enumerate(names)}
        self._position, self._velocity = np.zeros(len(names)), np.zeros(len(names))
        self._heard = np.zeros(len(names), dtype=bool)
        self._stamps = np.zeros(len(names), dtype=np.int64)
        self._twist = np.zeros(3)
        self._reading: JointReading | None = None
        node.subscribe(JointState, topics.JOINT_STATES, self._on_joints)
        node.subscribe(Odometry, topics.ODOM, self._on_odom)
        self._effort = node.create_publisher(Float64MultiArray, topics.EFFORT_COMMANDS, _offer(topics.EFFORT_COMMANDS))
        self._cmd_vel = node.create_publisher(TwistStamped, topics.CMD_VEL, _offer(topics.CMD_VEL))

    def close(self) -> None:
        """Take the publishers away."""
        for publisher in (self._effort, self._cmd_vel):
            self._node.destroy_publisher(publisher)

    def read(self) -> JointReading | None:
        """Return the newest reading, or None before every joint was heard."""
        return self._reading

    def write(self, effort: Array, base_twist: Array) -> None:
        """Publish both commands."""
        self._effort.publish(Float64MultiArray(data=effort.tolist()))
        message = TwistStamped()
        message.header.frame_id = "base_link"
        set_stamp(message.header.stamp, self._node.now_ns())
        linear, angular = message.twist.linear, message.twist.angular
        linear.x, linear.y, angular.z = map(float, base_twist)
        self._cmd_vel.publish(message)

    def _on_joints(self, message: Any) -> None:
        """Merge joints, maybe of several drivers. Velocities are required: the controller damps with them."""
        if not len(message.name) == len(message.position) == len(message.velocity):
            self._node.health.drop("joint_states: without a position and a velocity for each name")
            return
        stamp_ns = stamp_to_ns(message.header.stamp)
        for name, position, velocity in zip(message.name, message.position, message.velocity, strict=True):
            i = self._index.get(name)
            if i is not None:
                self._position[i], self._velocity[i], self._stamps[i] = position, velocity, stamp_ns
                self._heard[i] = True
        if self._heard.all():
            oldest_ns = int(self._stamps.min())
            self._reading = JointReading(oldest_ns, self._position.copy(), self._velocity.copy(), self._twist)

    def _on_odom(self, message: Any) -> None:
        twist = message.twist.twist
        self._twist = np.array([twist.linear.x, twist.linear.y, twist.angular.z])


def _offer(topic: str) -> Any:
    return profile(offered(topic))
