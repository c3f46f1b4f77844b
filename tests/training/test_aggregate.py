"""Episodes that are labelled in the simulator's process, and the closed-loop evaluation."""

import json
from pathlib import Path

import numpy as np
import pytest

from pi05_ros.contract import load_contract
from pi05_ros.messages import encode_jpeg
from pi05_training.aggregate import AggregateConfig, EpisodeCollector
from pi05_training.evaluate import EvalConfig, evaluate, wilson_interval
from pi05_training.samples import Sample, read_samples, write_samples

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb", "base_1_rgb")
SIZE = (224, 224)


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short episodes from the simulator, driven and labelled by the scripted expert."""
    out = tmp_path_factory.mktemp("episodes")
    collector = EpisodeCollector(AggregateConfig(out=out, time_limit_s=5.0))
    for seed in (0, 1):
        collector.collect(seed)
    return out


def sample(shift: float = 0.0) -> Sample:
    blob = encode_jpeg(np.full((*SIZE, 3), 100, np.uint8), 90)
    actions = np.full((50, 18), shift)
    return Sample({"base_0_rgb": blob}, np.full(18, shift), actions, "clear the table", "wait", "drive to the table")


def test_samples_round_trip_and_mask_missing_cameras(tmp_path: Path) -> None:
    write_samples(tmp_path / "episode_0.npz", [sample(0.0), sample(1.0)])
    batch = read_samples(tmp_path / "episode_0.npz", CAMERAS, SIZE)
    assert batch.image_mask.tolist() == [[True, False, False, False]] * 2
    assert abs(int(batch.images[1, 0, 5, 5, 0]) - 100) <= 2
    np.testing.assert_allclose(batch.state, [[0.0] * 18, [1.0] * 18])
    assert (batch.task[0], batch.subtask[0], batch.planner_target[0]) == (
        "clear the table",
        "wait",
        "drive to the table",
    )
    assert list(tmp_path.iterdir()) == [tmp_path / "episode_0.npz"]


def test_samples_refuse_what_they_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without samples"):
        write_samples(tmp_path / "episode_0.npz", [])
    write_samples(tmp_path / "episode_1.npz", [sample()])
    with pytest.raises(ValueError, match=r"sample 0, camera base_0_rgb: expected 64x64 px, found 224x224 px"):
        read_samples(tmp_path / "episode_1.npz", CAMERAS, (64, 64))


def test_collected_labels_are_the_experts(episodes: Path) -> None:
    batch = read_samples(sorted(episodes.glob("*.npz"))[0], CAMERAS, SIZE)
    assert batch.image_mask.all() and batch.planner_target[0] == "drive to the table"
    base = load_contract().base_index
    driving = [i for i, text in enumerate(batch.subtask) if text == "drive to the table"]
    assert np.abs(batch.actions[driving][:, :, base]).max() > 0.2, "the base drives"


def test_wilson_interval() -> None:
    low, high = wilson_interval(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_evaluation_reports_the_expert_truthfully(tmp_path: Path) -> None:
    report = evaluate(EvalConfig(tmp_path, episodes=1, driver="expert", workers=1, time_limit_s=40.0))
    assert json.loads(json.dumps(report)) == json.loads((tmp_path / "report.json").read_text())
    result = report["tasks"]["clear_table"]
    assert result["episodes"] == 1 and result["success"] == 1.0 and result["ci_low"] < 1.0
    short = evaluate(EvalConfig(tmp_path, episodes=1, driver="expert", workers=1, time_limit_s=2.0))
    assert short["tasks"]["clear_table"]["success"] == 0.0
