"""From the simulator to a checkpoint: samples, buffer, trainer, evaluation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pi05_model.checkpoint import load_checkpoint
from pi05_model.policy import Pi05Policy
from pi05_ros.contract import load_contract
from pi05_ros.messages import encode_jpeg
from pi05_ros.rollout import Look
from pi05_training.aggregate import AggregateConfig, EpisodeCollector
from pi05_training.augment import augment_images
from pi05_training.buffer import SampleBuffer
from pi05_training.evaluate import EvalConfig, evaluate, wilson_interval
from pi05_training.samples import Sample, read_samples, write_samples
from pi05_training.train import TrainConfig, Trainer, learning_rate, train

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


@pytest.fixture(scope="module")
def trained(episodes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    config = TrainConfig(episodes, out, preset="pi05_debug", steps=80, batch_size=8, warmup_steps=5, save_every=40)
    train(config)
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


def test_buffer_overwrites_the_oldest() -> None:
    buffer = SampleBuffer(3, torch.device("cpu"))
    buffer.add({"x": torch.tensor([0, 1])})
    buffer.add({"x": torch.tensor([2, 3])})
    drawn = set(buffer.draw(200, torch.Generator().manual_seed(0))["x"].tolist())
    assert (len(buffer), buffer.added, drawn) == (3, 4, {1, 2, 3})
    with pytest.raises(ValueError, match="expected columns"):
        buffer.add({"y": torch.tensor([1])})


def test_collected_labels_are_the_experts(episodes: Path) -> None:
    batch = read_samples(sorted(episodes.glob("*.npz"))[0], CAMERAS, SIZE)
    assert batch.image_mask.all() and batch.planner_target[0] == "drive to the table"
    base = load_contract().base_index
    driving = [i for i, text in enumerate(batch.subtask) if text == "drive to the table"]
    assert np.abs(batch.actions[driving][:, :, base]).max() > 0.2, "the base drives"


def test_training_lowers_the_loss_and_writes_checkpoints(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "train.jsonl").read_text().splitlines()]
    assert lines[-1]["flow"] < 0.75 * lines[0]["flow"]
    assert {path.name for path in trained.glob("step_*")} == {"step_40", "step_80"}
    assert (trained / "latest").resolve().name == "step_80"
    checkpoint = load_checkpoint(trained / "latest")
    assert checkpoint.extra["names"] == list(load_contract().names)
    assert checkpoint.config.relative_entries == () and checkpoint.extra["temperature"] == 0.0


def test_a_start_from_a_checkpoint_keeps_its_statistics_unless_told(
    trained: Path, episodes: Path, tmp_path: Path
) -> None:
    start = load_checkpoint(trained / "latest")
    common = {"init": trained / "latest", "steps": 1, "batch_size": 4, "relative": True}
    kept = load_checkpoint(train(TrainConfig(episodes, tmp_path / "kept", **common)))
    changed = load_checkpoint(train(TrainConfig(episodes, tmp_path / "new", change_actions=True, **common)))
    assert kept.config.relative_entries == () and (kept.stats["actions"].q99 == start.stats["actions"].q99).all()
    assert changed.config.relative_entries == tuple(load_contract().position_index)
    assert (changed.stats["actions"].q99 != start.stats["actions"].q99).any()
    assert (changed.stats["state"].q99 == start.stats["state"].q99).all()


def test_the_trained_policy_answers_in_kind(trained: Path, episodes: Path) -> None:
    policy = Pi05Policy.load(trained / "latest", threads=1)
    collector = EpisodeCollector(AggregateConfig(out=episodes))
    look: Look = collector.rollout.look()
    observation = look.observation(load_contract())
    actions = policy.act(observation, "wait")
    entries = load_contract().position_index
    assert actions.shape == policy.action_shape == (50, 18)
    assert np.abs(actions[:, entries] - look.state[entries]).max() < 3.0
    assert policy.plan(observation, "clear the table") in policy.subtasks


def test_same_seed_same_weights(episodes: Path, tmp_path: Path) -> None:
    weights = []
    for run in ("a", "b"):
        config = TrainConfig(episodes, tmp_path / run, preset="pi05_debug", steps=3, batch_size=4, threads=1)
        weights.append(load_checkpoint(train(config)).model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_bad_input_is_told(tmp_path: Path, episodes: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        train(TrainConfig(tmp_path / "none", tmp_path / "out"))
    with pytest.raises(FileNotFoundError, match=r"no episode_\*\.npz files"):
        train(TrainConfig(tmp_path, tmp_path / "out"))
    with pytest.raises(ValueError, match="unknown preset 'pi9'; presets: pi05_base"):
        train(TrainConfig(episodes, tmp_path / "out", preset="pi9"))


def test_a_loss_that_is_not_finite_stops_before_the_step(episodes: Path, tmp_path: Path) -> None:
    config = TrainConfig(episodes, tmp_path, preset="pi05_debug", steps=2, batch_size=4, alpha=float("inf"))
    trainer = Trainer(config, load_contract())
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(FloatingPointError, match="step 0: the loss is"):
        trainer.run()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_learning_rate_warms_up_and_decays_by_steps_or_time() -> None:
    config = TrainConfig(Path(), Path(), steps=100, warmup_steps=10, learning_rate=1.0, seconds=60.0)
    assert learning_rate(config, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(config, 9, 0.0) > 0.95
    assert learning_rate(config, 99, 0.0) < 0.06
    assert learning_rate(config, 9, 60.0) == pytest.approx(0.05)


def test_augmentation_keeps_shape_and_type() -> None:
    images = torch.full((2, 3, 3, 8, 8), 128, dtype=torch.uint8)
    torch.manual_seed(0)
    varied = augment_images(images)
    assert varied.shape == images.shape and varied.dtype == torch.uint8
    assert not torch.equal(varied, images)
    flat = varied.flatten(3)
    assert (flat == flat[..., :1]).all(), "one image changes as a whole"


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
