"""`pi05 bench model`: the network's speed and memory, side by side with lerobot's π0.5 of the same size and weights.

Both sides are processes that stay warm, pinned to the same cores with the same number of threads. Calls alternate
(ours, theirs, ours, ...), so that whatever else the machine does falls on both; figures are medians.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from pi05_model.config import PRESETS
from pi05_ros.bench.comparison import PROMPT_TOKENS, Comparison, SizeName
from pi05_ros.bench.figures import Figure, report
from pi05_ros.bench.side import BenchError, Side, draw_inputs


@dataclass(frozen=True)
class ModelArguments:
    """Measure the network on this machine: sampling, training step, planner tick, memory; beside lerobot's if asked.

    Attributes:
        json: file that also receives the figures.
        peer_python: a Python that has lerobot 0.6.1; empty: measure this project's network alone.
        preset: sizes to measure. "reference" is that of the reference checkpoint.
        threads: of each side; both are pinned to this many of the cores that this process may use.
        repeats: timed calls of each kind.
        steps: of the flow integration.
        base: also build the published size in bfloat16 and run it once (8 GB, a minute or two).
    """

    json: Path | None = None
    peer_python: str = ""
    preset: tuple[SizeName, ...] = ("reference", "67m")
    threads: int = min(2, len(os.sched_getaffinity(0)))
    repeats: int = 15
    steps: int = 10
    base: bool = True


def main(argv: Sequence[str] | None = None) -> int:
    """Run `pi05 bench model`. Returns 0 when everything was measured, whatever the figures are."""
    arguments = tyro.cli(ModelArguments, prog="pi05 bench model", args=None if argv is None else list(argv))
    report("model", measure(arguments), arguments.json)
    return 0


def measure(arguments: ModelArguments) -> Iterator[list[Figure]]:
    """Measure one size after another.

    Raises:
        BenchError: an argument is out of range, or a side failed; the message says which and why.
    """
    available = sorted(os.sched_getaffinity(0))
    if not 1 <= arguments.threads <= len(available):
        raise BenchError(f"--threads is {arguments.threads}; this process may use 1 to {len(available)} cores")
    if arguments.repeats < 1 or arguments.steps < 1:
        raise BenchError(f"--repeats is {arguments.repeats}, --steps is {arguments.steps}; both must be at least 1")
    cpus = available[: arguments.threads]
    for name in arguments.preset:
        with tempfile.TemporaryDirectory(prefix="pi05_bench_") as folder, Side.own(cpus) as own:
            if not arguments.peer_python:
                yield from Comparison(name, [own], arguments.repeats, arguments.steps, Path(folder)).figures()
                continue
            with Side.lerobot(arguments.peer_python, cpus) as peer:
                yield from Comparison(name, [own, peer], arguments.repeats, arguments.steps, Path(folder)).figures()
    if arguments.base:
        print("bench: pi05_base in bfloat16 …", flush=True)
        yield base_figures(cpus)


def base_figures(cpus: Sequence[int]) -> list[Figure]:
    """Build the published size in bfloat16 in a fresh process, sample a chunk, and tell its peak memory."""
    config = PRESETS["pi05_base"]
    with tempfile.TemporaryDirectory(prefix="pi05_bench_") as folder, Side.own(cpus) as own:
        path = Path(folder) / "inputs.pt"
        draw_inputs(path, config, 1, PROMPT_TOKENS)
        built = own.call("build", config=config.to_dict(), dtype="bfloat16", weights="", act=True)
        own.call("inputs", path=str(path))
        took = own.call("sample", steps=1)["ms"]
        peak = own.call("memory")["peak_mb"]
    how = (
        f"{built['parameters'] / 1e9:.2f} G parameters in bfloat16, built and one chunk of one step, batch 1, 3 cameras"
    )
    return [
        Figure("pi05_base: peak memory", peak / 1e3, "GB", "< 9", how),
        Figure("pi05_base: first chunk", took / 1e3, "s", "", f"one step, {len(cpus)} threads, cold"),
    ]
