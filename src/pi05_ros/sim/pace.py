"""How simulated time relates to the wall clock and to the action chunks."""

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Annotated

from pi05_ros.config import Doc, Range

NS = 1_000_000_000


@dataclass(frozen=True)
class PaceConfig:
    """Time in the simulation; part of sim_node's parameters."""

    realtime_factor: Annotated[
        float, Doc("simulated seconds per second at most; 0: as fast as possible"), Range(0, 100)
    ] = 1.0
    lockstep_s: Annotated[
        float, Doc("simulated time stays within this of the newest chunk's observation [s]; 0: free"), Range(0, 60)
    ] = 0.5
    first_chunk_wait_s: Annotated[
        float,
        Doc("longest wait for the first chunk, then time runs free until it comes [wall s]"),
        Range(0, 600),
    ] = 120.0
    chunk_wait_s: Annotated[
        float, Doc("longest wait for a further chunk, then time runs free until the next one [wall s]"), Range(0, 600)
    ] = 10.0


class Lockstep:
    """How far simulated time may run. Chunks are noted from any thread, the gate is asked from the simulator's.

    Args:
        config: bounds.
    """

    def __init__(self, config: PaceConfig) -> None:
        self._config = config
        self._bound_ns = round(config.lockstep_s * NS)
        self._arrived = threading.Condition()
        self._newest_ns: int | None = None
        self._begin_ns = 0
        self._free = False
        self.timeouts = 0

    def note(self, stamp_ns: int, now_ns: int) -> None:
        """A chunk computed from an observation at `stamp_ns` has arrived; a stamp from the future counts as now."""
        with self._arrived:
            stamp_ns = min(stamp_ns, now_ns)
            self._newest_ns = stamp_ns if self._newest_ns is None else max(self._newest_ns, stamp_ns)
            self._free = False
            self._arrived.notify_all()

    def restart(self, now_ns: int) -> None:
        """Wait for a first chunk again (after a reset)."""
        with self._arrived:
            self._newest_ns, self._begin_ns, self._free = None, now_ns, False
            self._arrived.notify_all()

    def blocks(self, next_ns: int) -> bool:
        """Return whether time must not reach `next_ns` yet."""
        with self._arrived:
            return self._blocks(next_ns)

    def wait(self, next_ns: int, timeout_s: float) -> None:
        """Wait until time may reach `next_ns`, at most `timeout_s`."""
        with self._arrived:
            self._arrived.wait_for(lambda: not self._blocks(next_ns), timeout_s)

    def give_up(self, held_s: float) -> None:
        """Let time run free until the next chunk, if it has been held for too long [wall s]."""
        with self._arrived:
            first = self._newest_ns is None
            if held_s >= (self._config.first_chunk_wait_s if first else self._config.chunk_wait_s):
                self._free = True
                self.timeouts += 1

    def _blocks(self, next_ns: int) -> bool:
        if self._free or self._bound_ns == 0:
            return False
        return next_ns > (self._begin_ns if self._newest_ns is None else self._newest_ns) + self._bound_ns


class Pacer:
    """Keeps simulated time at a multiple of wall time, and measures how well that works.

    Args:
        factor: simulated seconds per second at most; 0: no pacing.
    """

    longest_debt_s = 0.1  # a longer stall is not caught up with by a burst

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._anchor: tuple[float, int] | None = None
        self._marks: deque[tuple[float, int]] = deque(maxlen=200)

    def drop(self) -> None:
        """Forget what is owed: time stood still on purpose."""
        self._anchor = None

    def ahead_s(self, now_ns: int) -> float:
        """Return how long to wait before simulated time goes on [s]."""
        if self._factor == 0.0:
            return 0.0
        wall = time.monotonic()
        if self._anchor is None:
            self._anchor = (wall, now_ns)
        ahead = self._anchor[0] + (now_ns - self._anchor[1]) / NS / self._factor - wall
        if ahead < -self.longest_debt_s:
            self._anchor = (wall, now_ns)
        return max(ahead, 0.0)

    def mark(self, now_ns: int) -> None:
        """Note progress; the factor is measured over the last 200 notes."""
        self._marks.append((time.monotonic(), now_ns))

    def factor(self) -> float:
        """Return simulated seconds per second over the last marks, stand-stills included; 0 before there are two."""
        marks = tuple(self._marks)
        if len(marks) < 2 or marks[-1][0] <= marks[0][0]:
            return 0.0
        return (marks[-1][1] - marks[0][1]) / NS / (marks[-1][0] - marks[0][0])
