"""`pi05 bench NAME`: one table of benchmarks. Each is a function `(argv) -> int` that parses its own flags."""

from collections.abc import Sequence

from pi05_ros.cli import Command, show_commands

BENCHMARKS = {
    "stack": Command(
        "pi05_ros.bench.stack:main", "Chunk, planner, simulator, memory and torque loop of the whole stack."
    ),
    "data": Command("pi05_training.bench_data:main", "Recording, conversion of bags, and reading of samples."),
    "train": Command("pi05_training.bench_train:main", "Training steps, data wait, memory; FSDP's memory plan."),
    "model": Command("pi05_ros.bench.model:main", "Speed and memory of the network, beside lerobot's if it is there."),
}


def main(argv: Sequence[str]) -> int:
    """Run one benchmark.

    Returns:
        0 when everything was measured, whatever the figures are.
    """
    args = list(argv)
    if args and args[0] in BENCHMARKS:
        return BENCHMARKS[args[0]].load()(args[1:])
    return show_commands("pi05 bench", BENCHMARKS, args, "The figures of docs/benchmarks.md.")
