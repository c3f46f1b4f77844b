"""`pi05 record`: episodes as rosbags, by keyboard, by flags, unattended, and repaired after a crash.

    pi05 record --out bags                      keyboard: start, keep as success or failure, discard, mark
    pi05 record --do start                      the same without a terminal, one action a call
    pi05 record --auto 50 --out bags --seed 0   the scripted demonstrator in simulation, one episode a seed
    pi05 record --repair bags                   make whole what a crash cut off

See docs/recording.md.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from pi05_ros.config import Value
from pi05_ros.graph import GraphError
from pi05_ros.repair import State, find_bags, repair

Action = Literal["start", "success", "failure", "discard", "mark", "event"]


@dataclass(frozen=True)
class RecordArguments:
    """Record demonstrations as rosbags; without --auto, --do or --repair by keyboard.

    Attributes:
        out: folder of the bags (--auto, and the recorder that is started if none is running).
        auto: collect so many episodes of the scripted demonstrator in simulation, without anybody watching.
        seed: first seed of --auto; episodes that are there already are not recorded again.
        task: the prompt (--auto: what is demonstrated; else: if nobody says it on the topic `task`).
        limit: simulated seconds after which an episode of --auto is a failure.
        realtime_factor: simulated seconds per second at most for --auto; 0: as fast as possible.
        do: one action instead of the keyboard; success and failure keep the episode.
        text: what --do mark (a subtask) or --do event writes.
        allow_missing: start although topics of the contract are missing.
        notes: for the bag's metadata, as "key=value; key=value".
        repair: repair every bag in and below this folder that was cut off.
        namespace: namespace of the recorder.
        verbose: print the nodes' output (--auto).
    """

    out: Path = Path("bags")
    auto: int = 0
    seed: int = 0
    task: str = ""
    limit: float = 120.0
    realtime_factor: float = 1.0
    do: Action | None = None
    text: str = ""
    allow_missing: bool = False
    notes: str = ""
    repair: Path | None = None
    namespace: str = ""
    verbose: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run `pi05 record`. Returns 0 when done, 1 when something failed, 2 for wrong arguments, 130 after Ctrl-C."""
    arguments = tyro.cli(RecordArguments, prog="pi05 record", args=None if argv is None else list(argv))
    wrong = _wrong(arguments)
    if wrong:
        print(f"pi05 record: {wrong}", file=sys.stderr)
        return 2
    if arguments.repair is not None:
        return repair_all(arguments.repair)
    if arguments.auto:
        return _auto(arguments)
    from pi05_ros import record_keys  # rclpy takes a moment to import

    if arguments.do is not None:
        return record_keys.once(arguments.do, arguments.text, arguments.namespace, _settings(arguments))
    return record_keys.keyboard(arguments.out, arguments.namespace, _settings(arguments))


def repair_all(root: Path) -> int:
    """Repair every cut-off bag in and below a folder. Returns 1 if one could not be.

    Raises:
        NotADirectoryError: there is no such folder.
    """
    failed = repaired = 0
    for folder, state in find_bags(root):
        if state == State.RECORDING:
            print(f"{folder}: is being recorded; left alone")
        if state != State.CUT_OFF:
            continue
        try:
            print(f"{folder}: {repair(folder).loss.text()}")
            repaired += 1
        except OSError as error:
            print(f"{folder}: cannot be repaired: {error}", file=sys.stderr)
            failed += 1
    print(f"repaired in {root}: {repaired}" if repaired or failed else f"nothing to repair in {root}")
    return 1 if failed else 0


def _wrong(arguments: RecordArguments) -> str:
    """Return what is wrong with the arguments; empty: nothing."""
    chosen = [
        name
        for name, given in (
            ("--auto", arguments.auto != 0),
            ("--do", arguments.do is not None),
            ("--repair", arguments.repair is not None),
        )
        if given
    ]
    if len(chosen) > 1:
        return f"{' and '.join(chosen)} exclude each other"
    if arguments.auto < 0:
        return f"--auto {arguments.auto} is no number of episodes"
    if arguments.text and arguments.do not in ("mark", "event"):
        return "--text belongs to --do mark or --do event"
    if not arguments.text and arguments.do in ("mark", "event"):
        return f"--do {arguments.do} needs --text"
    return ""


def _auto(arguments: RecordArguments) -> int:
    from pi05_ros.record_auto import AutoArguments, collect

    wanted = AutoArguments(
        arguments.out,
        arguments.auto,
        arguments.seed,
        arguments.task or "clear the table",
        arguments.limit,
        arguments.realtime_factor,
        arguments.verbose,
    )
    try:
        return collect(wanted)
    except GraphError as error:
        print(f"pi05 record: {error}", file=sys.stderr)
        return 2


def _settings(arguments: RecordArguments) -> dict[str, Value]:
    """Return the recorder's parameters that the flags set; empty flags leave them as they are."""
    given: dict[str, Value] = {
        "task": arguments.task,
        "notes": arguments.notes,
        "allow_missing": arguments.allow_missing,
    }
    return {name: value for name, value in given.items() if value}
