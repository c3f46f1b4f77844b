"""Every transform and its inverse; and what an observation must be."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pi05_model.normalize import NormStats
from pi05_model.observation import Observation, check_cameras, check_state
from pi05_model.transforms import (
    Compose,
    Normalise,
    PadTo,
    Relative,
    ResizeWithPad,
    StateBins,
    ToUnit,
    action_transform,
    relative_actions,
)

DIM = 5
STATS = NormStats.from_samples(np.random.default_rng(0).normal(size=(200, DIM)))
finite = st.floats(-100, 100)
chunks = hnp.arrays(np.float64, (2, 3, DIM), elements=finite)
states = hnp.arrays(np.float64, (2, DIM), elements=finite)
entry_sets = st.sets(st.integers(0, DIM - 1)).map(lambda entries: tuple(sorted(entries)))


@given(chunks, st.sampled_from(["project", "openpi", "lerobot"]), st.sampled_from(["quantile", "mean_std"]))
def test_normalise(values: np.ndarray, family: str, method: str) -> None:
    transform = Normalise(dataclasses.replace(STATS, family=family, method=method))
    np.testing.assert_allclose(transform.invert(transform.apply(values)), values, rtol=1e-9, atol=1e-9)
    assert transform.apply(values).shape == values.shape


@given(hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=4, max_side=32), elements=finite))
def test_pad_to(values: np.ndarray) -> None:
    transform = PadTo(values.shape[-1], 32)
    padded = transform.apply(values)
    assert padded.shape == (*values.shape[:-1], 32) and padded.dtype == np.float64
    assert (padded[..., values.shape[-1] :] == 0).all()
    np.testing.assert_array_equal(transform.invert(padded), values)


def test_pad_to_refuses_other_widths() -> None:
    with pytest.raises(ValueError, match="33 entries do not fit into the network's 32"):
        PadTo(33)
    with pytest.raises(ValueError, match=r"\(4,\), expected \[\.\.\., 18\]"):
        PadTo(18).apply(np.zeros(4))
    with pytest.raises(ValueError, match=r"padded values are \(18,\)"):
        PadTo(18).invert(np.zeros(18))


@given(chunks, states, entry_sets)
def test_relative(values: np.ndarray, at: np.ndarray, entries: tuple[int, ...]) -> None:
    transform = Relative(entries, at)
    moved = transform.apply(values)
    np.testing.assert_allclose(transform.invert(moved), values, rtol=0, atol=1e-12)
    others = [i for i in range(DIM) if i not in entries]
    np.testing.assert_array_equal(moved[..., others], values[..., others])
    np.testing.assert_array_equal(moved[..., list(entries)], (values - at[:, None])[..., list(entries)])


def test_relative_leaves_its_input_alone() -> None:
    values = np.ones((2, 3, DIM))
    Relative((0, 1), np.ones((2, DIM))).apply(values)
    assert (values == 1).all()


@given(chunks, states)
def test_staying_where_one_is_is_zero(values: np.ndarray, at: np.ndarray) -> None:
    holding = np.broadcast_to(at[:, None], values.shape)
    assert (relative_actions(holding, at, range(DIM)) == 0).all()


@pytest.mark.parametrize("entries", [(5,), (-1,), (1, 1)])
def test_relative_entries_must_exist(entries: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"different indices within 0 \.\.\. 4"):
        Relative(entries, np.zeros(DIM))
    with pytest.raises(ValueError, match="last dimensions differ"):
        Relative((1,), np.zeros(DIM)).apply(np.zeros((3, DIM + 1)))


@given(hnp.arrays(np.float64, (3, DIM), elements=st.floats(-1, 1)))
def test_state_bins(values: np.ndarray) -> None:
    transform = StateBins()
    bins = transform.apply(values)
    assert bins.dtype == np.int64 and bins.shape == values.shape
    assert np.abs(transform.invert(bins) - values).max() <= 1 / 256 + 1e-12
    with pytest.raises(ValueError, match=r"bins are 0 \.\.\. 255, got -1"):
        transform.invert(np.array([-1, 3]))


@given(hnp.arrays(np.uint8, (2, 3, 4, 5)))
def test_to_unit(values: np.ndarray) -> None:
    images = torch.from_numpy(values)
    unit = ToUnit().apply(images)
    assert unit.abs().max() <= 1
    assert torch.equal(ToUnit().invert(unit), images)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 255))
def test_images_go_in_and_come_back(height: int, width: int, value: int) -> None:
    transform = Compose((ResizeWithPad(height, width, 48), ToUnit()))
    images = torch.full((1, 3, height, width), value, dtype=torch.uint8)
    seen = transform.apply(images)
    assert seen.shape == (1, 3, 48, 48) and seen.dtype == torch.float32
    assert torch.equal(transform.invert(seen), images)


def test_resize_refuses_another_size() -> None:
    with pytest.raises(ValueError, match=r"expected \[\.\.\., 4, 6\]"):
        ResizeWithPad(4, 6).apply(torch.zeros(3, 6, 4))


@given(chunks, states, entry_sets)
def test_actions_go_in_and_come_back(values: np.ndarray, at: np.ndarray, entries: tuple[int, ...]) -> None:
    transform = action_transform(STATS, at, entries)
    inside = transform.apply(values)
    assert inside.shape == (2, 3, 32) and (inside[..., DIM:] == 0).all()
    expected = STATS.normalise(relative_actions(values, at, entries))
    np.testing.assert_array_equal(inside[..., :DIM], expected)
    np.testing.assert_allclose(transform.invert(inside), values, rtol=1e-9, atol=1e-9)


@given(chunks)
def test_what_the_network_says_beyond_the_robot_is_dropped(values: np.ndarray) -> None:
    transform = action_transform(STATS, np.zeros((2, DIM)))
    inside = transform.apply(values)
    inside[..., DIM:] = 7.0
    np.testing.assert_allclose(transform.invert(inside), values, rtol=1e-9, atol=1e-9)


def test_order_matters_and_is_undone_backwards() -> None:
    at = np.full((2, DIM), 3.0)
    first, second = Relative((0,), at), Normalise(STATS)
    values = np.zeros((2, 1, DIM))
    forward, backward = Compose((first, second)), Compose((second, first))
    assert not np.allclose(forward.apply(values), backward.apply(values))
    np.testing.assert_allclose(forward.invert(forward.apply(values)), values, atol=1e-12)
    np.testing.assert_allclose(backward.invert(backward.apply(values)), values, atol=1e-12)


def test_a_state_that_cannot_be_used_is_named() -> None:
    good = np.linspace(0, 1, DIM, dtype=np.float32)
    assert check_state(good, DIM).dtype == np.float64
    assert check_state(np.stack([good, good]), DIM).shape == (2, DIM)
    with pytest.raises(ValueError, match="33 entries exceeds the network's 32"):
        check_state(np.zeros(33), 33)
    with pytest.raises(ValueError, match="4 entries, but the statistics are of 5"):
        check_state(np.zeros(4), DIM)
    with pytest.raises(ValueError, match="0 entries"):
        check_state(3.0, DIM)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match=rf"not finite at \[\(1, 2\)\]: {bad}"):
            check_state([[0] * 5, [0, 0, bad, 0, 0]], DIM)


def test_an_unknown_camera_is_named() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    seen = Observation(0, {"base_0_rgb": image, "frnt": image}, np.zeros(DIM))
    with pytest.raises(ValueError, match=r"\['frnt'\]; this policy has \['base_0_rgb', 'left_wrist_0_rgb'\]"):
        check_cameras(seen, ("base_0_rgb", "left_wrist_0_rgb"))
    # A missing one is no error: it becomes a mask.
    check_cameras(Observation(0, {}, np.zeros(DIM)), ("base_0_rgb",))
