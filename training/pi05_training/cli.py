"""The training side of the program `pi05`: `pi05 train` and `pi05 eval`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import tyro

from pi05_model.checkpoint import fingerprint
from pi05_ros.contract import load_contract
from pi05_ros.graph import EMBEDDED_POLICY
from pi05_ros.paths import share_dir
from pi05_training.evaluate import EvalConfig, evaluate
from pi05_training.parallel import Parallel
from pi05_training.trainer.config import TrainConfig


def train(argv: Sequence[str] | None = None) -> int:
    """Run `pi05 train`. Returns 0 when the last checkpoint is written.

    Raises:
        TrainingError, DatasetError, CheckpointError, StateError: what is wrong is said before the first step.
    """
    config = tyro.cli(
        TrainConfig,
        prog="pi05 train",
        description="Train a policy.",
        args=None if argv is None else list(argv),
    )
    from pi05_training.trainer.loop import Trainer  # torch takes seconds to import
    from pi05_training.trainer.prepare import prepare

    with Parallel.setup(config.parallel, config.device) as parallel:
        prepared = prepare(config, load_contract())
        if parallel.main:
            print(prepared.mixture.drawn(config.batch_size, config.steps))
            for why in prepared.damaged:
                print(f"left out: {why}")
        after_save = partial(_closed_loop, config.closed_loop_episodes) if config.closed_loop_episodes else None
        folder = Trainer(prepared, parallel, after_save).run()
        if parallel.main:
            print(f"checkpoint: {folder}")
    return 0


def _closed_loop(episodes: int, folder: Path) -> dict[str, float]:
    """Evaluate a checkpoint in simulation; the report lies in it."""
    report = evaluate(EvalConfig(folder / "eval", episodes=episodes, policy=folder, workers=1))
    [summary] = report["tasks"].values()
    return {name: float(value) for name, value in summary.items()}


def evaluation(argv: Sequence[str] | None = None) -> int:
    """Run `pi05 eval`. Returns 0 when every episode was run, whatever came of it.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    config = tyro.cli(EvalConfig, prog="pi05 eval", args=None if argv is None else list(argv))
    if config.driver == "policy":  # before workers start: a pool restarts a worker that cannot load it, for ever
        fingerprint(config.policy or share_dir() / EMBEDDED_POLICY)
    report = evaluate(config)
    for task, result in report["tasks"].items():
        interval = f"95 % interval {result['ci_low']:.2f} to {result['ci_high']:.2f}"
        print(f"{task}: success {result['success']:.2f} ({interval}, {result['episodes']} episodes)")
    print(f"report in {config.out / 'report.json'}")
    return 0
