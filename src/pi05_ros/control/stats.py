"""What the controller counts, as plain numbers for /diagnostics and report.json."""

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_PERIODS_KEPT = 1 << 15


class ControllerStats:
    """Counters of one controller since it was made.

    Args:
        joint_names: the J joints whose tracking error is averaged.
    """

    def __init__(self, joint_names: tuple[str, ...]) -> None:
        self._joint_names = joint_names
        self.ticks = 0
        self.accepted = 0
        self.rows_dropped = 0
        self.refused: Counter[str] = Counter()
        self.clamps: Counter[str] = Counter()
        self.latches: Counter[str] = Counter()
        self.bad_readings = 0
        self._squares = np.zeros(len(joint_names))
        self._tracked = 0
        self._periods_ms = np.zeros(_PERIODS_KEPT)
        self._periods = 0
        self._longest_ms = 0.0
        self._wall_ns: int | None = None

    def tick(self, wall_ns: int) -> None:
        """Note the start of a tick at a monotonic wall time."""
        self.ticks += 1
        if self._wall_ns is not None:
            period_ms = (wall_ns - self._wall_ns) * 1e-6
            self._periods_ms[self._periods % _PERIODS_KEPT] = period_ms
            self._periods += 1
            self._longest_ms = max(self._longest_ms, period_ms)
        self._wall_ns = wall_ns

    def track(self, error: Array) -> None:
        """Add a tracking error [J] of a tick in which a chunk was played."""
        self._squares += error * error
        self._tracked += 1

    def snapshot(self) -> dict[str, Any]:
        """Return everything as numbers, strings and dicts (JSON); percentiles cover the newest 32768 periods."""
        rms = np.sqrt(self._squares / max(self._tracked, 1))
        periods = self._periods_ms[: min(self._periods, _PERIODS_KEPT)]
        p50, p99 = np.percentile(periods, (50, 99)) if len(periods) else (0.0, 0.0)
        return {
            "ticks": self.ticks,
            "chunks_accepted": self.accepted,
            "chunks_refused": dict(self.refused),
            "rows_dropped": self.rows_dropped,
            "clamps": dict(self.clamps),
            "latches": dict(self.latches),
            "bad_readings": self.bad_readings,
            "tracking_rms": dict(zip(self._joint_names, rms.tolist(), strict=True)),
            "tracked_ticks": self._tracked,
            "control_period_ms": {"p50": float(p50), "p99": float(p99), "max": self._longest_ms},
        }
