"""Which sample each row draws: weights, epochs without repetition, resume from any row, frozen order."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pi05_training.mixture.sampling import BLOCK, Draw, Schedule, hash_key, permuted, uniforms

SOURCES = st.lists(st.tuples(st.floats(0.001, 10), st.integers(1, 3000)), min_size=1, max_size=6)


def take(schedule: Schedule, start: int, count: int) -> list[Draw]:
    return list(itertools.islice(schedule.draws(start), count))


@settings(max_examples=30, deadline=None)
@given(sources=SOURCES, seed=st.integers(0, 2**63), rows=st.integers(1, 9 * BLOCK))
def test_shares_follow_the_weights(sources: list[tuple[float, int]], seed: int, rows: int) -> None:
    weights, lengths = zip(*sources, strict=True)
    schedule = Schedule(weights, lengths, seed)
    counts = schedule.counts(rows)
    drawn = np.bincount([draw.source for draw in take(schedule, 0, rows)], minlength=len(weights))
    assert counts.tolist() == drawn.tolist()
    shares = np.array(weights) / sum(weights)
    whole = rows // BLOCK * BLOCK
    # Whole blocks are off by a draw or two; the rows of the last one are a random part of it.
    noise = 4 * np.sqrt((rows - whole) * shares * (1 - shares)) + 4
    assert (np.abs(drawn - rows * shares) <= noise).all()


@settings(max_examples=30, deadline=None)
@given(sources=SOURCES, seed=st.integers(0, 2**63))
def test_no_sample_twice_in_an_epoch_and_all_of_them(sources: list[tuple[float, int]], seed: int) -> None:
    weights, lengths = zip(*sources, strict=True)
    draws = take(Schedule(weights, lengths, seed), 0, 4 * BLOCK)
    for number, length in enumerate(lengths):
        indices = [draw.index for draw in draws if draw.source == number]
        for first in range(0, len(indices), length):
            epoch = indices[first : first + length]
            assert len(set(epoch)) == len(epoch) and set(epoch) <= set(range(length))


@given(start=st.integers(0, 5 * BLOCK))
@settings(max_examples=20, deadline=None)
def test_starting_anywhere_gives_the_same_rows(start: int) -> None:
    schedule = Schedule([5, 3, 0.01], [700, 11, 3], seed=4)
    assert take(schedule, start, 100) == take(schedule, 0, start + 100)[start:]


def test_far_rows_continue_the_counts() -> None:
    schedule = Schedule([0.7, 0.25, 0.05], [10**7, 5000, 77], seed=1)
    start = 100_000 * 256
    draws = take(schedule, start, 3000)
    assert [draw.row for draw in draws] == list(range(start, start + 3000))
    drawn = np.bincount([draw.source for draw in draws], minlength=3)
    assert (schedule.counts(start + 3000) - schedule.counts(start)).tolist() == drawn.tolist()
    assert schedule.counts(start) / start == pytest.approx([0.7, 0.25, 0.05], abs=1e-6)


def test_order_changes_with_seed_and_epoch() -> None:
    first, second = (take(Schedule([1], [400], seed), 0, 800) for seed in (0, 1))
    assert [draw.index for draw in first] != [draw.index for draw in second]
    assert [draw.index for draw in first[:400]] != [draw.index for draw in first[400:]]


def test_the_order_is_frozen() -> None:
    """A training that an older version began goes on with the same rows."""
    draws = take(Schedule([4, 1, 1], [1000, 50, 3], seed=7), 5 * BLOCK + 60, 12)
    assert [(draw.source, draw.index) for draw in draws] == FROZEN
    assert hash_key(1, 2, 3) == FROZEN_KEY


def test_neighbouring_rows_are_not_neighbouring_samples() -> None:
    indices = np.array([draw.index for draw in take(Schedule([1], [5000]), 0, 5000)])
    correlation = np.corrcoef(indices[:-1], indices[1:])[0, 1]
    assert abs(correlation) < 4 / np.sqrt(5000)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 16, 17, 255, 1000, 4097])
def test_permutations_are_permutations(length: int) -> None:
    for key in range(3):
        assert sorted(permuted(np.arange(length), length, key).tolist()) == list(range(length))


def test_every_place_of_a_permutation_is_equally_likely() -> None:
    landed = np.bincount([int(permuted(np.array([3]), 10, key)[0]) for key in range(5000)], minlength=10)
    assert np.abs(landed - 500).max() < 5 * np.sqrt(500 * 0.9)


def test_uniform_numbers_are_uniform() -> None:
    numbers = np.array([uniforms(4, 1, row) for row in range(5000)])
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert numbers.mean(axis=0) == pytest.approx(0.5, abs=0.02)
    assert numbers.var(axis=0) == pytest.approx(1 / 12, abs=0.005)
    assert np.abs(np.corrcoef(numbers.T) - np.eye(4)).max() < 0.07


@pytest.mark.parametrize(
    ("weights", "lengths"), [([], []), ([1], [0]), ([0, 1], [1, 1]), ([float("inf")], [1]), ([1], [1, 2])]
)
def test_what_is_not_positive_is_refused(weights: list[float], lengths: list[int]) -> None:
    with pytest.raises(ValueError, match=r"weight"):
        Schedule(weights, lengths)


FROZEN = [
    (0, 217),
    (0, 324),
    (0, 866),
    (2, 1),
    (0, 944),
    (0, 889),
    (1, 38),
    (0, 78),
    (0, 932),
    (0, 175),
    (1, 9),
    (1, 13),
]
FROZEN_KEY = 0xD0734750FDE362B3
