"""The simulator's own thread: controller tick, physics step, then whatever sensors are due at the new time.

The time it gives to the outside (`SimLoop.now_ns`) never runs backwards: a reset of the scene continues it.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from pi05_ros.contract import Contract
from pi05_ros.control.hardware import Array, Hardware, JointReading
from pi05_ros.messages import Pixels
from pi05_ros.sim.pace import NS, Lockstep, PaceConfig, Pacer
from pi05_ros.sim.world import WorldState

T = TypeVar("T")
AGAIN_S = 0.2  # while time stands still, sensors say their last values again this often, for those who join late
MARK_HZ = 20.0


class Simulated(Hardware, Protocol):
    """What the loop needs of a simulator; it is made, used and closed in the loop's thread only."""

    @property
    def time_ns(self) -> int:
        """Simulated time since the last reset."""

    def step(self) -> None:
        """Advance by one period of the torque loop."""

    def reset(self, seed: int) -> None:
        """Start over from a seeded layout."""

    def render(self, camera: str) -> Pixels:
        """Return what a camera sees now: RGB uint8 [H, W, 3]."""

    def base_pose(self) -> Array:
        """Return the base's x, y [m] and yaw [rad] in the world."""

    def snapshot(self) -> WorldState:
        """Return the ground truth now."""

    def close(self) -> None:
        """Release the renderer and the window."""


class Sensors(Protocol):
    """Where the sensors go; called from the loop's thread, all stamps in the loop's time."""

    def clock(self, now_ns: int) -> None:
        """Time has come."""

    def joints(self, reading: JointReading, base_pose: Array) -> None:
        """Joints were measured, with the base at x, y [m], yaw [rad] in the world."""

    def look(self, images: dict[str, Pixels], world: WorldState) -> None:
        """Cameras saw `images` by name, while `world` was the truth (and its stamp the time)."""


class LoopHardware:
    """The simulator as the controller's hardware, in the loop's time. Only inside the loop's thread."""

    def __init__(self, loop: "SimLoop") -> None:
        self._loop = loop

    def read(self) -> JointReading | None:
        """Return the joints now."""
        return self._loop.reading()

    def write(self, effort: Array, base_twist: Array) -> None:
        """Command until the next call."""
        self._loop.simulator.write(effort, base_twist)


class SimLoop:
    """Runs a simulator in a thread of its own.

    Args:
        make: makes the simulator, inside the thread (an OpenGL context belongs to the thread that made it).
        contract: rates and cameras.
        config: pacing and lock-step.
        clock_hz: rate of `Sensors.clock` in simulated time.
        sensors: where sensors go.
    """

    def __init__(
        self, make: Callable[[], Simulated], contract: Contract, config: PaceConfig, clock_hz: float, sensors: Sensors
    ) -> None:
        rates = contract.rates
        self._make, self._sensors, self._cameras = make, sensors, tuple(contract.cameras)
        self.lockstep, self._pacer = Lockstep(config), Pacer(config.realtime_factor)
        self._step_hz = rates.torque_hz
        self._step_ns = round(NS / rates.torque_hz)
        self._clock_hz, self._joints_hz, self._cameras_hz = clock_hz, rates.joint_state_hz, rates.camera_hz
        self._tick: Callable[[int], object] | None = None
        self._ready: Callable[[], bool] | None = None  # None: time does not run yet
        self._count = 0
        self._offset_ns = 0
        self._hold_begin: float | None = None
        self._told = 0.0
        self._seen: tuple[dict[str, Pixels], WorldState] | None = None
        self._requests: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="physics", daemon=True)
        self._made: Future[Simulated] = Future()
        self.now_ns = 0
        self.held_s = 0.0  # wall time for which simulated time was held, in all
        self.failure: Exception | None = None  # what ended the thread

    @property
    def simulator(self) -> Simulated:
        """The simulator. Only inside the loop's thread."""
        return self._made.result()

    @property
    def real_time_factor(self) -> float:
        """Simulated seconds per second over about the last 10 simulated seconds, holds included."""
        return self._pacer.factor()

    def start(self) -> None:
        """Make the simulator, and wait until it stands; time does not run before `go`.

        Raises:
            Exception: whatever the making raised.
        """
        self._thread.start()
        self._made.result()

    def go(self, ready: Callable[[], bool]) -> None:
        """Let time run whenever `ready()` is true (somebody drives the robot)."""
        self._ready = ready

    def pause(self) -> None:
        """Let time stand still until the next `go`; returns when it does."""
        self._ready = None
        if self._thread.is_alive():
            self.submit(lambda: None).result(timeout=60.0)

    def drive(self, tick: Callable[[int], object] | None) -> None:
        """Call a controller before every step with the time; None: commands come from outside."""
        self._tick = tick

    def stop(self) -> None:
        """End the thread and the simulator."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        """Have something done between two steps, in the loop's thread."""
        future: Future[T] = Future()
        self._requests.append((future, work))
        return future

    def reset(self, seed: int) -> None:
        """Start over from a seeded layout; time continues. Only inside the loop's thread."""
        self.simulator.reset(seed)
        self._offset_ns = self.now_ns - self.simulator.time_ns
        self.lockstep.restart(self.now_ns)
        self._seen = None

    def reading(self) -> JointReading | None:
        """Return the joints now. Only inside the loop's thread."""
        reading = self.simulator.read()
        return None if reading is None else replace(reading, stamp_ns=reading.stamp_ns + self._offset_ns)

    def world(self) -> WorldState:
        """Return the ground truth now. Only inside the loop's thread."""
        world = self.simulator.snapshot()
        return replace(world, stamp_ns=world.stamp_ns + self._offset_ns)

    def _run(self) -> None:
        try:
            self._made.set_result(self._make())
        except Exception as error:
            self._made.set_exception(error)
            return
        try:
            while not self._stopping.is_set():
                self._serve()
                if not self._held():
                    self._advance()
        except Exception as error:
            self.failure = error
        for future, _ in self._requests:
            future.set_exception(RuntimeError("the simulator has ended"))
        self.simulator.close()

    def _serve(self) -> None:
        while self._requests:
            future, work = self._requests.popleft()
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)

    def _held(self) -> bool:
        """Return whether time stands still, after a short wait if it does."""
        ready, next_ns = self._ready, self.now_ns + self._step_ns
        if ready is None:
            time.sleep(0.002)
            return True
        driven = ready()
        if driven and not self.lockstep.blocks(next_ns):
            self._release()
            return False
        wall = time.monotonic()
        if self._hold_begin is None:
            self._hold_begin = self._told = wall
        if driven:
            self.lockstep.give_up(wall - self._hold_begin)
            self.lockstep.wait(next_ns, 0.02)
        else:
            time.sleep(0.002)
        if wall - self._told > AGAIN_S:
            self._told = wall
            self._say_again()
        return True

    def _release(self) -> None:
        if self._hold_begin is not None:
            self.held_s += time.monotonic() - self._hold_begin
            self._hold_begin = None
            self._pacer.drop()

    def _advance(self) -> None:
        """One physics step and what is due after it."""
        ahead_s = self._pacer.ahead_s(self.now_ns)
        if ahead_s > 1e-3:
            time.sleep(ahead_s)
        if self._count == 0:
            self._sense(everything=True)
        if self._tick is not None:
            self._tick(self.now_ns)
        self.simulator.step()
        self.now_ns = self.simulator.time_ns + self._offset_ns
        self._count += 1
        self._sense(everything=False)

    def _sense(self, everything: bool) -> None:
        if everything or self._due(self._clock_hz):
            self._sensors.clock(self.now_ns)
        if everything or self._due(self._joints_hz):
            self._say_joints()
        if everything or self._due(self._cameras_hz):
            images = {name: self.simulator.render(name) for name in self._cameras}
            self._seen = (images, self.world())
            self._sensors.look(*self._seen)
        if self._due(MARK_HZ):
            self._pacer.mark(self.now_ns)

    def _due(self, rate_hz: float) -> bool:
        """Return whether a sample of a rate falls on this step; rates need not divide the step's."""
        ratio = rate_hz / self._step_hz
        return int(self._count * ratio + 1e-9) > int((self._count - 1) * ratio + 1e-9)

    def _say_joints(self) -> None:
        reading = self.reading()
        if reading is not None:
            self._sensors.joints(reading, self.simulator.base_pose())

    def _say_again(self) -> None:
        self._sensors.clock(self.now_ns)
        self._say_joints()
        if self._seen is not None:
            self._sensors.look(*self._seen)
