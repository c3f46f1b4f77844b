"""Data for training, through the public commands: recorded from the simulator over ROS, converted, tokenizer fitted."""

import os
from pathlib import Path

import pytest
import torch

from pi05_ros.cli import main
from pi05_training.trainer.config import TrainConfig


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bags of four episodes of the scripted demonstrator."""
    os.environ.setdefault("ROS_DOMAIN_ID", "61")
    bags = tmp_path_factory.mktemp("bags")
    assert main(["record", "--auto", "4", "--out", str(bags), "--seed", "40", "--realtime-factor", "0"]) == 0
    return bags


@pytest.fixture(scope="session")
def dataset(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same episodes as a folder dataset, with statistics."""
    folder = tmp_path_factory.mktemp("data") / "set"
    assert main(["convert", *map(str, sorted(recorded.glob("episode_*"))), str(folder), "--format", "folder"]) == 0
    assert main(["stats", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def fast(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An action tokenizer that is fitted to the dataset."""
    folder = tmp_path_factory.mktemp("tokenizer") / "fast"
    assert main(["tokenizer", "fit", "fast", str(dataset), "--out", str(folder), "--vocab-size", "512"]) == 0
    return folder


@pytest.fixture
def settings(dataset: Path, tmp_path: Path) -> TrainConfig:
    """A short run of the smallest network."""
    return TrainConfig(
        mode="hierarchical",
        data_root=dataset,
        out=tmp_path / "run",
        preset="pi05_debug",
        steps=4,
        batch_size=4,
        learning_rate=2e-3,
        warmup_steps=2,
        holdout=0.0,
        evaluate_every=0,
        save_every=1000,
        workers=0,
        threads=1,
        bf16=False,
        tensorboard=False,
    )
