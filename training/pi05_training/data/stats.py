"""Normalisation statistics in one streaming pass, mergeable over shards.

Count, mean, standard deviation, minimum and maximum are exact (to rounding) for any split of the data. A quantile is
taken from exact counts of values rounded to 12 bits of mantissa: it differs from `numpy.quantile` of the same float32
values by at most `QUANTILE_ERROR` times the larger of the two order statistics that it lies between, for any
distribution, however far outliers lie; a merged sketch is the same, bit for bit, as that of one pass.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pi05_model.normalize import NormStats
from pi05_model.transforms import relative_actions
from pi05_training.data.episode import Floats

MANTISSA_BITS = 12
QUANTILE_ERROR = 2.0 ** -(MANTISSA_BITS + 1)
"""Largest error of a quantile relative to its value: 1.2e-4, or 0.4 mrad at 3 rad."""

_SHIFT = 23 - MANTISSA_BITS
_WINDOWS = 1000

Array = NDArray[np.float64]


class QuantileSketch:
    """How often each value occurred, values being rounded to `MANTISSA_BITS`.

    Memory grows with the number of different rounded values (16 bytes each; 4,096 for every factor of two that the
    data spans), not with the number of samples.
    """

    def __init__(self) -> None:
        self._buckets = np.zeros(0, np.int32)
        self._counts = np.zeros(0, np.int64)

    @property
    def count(self) -> int:
        """Values taken in."""
        return int(self._counts.sum())

    def add(self, values: ArrayLike) -> None:
        """Take in finite values of any shape."""
        buckets, counts = np.unique(_bucket(np.asarray(values, np.float32).ravel()), return_counts=True)
        self._take(buckets, counts.astype(np.int64))

    def merge(self, other: "QuantileSketch") -> None:
        """Take in what another sketch has seen."""
        self._take(other._buckets, other._counts)

    def quantile(self, q: float) -> float:
        """Return a quantile, interpolated between neighbours as numpy does.

        Raises:
            ValueError: nothing was taken in.
        """
        if not len(self._counts):
            raise ValueError("no values, no quantiles")
        rank = q * (self.count - 1)
        below = int(np.floor(rank))
        ends = np.cumsum(self._counts)
        low, high = (_value(self._buckets[np.searchsorted(ends, r, side="right")]) for r in (below, np.ceil(rank)))
        return low + (rank - below) * (high - low)

    def _take(self, buckets: NDArray[np.int32], counts: NDArray[np.int64]) -> None:
        merged, place = np.unique(np.concatenate([self._buckets, buckets]), return_inverse=True)
        total = np.zeros(len(merged), np.int64)
        np.add.at(total, place, np.concatenate([self._counts, counts]))
        self._buckets, self._counts = merged, total


class RunningStats:
    """Statistics of vectors [D], taken in batch by batch."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = self._spread = self._low = self._high = np.zeros(0)
        self._sketches: list[QuantileSketch] = []

    def add(self, rows: ArrayLike) -> None:
        """Take in rows [..., D].

        Raises:
            ValueError: a value is not finite, or D differs from before.
        """
        x = np.asarray(rows, np.float64)
        x = x.reshape(-1, x.shape[-1])
        if not len(x):
            return
        if not np.isfinite(x).all():
            columns = np.flatnonzero(~np.isfinite(x).all(axis=0)).tolist()
            raise ValueError(f"values that are not finite numbers in entries {columns}")
        part = RunningStats()
        part.count = len(x)
        part._mean, part._low, part._high = x.mean(axis=0), x.min(axis=0), x.max(axis=0)
        part._spread = ((x - part._mean) ** 2).sum(axis=0)
        for column in x.T:
            sketch = QuantileSketch()
            sketch.add(column)
            part._sketches.append(sketch)
        self.merge(part)

    def merge(self, other: "RunningStats") -> None:
        """Take in what another one has seen (Chan, Golub, LeVeque 1979).

        Raises:
            ValueError: its vectors are of another length.
        """
        if not other.count:
            return
        if not self.count:
            self._mean = self._spread = np.zeros_like(other._mean)
            self._low, self._high = other._low, other._high
            self._sketches = [QuantileSketch() for _ in other._sketches]
        if len(self._mean) != len(other._mean):
            raise ValueError(f"vectors of {len(self._mean)} and of {len(other._mean)} entries cannot be merged")
        total = self.count + other.count
        apart = other._mean - self._mean
        self._spread = self._spread + other._spread + apart**2 * (self.count * other.count / total)
        self._mean = self._mean + apart * (other.count / total)
        self._low, self._high = np.minimum(self._low, other._low), np.maximum(self._high, other._high)
        self.count = total
        for mine, theirs in zip(self._sketches, other._sketches, strict=True):
            mine.merge(theirs)

    def result(self) -> NormStats:
        """Return the statistics.

        Raises:
            ValueError: nothing was taken in.
        """
        if not self.count:
            raise ValueError("no frames, no statistics")
        q01, q99 = (self._quantiles(q) for q in (0.01, 0.99))
        std = np.sqrt(self._spread / self.count)
        return NormStats(self._mean, std, q01, q99, self._low, self._high, self.count)

    def _quantiles(self, q: float) -> Array:
        found = [sketch.quantile(q) for sketch in self._sketches]
        return np.clip(found, self._low, self._high)


@dataclass(frozen=True)
class DatasetStats:
    """Statistics of the states and actions that training sees.

    Attributes:
        horizon: rows of a chunk.
        relative: entries of the action that are said relative to the state of the observation.
        state, actions: the actions are those of all chunks of all frames, without the padding after an episode.
    """

    horizon: int
    relative: tuple[int, ...]
    state: RunningStats
    actions: RunningStats

    @classmethod
    def empty(cls, horizon: int, relative: Sequence[int] = ()) -> "DatasetStats":
        """Start with nothing."""
        return cls(horizon, tuple(relative), RunningStats(), RunningStats())

    def add(self, state: Floats, action: Floats) -> None:
        """Take in an episode: state [T, D] and action [T, D]."""
        self.state.add(state)
        for rows in chunk_rows(state, action, self.horizon, self.relative):
            self.actions.add(rows)

    def merge(self, other: "DatasetStats") -> None:
        """Take in what another one has seen.

        Raises:
            ValueError: it was made for other chunks.
        """
        if (self.horizon, self.relative) != (other.horizon, other.relative):
            raise ValueError(
                f"chunks of {self.horizon} rows relative in {self.relative} and of {other.horizon} in {other.relative}"
            )
        self.state.merge(other.state)
        self.actions.merge(other.actions)

    def result(self) -> dict[str, NormStats]:
        """Return what norm_stats.json holds.

        Raises:
            ValueError: nothing was taken in.
        """
        return {"state": self.state.result(), "actions": self.actions.result()}


def chunk_rows(state: Floats, action: Floats, horizon: int, relative: Sequence[int]) -> Iterator[Array]:
    """Yield the rows [N, D] of all chunks of an episode, as the trainer normalises them; padding is left out.

    Args:
        state, action: [T, D]; row k of the chunk of frame t is the action of frame t + k.
        horizon: rows of a chunk.
        relative: entries less the state of the chunk's frame.
    """
    for begin in range(0, len(state), _WINDOWS):
        frames = np.arange(begin, min(begin + _WINDOWS, len(state)))
        index = frames[:, None] + np.arange(horizon)
        real = index < len(action)
        chunks = action[np.minimum(index, len(action) - 1)]
        yield relative_actions(chunks, state[frames], relative)[real]


def dataset_stats(
    trajectories: Iterable[tuple[Floats, Floats]], horizon: int, relative: Sequence[int] = ()
) -> DatasetStats:
    """Compute the statistics of some episodes."""
    stats = DatasetStats.empty(horizon, relative)
    for state, action in trajectories:
        stats.add(state, action)
    return stats


def _bucket(values: NDArray[np.float32]) -> NDArray[np.int32]:
    """Number values in their order; neighbours share a number."""
    bits = values.view(np.int32)
    ordered = np.where(bits < 0, -(bits & np.int32(0x7FFFFFFF)), bits)
    rounded: NDArray[np.int32] = ordered >> np.int32(_SHIFT)
    return rounded


def _value(bucket: np.int32) -> float:
    """Return the middle of a bucket."""
    ordered = (int(bucket) << _SHIFT) + (1 << (_SHIFT - 1))
    magnitude = np.array([abs(ordered)], np.int32).view(np.float32)[0]
    return float(np.copysign(magnitude, ordered))
