"""Planner and action expert over real topics, with a small policy at the seam."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from pi05_ros import topics
from pi05_ros.contract import load_contract
from pi05_ros.inference import PolicyHost
from pi05_ros.messages import chunk_from, stamp_to_ns
from pi05_ros.nodes.action_expert_node import ActionExpertNode
from pi05_ros.nodes.planner_node import PlannerNode

pytestmark = pytest.mark.ros
CONTRACT = load_contract()
STEP_NS = 20_000_000


@pytest.fixture
def start(graph: Any, policy: Any) -> Callable[..., Any]:
    """Start a node in simulated time; all of a test share one host."""
    host = PolicyHost(lambda path: policy)

    def add(kind: Any, **parameters: Any) -> Any:
        return graph.add(partial(kind, host=host), use_sim_time=True, **parameters)

    return add


def test_twenty_chunks_follow_the_subtask(graph: Any, robot: Any, start: Any, policy: Any) -> None:
    chunks, said = graph.hear(JointTrajectory, topics.ACTION_CHUNK), graph.hear(String, topics.SUBTASK)
    start(ActionExpertNode)
    start(PlannerNode)
    graph.mouth(String, topics.TASK).publish(String(data="clear the table"))
    graph.until(lambda: len(chunks) >= 20, "20 chunks")
    assert [message.data for message in said] == ["clear the table: left side"]
    rate = 1e-3 * len(said[0].data) * 3  # the expert sees three cameras
    for message in chunks:
        chunk = chunk_from(message)
        assert chunk.names == CONTRACT.names and chunk.actions.shape == (50, 18)
        np.testing.assert_allclose(chunk.actions[:, 3] - robot.state[3], rate * np.arange(1, 51), atol=1e-6)
    stamps = np.array([stamp_to_ns(message.header.stamp) for message in chunks])
    assert set(stamps % (2 * STEP_NS)) == {0}  # stamps of images
    # One chunk for every period of 0.4 s simulated, from the images of its beginning, however slow the machine is.
    assert np.median(np.diff(stamps)) == 20 * STEP_NS and set(stamps[2:] % (20 * STEP_NS)) == {0}
    assert set(stamps) <= {seen.stamp_ns for seen in policy.seen}


def test_planner_alone_and_late_listeners_hear_it(graph: Any, robot: Any, start: Any) -> None:
    node = start(PlannerNode, task="wipe")
    announced = graph.hear(String, topics.TASK)
    graph.until(lambda: announced, "the task of the parameter, for the recorder")
    assert announced[0].data == "wipe"
    graph.until(lambda: node.report()[0].values["subtask"])
    late = graph.hear(String, topics.SUBTASK)
    graph.until(lambda: late)
    assert late[0].data == "wipe: left side"


def test_topic_wins_over_the_parameter(graph: Any, robot: Any, start: Any) -> None:
    said = graph.hear(String, topics.SUBTASK)
    operator = graph.mouth(String, topics.TASK)
    operator.publish(String(data="sort"))
    node = start(PlannerNode, task="wipe")
    graph.until(lambda: said)
    graph.until(lambda: "wipe" not in str(node.report()[0].values), "the parameter's task is gone")
    late = graph.hear(String, topics.TASK)
    graph.until(lambda: late)
    assert [message.data for message in late] == ["sort"]
    assert said[-1].data == "sort: left side"


def test_new_tasks_long_tasks_and_the_end_of_a_task(graph: Any, robot: Any, start: Any) -> None:
    said, told = graph.hear(String, topics.SUBTASK), graph.hear(DiagnosticArray, topics.DIAGNOSTICS)
    operator = graph.mouth(String, topics.TASK)
    node = start(PlannerNode)
    graph.until(lambda: "a task" in node.health.troubles.get("waiting for", ""))
    operator.publish(String(data="clear"))
    graph.until(lambda: len(said) == 1)
    operator.publish(String(data="y" * 10_000))
    graph.until(lambda: node.health.counts.get("task: too long") == 1)
    assert "refused: 10000 characters, at most 512" in node.health.troubles["task"]
    graph.until(lambda: any("10000 characters" in s.message for m in told for s in m.status))
    operator.publish(String(data="  "))
    graph.until(lambda: len(said) == 2)
    assert [message.data for message in said] == ["clear: left side", ""]


def test_expert_alone_waits_and_says_for_what(graph: Any, robot: Any, start: Any) -> None:
    robot.silent = {"state", *CONTRACT.cameras}
    chunks = graph.hear(JointTrajectory, topics.ACTION_CHUNK)
    node = start(ActionExpertNode)
    graph.until(lambda: "waiting for" in node.health.troubles)
    assert node.health.troubles["waiting for"] == "a subtask, a state (topic `state`)"
    planner = graph.mouth(String, topics.SUBTASK)
    planner.publish(String(data="pick"))
    robot.silent = set(CONTRACT.cameras)
    blind = "at least one image (front missing; left_wrist missing; right_wrist missing)"
    graph.until(lambda: node.health.troubles.get("waiting for") == blind)
    robot.silent = {"left_wrist"}
    graph.until(lambda: len(chunks) >= 2)
    assert node.health.troubles == {"camera left_wrist": "missing; masked"}
    rate = 1e-3 * len("pick") * 2
    np.testing.assert_allclose(chunk_from(chunks[0]).actions[0] - robot.state, rate, atol=1e-6)
    robot.silent = set()
    graph.until(lambda: not node.health.troubles)
    planner.publish(String(data=""))
    graph.until(lambda: "a subtask" in node.health.troubles.get("waiting for", ""))
    count = len(chunks)
    since_ns = robot.now_ns
    graph.until(lambda: robot.now_ns > since_ns + 100 * STEP_NS)
    assert len(chunks) <= count + 1


def test_state_that_stops_stops_the_chunks(graph: Any, robot: Any, start: Any) -> None:
    chunks = graph.hear(JointTrajectory, topics.ACTION_CHUNK)
    node = start(ActionExpertNode)
    graph.mouth(String, topics.SUBTASK).publish(String(data="pick"))
    graph.until(lambda: len(chunks) >= 2)
    robot.silent = {"state"}
    graph.until(lambda: "samples of every source" in node.health.troubles.get("waiting for", ""))
    newest = stamp_to_ns(chunks[-1].header.stamp)
    since_ns = robot.now_ns
    graph.until(lambda: robot.now_ns > since_ns + 100 * STEP_NS)
    assert stamp_to_ns(chunks[-1].header.stamp) == newest


def test_nan_from_the_policy_is_counted_and_not_published(graph: Any, robot: Any, start: Any, policy: Any) -> None:
    chunks, told = graph.hear(JointTrajectory, topics.ACTION_CHUNK), graph.hear(DiagnosticArray, topics.DIAGNOSTICS)
    policy.spoil = lambda actions: actions * np.nan
    node = start(ActionExpertNode)
    graph.mouth(String, topics.SUBTASK).publish(String(data="pick"))
    graph.until(lambda: node.health.counts.get("chunk: not finite", 0) >= 3)
    assert not chunks
    graph.until(lambda: any(s.level == b"\x02" and "not finite" in s.message for m in told for s in m.status))
    policy.spoil = lambda actions: actions
    graph.until(lambda: len(chunks) >= 2 and not node.health.troubles)


def test_policy_that_raises_is_told_and_tried_again(graph: Any, robot: Any, start: Any, policy: Any) -> None:
    chunks = graph.hear(JointTrajectory, topics.ACTION_CHUNK)

    def fail(actions: Any) -> Any:
        raise RuntimeError("no memory")

    policy.spoil = fail
    node = start(ActionExpertNode)
    graph.mouth(String, topics.SUBTASK).publish(String(data="pick"))
    graph.until(lambda: node.health.counts.get("inference failed", 0) >= 2)
    assert node.health.troubles["inference"] == "RuntimeError: no memory" and not chunks
    policy.spoil = lambda actions: actions
    graph.until(lambda: chunks and not node.health.troubles)


def test_dry_run_speaks_elsewhere(graph: Any, robot: Any, start: Any) -> None:
    chunks, dry = (graph.hear(JointTrajectory, t) for t in (topics.ACTION_CHUNK, topics.ACTION_CHUNK_DRY_RUN))
    start(ActionExpertNode, dry_run=True)
    graph.mouth(String, topics.SUBTASK).publish(String(data="pick"))
    graph.until(lambda: len(dry) >= 3)
    assert not chunks


def test_latency_is_in_diagnostics(graph: Any, robot: Any, start: Any) -> None:
    told = graph.hear(DiagnosticArray, topics.DIAGNOSTICS)
    start(ActionExpertNode)
    graph.mouth(String, topics.SUBTASK).publish(String(data="pick"))

    def values() -> dict[str, str]:
        entries = (s for m in reversed(told) for s in m.status if s.name == "action_expert_node: action_expert")
        return {pair.key: pair.value for entry in entries for pair in entry.values}

    graph.until(lambda: "inference_ms.p99" in values())
    assert 0 < float(values()["inference_ms.p50"]) <= float(values()["inference_ms.max"])


@pytest.mark.parametrize("kind", [PlannerNode, ActionExpertNode])
def test_wrong_action_size_and_missing_checkpoint_stop_configure(graph: Any, policy: Any, kind: Any) -> None:
    policy.action_shape = (50, 14)
    node = graph.add(partial(kind, host=PolicyHost(lambda path: policy)), start=False)
    assert not node.autostart()
    assert "50 steps x 14 entries" in node.failure and "needs 50 x 18" in node.failure
    node = graph.add(kind, start=False, policy="no/such/checkpoint")
    assert not node.autostart()
    assert node.failure.startswith("policy: no/such/checkpoint: cannot be loaded")
