"""The training side of the program `pi05`: `pi05 train` and `pi05 eval`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from pi05_model.checkpoint import fingerprint
from pi05_ros.graph import EMBEDDED_POLICY
from pi05_ros.paths import share_dir
from pi05_training.evaluate import EvalConfig, evaluate
from pi05_training.train import Mode, TrainConfig
from pi05_training.train import train as run_training


@dataclass(frozen=True)
class TrainArguments:
    """Train a policy on labelled samples.

    Attributes:
        mode: what is trained: "hierarchical" is planner and action expert together.
    """

    mode: tyro.conf.Positional[Mode]
    config: Annotated[TrainConfig, tyro.conf.OmitArgPrefixes]


def train(argv: Sequence[str] | None = None) -> int:
    """Run `pi05 train`. Returns 0 when the last checkpoint is written."""
    flat = Annotated[TrainArguments, tyro.conf.OmitArgPrefixes]
    arguments = tyro.cli(flat, prog="pi05 train", args=None if argv is None else list(argv))
    print(f"checkpoint: {run_training(arguments.config)}")
    return 0


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
