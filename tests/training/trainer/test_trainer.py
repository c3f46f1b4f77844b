"""The loop: exact resume, several processes, what is told, and what is refused before the first step."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pi05_model.checkpoint import load_checkpoint
from pi05_model.normalize import NormStats, save_norm_stats
from pi05_model.policy import Pi05Policy
from pi05_ros.cli import main
from pi05_ros.contract import load_contract
from pi05_training.data.episode import DatasetError
from pi05_training.parallel import Parallel
from pi05_training.trainer.config import TrainConfig
from pi05_training.trainer.error import TrainingError
from pi05_training.trainer.loop import Trainer
from pi05_training.trainer.prepare import prepare


def train(config: TrainConfig) -> Path:
    return Trainer(prepare(config, load_contract()), Parallel.setup()).run()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder).model.state_dict()


def lines(config: TrainConfig) -> list[dict[str, float]]:
    return [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_fifty_and_fifty_are_a_hundred(settings: TrainConfig, tmp_path: Path) -> None:
    """Interrupted after 50 steps, in another process count of workers, and resumed: bit for bit the same."""
    whole = dataclasses.replace(settings, steps=100, batch_size=2, out=tmp_path / "whole")
    train(whole)
    part = dataclasses.replace(whole, out=tmp_path / "part", save_every=50, keep=5)
    stopped = Trainer(prepare(part, load_contract()), Parallel.setup())
    while stopped.step < 50:
        stopped.advance()
    stopped.save()
    resumed = dataclasses.replace(part, resume=True, workers=1)
    assert same(weights(whole.out / "latest"), weights(train(resumed)))
    assert (part.out / "latest").resolve().name == "step_100"
    assert not same(weights(part.out / "step_50"), weights(part.out / "step_100"))


def test_accumulation_changes_only_rounding(settings: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(settings, ema_decay=0.0)
    one, four = (weights(train(dataclasses.replace(config, accumulate=n, out=tmp_path / str(n)))) for n in (1, 4))
    for name in one:
        torch.testing.assert_close(one[name], four[name], atol=2e-4, rtol=1e-3)


def test_two_processes_are_one(settings: TrainConfig, tmp_path: Path, dataset: Path) -> None:
    flags = (
        f"hierarchical --data-root {dataset} --preset pi05_debug --steps 3 --batch-size 4 --workers 0 --threads 1 "
        "--holdout 0 --evaluate-every 0 --no-bf16 --no-tensorboard --ema-decay 0 --seed 3"
    ).split()
    assert main(["train", *flags, "--out", str(tmp_path / "one")]) == 0
    for kind in ("ddp", "fsdp"):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += [
            str(Path(sys.executable).with_name("pi05")),
            "train",
            *flags,
            "--out",
            str(tmp_path / kind),
            "--parallel",
            kind,
        ]
        run = subprocess.run(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240
        )
        assert run.returncode == 0, run.stderr[-2000:]
        one, two = weights(tmp_path / "one" / "latest"), weights(tmp_path / kind / "latest")
        for name in one:
            torch.testing.assert_close(one[name], two[name], atol=2e-4, rtol=1e-3)


def test_low_rank_updates_are_merged_into_the_checkpoint(settings: TrainConfig) -> None:
    config = dataclasses.replace(settings, lora_rank=2, lora=("vlm.*",), freeze=("vision.*", "embed.*"), ema_decay=0.0)
    prepared = prepare(config, load_contract())
    before = {name: tensor.clone() for name, tensor in prepared.model.state_dict().items()}
    after = weights(Trainer(prepared, Parallel.setup()).run())
    change = after["vlm.layers.0.mlp.down.weight"] - before["vlm.layers.0.mlp.down.weight"]
    assert torch.linalg.matrix_rank(change) == 2
    assert torch.equal(after["vision.position"], before["vision.position"])


def test_held_out_metrics_and_what_is_logged(settings: TrainConfig) -> None:
    config = dataclasses.replace(
        settings, steps=6, holdout=0.5, evaluate_every=3, evaluate_samples=4, log_every=2, tensorboard=True
    )
    train(config)
    logged = lines(config)
    metrics = [line for line in logged if "held_out/MM/flow" in line]
    assert [line["step"] for line in metrics] == [3, 6]
    for name in ("flow", "action_mse", "token_accuracy", "subtask_match"):
        assert np.isfinite(metrics[-1][f"held_out/MM/{name}"])
    assert [line["step"] for line in logged if "total" in line] == [1, 2, 4, 6]
    assert logged[0]["drawn/MM"] == 1
    assert list((config.out / "tensorboard").glob("events.*"))
    record = json.loads((config.out / "latest" / "train_config.json").read_text())
    assert record["settings"]["batch_size"] == 4 and record["data"]["MM"].endswith(tuple("0123456789"))


def test_the_trained_policy_runs_and_answers_in_kind(settings: TrainConfig) -> None:
    folder = train(settings)
    policy = Pi05Policy.load(folder)
    assert "drive to the table" in policy.subtasks
    assert load_checkpoint(folder).extra["names"] == list(load_contract().names)


def test_a_start_from_a_checkpoint(settings: TrainConfig, tmp_path: Path) -> None:
    first = train(settings)
    second = dataclasses.replace(
        settings, init=first, out=tmp_path / "second", steps=1, learning_rate=0.0, ema_decay=0.0
    )
    assert same(weights(first), weights(train(second)))
    fresh = dataclasses.replace(second, mode="posttrain", fresh_expert=True, out=tmp_path / "fresh")
    started = weights(train(fresh))
    for name, tensor in weights(first).items():
        expert = name.startswith(("expert.layers.0.attention", "action_in.weight", "time_in.weight"))
        assert torch.equal(tensor, started[name]) or not name.startswith(("vlm.", "vision.", "embed."))
        assert not (expert and torch.equal(tensor, started[name]))


def test_a_loss_that_is_not_finite_stops_before_the_step(settings: TrainConfig) -> None:
    trainer = Trainer(prepare(settings, load_contract()), Parallel.setup())
    with torch.no_grad():
        trainer.model.action_out.bias[0] = float("nan")
    before = trainer.model.vlm.norm.weight.clone()
    with pytest.raises(TrainingError, match="step 0: the loss is nan"):
        trainer.run()
    assert torch.equal(trainer.model.vlm.norm.weight, before)


def test_resuming_another_run_tells_what_differs(settings: TrainConfig) -> None:
    train(settings)
    other = dataclasses.replace(settings, resume=True, batch_size=2, draws=1, steps=9, log_every=3)
    with pytest.raises(TrainingError, match=r"batch_size: saved 4, now 2\n(.|\n)*draws: saved 2, now 1"):
        train(other)


def test_a_folder_that_holds_a_run_is_not_trained_into(settings: TrainConfig) -> None:
    train(settings)
    with pytest.raises(TrainingError, match="holds a run already: go on with --resume"):
        train(settings)


def test_resuming_with_other_statistics_is_refused(settings: TrainConfig, dataset: Path, tmp_path: Path) -> None:
    first = train(settings)
    config = dataclasses.replace(settings, out=tmp_path / "second", init=first)
    train(config)
    stats = load_checkpoint(first).stats
    save_norm_stats(
        {**stats, "state": NormStats.from_samples(np.random.default_rng(0).normal(size=(99, 18)))},
        tmp_path / "other.json",
    )
    with pytest.raises(TrainingError, match=r"\(statistics\)"):
        train(dataclasses.replace(config, init=None, stats=tmp_path / "other.json", resume=True, steps=9))


def test_an_action_expert_run_keeps_the_planner_and_its_list(settings: TrainConfig, tmp_path: Path) -> None:
    first = train(settings)
    known = load_checkpoint(first).extra["subtasks"]
    second = dataclasses.replace(settings, mode="action-expert", init=first, out=tmp_path / "second", steps=1)
    assert load_checkpoint(train(second)).extra["subtasks"] == known and known


def test_bad_input_is_told_before_the_first_step(
    settings: TrainConfig, dataset: Path, fast: Path, tmp_path: Path
) -> None:
    def refused(error: type[Exception], message: str, **changes: object) -> None:
        with pytest.raises(error, match=message):
            prepare(dataclasses.replace(settings, **changes), load_contract())

    narrow = NormStats.from_samples(np.random.default_rng(0).normal(size=(9, 7)))
    save_norm_stats({"state": narrow, "actions": narrow}, tmp_path / "narrow.json")
    refused(TrainingError, "statistics of state have 7 entries, the contract 18", stats=tmp_path / "narrow.json")
    refused(DatasetError, "no such", data_root=tmp_path / "nothing")
    refused(TrainingError, "unknown preset 'huge'; presets: pi05_base", preset="huge")
    refused(TrainingError, "action tokens need a tokenizer", mode="pretrain")
    refused(TrainingError, "trains no action tokens", mode="action-expert", use_fast_tokens=True)
    refused(TrainingError, "nothing with a flow loss is trained, so --alpha 1.0", mode="planner", alpha=1.0)
    refused(TrainingError, "what this run trains", mode="action-expert", alpha=0.0)
    refused(TrainingError, "nothing to learn in planner", mode="planner", planner_every=2)
    refused(TrainingError, "vison.* fits no parameter", freeze=("vison.*",))
    refused(TrainingError, "leaves nothing to train", freeze=("*",))
    refused(TrainingError, "--fresh-expert belongs to --init", fresh_expert=True)
    refused(TrainingError, "keep is 0; valid: 1 and more", keep=0)
    refused(TrainingError, "accumulate is 0", accumulate=0)
    refused(TrainingError, "holdout is 1.5", holdout=1.5)
    refused(TrainingError, "cameras head are not in the contract", cameras=("head",))
    refused(ValueError, "no camera is left for the actions", cameras=("base_1_rgb",))
    other = NormStats.from_samples(np.random.default_rng(0).normal(size=(99, 18)))
    save_norm_stats({"state": other, "actions": other}, tmp_path / "other.json")
    refused(
        ValueError,
        "normalised differently",
        mode="pretrain",
        fast_tokenizer_path=fast,
        stats=tmp_path / "other.json",
    )
    with pytest.raises(TrainingError, match="batch size 4 is not a multiple of 3 accumulation steps x 1"):
        train(dataclasses.replace(settings, accumulate=3))


def test_a_dataset_without_subtasks_cannot_train_a_planner(settings: TrainConfig, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    run = tmp_path / "plain" / "tidy_up" / "tidy_up" / "run_001"
    run.mkdir(parents=True)
    np.save(run / "actions.npy", rng.normal(size=(60, 18)).astype(np.float32))
    np.save(run / "qpos.npy", rng.normal(size=(60, 18)).astype(np.float32))
    for frame in range(60):
        (run / "front").mkdir(exist_ok=True)
        cv2.imwrite(str(run / "front" / f"{frame:06d}.jpg"), rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    with pytest.raises(DatasetError, match="no subtasks"):
        prepare(dataclasses.replace(settings, data_root=tmp_path / "plain"), load_contract())
