"""The torque loop: reference in, joint efforts out, with a software stop that only `reset` leaves.

τ = Kp (q_ref − q) + Kd (q̇_ref − q̇) + inverse dynamics(q, q̇_ref, q̈_ref), which includes gravity; then clamped to the
effort limits and to their rate. Gains come from each joint's inertia: Kp = I ω², Kd = 2 ζ I ω. A software stop is
no emergency stop.
"""

import time
from enum import Enum
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pi05_ros.contract import Contract
from pi05_ros.control.chunk import Chunk
from pi05_ros.control.config import ControllerConfig
from pi05_ros.control.dynamics import RobotDynamics
from pi05_ros.control.executor import (
    Accepted,
    ChunkExecutor,
    Reason,
    Reference,
    Refusal,
    State,
    Strategy,
    joint_kinds,
)
from pi05_ros.control.hardware import Hardware, JointReading
from pi05_ros.control.limits import BaseLimits, JointLimits
from pi05_ros.control.stats import ControllerStats

Array = NDArray[np.float64]


class Latch(str, Enum):
    """Why the software stop is latched."""

    __str__ = str.__str__  # its value, in every Python

    STOP_CALLED = "stop_called"
    TRACKING_ERROR = "tracking_error"
    STALE_READING = "stale_reading"


class PdController:
    """Drives a robot along the chunks it is offered. Calls from several threads are serialised.

    Args:
        hardware: the robot.
        contract: order, kinds and rates.
        limits: joint limits from the robot description.
        base_limits: limits of the base.
        dynamics: torques of the same joints, in the same order.
        home: [J] pose at which the inertia for the gains is taken.
        config: tuning.
        strategy: what to play of successive chunks; None plays each as it is.
    """

    def __init__(
        self,
        hardware: Hardware,
        contract: Contract,
        limits: JointLimits,
        base_limits: BaseLimits,
        dynamics: RobotDynamics,
        home: Array,
        config: ControllerConfig | None = None,
        strategy: Strategy | None = None,
    ) -> None:
        self._hardware, self._contract, self._dynamics = hardware, contract, dynamics
        self._limits, self._base_limits, self._strategy = limits, base_limits, strategy
        self._config = config = config or ControllerConfig()
        grippers, revolute = joint_kinds(contract)
        self._grippers = grippers
        frequency = np.where(revolute, config.arm_frequency, config.lift_frequency)
        frequency = np.where(grippers, config.gripper_frequency, frequency)
        inertia = dynamics.inertia(home)
        self.kp = inertia * frequency**2
        self.kd = 2.0 * config.damping_ratio * inertia * frequency
        self._effort = np.where(grippers, np.minimum(limits.effort, config.grip_force), limits.effort)
        watched = np.where(revolute, config.tracking_limit_rad, config.tracking_limit_m)
        self._tracking_limit = np.where(grippers, np.inf, watched)
        self._stats = ControllerStats(contract.joint_names)
        self._lock = Lock()
        self._executor: ChunkExecutor | None = None
        self._reading: JointReading | None = None
        self._command: Array | None = None
        self._latch: Latch | None = None
        self._rebase: bool | None = None
        self._blind = False
        self._seen_ns = self._tick_ns = 0

    @property
    def latch(self) -> Latch | None:
        """Why the software stop is latched, or None."""
        return self._latch

    @property
    def state(self) -> State:
        """What the reference does; idle before the first reading."""
        return State.IDLE if self._executor is None else self._executor.state

    def offer(self, chunk: Chunk, now_ns: int) -> Accepted | Refusal:
        """Take or refuse a chunk; both are counted."""
        with self._lock:
            if self._executor is None or self._reading is None:
                result: Accepted | Refusal = Refusal(Reason.NO_READING, "no joint reading yet")
            else:
                result = self._executor.offer(chunk, now_ns, self._reading)
            if isinstance(result, Accepted):
                self._stats.accepted += 1
                self._stats.rows_dropped += result.dropped
            else:
                self._stats.refused[result.reason.value] += 1
            return result

    def hold(self) -> None:
        """Give up the running chunk and brake to a hold, not latched (a node that is deactivated)."""
        with self._lock:
            if self._executor is not None:
                self._executor.hold()

    def stop(self) -> None:
        """Latch the software stop: brake, hold with gravity compensation, base to rest."""
        with self._lock:
            self._stop(Latch.STOP_CALLED, self._executor)

    def reset(self, keep_grip: bool = True) -> None:
        """Leave the stop and hold where the robot is at the next tick.

        Args:
            keep_grip: grippers keep their target; False also takes theirs from the measurement (a new scene).
        """
        with self._lock:
            self._latch, self._rebase = None, keep_grip
            if not keep_grip:
                self._command = None

    def tick(self, now_ns: int, wall_ns: int | None = None) -> Reference | None:
        """Read, sample, command. Call at the torque rate.

        Args:
            now_ns: time in the clock of chunks and readings.
            wall_ns: monotonic wall time, for the period statistics; None reads it.

        Returns:
            The reference that was tracked, or None (and no command) before the first valid reading.
        """
        with self._lock:
            self._stats.tick(time.monotonic_ns() if wall_ns is None else wall_ns)
            if now_ns < self._tick_ns:
                self._rewind()
            reading, fresh = self._read(now_ns)
            if reading is None:
                return None
            executor = self._executor_at(reading, fresh)
            reference = executor.sample(now_ns, reading)
            if fresh and (np.abs(reference.position - reading.position) > self._tracking_limit).any():
                self._stop(Latch.TRACKING_ERROR, executor)
                executor.stop(reading)
                reference = executor.sample(now_ns, reading)
            if reference.state is State.TRACKING:
                self._stats.track(reference.position - reading.position)
            effort = self._effort_for(reference, reading) if fresh else self._blind_effort(reference)
            self._command = self._clamp(effort, (now_ns - self._tick_ns) * 1e-9)
            self._tick_ns = now_ns
            self._hardware.write(self._command, reference.base_twist)
            return reference

    def _executor_at(self, reading: JointReading, fresh: bool) -> ChunkExecutor:
        """Return the executor, brought in line with resets, latches and the loss or return of readings."""
        if self._executor is None:
            self._executor = ChunkExecutor(
                self._contract, self._limits, self._base_limits, self._config, reading, self._strategy
            )
        elif self._rebase is not None:
            self._executor.reset(reading, self._rebase)
            self._blind = False
        executor = self._executor
        if self._rebase is not None and self._latch is not None:
            executor.stop()
        self._rebase = None
        if not fresh:
            self._stop(Latch.STALE_READING, executor)
        elif self._blind:
            executor.stop(reading)
        self._blind = not fresh
        return executor

    def _rewind(self) -> None:
        """The clock ran backwards (a simulation was reset): nothing known so far holds, but a latched stop stays."""
        self._reading, self._command, self._rebase = None, None, False
        self._tick_ns = 0

    def snapshot(self) -> dict[str, Any]:
        """Return state and counters as plain numbers, strings and dicts, for /diagnostics and reports.

        Takes no lock: percentiles take longer than a tick may wait, and a count that is one tick old does no harm.
        """
        told = self._stats.snapshot()
        executor, latch = self._executor, self._latch
        told["state"] = self.state.value
        told["latch"] = None if latch is None else latch.value
        told["holds"] = 0 if executor is None else executor.holds
        told["clamps"] |= {} if executor is None else executor.clamps
        return told

    def _read(self, now_ns: int) -> tuple[JointReading | None, bool]:
        """Return the newest valid reading and whether it is fresh; a non-finite one counts as not arrived."""
        reading = self._hardware.read()
        if reading is not None and (self._reading is None or reading.stamp_ns != self._reading.stamp_ns):
            if np.isfinite(reading.position).all() and np.isfinite(reading.velocity).all():
                self._reading, self._seen_ns = reading, now_ns
            else:
                self._stats.bad_readings += 1
        if self._reading is None:
            return None, False
        # By arrival too: a source whose clock runs ahead must not look fresh for ever.
        age_ns = now_ns - min(self._reading.stamp_ns, self._seen_ns)
        return self._reading, age_ns <= self._config.stale_after_s * 1e9

    def _stop(self, why: Latch, executor: ChunkExecutor | None) -> None:
        if self._latch is not None:
            return
        self._latch = why
        self._stats.latches[why.value] += 1
        if executor is None:
            self._rebase = False
        else:
            executor.stop()

    def _effort_for(self, reference: Reference, reading: JointReading) -> Array:
        effort = self._dynamics.torque(reading.position, reference.velocity, reference.acceleration)
        effort += self.kp * (reference.position - reading.position)
        effort += self.kd * (reference.velocity - reading.velocity)
        return effort

    def _blind_effort(self, reference: Reference) -> Array:
        """Without a reading, feedback would push on a memory: brake and hold by the description alone."""
        return self._dynamics.torque(reference.position, reference.velocity, reference.acceleration)

    def _clamp(self, effort: Array, dt_s: float) -> Array:
        limited = np.clip(effort, -self._effort, self._effort)
        clamped = limited != effort
        # A gripper that grips is at its force all the time: that says nothing about the arms.
        self._stats.clamps["grip_force"] += bool(clamped[self._grippers].any())
        self._stats.clamps["effort"] += bool(clamped[~self._grippers].any())
        if self._command is None:
            # The first command may be anything within limits: ramping gravity up would let the arms drop.
            return limited
        step = self._limits.effort_rate * max(dt_s, 0.0)
        smooth = np.clip(limited, self._command - step, self._command + step)
        self._stats.clamps["effort_rate"] += bool((smooth != limited).any())
        return smooth
