"""What the robot was told to do at a time, read from a recording by the controller's own rules.

The rule (that of `pi05_ros.control.executor.ChunkExecutor`): a chunk is in force from its receipt until the next one
that is accepted is received. Row k is due at the chunk's stamp + (k + 1) steps; between two rows the command is their
linear interpolation, so that a frame aligned with the chunk gets the row itself, bit for bit. After its last row the
robot holds: joints where they were measured, grippers at their last target, the base at rest. Chunks that the
controller would have refused (stale, older than the one in force, from the future, too far a jump, not finite, wrong
names or shape) are counted and command nothing.
"""

from collections import Counter, deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pi05_ros.contract import Contract
from pi05_ros.control.chunk import Chunk
from pi05_ros.control.config import ControllerConfig
from pi05_ros.control.executor import Reason, joint_kinds

Array = NDArray[np.float64]
NS = 1_000_000_000


class Commands(Protocol):
    """Tells what was commanded; asked for times that never run backwards."""

    def at(self, due_ns: int, state: Array) -> Array | None:
        """Return the command [D] due at a time, or None when nothing is known; `state` [D] was measured before it."""

    def reset(self) -> None:
        """Forget everything, as after a jump of the clock."""


@dataclass
class ChunkCommands:
    """Commands from recorded action chunks.

    Attributes:
        contract: the robot.
        config: the controller's limits of what it accepts.
        accepted: chunks that were taken.
        refused: chunks that were not, by reason.
        held: frames in which no chunk was in force any more.
    """

    contract: Contract
    config: ControllerConfig

    def __post_init__(self) -> None:
        self.accepted, self.held = 0, 0
        self.refused: Counter[str] = Counter()
        self._step_ns = round(self.contract.step_s * NS)
        grippers, revolute = joint_kinds(self.contract)
        self._grippers = self.contract.joint_index[grippers]
        self._jump = np.where(grippers, np.inf, np.where(revolute, self.config.jump_rad, self.config.jump_m))
        self.reset()

    def reset(self) -> None:
        """Forget all chunks."""
        self._chunks: deque[tuple[int, Chunk]] = deque()
        self._hold: Array | None = None

    def offer(self, chunk: Chunk, received_ns: int, state: Array | None) -> None:
        """Take a chunk as the controller would have.

        Args:
            chunk: what was said.
            received_ns: when; never runs backwards.
            state: measured state [D] at that time; None when there was none, and then no jump can be judged.
        """
        reason = self._refusal(chunk, received_ns, state)
        if reason is None:
            self.accepted += 1
            self._chunks.append((received_ns, chunk))
        else:
            self.refused[reason.value] += 1

    def at(self, due_ns: int, state: Array) -> Array | None:
        """Return the command [D] due at a time; None before the first chunk was received."""
        while len(self._chunks) > 1 and self._chunks[1][0] <= due_ns:
            self._chunks.popleft()
            self._hold = None
        if not self._chunks or self._chunks[0][0] > due_ns:
            return None
        chunk = self._chunks[0][1]
        steps = (due_ns - chunk.stamp_ns) / self._step_ns - 1.0
        if steps > len(chunk.actions) - 1:
            return self._held(chunk, state)
        row = min(max(int(steps), 0), len(chunk.actions) - 2) if len(chunk.actions) > 1 else 0
        share = min(max(steps - row, 0.0), 1.0)
        before, after = chunk.actions[row], chunk.actions[min(row + 1, len(chunk.actions) - 1)]
        command: Array = (1.0 - share) * before + share * after
        return command

    def _held(self, chunk: Chunk, state: Array) -> Array:
        self.held += 1
        if self._hold is None:
            self._hold = np.array(state, dtype=np.float64)
            self._hold[self._grippers] = chunk.actions[-1][self._grippers]
            self._hold[self.contract.base_index] = 0.0
        return self._hold

    def _refusal(self, chunk: Chunk, now_ns: int, state: Array | None) -> Reason | None:
        contract = self.contract
        age_s = (now_ns - chunk.stamp_ns) / NS
        checks = (
            (tuple(chunk.names) != contract.names, Reason.WRONG_NAMES),
            (chunk.actions.shape != (contract.rates.chunk_steps, contract.dim), Reason.WRONG_SHAPE),
            (not np.isfinite(chunk.actions).all(), Reason.NOT_FINITE),
            (age_s < -self.config.future_tolerance_s, Reason.FROM_FUTURE),
            (age_s > (contract.rates.chunk_steps - self.config.execute_steps) * contract.step_s, Reason.STALE),
            (bool(self._chunks) and chunk.stamp_ns < self._chunks[-1][1].stamp_ns, Reason.STALE),
        )
        for failed, reason in checks:
            if failed:
                return reason
        row = min(max((now_ns - chunk.stamp_ns) // self._step_ns, 0), len(chunk.actions) - 1)
        if state is None:
            return None
        jump = np.abs(contract.to_joint_units(chunk.actions[row]) - contract.to_joint_units(state))
        return Reason.JUMP if (jump > self._jump).any() else None


class VectorCommands:
    """Commands of someone else's robot: the newest commanded vector at the due time.

    Args:
        max_age_s: an older one commands nothing any more.
    """

    def __init__(self, max_age_s: float) -> None:
        self._max_age_ns = round(max_age_s * NS)
        self.reset()

    def reset(self) -> None:
        """Forget all commands."""
        self._items: deque[tuple[int, Array]] = deque()

    def add(self, stamp_ns: int, vector: Array) -> None:
        """Add a command [D]; entries that are nan follow the state. One that is older than the newest is left out."""
        if not self._items or stamp_ns >= self._items[-1][0]:
            self._items.append((stamp_ns, vector))

    def at(self, due_ns: int, state: Array) -> Array | None:
        """Return the newest command [D] at or before the due time."""
        while len(self._items) > 1 and self._items[1][0] <= due_ns:
            self._items.popleft()
        if not self._items or not 0 <= due_ns - self._items[0][0] <= self._max_age_ns:
            return None
        vector = self._items[0][1]
        return np.where(np.isnan(vector), state, vector)
