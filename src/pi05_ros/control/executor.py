"""Chunks in, one seamless reference out.

Always holds: the reference is C2 across chunk boundaries (unless a limit forbids it), stays within the limits, starts
from the measured position and ends in a hold of the measured position. A refused chunk changes nothing.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pi05_ros.contract import Contract
from pi05_ros.control.chunk import Chunk
from pi05_ros.control.config import ControllerConfig
from pi05_ros.control.hardware import JointReading
from pi05_ros.control.limits import BaseLimits, JointLimits, ReferenceLimiter, approach
from pi05_ros.control.spline import Trajectory, second_derivative_operator

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


class State(str, Enum):
    """What the reference does."""

    __str__ = str.__str__  # its value, in every Python

    IDLE = "idle"
    TRACKING = "tracking"
    HOLDING = "holding"
    STOPPED = "stopped"


class Reason(str, Enum):
    """Why a chunk was refused."""

    __str__ = str.__str__  # its value, in every Python

    NOT_FINITE = "not_finite"
    WRONG_NAMES = "wrong_names"
    WRONG_SHAPE = "wrong_shape"
    STALE = "stale"
    FROM_FUTURE = "from_future"
    JUMP = "jump"
    STOPPED = "stopped"
    NO_READING = "no_reading"


@dataclass(frozen=True, slots=True)
class Accepted:
    """The chunk runs now; its first `dropped` rows were already due."""

    dropped: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """The chunk was not taken; `detail` is for people."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Reference:
    """Where the robot should be: arrays [J] in joint units, and the base velocity [3] (m/s, m/s, rad/s)."""

    position: Array
    velocity: Array
    acceleration: Array
    base_twist: Array
    state: State


class Strategy(Protocol):
    """How successive chunks become the rows to play; the seam for temporal ensembling and real-time chunking."""

    def merge(self, chunk: Chunk) -> Array:
        """Return rows [H, D] to play, due when the chunk's own rows are. Called for accepted chunks, in order."""

    def reset(self) -> None:
        """Forget earlier chunks."""


class NewestChunk:
    """Play each chunk as it is."""

    def merge(self, chunk: Chunk) -> Array:
        """Return the chunk's actions."""
        return chunk.actions

    def reset(self) -> None:
        """Nothing to forget."""


@dataclass(frozen=True, slots=True)
class _Playing:
    stamp_ns: int
    first_ns: int
    joints: Trajectory
    base: Array
    rows: Array


class ChunkExecutor:
    """Splices chunks by their observation stamp and samples the reference.

    Args:
        contract: order, kinds and rates.
        limits: hard joint limits; soft ones lie inside by the configured margin.
        base_limits: limits of the base.
        config: tuning.
        reading: where the robot is now; the reference starts there, at rest.
        strategy: what to play of successive chunks; None plays each as it is.
    """

    def __init__(
        self,
        contract: Contract,
        limits: JointLimits,
        base_limits: BaseLimits,
        config: ControllerConfig,
        reading: JointReading,
        strategy: Strategy | None = None,
    ) -> None:
        self._contract, self._base_limits, self._config = contract, base_limits, config
        self._step_ns = round(contract.step_s * 1e9)
        second_derivative_operator(contract.rates.chunk_steps)
        self.grippers, revolute = joint_kinds(contract)
        margin = np.where(revolute, config.soft_margin_rad, np.where(self.grippers, 0.0, config.soft_margin_m))
        self._limits = limits.shrunk(margin)
        self._jump = np.where(self.grippers, np.inf, np.where(revolute, config.jump_rad, config.jump_m))
        self._strategy = strategy or NewestChunk()
        self._limiter = ReferenceLimiter(self._limits, reading.position)
        self._now_ns: int | None = None
        self._playing: _Playing | None = None
        self._hold: Array | None = None
        self._twist = np.zeros(3)
        self._state = State.IDLE
        self.holds = 0
        self.reset(reading, keep_grip=False)

    @property
    def state(self) -> State:
        """What the reference does."""
        return self._state

    @property
    def clamps(self) -> dict[str, int]:
        """Ticks in which a reference clamp acted, by kind."""
        return dict(self._limiter.counts)

    def offer(self, chunk: Chunk, now_ns: int, reading: JointReading) -> Accepted | Refusal:
        """Check a chunk and splice it into the running reference.

        Args:
            chunk: what a policy says.
            now_ns: current time in the clock of the chunk's stamp.
            reading: the robot's joints now, against which a jump is judged.
        """
        refusal = self._check(chunk, now_ns, reading)
        if refusal is not None:
            return refusal
        rows = self._strategy.merge(chunk)
        first_ns = chunk.stamp_ns + self._step_ns
        recent_ns = now_ns - round(self._config.longest_tick_s * 1e9)
        start_ns = now_ns if self._now_ns is None else max(self._now_ns, recent_ns)
        trajectory = Trajectory(
            self._contract.to_joint_units(rows),
            first_ns,
            self._step_ns,
            self._limiter.state,
            start_ns,
            self._limits.velocity,
            self._limits.acceleration,
            self._config.bridge_shortest_s,
            self._config.bridge_longest_s,
        )
        self._playing = _Playing(chunk.stamp_ns, first_ns, trajectory, rows[:, self._contract.base_index], rows)
        self._state = State.TRACKING
        return Accepted(dropped=self._consumed(chunk.stamp_ns, now_ns))

    def sample(self, now_ns: int, reading: JointReading) -> Reference:
        """Return the reference for a time that never runs backwards; `reading` is what a hold will hold."""
        elapsed_s = 0.0 if self._now_ns is None else (now_ns - self._now_ns) * 1e-9
        self._now_ns = now_ns
        if elapsed_s > 0.0:
            self._move(now_ns, min(elapsed_s, self._config.longest_tick_s), reading)
        limiter = self._limiter
        return Reference(limiter.position, limiter.velocity, limiter.acceleration, self._twist, self._state)

    def hold(self) -> None:
        """Give up the running chunk and brake to a hold, as at a chunk's end; the next chunk may come."""
        if self._state is State.TRACKING:
            self._playing, self._hold, self._state = None, None, State.HOLDING
            self.holds += 1

    def stop(self, reading: JointReading | None = None) -> None:
        """Brake to a hold and refuse chunks until `reset`.

        Args:
            reading: brake from the measured state instead of the reference's, which gives up a tracking error.
        """
        if reading is not None:
            position = np.where(self.grippers, self._limiter.position, reading.position)
            self._limiter.place(position, np.where(self.grippers, 0.0, reading.velocity))
        self._playing, self._hold, self._state = None, None, State.STOPPED

    def reset(self, reading: JointReading, keep_grip: bool = True) -> None:
        """Hold the measured position, as before any chunk; `keep_grip` leaves gripper targets as they are."""
        kept = self._limiter.position if keep_grip else reading.position
        self._limiter.place(np.where(self.grippers, kept, reading.position))
        self._strategy.reset()
        self._now_ns, self._playing, self._state = None, None, State.IDLE
        self._hold = self._limiter.state

    def leftover(self, stamp_ns: int) -> Array:
        """Return the rows [≤ H, D] of the running chunk that are due after `stamp_ns`; empty when none runs."""
        if self._playing is None:
            return np.empty((0, self._contract.dim))
        return self._playing.rows[self._consumed(self._playing.stamp_ns, stamp_ns) :]

    def _consumed(self, stamp_ns: int, now_ns: int) -> int:
        return min(max((now_ns - stamp_ns) // self._step_ns, 0), self._contract.rates.chunk_steps)

    def _check(self, chunk: Chunk, now_ns: int, reading: JointReading) -> Refusal | None:
        contract = self._contract
        shape = (contract.rates.chunk_steps, contract.dim)
        age_ns = now_ns - chunk.stamp_ns
        oldest_ns = (contract.rates.chunk_steps - self._config.execute_steps) * self._step_ns
        if self._state is State.STOPPED:
            return Refusal(Reason.STOPPED, "software stop is latched; call reset")
        if tuple(chunk.names) != contract.names:
            return Refusal(Reason.WRONG_NAMES, f"names {chunk.names}, expected {contract.names}")
        if chunk.actions.shape != shape:
            return Refusal(Reason.WRONG_SHAPE, f"shape {chunk.actions.shape}, expected {shape}")
        if not np.isfinite(chunk.actions).all():
            return Refusal(Reason.NOT_FINITE, f"{int((~np.isfinite(chunk.actions)).sum())} entries are not finite")
        if age_ns < -self._config.future_tolerance_s * 1e9:
            return Refusal(Reason.FROM_FUTURE, f"stamped {-age_ns * 1e-9:.3f} s ahead of the clock")
        if age_ns > oldest_ns:
            return Refusal(Reason.STALE, f"{age_ns * 1e-9:.3f} s old, limit {oldest_ns * 1e-9:.3f} s")
        if self._playing is not None and chunk.stamp_ns < self._playing.stamp_ns:
            return Refusal(Reason.STALE, "older than the running chunk")
        return self._check_jump(chunk, now_ns, reading)

    def _check_jump(self, chunk: Chunk, now_ns: int, reading: JointReading) -> Refusal | None:
        row = min(self._consumed(chunk.stamp_ns, now_ns), len(chunk.actions) - 1)
        jump = np.abs(self._contract.to_joint_units(chunk.actions[row]) - reading.position)
        worst = int(np.argmax(jump / self._jump))
        if jump[worst] <= self._jump[worst]:
            return None
        name = self._contract.joint_names[worst]
        return Refusal(
            Reason.JUMP, f"{name}: {jump[worst]:.3f} from the measured position, limit {self._jump[worst]:.3f}"
        )

    def _move(self, now_ns: int, dt_s: float, reading: JointReading) -> None:
        if self._playing is not None and now_ns > self._playing.joints.end_ns:
            self.hold()
        if self._playing is not None:
            self._limiter.follow(self._playing.joints.evaluate(now_ns), dt_s)
            target = self._base_target(self._playing, now_ns)
        else:
            target = np.zeros(3)
            if self._hold is not None:
                self._limiter.follow(self._hold, dt_s)
            elif self._limiter.brake(dt_s):
                # A gripper keeps its target: holding what it measures would let go of what it grips.
                held = np.where(self.grippers, self._limiter.position, reading.position)
                self._hold = np.stack([held, np.zeros_like(held), np.zeros_like(held)])
        self._twist = approach(self._twist, target, self._base_limits, dt_s)

    def _base_target(self, playing: _Playing, now_ns: int) -> Array:
        u = (now_ns - playing.first_ns) / self._step_ns
        k = min(max(int(u), 0), len(playing.base) - 2)
        s = min(max(u - k, 0.0), 1.0)
        target: Array = (1.0 - s) * playing.base[k] + s * playing.base[k + 1]
        return target


def joint_kinds(contract: Contract) -> tuple[Mask, Mask]:
    """Return masks [J]: which joints are grippers, and which are revolute."""
    grouped = [group for group in contract.vector if group.kind != "velocity" for _ in group.names]
    grippers = np.array([group.kind == "gripper" for group in grouped])
    revolute = np.array([group.unit == "rad" for group in grouped])
    return grippers, revolute
