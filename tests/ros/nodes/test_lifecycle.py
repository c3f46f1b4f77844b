"""Transitions through the standard services, diagnostics in every state, and processes that end as they should."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from sensor_msgs.msg import JointState

from pi05_ros.config import ConfigError
from pi05_ros.nodes.base import BaseNode
from pi05_ros.nodes.state_node import StateConfig, StateNode
from pi05_ros.topics import DIAGNOSTICS, STATE

pytestmark = pytest.mark.ros


class Probe(BaseNode[StateConfig]):
    """Writes down which hooks ran, publishes at every tick, and fails on request."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__("probe", StateConfig, **arguments)
        self.ran: list[str] = []
        self.fails = ""

    def _note(self, hook: str) -> None:
        self.ran.append(hook)
        if self.fails == hook:
            raise ConfigError(f"{hook} cannot work")

    def build(self, config: StateConfig) -> None:
        self.output = self.publisher(JointState, STATE)
        self.every(0.01, lambda: self.output.publish(JointState()))
        self._note("build")

    def start(self) -> None:
        self._note("start")

    def stop(self) -> None:
        self.output.publish(JointState(name=["last word"]))
        self._note("stop")

    def teardown(self) -> None:
        self._note("teardown")


def change(graph: Any, transition: int) -> bool:
    request = ChangeState.Request(transition=Transition(id=transition))
    return bool(graph.call(ChangeState, "probe/change_state", request).success)


def state(graph: Any) -> str:
    return str(graph.call(GetState, "probe/get_state", GetState.Request()).current_state.label)


def test_a_whole_life_through_services(graph: Any) -> None:
    heard, told = graph.hear(JointState, STATE), graph.hear(DiagnosticArray, DIAGNOSTICS)
    probe = graph.add(Probe, start=False)
    assert state(graph) == "unconfigured"
    graph.until(lambda: told)  # it reports before it is configured
    assert change(graph, Transition.TRANSITION_CONFIGURE) and state(graph) == "inactive"
    assert not heard and probe.ran == ["build"]
    assert change(graph, Transition.TRANSITION_ACTIVATE) and state(graph) == "active"
    graph.until(lambda: len(heard) > 3)
    assert change(graph, Transition.TRANSITION_DEACTIVATE)
    graph.until(lambda: heard[-1].name == ["last word"])
    count = len(told)
    graph.until(lambda: len(told) > count)
    assert heard[-1].name == ["last word"]  # silent for as long as a period of diagnostics
    assert change(graph, Transition.TRANSITION_ACTIVATE)
    graph.until(lambda: heard[-1].name == [])
    assert change(graph, Transition.TRANSITION_DEACTIVATE) and change(graph, Transition.TRANSITION_CLEANUP)
    assert state(graph) == "unconfigured"
    assert probe.ran == ["build", "start", "stop", "start", "stop", "teardown"]
    assert change(graph, Transition.TRANSITION_CONFIGURE)
    assert change(graph, Transition.TRANSITION_INACTIVE_SHUTDOWN) and state(graph) == "finalized"
    assert probe.ran[-2:] == ["build", "teardown"]


def test_a_build_that_fails_is_torn_down_and_can_be_repeated(graph: Any) -> None:
    told = graph.hear(DiagnosticArray, DIAGNOSTICS)
    probe = graph.add(Probe, start=False)
    probe.fails = "build"
    assert not change(graph, Transition.TRANSITION_CONFIGURE)
    assert state(graph) == "unconfigured" and probe.failure == "build cannot work"
    assert probe.ran == ["build", "teardown"]
    graph.until(lambda: any(s.message == "build cannot work" and s.level == b"\x02" for m in told for s in m.status))
    probe.fails = ""
    assert change(graph, Transition.TRANSITION_CONFIGURE) and state(graph) == "inactive"


def test_a_start_that_fails_leaves_it_inactive_and_silent(graph: Any) -> None:
    heard = graph.hear(JointState, STATE)
    probe = graph.add(Probe, start=False)
    probe.fails = "start"
    assert not probe.autostart()
    assert state(graph) == "inactive" and not probe.active and not heard
    probe.fails = ""
    assert change(graph, Transition.TRANSITION_ACTIVATE)
    graph.until(lambda: heard)


def test_diagnostics_name_node_and_part(graph: Any) -> None:
    told = graph.hear(DiagnosticArray, DIAGNOSTICS)
    node = graph.add(StateNode)
    node.health.drop("something", 3)
    graph.until(lambda: any(s.name == "state_node: merge" for m in told for s in m.status))
    names = [status.name for status in told[-1].status]
    assert names == ["state_node: lifecycle", "state_node: health", "state_node: merge"]
    health = next(status for status in told[-1].status if status.name.endswith("health"))
    assert {pair.key: pair.value for pair in health.values} == {"something": "3"}


def process(*arguments: str) -> subprocess.Popen[str]:
    """Start a node as its own process."""
    environment = {**os.environ, "ROS_DOMAIN_ID": str(os.getpid() % 101)}
    command = [sys.executable, "-m", "pi05_ros.nodes.camera_node", "--ros-args", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_process_cleanly(number: int) -> None:
    node = process("-p", "source:=image_topic", "-p", "address:=picture", "-p", "silence_s:=0.1")
    assert node.stdout is not None
    line = node.stdout.readline()
    assert "no picture from image_topic picture" in line  # it is up, and says what it lacks
    node.send_signal(number)
    rest, _ = node.communicate(timeout=20)
    assert node.returncode == 0
    assert "Traceback" not in rest


def test_configure_failure_ends_the_process_with_one_message(tmp_path: Path) -> None:
    node = process("-p", "source:=video", "-p", f"address:={tmp_path / 'none.mp4'}")
    output, _ = node.communicate(timeout=20)
    assert node.returncode == 1
    assert output.count("\n") == 1 and "none.mp4' is no file; give a video" in output
