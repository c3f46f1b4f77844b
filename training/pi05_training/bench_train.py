"""`pi05 bench train`: samples per second of the trainer with its real reader, data wait, memory, FSDP's memory plan."""

import dataclasses
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import tyro

from pi05_model.config import PRESETS, VIEWS
from pi05_ros.bench.figures import Figure, report
from pi05_ros.contract import Contract, load_contract
from pi05_training.bench_data import make_bags
from pi05_training.data.bags import find_bags
from pi05_training.data.convert import Settings, convert
from pi05_training.data.engines import LocalEngine
from pi05_training.parallel import Parallel, plan_table
from pi05_training.trainer.config import TrainConfig
from pi05_training.trainer.log import FILE
from pi05_training.trainer.loop import Trainer
from pi05_training.trainer.modes import ModeName
from pi05_training.trainer.prepare import prepare

WARM_UP = 4


@dataclass(frozen=True)
class TrainArguments:
    """Measure training on this machine.

    Attributes:
        json: file that also receives the figures.
        preset: network.
        steps: timed steps of each mode.
        memory_steps: steps over which the memory of one long run is watched; 0 leaves it out.
        batch_size: samples per step.
        threads: of torch.
        workers: processes that read.
    """

    json: Path | None = None
    preset: str = "pi05_tiny"
    steps: int = 24
    memory_steps: int = 0
    batch_size: int = 16
    threads: int = 2
    workers: int = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run `pi05 bench train`. Returns 0 when everything was measured, whatever the figures are."""
    arguments = tyro.cli(TrainArguments, prog="pi05 bench train", args=None if argv is None else list(argv))
    report("train", measure(arguments), arguments.json)
    print(plan_table(PRESETS["pi05_base"], "pi05_base"))
    return 0


def measure(arguments: TrainArguments) -> Iterator[list[Figure]]:
    """Measure modes one after another, on a dataset that is made for it, on an otherwise idle machine."""
    contract = load_contract()
    with tempfile.TemporaryDirectory(prefix="pi05_bench_") as name:
        folder = Path(name)
        make_bags(folder / "bags", contract, 20.0, 2)
        convert(find_bags([folder / "bags"]), folder / "set", Settings(contract=contract), LocalEngine(1))
        base = TrainConfig(
            mode="action-expert",
            data_root=folder / "set",
            out=folder / "run",
            preset=arguments.preset,
            cameras=VIEWS,
            batch_size=arguments.batch_size,
            steps=arguments.steps + WARM_UP,
            draws=1,
            threads=arguments.threads,
            workers=arguments.workers,
            evaluate_every=0,
            save_every=10**9,
            log_every=1,
            holdout=0.0,
            tensorboard=False,
        )
        runs: list[tuple[str, ModeName, bool, str]] = [
            ("hierarchical, insulated", "hierarchical", True, ">= 60"),
            ("hierarchical, flow into the VLM", "hierarchical", False, ""),
            ("action expert alone", "action-expert", True, ""),
            ("planner alone", "planner", True, ""),
        ]
        for label, mode, insulate, target in runs:
            print(f"bench: {label} …", flush=True)
            config = dataclasses.replace(base, mode=mode, insulate=insulate, out=folder / mode / str(insulate))
            yield speed(config, contract, label, target)
        if arguments.memory_steps:
            print(f"bench: memory over {arguments.memory_steps} steps …", flush=True)
            config = dataclasses.replace(base, mode="hierarchical", steps=arguments.memory_steps, out=folder / "long")
            yield memory(config, contract)


def speed(config: TrainConfig, contract: Contract, label: str, target: str) -> list[Figure]:
    """Return samples per second and the share of time that a step waits for data, the first steps left out."""
    Trainer(prepare(config, contract), Parallel.setup()).run()
    lines = [json.loads(line) for line in (config.out / FILE).read_text("utf-8").splitlines()][WARM_UP:]
    seconds = sum(config.batch_size / line["samples_per_s"] for line in lines)
    waited = sum(line["data_wait"] * config.batch_size / line["samples_per_s"] for line in lines)
    how = (
        f"{config.preset}, bf16, batch {config.batch_size}, {len(config.cameras)} cameras, {config.threads} threads, "
        f"n = {len(lines)}"
    )
    return [
        Figure(f"training, {label}", config.batch_size * len(lines) / seconds, "samples/s", target, how),
        Figure(f"data wait, {label}", 100 * waited / seconds, "%", "< 5", f"{config.workers} worker"),
    ]


def memory(config: TrainConfig, contract: Contract) -> list[Figure]:
    """Return how much the training process grows between the first tenth of a run and its end."""
    trainer = Trainer(prepare(config, contract), Parallel.setup())
    process, held = psutil.Process(), []
    for _ in range(config.steps):
        trainer.advance()
        held.append(process.memory_info().rss / 2**20)
    early = max(held[: max(1, len(held) // 10)])
    return [
        Figure("memory growth", held[-1] - early, "MB", "< 20", f"{config.steps} steps, {held[-1]:.0f} MB at the end")
    ]
