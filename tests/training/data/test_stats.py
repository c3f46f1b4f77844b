"""Statistics: one pass equals all at once, however the data are split; quantiles keep their bound."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from lerobot_rig import LAYOUT, write_dataset
from numpy.typing import NDArray

from pi05_model.normalize import load_norm_stats
from pi05_model.transforms import relative_actions
from pi05_ros.cli import main as pi05
from pi05_ros.contract import Contract, load_contract
from pi05_training.data.episode import DatasetError, EpisodeInfo, Frame
from pi05_training.data.folder_writer import FolderWriter
from pi05_training.data.lerobot import LeRobotDataset, LeRobotWriter
from pi05_training.data.stats import (
    QUANTILE_ERROR,
    DatasetStats,
    QuantileSketch,
    RunningStats,
    chunk_rows,
    dataset_stats,
)
from pi05_training.data.stats_command import compute
from pi05_training.data.synthetic import numbered_image

finite = st.floats(-(2.0**100), 2.0**100, width=32)
columns = arrays(np.float32, st.integers(1, 200), elements=st.one_of(finite, st.sampled_from([0.0, -0.0, 1.0, -1.5])))


def sketch_of(*parts: NDArray[np.float32]) -> QuantileSketch:
    sketch = QuantileSketch()
    for part in parts:
        sketch.add(part)
    return sketch


@settings(deadline=None)
@given(columns, st.floats(0, 1))
def test_quantiles_keep_their_bound(values: NDArray[np.float32], q: float) -> None:
    exact = np.sort(values.astype(np.float64))
    rank = q * (len(values) - 1)
    below, above = exact[int(np.floor(rank))], exact[int(np.ceil(rank))]
    wanted = below + (rank - np.floor(rank)) * (above - below)
    bound = QUANTILE_ERROR * max(abs(below), abs(above)) + 1e-38
    assert abs(sketch_of(values).quantile(q) - wanted) <= bound * (1 + 1e-9)


@settings(deadline=None)
@given(columns, st.integers(0, 200), st.floats(0, 1))
def test_merged_sketches_are_the_sketch_of_the_whole(values: NDArray[np.float32], cut: int, q: float) -> None:
    merged, other = sketch_of(values[:cut]), sketch_of(values[cut:])
    merged.merge(other)
    assert merged.count == len(values)
    assert merged.quantile(q) == sketch_of(values).quantile(q)


rows = arrays(np.float64, st.tuples(st.integers(2, 60), st.just(3)), elements=st.floats(-100, 100))


@given(rows, st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_shards_give_the_statistics_of_the_whole(x: NDArray[np.float64], first: int, second: int) -> None:
    low, high = sorted((first, second))
    total, later = RunningStats(), RunningStats()
    total.add(x[:low])
    later.add(x[high:])
    total.merge(later)
    total.add(x[low:high])
    found = total.result()
    assert found.count == len(x)
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(found.std, x.std(axis=0), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(found.min, x.min(axis=0))
    np.testing.assert_array_equal(found.max, x.max(axis=0))
    wanted = np.quantile(x.astype(np.float32), [0.01, 0.99], axis=0)
    np.testing.assert_allclose([found.q01, found.q99], wanted, rtol=0, atol=QUANTILE_ERROR * 100 * 1.01)


def test_large_offsets_do_not_spoil_the_deviation() -> None:
    x = 1e6 + np.random.default_rng(0).normal(size=(5000, 1))
    stats = RunningStats()
    for part in np.array_split(x, 37):
        stats.add(part)
    assert stats.result().std[0] == pytest.approx(x.std(), rel=1e-9)


def test_a_glitch_does_not_spoil_the_quantiles() -> None:
    x = np.random.default_rng(0).normal(size=(5000, 1))
    x[17] = 1e30
    stats = RunningStats()
    stats.add(x)
    assert stats.result().q99[0] == pytest.approx(np.quantile(x, 0.99), rel=2 * QUANTILE_ERROR)
    assert stats.result().max[0] == 1e30


def test_a_constant_entry_is_exact_and_narrow() -> None:
    stats = RunningStats()
    stats.add(np.tile([0.3, 0.0], (100, 1)))
    found = stats.result()
    assert found.q01.tolist() == found.q99.tolist() == [0.3, 0.0] and found.narrow == [0, 1]
    assert np.isfinite(found.normalise([0.4, 0.1])).all()


def test_values_that_cannot_be_used_are_refused() -> None:
    stats = RunningStats()
    with pytest.raises(ValueError, match=r"not finite numbers in entries \[1\]"):
        stats.add([[0.0, np.nan]])
    stats.add(np.zeros((0, 2)))
    with pytest.raises(ValueError, match="no frames"):
        RunningStats().result()
    stats.add([[0.0, 1.0]])
    with pytest.raises(ValueError, match="of 2 and of 3 entries"):
        stats.add([[0.0, 1.0, 2.0]])
    with pytest.raises(ValueError, match="chunks of 3 rows"):
        DatasetStats.empty(3).merge(DatasetStats.empty(4))


@pytest.mark.parametrize("relative", [(), (1,)])
def test_actions_are_the_chunks_that_the_loss_sees(tmp_path: Path, relative: tuple[int, ...]) -> None:
    write_dataset(tmp_path / "d")
    dataset = LeRobotDataset(tmp_path / "d", horizon=7)
    wanted = []
    for index in range(len(dataset)):
        sample = dataset[index]
        chunk = relative_actions(sample.actions, sample.state, relative)
        wanted.append(chunk[~sample.action_is_pad])
    rows = np.concatenate(wanted)
    found = dataset_stats(dataset.trajectories(), 7, relative).result()["actions"]
    assert found.count == len(rows)
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.q99, np.quantile(rows, 0.99, axis=0), rtol=3 * QUANTILE_ERROR)


def test_long_episodes_are_cut_into_windows_without_a_seam() -> None:
    state, action = np.zeros((2500, 1), np.float32), np.arange(2500, dtype=np.float32)[:, None]
    found = np.concatenate(list(chunk_rows(state, action, 3, ())))
    count = np.bincount(found[:, 0].astype(int), minlength=2500)
    assert count.tolist() == [1, 2, *[3] * 2498]


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with the contract's 18 entries, of which only the first two move."""
    root = tmp_path_factory.mktemp("robot") / "d"
    contract = load_contract()
    writer = LeRobotWriter(root, dataclasses.replace(LAYOUT, names=contract.names, cameras=()))
    rng = np.random.default_rng(0)
    for number in range(3):
        episode = writer.episode(EpisodeInfo(f"bag_{number}", "t", "", 50))
        for k in range(40):
            state = np.zeros(18, np.float32)
            state[:2] = rng.normal(size=2)
            episode.add(Frame(k * 20_000_000, {}, state, state + 0.1, "s"))
        episode.close()
    return root


def test_command_writes_openpis_file(robot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "norm_stats.json"
    assert pi05(["stats", str(robot), "--out", str(out)]) == 0
    stats = load_norm_stats(out)
    assert set(stats) == {"state", "actions"}
    assert (stats["state"].count, stats["actions"].count) == (120, 3 * sum(min(50, 40 - k) for k in range(40)))
    assert json.loads(out.read_text())["norm_stats"]["state"].keys() >= {"mean", "std", "q01", "q99"}
    said = capsys.readouterr().out
    assert "left_joint3" in said.split("state: q99 - q01 is below 0.01 for")[1]
    assert "left_joint2" not in said.split("is below 0.01 for")[1]


def test_relative_statistics_are_of_the_joints_only(robot: Path, tmp_path: Path) -> None:
    assert pi05(["stats", str(robot), "--relative", "--horizon", "1", "--out", str(tmp_path / "n.json")]) == 0
    found = load_norm_stats(tmp_path / "n.json")["actions"]
    np.testing.assert_allclose(found.mean, 0.1, atol=1e-6)
    np.testing.assert_allclose(found.std, 0.0, atol=1e-6)


def test_processes_and_datasets_give_the_whole(robot: Path) -> None:
    contract = load_contract()
    one = compute([robot], contract, 5, (), 1).result()
    shared = compute([robot], contract, 5, (), 2).result()
    twice = compute([robot, robot], contract, 5, (), 1).result()
    for group, wanted in one.items():
        np.testing.assert_array_equal(shared[group].q01, wanted.q01)
        np.testing.assert_allclose(shared[group].std, wanted.std, rtol=1e-12)
        assert twice[group].count == 2 * wanted.count
        np.testing.assert_allclose(twice[group].mean, wanted.mean, rtol=1e-12)


def test_datasets_that_do_not_fit_are_explained(tmp_path: Path) -> None:
    write_dataset(tmp_path / "arm")
    with pytest.raises(DatasetError, match=r"arm: state of 2 entries, mobile_manipulator has 18; give its --contract"):
        compute([tmp_path / "arm"], load_contract(), 50, (), 1)
    with pytest.raises(DatasetError, match="no such folder"):
        compute([tmp_path / "nothing"], load_contract(), 50, (), 1)
    assert pi05(["stats", str(tmp_path / "arm")]) == 1


def test_a_folder_dataset_brings_its_contract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = load_contract().model_dump()
    small = Contract(**{**about, "vector": [about["vector"][0], about["vector"][-1]], "robot": "one_arm"})
    writer = FolderWriter(tmp_path / "d", small)
    episode = writer.episode(EpisodeInfo("bag_0", "t", "", 50))
    blob = numbered_image(small, 0, 0)
    for k in range(12):
        episode.add(Frame(k * 20_000_000, {"front": blob}, np.full(7, k, np.float32), np.full(7, k, np.float32), "s"))
    episode.close()
    assert pi05(["stats", str(tmp_path / "d"), "--relative"]) == 0
    found = load_norm_stats(tmp_path / "d/norm_stats.json")
    assert found["state"].mean.tolist() == [5.5] * 7
    assert found["actions"].min.tolist() == [0.0] * 7 and found["actions"].max.tolist() == [11.0] * 7
    assert "base_wz" in capsys.readouterr().out
