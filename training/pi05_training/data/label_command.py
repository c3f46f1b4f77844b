"""`pi05 label`: list and edit the subtask spans of a dataset's episode or of a bag."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pi05_training.data.bag_labels import BagLabelStore
from pi05_training.data.episode import DatasetError, SubtaskSpan
from pi05_training.data.folder_labels import FolderLabels
from pi05_training.data.folder_writer import DATASET
from pi05_training.data.label import LabelStore, Spans, apply, describe, merge, rename, split, undo
from pi05_training.data.lerobot_labels import LeRobotLabels
from pi05_training.data.lerobot_meta import INFO
from pi05_training.data.sheet import write_sheets

Text = tyro.conf.Positional[str]
Number = tyro.conf.Positional[int]


@dataclass(frozen=True)
class List:
    """Show the spans of an episode, or of all."""


@dataclass(frozen=True)
class Split:
    """Cut a span in two.

    Attributes:
        at: seconds from the start of the episode.
        text: what the second part says.
    """

    at: tyro.conf.Positional[float]
    text: Text


@dataclass(frozen=True)
class Rename:
    """Give a span another text.

    Attributes:
        span: its number.
        text: what it says from now on.
    """

    span: Number
    text: Text


@dataclass(frozen=True)
class Merge:
    """Make neighbouring spans one.

    Attributes:
        first, last: numbers of the first and the last one.
        text: what it says; by default what the first one said.
    """

    first: Number
    last: Number
    text: str | None = None


@dataclass(frozen=True)
class Undo:
    """Take the newest change back, in whatever episode it was."""


@dataclass(frozen=True)
class Sheet:
    """Write a contact sheet for every span of an episode, or of all.

    Attributes:
        out: folder for the pictures.
    """

    out: Path = Path("out/labels")


Action = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Split, tyro.conf.subcommand("split")]
    | Annotated[Rename, tyro.conf.subcommand("rename")]
    | Annotated[Merge, tyro.conf.subcommand("merge")]
    | Annotated[Undo, tyro.conf.subcommand("undo")]
    | Annotated[Sheet, tyro.conf.subcommand("sheet")]
)


@dataclass(frozen=True)
class LabelArguments:
    """List and edit the subtask spans of an episode.

    Attributes:
        path: a dataset, or a bag (whose labels are kept beside it, for `pi05 convert`).
        action: what to do.
        episode: name or number of the episode; not needed where there is only one.
    """

    path: tyro.conf.Positional[Path]
    action: tyro.conf.OmitSubcommandPrefixes[Action]
    episode: tyro.conf.CascadeSubcommandArgs[str] = ""  # may stand after the operation as well


def main(argv: Sequence[str] | None = None) -> int:
    """Run `pi05 label`. Returns 0 when it is done.

    Raises:
        DatasetError: there is no such dataset, episode or span, or the change is not possible.
    """
    arguments = tyro.cli(LabelArguments, prog="pi05 label", args=None if argv is None else list(argv))
    store, action = open_labels(arguments.path), arguments.action
    if isinstance(action, Undo):
        entry = undo(store)
        print(f"{entry.episode}: undid {entry.operation} of {entry.time}\n{_table(store, entry.episode)}")
    elif isinstance(action, List | Sheet):
        for episode in [choose(store, arguments.episode)] if arguments.episode else store.episodes():
            print(f"{episode}\n{_table(store, episode)}")
            if isinstance(action, Sheet):
                for path in write_sheets(store, episode, action.out / arguments.path.resolve().name):
                    print(f"       {path}")
    else:
        edit(store, choose(store, arguments.episode), action)
    return 0


def open_labels(path: Path) -> LabelStore:
    """Open the labels of a dataset or a bag.

    Raises:
        DatasetError: it is neither; says what is expected.
    """
    if (path / INFO).exists():
        return LeRobotLabels(path)
    if path.suffix in (".mcap", ".db3") or (path / "metadata.yaml").exists() or any(path.glob("*.mcap")):
        return BagLabelStore(path)
    if not path.is_dir():
        raise DatasetError(f"{path}: no such folder; give a dataset or a bag")
    if not (path / DATASET).exists() and not any(path.glob("**/run_*")):
        raise DatasetError(f"{path}: neither a dataset nor a bag (a folder with metadata.yaml or an .mcap file)")
    return FolderLabels(path)


def choose(store: LabelStore, wanted: str) -> str:
    """Return the name of an episode from a name, a number, or nothing where there is only one.

    Raises:
        DatasetError: there is no such episode; names those there are.
    """
    names = store.episodes()
    if wanted in names:
        return wanted
    if wanted.isdigit() and int(wanted) < len(names):
        return names[int(wanted)]
    if not wanted and len(names) == 1:
        return names[0]
    said = f"no episode {wanted!r}" if wanted else "say which one with --episode"
    raise DatasetError(f"{said}; episodes: {', '.join(names[:20])}{' …' if len(names) > 20 else ''}")


def edit(store: LabelStore, episode: str, action: Split | Rename | Merge) -> None:
    """Make a change and show what came of it.

    Raises:
        DatasetError: it is not possible; shows the spans there are.
    """
    text = action.text
    if text is not None and (not text.strip() or text != text.strip() or "\n" in text):
        raise DatasetError(f"{text!r} is no text of a subtask: it must be one line, without space at its ends")

    def change(spans: Spans) -> Spans:
        if isinstance(action, Split):
            return split(spans, _tick(spans, action.at, store.rate(episode)), action.text)
        if isinstance(action, Rename):
            return rename(spans, action.span, action.text)
        return merge(spans, action.first, action.last, action.text)

    spans = apply(store, episode, type(action).__name__.lower(), change)
    print(f"{episode}\n{describe(spans, store.rate(episode))}")
    if isinstance(store, BagLabelStore):
        print(f"labels in {store.path}; `pi05 convert` takes them")


def _tick(spans: Sequence[SubtaskSpan], at_s: float, rate: float) -> int:
    if not math.isfinite(at_s):
        raise DatasetError(f"{at_s} is no time")
    return spans[0].start + round(at_s * rate)


def _table(store: LabelStore, episode: str) -> str:
    return describe(store.spans(episode), store.rate(episode))
