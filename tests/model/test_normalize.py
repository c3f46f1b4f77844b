"""Normalisation: the formulas of three families, their inverses, and the statistics file."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pi05_model.normalize import MIN_RANGE, NormStats, load_norm_stats, save_norm_stats

FAMILIES = ["project", "openpi", "lerobot"]
METHODS = ["quantile", "mean_std"]
SAMPLES = np.random.default_rng(0).normal([0.5, -2.0, 10.0], [0.1, 1.0, 5.0], size=(500, 3))
STATS = NormStats.from_samples(SAMPLES)
X = np.random.default_rng(1).normal(size=(4, 7, 3))


def variant(family: str, method: str, stats: NormStats = STATS) -> NormStats:
    return dataclasses.replace(stats, family=family, method=method)


def test_openpis_formulas() -> None:
    q01, q99, mean, std = STATS.q01, STATS.q99, STATS.mean, STATS.std
    quantile = (X - q01) / (q99 - q01 + 1e-6) * 2.0 - 1.0
    np.testing.assert_allclose(variant("openpi", "quantile").normalise(X), quantile, rtol=1e-12, atol=1e-12)
    back = (X + 1.0) / 2.0 * (q99 - q01 + 1e-6) + q01
    np.testing.assert_allclose(variant("openpi", "quantile").unnormalise(X), back, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(variant("openpi", "mean_std").normalise(X), (X - mean) / (std + 1e-6), rtol=1e-12)
    np.testing.assert_allclose(variant("openpi", "mean_std").unnormalise(X), X * (std + 1e-6) + mean, rtol=1e-12)


def test_lerobots_formulas() -> None:
    q01, q99 = STATS.q01, STATS.q99
    quantile = 2.0 * (X - q01) / (q99 - q01) - 1.0
    np.testing.assert_allclose(variant("lerobot", "quantile").normalise(X), quantile, rtol=1e-12, atol=1e-12)
    z = (X - STATS.mean) / (STATS.std + 1e-8)
    np.testing.assert_allclose(variant("lerobot", "mean_std").normalise(X), z, rtol=1e-12)
    still = NormStats.from_samples(np.full((5, 1), 0.25))
    assert variant("lerobot", "quantile", still).normalise([0.25]) == [-1.0]
    np.testing.assert_allclose(variant("lerobot", "quantile", still).normalise([0.25 + 1e-8]), 1.0, rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_becomes_one(family: str) -> None:
    quantile, moments = variant(family, "quantile"), variant(family, "mean_std")
    np.testing.assert_allclose(quantile.normalise(STATS.q01), -1, atol=1e-5)
    np.testing.assert_allclose(quantile.normalise(STATS.q99), 1, atol=1e-5)
    np.testing.assert_allclose(moments.normalise(STATS.mean), 0, atol=1e-9)
    np.testing.assert_allclose(moments.normalise(STATS.mean + STATS.std), 1, atol=1e-4)


vectors = hnp.arrays(np.float64, (6, 3), elements=st.floats(-1e3, 1e3))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
@given(samples=vectors, values=vectors)
def test_every_family_has_its_inverse(family: str, method: str, samples: np.ndarray, values: np.ndarray) -> None:
    stats = variant(family, method, NormStats.from_samples(samples))
    normalised = stats.normalise(values)
    assert normalised.shape == values.shape and normalised.dtype == np.float64 and np.isfinite(normalised).all()
    np.testing.assert_allclose(stats.unnormalise(normalised), values, rtol=1e-9, atol=1e-9)


@given(samples=vectors)
def test_the_floor_bounds_small_deviations(samples: np.ndarray) -> None:
    for method in METHODS:
        stats = variant("project", method, NormStats.from_samples(samples))
        step = stats.normalise(np.full(3, MIN_RANGE)) - stats.normalise(np.zeros(3))
        assert (step <= 2 + 1e-6).all()


def test_a_constant_dimension_stays_finite_and_is_told() -> None:
    samples = SAMPLES.copy()
    samples[:, 1] = 0.5
    for method in METHODS:
        stats = variant("project", method, NormStats.from_samples(samples))
        assert stats.narrow == [1]
        assert abs(stats.normalise([0.0, 0.501, 0.0])[1]) <= 1


def test_first_entries_of_padded_statistics() -> None:
    padded = NormStats.from_samples(np.pad(SAMPLES, ((0, 0), (0, 29))))
    np.testing.assert_array_equal(padded.first(3).normalise(X), STATS.normalise(X))
    with pytest.raises(ValueError, match="32 entries, not the first 33"):
        padded.first(33)


def test_a_vector_of_another_length_is_named() -> None:
    with pytest.raises(ValueError, match=r"\(2, 1\).*\[\.\.\., 3\]"):
        STATS.normalise(np.zeros((2, 1)))
    with pytest.raises(ValueError, match=r"\(32,\)"):
        STATS.unnormalise(np.zeros(32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q99": [0.0, np.nan, 1.0]}, "q99 must be 3 finite"),
        ({"std": [1.0, -1.0, 1.0]}, "std .* must not be negative"),
        ({"q01": [99.0, 0.0, 0.0]}, "q01 .* not above q99"),
        ({"min": [0.0]}, "min must be 3"),
        ({"family": "other"}, r"family 'other' is unknown.*'openpi'"),
        ({"method": "minmax"}, "method 'minmax'"),
        ({"min_range": 0.0}, "min_range"),
    ],
)
def test_bad_statistics_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(STATS, **changes)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_the_file_keeps_everything(tmp_path: Path, family: str, method: str) -> None:
    save_norm_stats({"state": variant(family, method)}, tmp_path / "norm_stats.json")
    again = load_norm_stats(tmp_path / "norm_stats.json")["state"]
    assert (again.family, again.method, again.count) == (family, method, 500)
    np.testing.assert_array_equal(again.normalise(X), variant(family, method).normalise(X))


def test_openpis_file(tmp_path: Path) -> None:
    path = tmp_path / "norm_stats.json"
    group: dict = {"mean": [0.0], "std": [1.0], "q01": [-2.0], "q99": [2.0]}
    path.write_text(json.dumps({"norm_stats": {"state": group, "actions": group}}))
    assert load_norm_stats(path)["state"].normalise([2.0]) == [1.0]
    theirs = load_norm_stats(path, family="openpi")["actions"]
    assert theirs.family == "openpi" and 1 - 1e-6 < theirs.normalise([2.0])[0] < 1
    # Files for π0 may have no quantiles.
    group.update(q01=None, q99=None)
    path.write_text(json.dumps({"norm_stats": {"state": group}}))
    assert load_norm_stats(path, "project", "mean_std")["state"].normalise([3.0]) == [3.0]
    with pytest.raises(ValueError, match=r"norm_stats\.json.*q01"):
        load_norm_stats(path)
    del group["q99"]
    path.write_text(json.dumps({"norm_stats": {"state": group}}))
    with pytest.raises(ValueError, match=r"norm_stats\.json.*'q99'"):
        load_norm_stats(path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"norm_stats\.json"):
        load_norm_stats(path)
