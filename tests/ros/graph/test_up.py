"""The graph as processes: `pi05 up` and `run_graph`."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from rosbags.highlevel import AnyReader
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from pi05_ros import topics
from pi05_ros.contract import load_contract
from pi05_ros.graph import GraphArguments
from pi05_ros.messages import chunk_from, stamp_to_ns
from pi05_ros.nodes.qos import profile
from pi05_ros.qos import recorded
from pi05_ros.sim.tasks import Subtask
from pi05_ros.up import environment, main, run_graph

pytestmark = pytest.mark.ros
CONTRACT = load_contract()


def test_wrong_arguments_are_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--sim", "gazebo"]) == 2
    assert main(["--policy", "/nowhere"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert all(line.startswith("pi05 up: ") for line in errors)


def test_every_process_gets_the_shared_memory_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTDDS_DEFAULT_PROFILES_FILE", raising=False)
    assert Path(environment(GraphArguments())["FASTDDS_DEFAULT_PROFILES_FILE"]).is_file()
    monkeypatch.setenv("FASTDDS_DEFAULT_PROFILES_FILE", "/my/own.xml")
    assert environment(GraphArguments())["FASTDDS_DEFAULT_PROFILES_FILE"] == "/my/own.xml"


def test_a_bad_parameter_ends_the_graph_with_a_reason(tmp_path: Path, domain: int) -> None:
    params = tmp_path / "nodes.yaml"
    params.write_text("/**/pd_controller_node:\n  ros__parameters: {arm_frequency: -1.0}\n")
    output = io.StringIO()
    outcome = run_graph(GraphArguments(driver="none", params_file=str(params)), duration_s=120.0, output=output)
    assert outcome.exit_status == 1
    assert outcome.failures == ("sim_node died (exit status 1)",)
    assert "arm_frequency: -1.0 is not valid" in output.getvalue()


def test_the_demonstrator_drives_the_robot_and_the_recorder_writes_it_down(ros: Any, tmp_path: Path) -> None:
    tester = ros.node()
    chunks: list[Any] = []
    subtasks: list[str] = []

    def listen(kind: Any, topic: str, keep: Any) -> None:
        tester.create_subscription(kind, f"/robot1/{topic}", keep, profile(recorded(topic)))

    listen(JointTrajectory, topics.ACTION_CHUNK, lambda message: chunks.append(chunk_from(message)))
    listen(String, topics.SUBTASK, lambda message: subtasks.append(message.data))
    arguments = GraphArguments(
        driver="demonstrator", namespace="robot1", seed=1, realtime_factor=1.0, record=str(tmp_path / "bags")
    )

    def enough() -> bool:
        ros.until(lambda: False, 0.05)
        return len(chunks) >= 20 and len(subtasks) >= 2

    outcome = run_graph(arguments, duration_s=180.0, until=enough, output=io.StringIO())
    assert outcome.exit_status == 0, outcome
    assert enough()
    assert [Subtask.parse(text).verb for text in subtasks[:2]] == ["drive", "pick"]
    assert all(np.isfinite(chunk.actions).all() and chunk.names == CONTRACT.names for chunk in chunks)
    stamps = np.array([chunk.stamp_ns for chunk in chunks])
    # One chunk in every period of 0.4 s; which image it falls on depends on the machine.
    assert set(np.diff(stamps // 400_000_000)) == {1}
    check_bag(tmp_path / "bags", len(chunks))


def check_bag(folder: Path, chunks: int) -> None:
    """One whole bag, with every topic of the contract in it, images in step with simulated time."""
    (bag,) = folder.iterdir()
    with AnyReader([bag]) as reader:
        counts = {connection.topic: connection.msgcount for connection in reader.connections}
        front = [c for c in reader.connections if c.topic == f"/robot1/{topics.camera_image('front')}"]
        driven = [c for c in reader.connections if c.topic == f"/robot1/{topics.STATE}"]
        states = np.array([reader.deserialize(d, c.msgtype).position for c, _, d in reader.messages(driven)])
        said = [c for c in reader.connections if c.topic == f"/robot1/{topics.ACTION_CHUNK}"]
        heard = [reader.deserialize(d, c.msgtype) for c, _, d in reader.messages(said)]
        periods = [stamp_to_ns(message.header.stamp) // 400_000_000 for message in heard]
        stamps = [stamp_to_ns(reader.deserialize(d, c.msgtype).header.stamp) for c, _, d in reader.messages(front)]
    written = (topics.STATE, topics.JOINT_STATES, topics.ODOM, topics.TASK, topics.SUBTASK, topics.ACTION_CHUNK)
    for topic in (*written, *topics.camera_images(CONTRACT).values()):
        assert counts[f"/robot1/{topic}"] > 0, topic
    # The recorder may join a second after the driver; from then on it misses none.
    assert len(periods) >= chunks - 5 and set(np.diff(periods)) == {1}
    assert np.ptp(states[:, CONTRACT.base_index[0]]) > 0.05, "the base never moved"
    gaps = np.diff(sorted(set(stamps)))
    assert (gaps == 40_000_000).mean() > 0.95


def test_ctrl_c_ends_everything_within_five_seconds(ros: Any, domain: int) -> None:
    seen: list[Any] = []
    front = topics.camera_image("front")
    ros.node().create_subscription(CompressedImage, front, seen.append, profile(recorded(front)))
    environment = {**os.environ, "ROS_DOMAIN_ID": str(domain)}
    command = [sys.executable, "-m", "pi05_ros.up", "--driver", "none"]
    up = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert ros.until(lambda: len(seen) > 5, 120.0)
        children = psutil.Process(up.pid).children(recursive=True)
        assert len(children) >= 3  # simulator, state node, guardian
        begin = time.monotonic()
        up.send_signal(signal.SIGINT)
        output, _ = up.communicate(timeout=20.0)
    finally:
        up.kill()
    # The supervisor's own bound is 4.5 s; the rest is for a machine under load.
    assert time.monotonic() - begin < 15.0
    assert up.returncode == 0, output
    assert not [child for child in children if child.is_running()]
