"""Joint states of several sources and odometry become one state."""

from typing import Any

import numpy as np
import pytest
from nav_msgs.msg import Odometry
from sensor_msgs.msg import JointState

from pi05_ros.contract import load_contract
from pi05_ros.messages import set_stamp, stamp_to_ns, state_from
from pi05_ros.nodes.state_node import StateNode
from pi05_ros.topics import JOINT_STATES, ODOM, STATE

pytestmark = pytest.mark.ros
CONTRACT = load_contract()


class Robot:
    """Two drivers on one topic and a base, at 100 Hz."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.groups = [CONTRACT.joint_names[:7], CONTRACT.joint_names[7:]]
        self.drivers = [graph.mouth(JointState, JOINT_STATES) for _ in self.groups]
        self.base = graph.mouth(Odometry, ODOM)
        self.value = 0.02
        self.silent: set[str] = set()
        self.stamp_ns = 1_700_000_000_000_000_000
        graph.every(0.01, self.speak)

    def speak(self) -> None:
        self.stamp_ns += 10_000_000
        for driver, names in zip(self.drivers, self.groups, strict=True):
            message = JointState(name=[n for n in names if n not in self.silent])
            message.position = [self.value] * len(message.name)
            set_stamp(message.header.stamp, self.stamp_ns)
            driver.publish(message)
        odometry = Odometry()
        set_stamp(odometry.header.stamp, self.stamp_ns)
        twist = odometry.twist.twist
        twist.linear.x, twist.linear.y, twist.angular.z = 0.1, 0.2, 0.3
        if "odom" not in self.silent:
            self.base.publish(odometry)


def test_state_in_contract_order_and_units(graph: Any) -> None:
    heard = graph.hear(JointState, STATE)
    graph.add(StateNode)
    robot = Robot(graph)
    graph.until(lambda: len(heard) > 3)
    vector = state_from(heard[-1], CONTRACT)
    assert tuple(heard[-1].name) == CONTRACT.names
    np.testing.assert_allclose(vector[:6], 0.02)
    assert vector[6] == pytest.approx((0.02 - 0.045) / -0.045)  # a gripper is a fraction
    np.testing.assert_allclose(vector[15:], [0.1, 0.2, 0.3])
    assert stamp_to_ns(heard[-1].header.stamp) <= robot.stamp_ns


def test_incomplete_state_is_not_published_and_the_joint_is_named(graph: Any) -> None:
    heard = graph.hear(JointState, STATE)
    node = graph.add(StateNode)
    robot = Robot(graph)
    robot.silent = {"right_joint3", "odom"}
    graph.until(lambda: node.health.counts.get("incomplete state", 0) > 3)
    assert not heard
    assert node.health.troubles["state"] == "right_joint3 missing, odom missing"
    robot.silent = set()
    graph.until(lambda: heard and not node.health.troubles)
    robot.silent = {"left_gripper"}
    graph.until(lambda: "left_gripper stale" in node.health.troubles.get("state", ""))
    entry = next(status for status in node.report() if status.part == "merge")
    assert "left_gripper stale" in entry.message and entry.values["states"] > 0


def test_nan_does_not_get_through(graph: Any) -> None:
    heard = graph.hear(JointState, STATE)
    node = graph.add(StateNode)
    robot = Robot(graph)
    graph.until(lambda: heard)
    robot.value = float("nan")
    graph.until(lambda: "state" in node.health.troubles)
    assert node.health.counts["not finite"] >= 15
    assert all(np.isfinite(state_from(message, CONTRACT)).all() for message in heard)


def test_silence_is_told_and_a_base_can_be_absent(graph: Any) -> None:
    heard = graph.hear(JointState, STATE)
    node = graph.add(StateNode, base_required=False, silence_s=0.1)
    graph.until(lambda: "sources" in node.health.troubles)
    assert node.health.troubles["sources"] == "nothing from joint_states, odom for 0.1 s"
    Robot(graph).silent = {"odom"}
    graph.until(lambda: heard and not node.health.troubles)
    np.testing.assert_array_equal(state_from(heard[-1], CONTRACT)[15:], 0)


def test_no_source_is_a_mistake(graph: Any) -> None:
    node = graph.add(StateNode, start=False, joint_state_topics=[""])
    assert not node.autostart()
