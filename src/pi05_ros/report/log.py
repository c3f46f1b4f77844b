"""Everything that was heard while the robot ran, as plain values: what the report is made of.

All stamps are simulated time in nanoseconds unless a name says wall. Lists are in order of arrival.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pi05_ros.contract import Contract

Array = NDArray[np.float64]
NS = 1e9


@dataclass(frozen=True, slots=True)
class ChunkSeen:
    """One action chunk as it came over the wire.

    Attributes:
        stamp_ns: time of the observation it was computed from.
        heard_ns: time at which it arrived here.
        actions: [H, D] in contract units; row k is due k+1 steps after `stamp_ns`.
    """

    stamp_ns: int
    heard_ns: int
    actions: Array


@dataclass(frozen=True, slots=True)
class PolicyIdentity:
    """Which policy drove: its folder and the SHA-256 of its files."""

    path: str
    hash: str


@dataclass
class DemoLog:
    """What was heard.

    Attributes:
        contract: the robot.
        task, seed, policy: what was run.
        clock: (monotonic wall time, simulated time) pairs.
        joints: (stamp, position [J] in joint units).
        base: (stamp, x [m], y [m], yaw [rad]) in the odometry frame.
        chunks: action chunks.
        subtasks: (time, text) at each change.
        diagnostics: newest values of each /diagnostics entry ("node: part"), as text by key.
        rounds: how often each entry was heard.
        warnings: (time, "node: part: message") when an entry's level or message became other than ok.
        frames: (stamp, JPEG) by camera.
        success: (time, answer) of the success service; the last one counts.
        failures: processes that died, one sentence each.
    """

    contract: Contract
    task: str
    seed: int
    policy: PolicyIdentity
    clock: list[tuple[int, int]] = field(default_factory=list)
    joints: list[tuple[int, Array]] = field(default_factory=list)
    base: list[tuple[int, float, float, float]] = field(default_factory=list)
    chunks: list[ChunkSeen] = field(default_factory=list)
    subtasks: list[tuple[int, str]] = field(default_factory=list)
    diagnostics: dict[str, dict[str, str]] = field(default_factory=dict)
    rounds: Counter[str] = field(default_factory=Counter)
    warnings: list[tuple[int, str]] = field(default_factory=list)
    frames: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)
    success: list[tuple[int, bool, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Note a warning, unless the same text was noted before."""
        if all(text != known for _, known in self.warnings):
            self.warnings.append((self.now_ns, text))

    def trim(self, before_ns: int) -> None:
        """Forget what lies before a time: the log begins there. The subtask in force then is said then."""
        self.clock = [pair for pair in self.clock if pair[1] >= before_ns]
        self.joints = [sample for sample in self.joints if sample[0] >= before_ns]
        self.base = [sample for sample in self.base if sample[0] >= before_ns]
        earlier = [text for stamp, text in self.subtasks if stamp < before_ns]
        self.subtasks = [(before_ns, text) for text in earlier[-1:]] + self.subtasks[len(earlier) :]
        for frames in self.frames.values():
            frames[:] = [frame for frame in frames if frame[0] >= before_ns]

    @property
    def start_ns(self) -> int:
        """Simulated time at which the log begins."""
        return self.clock[0][1] if self.clock else 0

    @property
    def now_ns(self) -> int:
        """Newest simulated time that was heard."""
        return self.clock[-1][1] if self.clock else 0

    @property
    def duration_s(self) -> float:
        """Simulated time that the log spans [s]."""
        return (self.now_ns - self.start_ns) / NS

    def seconds(self, stamp_ns: int) -> float:
        """Return a stamp as seconds since the beginning of the log."""
        return (stamp_ns - self.start_ns) / NS

    def targets(self, stamps_ns: NDArray[np.int64]) -> Array:
        """Return what the newest chunk asked of the joints at given times.

        Args:
            stamps_ns: [T] increasing times.

        Returns:
            [T, J] target positions in joint units, linear between rows; NaN before the first chunk and after a chunk
            ran out.
        """
        step_ns = self.contract.step_s * NS
        out = np.full((len(stamps_ns), len(self.contract.joint_names)), np.nan)
        arrivals = np.array([chunk.heard_ns for chunk in self.chunks], dtype=np.int64)
        newest = np.searchsorted(arrivals, stamps_ns, side="right") - 1
        for index in np.unique(newest[newest >= 0]):
            chunk = self.chunks[index]
            rows = newest == index
            due = chunk.stamp_ns + step_ns * np.arange(1, len(chunk.actions) + 1)
            joints = self.contract.to_joint_units(chunk.actions)
            out[rows] = _interpolate(stamps_ns[rows].astype(np.float64), due, joints)
        return out


def _interpolate(at: Array, knots: Array, values: Array) -> Array:
    """Interpolate each column of values [K, J] at times [T]; NaN outside the knots."""
    columns = [np.interp(at, knots, column, left=np.nan, right=np.nan) for column in values.T]
    return np.stack(columns, axis=1)
