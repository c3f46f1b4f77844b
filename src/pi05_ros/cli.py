"""The program `pi05`: one table of subcommands.

Each is a function `(argv) -> int` that parses its own flags (tyro) and returns the exit status: 0 only when the work
was done. Only the module that was asked for is imported, so that `pi05 --help` answers at once.
"""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tyro.extras import SubcommandApp


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand: the function that runs it ("module:function"), and one line of help."""

    target: str
    help: str

    def load(self) -> Callable[[Sequence[str]], int]:
        """Import the function."""
        module, _, name = self.target.partition(":")
        function: Callable[[Sequence[str]], int] = getattr(importlib.import_module(module), name)
        return function


COMMANDS = {
    "demo": Command("pi05_ros.demo:main", "Run the embedded policy on a seeded scene and write a report."),
    "up": Command("pi05_ros.up:main", "Start the graph: simulator or robot, policy, controller."),
    "convert": Command("pi05_training.data.command:main", "Turn rosbags into a dataset."),
    "stats": Command("pi05_training.data.stats_command:main", "Compute the normalisation statistics of datasets."),
    "label": Command("pi05_training.data.label_command:main", "List and edit the subtask spans of an episode."),
    "record": Command("pi05_ros.record:main", "Record demonstrations as rosbags; repair what a crash cut off."),
    "tokenizer": Command("pi05_training.tokenize:main", "Fit, adapt and inspect action tokenizers (FAST, FSQ, VQ)."),
    "teleop": Command("pi05_ros.teleop_keys:main", "Drive the robot from the keyboard, and record it."),
    "train": Command("pi05_training.cli:train", "Train a policy."),
    "eval": Command("pi05_training.cli:evaluation", "Measure closed-loop success in simulation."),
    "checkpoint": Command(
        "pi05_ros.checkpoint:main", "Show what a checkpoint holds; import and export those of lerobot and openpi."
    ),
    "bench": Command("pi05_ros.bench.cli:main", "Measure the figures of docs/benchmarks.md."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: arguments; None takes those of the process.

    Returns:
        The exit status. A failure that has an explanation is one line on stderr and status 1; a defect in this program
        is a traceback.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] not in COMMANDS:
        return show_commands("pi05", COMMANDS, args, "The pi0.5 robot policy as a ROS 2 stack.")
    name = args[0]
    try:
        return COMMANDS[name].load()(args[1:])
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if not _is_explained(error):
            raise
        print(f"pi05 {name}: {error}", file=sys.stderr)
        return 1


def show_commands(prog: str, commands: Mapping[str, Command], args: Sequence[str], description: str) -> int:
    """Print the list of commands, or say that there is no such command; both leave through SystemExit."""
    app = SubcommandApp()
    for name, command in commands.items():
        app.command(name=name)(_described(command.help))
    app.cli(prog=prog, args=list(args) or ["--help"], description=description)
    return 2


def _described(text: str) -> Callable[[], None]:
    def command() -> None:
        return None

    command.__doc__ = text
    return command


def _is_explained(error: Exception) -> bool:
    """Tell errors that speak to the user (this project's own, and the operating system's) from defects."""
    return isinstance(error, OSError) or type(error).__module__.startswith("pi05_")
