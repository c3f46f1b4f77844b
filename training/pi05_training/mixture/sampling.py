"""Which sample each row of a training draws: a function of (weights, lengths, seed, row) and of nothing else.

Rows are numbered from 0 over all batches and ranks. They come in blocks of `BLOCK`; a block takes from every source
its share by systematic sampling, so that the counts follow the weights within one draw per block instead of within
the noise of independent draws, and the draws of any number of earlier rows can be counted without making them. The
k-th draw of a source of N samples is sample number permutation_e(k mod N) in epoch e = k // N: without replacement
within an epoch.

Permutations and random numbers come from integer hashing (splitmix64; a Feistel network over the index, walking its
cycle until the index is in range): random access without memory, the same on every machine and numpy version.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 1024
_ROUNDS = 6
_FULL = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio
Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Draw:
    """One row of a batch: which sample of which source. `row` is its number over the whole training."""

    source: int
    index: int
    row: int


class Schedule:
    """The draws of a training.

    Args:
        weights: of the sources, positive; they need not add up to one.
        lengths: samples of each source.
        seed: another seed, another order.

    Raises:
        ValueError: a weight or a length is not positive.
    """

    def __init__(self, weights: Sequence[float], lengths: Sequence[int], seed: int = 0) -> None:
        if not weights or len(weights) != len(lengths):
            raise ValueError(f"{len(weights)} weights for {len(lengths)} sources")
        if min(lengths) < 1 or not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"weights {list(weights)} and lengths {list(lengths)} must all be positive")
        self._lengths = tuple(lengths)
        self._seed = seed
        # Upper bounds of the sources in a block, in units of 2**-32 of a row; the last one is exact.
        bounds = np.cumsum(np.asarray(weights, np.float64)) / np.sum(np.asarray(weights, np.float64))
        fixed = [round(float(bound) * (BLOCK << 32)) for bound in bounds[:-1]] + [BLOCK << 32]
        self._whole = np.array([bound >> 32 for bound in fixed], np.int64)
        self._rest = np.array([(bound & 0xFFFFFFFF) << 32 for bound in fixed], np.uint64)
        self._offset = hash_key(seed, 1)

    def counts(self, row: int) -> Numbers:
        """Return how many of the first `row` rows each source has, [S]."""
        block, inner = divmod(row, BLOCK)
        counts = self._whole_blocks(block)
        if inner:
            sources, _ = self._block(block, counts)
            counts = counts + np.bincount(sources[:inner], minlength=len(counts))
        return counts

    def draws(self, start: int = 0) -> Iterator[Draw]:
        """Yield the draws of the rows start, start + 1, … without end."""
        block, inner = divmod(start, BLOCK)
        counts = self._whole_blocks(block)
        while True:
            sources, indices = self._block(block, counts)
            pairs = zip(sources[inner:].tolist(), indices[inner:].tolist(), strict=True)
            for row, (source, index) in enumerate(pairs, block * BLOCK + inner):
                yield Draw(source, index, row)
            counts = counts + np.bincount(sources, minlength=len(counts))
            block, inner = block + 1, 0

    def _whole_blocks(self, blocks: int) -> Numbers:
        """Return the draws of each source in the first so many blocks."""
        below = blocks * self._whole
        for first in range(0, blocks, 1 << 20):
            phases = self._phases(np.arange(first, min(blocks, first + (1 << 20)), dtype=np.uint64))
            below = below + (self._rest[:, None] > phases).sum(axis=1)
        return np.diff(below, prepend=0)

    def _phases(self, blocks: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return where in [0, 2**64) the grid of each block begins; multiples of the golden ratio fill it evenly."""
        return np.uint64(self._offset) + blocks * np.uint64(_GOLDEN)

    def _block(self, block: int, before: Numbers) -> tuple[Numbers, Numbers]:
        """Return sources and indices [BLOCK] of a block's rows; `before` counts the draws of earlier blocks."""
        bounds = self._whole + (self._rest > self._phases(np.array([block], np.uint64)))
        order = permuted(np.arange(BLOCK), BLOCK, hash_key(self._seed, 2, block))
        sources = np.searchsorted(bounds, order, side="right")
        indices = np.empty(BLOCK, np.int64)
        for source, length in enumerate(self._lengths):
            rows = np.flatnonzero(sources == source)
            epochs, places = np.divmod(before[source] + np.arange(len(rows)), length)
            for epoch in np.unique(epochs).tolist():
                chosen = epochs == epoch
                indices[rows[chosen]] = permuted(places[chosen], length, hash_key(self._seed, 3, source, epoch))
        return sources, indices


def permuted(places: Numbers, length: int, key: int) -> Numbers:
    """Return where a permutation of 0 … length - 1 sends some places.

    Args:
        places: int64 [n].
        length: of the permutation.
        key: chooses it.
    """
    half = 1
    while (1 << 2 * half) < length:
        half += 1
    low, keys = np.uint64((1 << half) - 1), [np.uint64(hash_key(key, k)) for k in range(_ROUNDS)]
    values = places.astype(np.uint64)
    outside = np.arange(len(values))
    while len(outside):
        values[outside] = _feistel(values[outside], np.uint64(half), low, keys)
        outside = outside[values[outside] >= length]
    return values.astype(np.int64)


def uniforms(count: int, *key: int) -> list[float]:
    """Return numbers in [0, 1) that follow from a key."""
    state = hash_key(*key)
    return [_mix(state + k * _GOLDEN) / 2.0**64 for k in range(1, count + 1)]


def hash_key(*key: int) -> int:
    """Return 64 bits that follow from some numbers and their order."""
    state = 0
    for part in key:
        state = _mix((state ^ (part & _FULL)) + _GOLDEN)
    return state


def _feistel(
    values: NDArray[np.uint64], half: np.uint64, low: np.uint64, keys: Sequence[np.uint64]
) -> NDArray[np.uint64]:
    left, right = values >> half, values & low
    for key in keys:
        left, right = right, left ^ (mix_array(right + key) & low)
    return (left << half) | right


def _mix(x: int) -> int:
    """Finalizer of splitmix64 (Steele, Lea, Flood 2014)."""
    x &= _FULL
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _FULL
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _FULL
    return x ^ (x >> 31)


def mix_array(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64 well mixed bits of each number; different numbers stay different."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
