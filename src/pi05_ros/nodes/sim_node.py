"""sim_node: the simulated robot as its drivers would look from outside, plus reset, success and ground truth.

Says /clock, `joint_states`, `odom`, `cameras/<name>/image/compressed` and `~/world` (see `pi05_ros.sim.truth`). With
controller "in_process" a controller of the same process is ticked inside each physics step (see sim_process.py); with
"topics" the node hears `effort_controller/commands` and `base_controller/cmd_vel`. Time runs while the node is active
and somebody drives the robot.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from geometry_msgs.msg import TwistStamped
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from pi05_ros import topics
from pi05_ros.config import Doc, OneOf, Range
from pi05_ros.contract import Contract
from pi05_ros.control.hardware import Array
from pi05_ros.health import Level, Status
from pi05_ros.messages import stamp_to_ns
from pi05_ros.nodes.base import BaseNode
from pi05_ros.nodes.sim_sensors import SimSensors
from pi05_ros.sim.loop import LoopHardware, SimLoop
from pi05_ros.sim.pace import PaceConfig
from pi05_ros.sim.simulator import Simulator
from pi05_ros.sim.tasks import task_success

ANSWER_S = 20.0  # longest wait for the physics thread [s]


@dataclass(frozen=True)
class SimConfig(PaceConfig):
    """Parameters of sim_node."""

    seed: Annotated[int, Doc("layout of the scene, also of the next ~/reset"), Range(0, 2**31 - 1)] = 0
    task: Annotated[str, Doc("task that ~/success checks until the topic `task` says something")] = "clear the table"
    viewer: Annotated[bool, Doc("show a window")] = False
    controller: Annotated[
        str,
        Doc("in_process: a controller of this process is ticked in each step; topics: commands are heard"),
        OneOf(("in_process", "topics")),
    ] = "in_process"
    clock_hz: Annotated[float, Doc("rate of /clock in simulated time [Hz]"), Range(10, 500)] = 100.0


class SimNode(BaseNode[SimConfig]):
    """The simulator's node."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__("sim_node", SimConfig, **arguments)
        self._loop: SimLoop | None = None
        self._sensors: SimSensors | None = None
        self._on_reset: Callable[[int], None] = lambda _: None
        self._driven = False

    @property
    def hardware(self) -> LoopHardware:
        """The robot, for a controller that is ticked by this node.

        Raises:
            ValueError: the node is not configured, or hears commands from topics.
        """
        if self._loop is None or self._config.controller != "in_process":
            raise ValueError("sim_node must be configured with controller: in_process before its controller is")
        return LoopHardware(self._loop)

    @property
    def time_ns(self) -> int:
        """Simulated time; it never runs backwards."""
        return 0 if self._loop is None else self._loop.now_ns

    def note_chunk(self, stamp_ns: int) -> None:
        """Tell the lock-step of a chunk that was taken or refused."""
        if self._loop is not None:
            self._loop.lockstep.note(stamp_ns, self._loop.now_ns)

    def drive(self, tick: Callable[[int], object] | None, on_reset: Callable[[int], None] = lambda _: None) -> None:
        """Tick a controller inside each physics step; None takes it away, and time stands still.

        Args:
            tick: called in the physics thread with the time [ns].
            on_reset: called in the physics thread after the scene was reset, with the time [ns].
        """
        if self._loop is not None:
            self._loop.submit(lambda: self._drive(tick, on_reset)).result(ANSWER_S)

    def build(self, config: SimConfig) -> None:
        """Make the simulator, its topics and services."""
        self._config, self._task = config, config.task
        self._sensors = SimSensors(self)
        self._loop = SimLoop(
            lambda: _make_simulator(self.contract, config),
            self.contract,
            config,
            config.clock_hz,
            self._sensors,
        )
        self._loop.start()
        self.subscribe(String, topics.TASK, self._on_task)
        chunks = [topics.ACTION_CHUNK_DRY_RUN]
        if config.controller == "topics":  # otherwise the controller tells, when it has it
            chunks.append(topics.ACTION_CHUNK)
        for topic in chunks:
            self.subscribe(JointTrajectory, topic, lambda message: self.note_chunk(stamp_to_ns(message.header.stamp)))
        self.service(Trigger, topics.SIM_RESET, self._reset)
        self.service(Trigger, topics.SIM_SUCCESS, self._success)
        if config.controller == "topics":
            self._effort, self._twist = np.zeros(len(self.contract.joint_names)), np.zeros(3)
            self.subscribe(Float64MultiArray, topics.EFFORT_COMMANDS, self._on_effort)
            self.subscribe(TwistStamped, topics.CMD_VEL, self._on_twist)
            self._controller = self.create_client(Trigger, topics.CONTROLLER_RESET.replace("~", "pd_controller_node"))
        self.every(0.1, self._check)

    def start(self) -> None:
        """Let time run."""
        assert self._loop is not None
        self._loop.go(lambda: self._driven)

    def stop(self) -> None:
        """Let time stand still."""
        if self._loop is not None:
            self._loop.pause()

    def teardown(self) -> None:
        """End the physics thread."""
        if self._loop is not None:
            self._loop.stop()
        if self._sensors is not None:
            self._sensors.close()
        self._loop = self._sensors = None
        self._driven = False

    def report(self) -> list[Status]:
        """Tell how time runs."""
        loop, sensors = self._loop, self._sensors
        if loop is None or sensors is None:
            return []
        values: dict[str, str | int | float] = {
            "real_time_factor": loop.real_time_factor,
            "time_s": loop.now_ns * 1e-9,
            "held_s": loop.held_s,
            "lockstep_timeouts": loop.lockstep.timeouts,
            **{f"frames.{name}": count for name, count in sensors.frames.items()},
        }
        waiting = self.active and not self._driven
        level, message = (Level.WARN, "time stands still: nobody drives the robot") if waiting else (Level.OK, "ok")
        return [Status("simulation", level, message, values)]

    def _drive(self, tick: Callable[[int], object] | None, on_reset: Callable[[int], None]) -> None:
        assert self._loop is not None
        self._loop.drive(tick)
        self._on_reset, self._driven = on_reset, tick is not None

    def _check(self) -> None:
        """End the process, with the reason, when the physics thread has died."""
        if self._loop is not None and self._loop.failure is not None:
            raise RuntimeError("the physics thread has died") from self._loop.failure

    def _on_task(self, message: Any) -> None:
        self._task = message.data

    def _on_effort(self, message: Any) -> None:
        effort = np.asarray(message.data, dtype=np.float64)
        if effort.shape != self._effort.shape or not np.isfinite(effort).all():
            self.health.drop("effort command: not understood")
            return
        self._effort, self._driven = effort, True
        self._command(self._effort, self._twist)

    def _on_twist(self, message: Any) -> None:
        linear, angular = message.twist.linear, message.twist.angular
        self._twist = np.array([linear.x, linear.y, angular.z])
        self._command(self._effort, self._twist)

    def _command(self, effort: Array, twist: Array) -> None:
        loop = self._loop
        if loop is not None:
            loop.submit(lambda: loop.simulator.write(effort, twist))

    def _reset(self, _: Any, response: Any) -> Any:
        loop = self._loop
        assert loop is not None
        seed = int(self.get_parameter("seed").value)

        def work() -> None:
            loop.reset(seed)
            self._on_reset(loop.now_ns)

        loop.submit(work).result(ANSWER_S)
        if self._config.controller == "topics":
            self._controller.call_async(Trigger.Request())
        response.success, response.message = True, f"seed {seed}"
        return response

    def _success(self, _: Any, response: Any) -> Any:
        loop = self._loop
        assert loop is not None
        world = loop.submit(loop.world).result(ANSWER_S)
        cleared = sum(item.in_bin for item in world.objects)
        response.success = bool(task_success(world, self._task))
        response.message = f"{cleared} of {len(world.objects)} objects in the bin"
        return response


def _make_simulator(contract: Contract, config: SimConfig) -> Simulator:
    if config.viewer:
        from pi05_ros.sim.viewer import ViewedSimulator  # needs a display

        simulator: Simulator = ViewedSimulator(contract)
    else:
        simulator = Simulator(contract)
    simulator.reset(config.seed)
    return simulator
