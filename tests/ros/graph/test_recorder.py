"""Bags: whole or not there, readable by rosbags, and carrying what was on the wire."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rclpy.parameter import Parameter
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from pi05_ros import messages, topics
from pi05_ros.contract import load_contract
from pi05_ros.nodes.qos import profile
from pi05_ros.nodes.recorder_node import RecorderNode
from pi05_ros.qos import offered
from pi05_ros.recording import BagRecording, recorded_topics

CONTRACT = load_contract()
STORE = get_typestore(Stores.ROS2_KILTED)


def open_bag(directory: Path) -> BagRecording:
    return BagRecording(directory, {topic: f"/{topic.lstrip('/')}" for topic in recorded_topics(CONTRACT)}, CONTRACT)


def say(text: str) -> bytes:
    return bytes(STORE.serialize_cdr(STORE.types["std_msgs/msg/String"](text), "std_msgs/msg/String"))


def custom_data(bag: Path) -> dict[str, str]:
    written = yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert (written["version"], written["storage_identifier"]) == (9, "mcap")
    return dict(written["custom_data"])


def test_a_bag_appears_when_it_is_whole(tmp_path: Path) -> None:
    bag = open_bag(tmp_path)
    bag.write(topics.SUBTASK, 5, say("drive to the table"))
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
    path = bag.close({"task": "clear the table", "outcome": True})
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name] == ["episode_000000"]
    with Reader(path) as reader:
        assert {connection.topic.lstrip("/") for connection in reader.connections} == {
            topic.lstrip("/") for topic in recorded_topics(CONTRACT)
        }
    custom = custom_data(path)
    assert custom["task"] == "clear the table"
    assert json.loads(custom["contract"])["robot"] == CONTRACT.robot


def test_bags_are_numbered_and_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "episode_000007").mkdir()
    first, second = open_bag(tmp_path), open_bag(tmp_path)
    for bag in (first, second):
        bag.write(topics.TASK, 1, say("wait"))
    assert [bag.close({}).name for bag in (first, second)] == ["episode_000008", "episode_000009"]
    with AnyReader([tmp_path / "episode_000009"]) as reader:
        assert [reader.deserialize(data, c.msgtype).data for c, _, data in reader.messages()] == ["wait"]


def test_a_discarded_bag_leaves_nothing(tmp_path: Path) -> None:
    bag = open_bag(tmp_path)
    bag.write(topics.TASK, 1, say("wait"))
    bag.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def recorder(ros: Any, tmp_path: Path) -> RecorderNode:
    overrides = [Parameter("directory", value=str(tmp_path / "bags"))]
    node = ros.add(RecorderNode(context=ros.context, parameter_overrides=overrides))
    assert node.autostart()
    return node


@pytest.mark.ros
def test_what_travels_is_recorded_bit_for_bit(ros: Any, recorder: RecorderNode, tmp_path: Path) -> None:
    node = ros.node()
    task = node.create_publisher(String, topics.TASK, profile(offered(topics.TASK)))
    task.publish(String(data="clear the table"))
    state = node.create_publisher(JointState, topics.STATE, profile(offered(topics.STATE)))
    front = topics.camera_image("front")
    images = node.create_publisher(CompressedImage, front, profile(offered(front)))
    matched = (task, state, images)
    assert ros.until(lambda: all(publisher.get_subscription_count() for publisher in matched))
    assert ros.call(node, Trigger, "/recorder_node/start").success
    assert not ros.call(node, Trigger, "/recorder_node/start").success
    vector = np.random.default_rng(0).standard_normal(CONTRACT.dim)
    for k in range(50):
        state.publish(messages.fill_state(JointState(), CONTRACT, k * 1000, vector + k))
        image = CompressedImage(format="jpeg")
        image.data = bytes([k]) * 20000
        images.publish(image)
        ros.until(lambda: False, 0.004)
    answer = ros.call(node, Trigger, "/recorder_node/stop")
    assert answer.success
    seen: dict[str, list[Any]] = {}
    with AnyReader([Path(answer.message)]) as reader:
        for connection, _, data in reader.messages():
            seen.setdefault(connection.topic, []).append(reader.deserialize(data, connection.msgtype))
    # Said before the episode began, and still in force.
    assert [message.data for message in seen["/task"]] == ["clear the table"]
    assert len(seen["/state"]) == len(seen[f"/{front}"]) == 50
    last = seen["/state"][-1]
    np.testing.assert_array_equal(messages.state_from(last, CONTRACT), vector + 49)
    assert {bytes(message.data)[0] for message in seen[f"/{front}"]} == set(range(50))
    assert custom_data(Path(answer.message))["task"] == "clear the table"


@pytest.mark.ros
def test_an_open_episode_is_kept_when_the_node_ends(ros: Any, recorder: RecorderNode, tmp_path: Path) -> None:
    node = ros.node()
    assert ros.call(node, Trigger, "/recorder_node/start").success
    subtask = node.create_publisher(String, topics.SUBTASK, profile(offered(topics.SUBTASK)))
    subtask.publish(String(data="pick up the red cube"))
    bag = tmp_path / "bags" / "episode_000000"
    assert ros.until(lambda: subtask.wait_for_all_acked())
    recorder.trigger_deactivate()
    assert bag.is_dir()
    assert not ros.call(node, Trigger, "/recorder_node/discard").success
