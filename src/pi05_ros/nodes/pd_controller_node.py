"""pd_controller_node: `action_chunk` in, joint efforts and a base velocity out, at the contract's torque rate.

Alone (a real robot, Gazebo) it hears `joint_states` and `odom`, and commands `effort_controller/commands` and
`base_controller/cmd_vel` from a thread of its own. In the simulator's process it drives the simulator itself, and its
tick is part of the physics step. Configured it waits; once activated it commands until it is cleaned up: deactivated,
it brakes and holds. `~/stop` latches a software stop (no emergency stop!), `~/reset` leaves it.
"""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from pi05_ros import topics
from pi05_ros.control.assembly import assemble_controller
from pi05_ros.control.config import ControllerConfig
from pi05_ros.control.executor import Refusal
from pi05_ros.control.hardware import Hardware
from pi05_ros.health import Level, Status
from pi05_ros.messages import MessageError, chunk_from, stamp_to_ns
from pi05_ros.nodes.base import BaseNode, run
from pi05_ros.nodes.topic_hardware import TopicHardware


@dataclass(frozen=True)
class ControllerNodeConfig(ControllerConfig):
    """Parameters of pd_controller_node: the controller's tuning."""


class Host(Protocol):
    """A simulator in the same process that ticks the controller."""

    @property
    def hardware(self) -> Hardware:
        """The robot."""

    @property
    def time_ns(self) -> int:
        """The simulator's time, which is ahead of what /clock has brought."""

    def drive(self, tick: Callable[[int], object] | None, on_reset: Callable[[int], None] = ...) -> None:
        """Tick the controller inside each physics step, and tell it of new scenes."""

    def note_chunk(self, stamp_ns: int) -> None:
        """A chunk of this stamp has been taken or refused."""


class PdControllerNode(BaseNode[ControllerNodeConfig]):
    """The controller's node.

    Args:
        host: who ticks the controller; None: a thread of its own, over topics.
        arguments: see BaseNode.
    """

    def __init__(self, host: Host | None = None, **arguments: Any) -> None:
        super().__init__("pd_controller_node", ControllerNodeConfig, **arguments)
        self._host = host
        self._ticker: Ticker | None = None
        self._topics: TopicHardware | None = None
        self._not_before_ns = 0

    def build(self, config: ControllerNodeConfig) -> None:
        """Put the controller together; in a simulator it begins to hold the robot at once."""
        self._controller = assemble_controller(self.contract, self._hardware(), config)
        self.subscribe(JointTrajectory, topics.ACTION_CHUNK, self._on_chunk)
        self.service(Trigger, topics.CONTROLLER_STOP, self._stop)
        self.service(Trigger, topics.CONTROLLER_RESET, self._reset)
        if self._host is not None:
            self._host.drive(self._controller.tick, self._on_scene)

    def start(self) -> None:
        """Follow chunks; a software stop that was latched before stays."""
        if self._host is None and self._ticker is None:
            self._ticker = Ticker(1.0 / self.contract.rates.torque_hz, lambda: self._controller.tick(self.now_ns()))

    def stop(self) -> None:
        """Brake and hold."""
        self._controller.hold()

    def teardown(self) -> None:
        """Cease to command."""
        if self._host is not None:
            self._host.drive(None)
        if self._ticker is not None:
            self._ticker.close()
            self._ticker = None
        if self._topics is not None:
            self._topics.close()
            self._topics = None

    def report(self) -> list[Status]:
        """Tell what the controller does and has counted."""
        told = self._controller.snapshot()
        latch, state = told.pop("latch"), told.pop("state")
        level = Level.ERROR if latch else Level.OK
        values = {"latch": latch or "", "state": state, **_flat(told)}
        return [Status("controller", level, f"software stop: {latch}" if latch else str(state), values)]

    def _hardware(self) -> Hardware:
        if self._host is not None:
            return self._host.hardware
        self._topics = TopicHardware(self)
        return self._topics

    def _on_chunk(self, message: Any) -> None:
        self._take(message)
        if self._host is not None:
            self._host.note_chunk(stamp_to_ns(message.header.stamp))

    def _take(self, message: Any) -> None:
        if not self.active:
            self.health.drop("chunk: not active")
            return
        try:
            chunk = chunk_from(message)
        except MessageError as error:
            self.health.drop("chunk: not understood")
            self.health.trouble("action_chunk", str(error))
            return
        if chunk.stamp_ns < self._not_before_ns:
            self.health.drop("chunk: of the scene before")
            return
        answer = self._controller.offer(chunk, self.now_ns() if self._host is None else self._host.time_ns)
        if isinstance(answer, Refusal):
            self.health.trouble("action_chunk", f"refused, {answer.reason}: {answer.detail}")
        else:
            self.health.fine("action_chunk")

    def _on_scene(self, now_ns: int) -> None:
        """The simulator was reset: begin anew, and follow nothing that was computed from the scene before."""
        self._not_before_ns = now_ns
        self._controller.reset(keep_grip=False)

    def _stop(self, _: Any, response: Any) -> Any:
        self._controller.stop()
        response.success, response.message = True, "stopped; ~/reset leaves the stop"
        return response

    def _reset(self, _: Any, response: Any) -> Any:
        self._controller.reset()
        response.success, response.message = True, "holding"
        return response


class Ticker:
    """Calls periodically from a thread of its own, on the monotonic clock; late calls are not caught up with.

    Args:
        period_s: time between two calls.
        tick: what is called.
    """

    def __init__(self, period_s: float, tick: Callable[[], object]) -> None:
        self._period_s, self._tick = period_s, tick
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="torque", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopping.is_set():
            self._tick()
            due = max(due + self._period_s, time.monotonic() - self._period_s)
            time.sleep(max(due - time.monotonic(), 0.0))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str | int | float]:
    """Return nested values with dotted keys."""
    flat: dict[str, str | int | float] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def main(args: Sequence[str] | None = None) -> None:
    """Run the node."""
    sys.exit(run(lambda: [PdControllerNode()], args))


if __name__ == "__main__":
    main()
