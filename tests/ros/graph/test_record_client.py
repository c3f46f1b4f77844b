"""The client of `pi05 record` reaches a node only when calls get there and answers come back."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from pi05_ros.nodes.record_client import Pending, RecordClient

NAME = "demonstrator_node"


class Actor(LifecycleNode):
    """A node of that name that counts."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(NAME, **arguments)
        self.deactivated = 0

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.deactivated += 1
        return super().on_deactivate(state)


@pytest.fixture
def client(domain: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordClient]:
    monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
    with RecordClient() as made:
        yield made


def active(ros: Any) -> Actor:
    node: Actor = ros.add(Actor(context=ros.context))
    node.trigger_configure()
    node.trigger_activate()
    return node


def answer(ros: Any, pending: Pending) -> tuple[bool, str]:
    assert ros.until(pending.done), pending.what
    return pending.result()


def unspun(predicate: Callable[[], object], seconds: float = 30.0) -> bool:
    """Wait without spinning the nodes of this process."""
    end = time.monotonic() + seconds
    while not predicate() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(predicate())


@pytest.mark.ros
def test_calls_go_through_once_a_node_is_reached(ros: Any, client: RecordClient) -> None:
    assert not client.reaches(NAME)  # nobody is there
    node = active(ros)
    assert ros.until(lambda: client.reaches(NAME))
    assert answer(ros, client.state(NAME)) == (True, "active")
    assert answer(ros, client.transition(NAME, "deactivate")) == (True, "deactivate")
    assert (answer(ros, client.state(NAME)), node.deactivated) == ((True, "inactive"), 1)
    assert answer(ros, client.transition(NAME, "activate")) == (True, "activate")


@pytest.mark.ros
def test_services_that_do_not_answer_are_not_reached(ros: Any, client: RecordClient) -> None:
    node = active(ros)
    client.reaches(NAME)
    # The node has discovered the client, but has not got round to an answer.
    assert unspun(lambda: client.reaches(NAME) or node.count_clients(f"/{NAME}/get_state") == 1)
    assert not client.reaches(NAME)
    assert ros.until(lambda: client.reaches(NAME))


@contextmanager
def running() -> Iterator[None]:
    """The node in a process of its own, which ends in order."""
    process = subprocess.Popen([sys.executable, "-m", f"pi05_ros.nodes.{NAME}"])
    try:
        yield
        process.terminate()
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()


@pytest.mark.ros
def test_a_node_that_comes_again_has_to_answer_anew(domain: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # A domain of its own: the nodes of the tests above linger in their process.
    monkeypatch.setenv("ROS_DOMAIN_ID", str((domain + 53) % 100 + 1))
    with RecordClient() as client:
        for _ in range(2):
            with running():
                assert unspun(lambda: client.reaches(NAME))
                state = client.state(NAME)
                assert unspun(state.done) and state.result()[0]
            assert unspun(lambda: not client.reaches(NAME))


def test_a_call_before_the_node_was_reached_is_an_error(client: RecordClient) -> None:
    with pytest.raises(RuntimeError, match=r"sim_node/reset is called before sim_node was reached"):
        client.trigger("sim_node/reset")
