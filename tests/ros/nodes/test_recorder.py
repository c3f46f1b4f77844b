"""recorder_node: what travels is in the bag, and what is wrong is told before and during the episode."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.parameter import Parameter
from rosbags.highlevel import AnyReader
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from pi05_ros import messages, topics
from pi05_ros.contract import load_contract
from pi05_ros.nodes.recorder_node import RecorderNode
from pi05_ros.recording import required_topics

pytestmark = pytest.mark.ros
CONTRACT = load_contract()
FRONT = topics.camera_image("front")
OK, WARN, ERROR = b"\x00", b"\x01", b"\x02"


def custom_data(bag: Path) -> dict[str, str]:
    return dict(yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"]["custom_data"])


def read(bag: str) -> dict[str, list[Any]]:
    seen: dict[str, list[Any]] = {}
    with AnyReader([Path(bag)]) as reader:
        for connection, _, data in reader.messages():
            seen.setdefault(connection.topic.lstrip("/"), []).append(reader.deserialize(data, connection.msgtype))
    return seen


class Recorder:
    """A recorder on a graph, its services, and what it tells."""

    def __init__(self, graph: Any, directory: Path, **parameters: Any) -> None:
        self.graph, self.directory = graph, directory
        self.node = graph.add(RecorderNode, directory=str(directory), **parameters)
        self._told = graph.hear(DiagnosticArray, topics.DIAGNOSTICS)

    def start(self) -> Any:
        return self.graph.call(Trigger, "recorder_node/start", Trigger.Request())

    def stop(self, success: bool = True) -> Any:
        return self.graph.call(SetBool, "recorder_node/stop", SetBool.Request(data=success))

    def discard(self) -> Any:
        return self.graph.call(Trigger, "recorder_node/discard", Trigger.Request())

    def mark(self, text: str, kind: str) -> Any:
        self.set(mark=text, mark_kind=kind)
        return self.graph.call(Trigger, "recorder_node/mark", Trigger.Request())

    def set(self, **parameters: Any) -> None:
        results = self.node.set_parameters([Parameter(name, value=value) for name, value in parameters.items()])
        assert all(result.successful for result in results)

    def tells(self, part: str, holds: Callable[[Any], bool]) -> None:
        """Wait until an entry of /diagnostics holds."""

        def said() -> bool:
            return any(
                status.name == f"recorder_node: {part}" and holds(status) for m in self._told for status in m.status
            )

        self.graph.until(said, f"{part} in /diagnostics")


@pytest.fixture
def recorder(graph: Any, tmp_path: Path) -> Recorder:
    """A recorder that starts whatever is missing."""
    return Recorder(graph, tmp_path / "bags", allow_missing=True)


def test_what_travels_is_recorded_bit_for_bit(graph: Any, recorder: Recorder) -> None:
    task = graph.mouth(String, topics.TASK)
    task.publish(String(data="clear the table"))
    state, images = graph.mouth(JointState, topics.STATE), graph.mouth(CompressedImage, FRONT)
    graph.until(lambda: all(p.get_subscription_count() for p in (task, state, images)), "matched endpoints")
    graph.until(lambda: task.wait_for_all_acked())
    recorder.tells("task", lambda status: {v.key: v.value for v in status.values}["messages"] == "1")
    recorder.set(notes="seed=4; operator=A. B.")
    begun = recorder.start()
    assert begun.success and not (Path(begun.message) / "metadata.yaml").exists()
    vector = np.random.default_rng(0).standard_normal(CONTRACT.dim)
    counts = recorder.node.report

    def arrived(topic: str) -> int:
        return next(int(s.values["messages"]) for s in counts() if s.part == topic)

    for k in range(50):
        state.publish(messages.fill_state(JointState(), CONTRACT, k * 1000, vector + k))
        images.publish(messages.fill_compressed(CompressedImage(), k * 1000, "front", bytes([k]) * 20000))
        graph.until(lambda k=k: arrived(topics.STATE) > k and arrived(FRONT) > k, "a message")
    answer = recorder.stop()
    assert answer.success and answer.message == begun.message
    seen = read(answer.message)
    # Said before the episode began, and still in force.
    assert [message.data for message in seen["task"]] == ["clear the table"]
    for k, message in enumerate(seen["state"]):
        np.testing.assert_array_equal(messages.state_from(message, CONTRACT), vector + k)
        assert messages.stamp_to_ns(message.header.stamp) == k * 1000
    assert [bytes(message.data) for message in seen[FRONT]] == [bytes([k]) * 20000 for k in range(50)]
    custom = custom_data(Path(answer.message))
    assert (custom["task"], custom["seed"], custom["operator"]) == ("clear the table", "4", "A. B.")
    assert (custom["outcome"], custom["dropped"]) == ("success", "0")
    assert custom["started"] < custom["stopped"]


def test_missing_topics_are_named(graph: Any, tmp_path: Path) -> None:
    recorder = Recorder(graph, tmp_path / "bags")
    answer = recorder.start()
    assert not answer.success
    for topic in required_topics(CONTRACT):
        assert f"{topic} (no publisher)" in answer.message
    assert "the parameter allow_missing starts anyway" in answer.message
    state = graph.mouth(JointState, topics.STATE)
    graph.until(lambda: state.get_subscription_count())
    assert f"{topics.STATE} (no message yet)" in recorder.start().message
    recorder.set(task="wait")
    assert "task" not in recorder.start().message
    assert not (tmp_path / "bags").exists()


def test_it_starts_when_nothing_is_missing(graph: Any, robot: Any, tmp_path: Path) -> None:
    recorder = Recorder(graph, tmp_path / "bags", task="clear the table", silence_s=20.0, use_sim_time=True)
    from nav_msgs.msg import Odometry
    from trajectory_msgs.msg import JointTrajectory

    others = [
        (graph.mouth(JointState, topics.JOINT_STATES), JointState()),
        (graph.mouth(Odometry, topics.ODOM), Odometry()),
        (graph.mouth(JointTrajectory, topics.ACTION_CHUNK), JointTrajectory()),
    ]
    graph.every(0.05, lambda: [publisher.publish(message) for publisher, message in others])
    answers: list[Any] = []

    def started() -> bool:
        answers.append(recorder.start())
        return bool(answers[-1].success)

    graph.until(started, "nothing missing")
    recorder.tells(FRONT, lambda status: status.level == OK and float(value(status, "rate_hz")) > 0)
    assert recorder.stop().success


def value(status: Any, key: str) -> str:
    return str(next(pair.value for pair in status.values if pair.key == key))


def test_a_topic_that_falls_silent_is_told_during_the_episode(graph: Any, robot: Any, tmp_path: Path) -> None:
    recorder = Recorder(graph, tmp_path / "bags", allow_missing=True, silence_s=0.3, use_sim_time=True)
    back = topics.camera_image("back")
    recorder.tells(back, lambda status: int(value(status, "messages")) > 5)
    robot.silent.add("back")
    assert recorder.start().success
    recorder.tells(back, lambda status: status.level == WARN and "silent for" in status.message)
    assert "silent for" in recorder.node.health.troubles[back]
    robot.silent.clear()
    graph.until(lambda: back not in recorder.node.health.troubles, "recovered")


def test_gaps_are_counted_and_told(graph: Any, recorder: Recorder) -> None:
    front = graph.mouth(CompressedImage, FRONT)
    graph.until(lambda: front.get_subscription_count())
    recorder.start()
    period_ns = round(1e9 / CONTRACT.rates.camera_hz)
    sent = [k for k in range(60) if k % 3]  # every third frame is lost
    for k in sent:
        front.publish(messages.fill_compressed(CompressedImage(), 10**9 + k * period_ns, "front", b"jpeg"))
        graph.until(lambda: True)
    recorder.tells(FRONT, lambda status: int(value(status, "missing")) == len([k for k in range(1, 59) if k % 3 == 0]))
    bag = recorder.stop()
    assert custom_data(Path(bag.message))[f"missing.{FRONT}"] == "19"


def test_double_start_and_services_without_an_episode(recorder: Recorder) -> None:
    assert (
        recorder.stop().message == recorder.discard().message == recorder.mark("x", "event").message == "not recording"
    )
    assert recorder.start().success
    again = recorder.start()
    assert not again.success and again.message == "already recording; ~/stop or ~/discard first"
    assert recorder.stop(success=False).success
    [bag] = recorder.directory.iterdir()
    assert custom_data(bag)["outcome"] == "failure"


def test_discard_leaves_nothing(recorder: Recorder) -> None:
    folder = Path(recorder.start().message)
    assert folder.is_dir()
    answer = recorder.discard()
    assert answer.success and answer.message == f"{folder} discarded"
    assert list(recorder.directory.iterdir()) == []
    assert recorder.start().success


def test_marks(recorder: Recorder) -> None:
    recorder.start()
    assert recorder.mark("pick up the red cube", "subtask").message == "subtask: pick up the red cube"
    assert recorder.mark("die Tasse fiel um ☕", "event").success
    assert not recorder.mark("", "event").success
    seen = read(recorder.stop().message)
    assert [message.data for message in seen["subtask"]] == ["pick up the red cube"]
    assert [message.data for message in seen["event"]] == ["die Tasse fiel um ☕"]


def test_a_subtask_of_before_that_was_withdrawn_is_not_repeated(graph: Any, recorder: Recorder) -> None:
    subtask = graph.mouth(String, topics.SUBTASK)
    graph.until(lambda: subtask.get_subscription_count())
    for count, text in enumerate(("wait", ""), 1):
        subtask.publish(String(data=text))
        recorder.tells("subtask", lambda status, n=count: int(value(status, "messages")) == n)
    recorder.start()
    assert "subtask" not in read(recorder.stop().message)


def test_an_open_episode_is_kept_when_the_node_ends(graph: Any, tmp_path: Path) -> None:
    recorder = Recorder(graph, tmp_path / "bags", record_on_activate=True)
    subtask = graph.mouth(String, topics.SUBTASK)
    graph.until(lambda: subtask.get_subscription_count())
    subtask.publish(String(data="pick up the red cube"))
    recorder.tells("subtask", lambda status: int(value(status, "messages")) == 1)
    recorder.node.trigger_deactivate()
    [bag] = (tmp_path / "bags").iterdir()
    assert custom_data(bag)["outcome"] == "unknown"
    assert [message.data for message in read(str(bag))["subtask"]] == ["pick up the red cube"]
    assert not recorder.start().success


def test_too_little_room_refuses_and_ends_an_episode(graph: Any, tmp_path: Path) -> None:
    free_mb = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize // 10**6
    crowded = Recorder(graph, tmp_path / "bags", allow_missing=True, min_free_mb=free_mb + 1000)
    answer = crowded.start()
    assert not answer.success and f"min_free_mb is {free_mb + 1000}" in answer.message
    crowded.node.trigger_deactivate()
    crowded.node.trigger_cleanup()
    crowded.set(min_free_mb=0)
    assert crowded.node.autostart()
    assert crowded.start().success


def test_wrong_notes_are_told(recorder: Recorder) -> None:
    recorder.set(notes="seed")
    answer = recorder.start()
    assert not answer.success and "notes: 'seed' is not valid" in answer.message


def test_a_folder_that_cannot_be_written(graph: Any, tmp_path: Path) -> None:
    (tmp_path / "bags").write_text("a file")
    recorder = Recorder(graph, tmp_path / "bags" / "deeper", allow_missing=True)
    answer = recorder.start()
    assert not answer.success and "bags" in answer.message
