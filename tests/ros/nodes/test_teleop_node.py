"""teleop_node on a graph: what it hears, and that it speaks as the action expert does."""

from typing import Any

import numpy as np
import pytest
from sensor_msgs.msg import JointState, Joy
from trajectory_msgs.msg import JointTrajectory

from pi05_ros import topics
from pi05_ros.contract import load_contract
from pi05_ros.messages import chunk_from, set_stamp, stamp_to_ns
from pi05_ros.nodes.teleop_node import TeleopNode
from pi05_ros.sim.description import home_joints

pytestmark = pytest.mark.ros
CONTRACT = load_contract()


@pytest.fixture
def home(robot: Any) -> Any:
    """The robot at its home posture."""
    robot.state = CONTRACT.from_joint_units(home_joints(CONTRACT), np.zeros(3))
    return robot


def test_a_stick_drives_and_its_silence_holds(graph: Any, home: Any) -> None:
    node = graph.add(TeleopNode, use_sim_time=True)
    chunks = graph.hear(JointTrajectory, topics.ACTION_CHUNK)
    graph.until(lambda: chunks, "a chunk that holds")
    held = chunk_from(chunks[-1])
    assert held.names == CONTRACT.names and held.actions.shape == (50, CONTRACT.dim)
    ends = [stamp_to_ns(point.time_from_start) for point in chunks[-1].points]
    assert ends == [20_000_000 * (k + 1) for k in range(50)]
    np.testing.assert_allclose(held.actions, np.tile(home.state, (50, 1)), atol=1e-9)
    assert next(iter(node.report())).message == "holding: nothing from joy"
    stick = graph.mouth(Joy, topics.JOY)
    axes = [0.0, 1.0, *[0.0] * 6]
    timer = graph.every(0.02, lambda: stick.publish(Joy(axes=axes, buttons=[0] * 11)))
    vx = CONTRACT.names.index("base_vx")
    graph.until(lambda: chunk_from(chunks[-1]).actions[:, vx].max() > 0.2, "the base to drive")
    assert chunk_from(chunks[-1]).actions[-1, vx] == 0.0
    assert next(iter(node.report())).message == "driving"
    timer.cancel()
    graph.until(lambda: not chunk_from(chunks[-1]).actions[:, vx].any(), "the base to stand")
    stick.publish(Joy(axes=[1.0], buttons=[]))
    graph.until(lambda: "joy: 1 axes" in str(node.health.troubles) or "1 axes" in str(node.health.troubles), "trouble")


def test_a_leader_arm_leads(graph: Any, home: Any) -> None:
    graph.add(TeleopNode, use_sim_time=True, mode="leader", ramp_s=0.2)
    chunks, leader = graph.hear(JointTrajectory, topics.ACTION_CHUNK), graph.mouth(JointState, topics.LEADER)
    joint = CONTRACT.names.index("left_joint1")
    goal = float(home.state[joint]) + 0.1

    def speak() -> None:
        message = JointState(name=["left_joint1"], position=[goal])
        set_stamp(message.header.stamp, home.now_ns)
        leader.publish(message)

    graph.every(0.02, speak)
    # The robot of this test never moves: every chunk heads for the leader, none arrives before it is blended in.
    graph.until(lambda: chunks and chunk_from(chunks[-1]).actions[:, joint].max() > home.state[joint] + 0.05, "lead")
    rest = [k for k in range(CONTRACT.dim) if k != joint]
    last = chunk_from(chunks[-1]).actions
    np.testing.assert_allclose(last[:, rest], np.tile(home.state[rest], (50, 1)), atol=1e-9)


def test_a_dry_run_speaks_where_nobody_listens(graph: Any, home: Any) -> None:
    graph.add(TeleopNode, use_sim_time=True, dry_run=True)
    real, dry = (
        graph.hear(JointTrajectory, topics.ACTION_CHUNK),
        graph.hear(JointTrajectory, topics.ACTION_CHUNK_DRY_RUN),
    )
    graph.until(lambda: len(dry) > 3, "dry chunks")
    assert real == []
