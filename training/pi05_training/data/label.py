"""Subtask spans of an episode: what may be done to them, and the journal that undoes it.

What always holds: spans cover an episode from its first tick to its last without gap or overlap, and neighbours differ
in their text. A tick is a frame of a dataset or a nanosecond of a recording. A change is written to the journal before
it is made, with the spans before and after it; images are never touched.
"""

import datetime
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pi05_model.observation import Image
from pi05_training.data.episode import DatasetError, SubtaskSpan

Spans = list[SubtaskSpan]
Change = Callable[[Spans], Spans]


class LabelStore(Protocol):
    """Where the spans of some episodes are kept."""

    @property
    def journal(self) -> "Journal":
        """What was changed."""

    def episodes(self) -> list[str]:
        """Return the names of the episodes."""

    def rate(self, episode: str) -> float:
        """Return ticks per second."""

    def spans(self, episode: str) -> Spans:
        """Return the spans of an episode."""

    def write(self, episode: str, spans: Spans) -> None:
        """Replace the spans of an episode, all or nothing."""

    def images(self, episode: str, ticks: Sequence[int]) -> list[dict[str, Image]]:
        """Return what the cameras showed at some ticks, in order: RGB by name; a missing one is left out."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A change: when (ISO 8601), in which episode, which operation, the spans before and after."""

    time: str
    episode: str
    operation: str
    before: Spans
    after: Spans

    def plain(self) -> dict[str, Any]:
        """Return it for JSON."""
        pairs = {"before": self.before, "after": self.after}
        spans = {name: [[span.start, span.stop, span.text] for span in value] for name, value in pairs.items()}
        return {"time": self.time, "episode": self.episode, "operation": self.operation, **spans}

    @classmethod
    def parse(cls, data: dict[str, Any]) -> "Entry":
        """Undo `plain`."""
        before, after = ([SubtaskSpan(*span) for span in data[name]] for name in ("before", "after"))
        return cls(data["time"], data["episode"], data["operation"], before, after)


class Journal(Protocol):
    """A stack of changes."""

    def last(self) -> Entry | None:
        """Return the newest change; None when there is none."""

    def push(self, entry: Entry) -> None:
        """Add a change."""

    def pop(self) -> None:
        """Remove the newest change."""


class FileJournal:
    """A journal in a file of its own, one JSON object per line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def last(self) -> Entry | None:
        """Return the newest change.

        Raises:
            DatasetError: the file is damaged.
        """
        lines = self._lines()
        try:
            return Entry.parse(json.loads(lines[-1])) if lines else None
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{self._path}: line {len(lines)} is no change of labels ({error})") from error

    def push(self, entry: Entry) -> None:
        """Add a change."""
        self._write([*self._lines(), json.dumps(entry.plain(), ensure_ascii=False)])

    def pop(self) -> None:
        """Remove the newest change."""
        self._write(self._lines()[:-1])

    def _lines(self) -> list[str]:
        return self._path.read_text("utf-8").splitlines() if self._path.exists() else []

    def _write(self, lines: list[str]) -> None:
        partial = self._path.with_name(f".{self._path.name}.part")
        partial.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        partial.replace(self._path)


def split(spans: Spans, at: int, text: str) -> Spans:
    """Give the part of a span from tick `at` on another text.

    Raises:
        DatasetError: `at` is not inside a span, or the text is the span's own.
    """
    for number, span in enumerate(spans):
        if span.start < at < span.stop:
            if span.text == text:
                raise DatasetError(f"span {number + 1} already says {text!r}; give the second part another text")
            parts = [SubtaskSpan(span.start, at, span.text), SubtaskSpan(at, span.stop, text)]
            return [*spans[:number], *parts, *spans[number + 1 :]]
    raise DatasetError("the cut is not inside a span; it must lie between the ends of one")


def rename(spans: Spans, number: int, text: str) -> Spans:
    """Give span `number`, counted from 1, another text.

    Raises:
        DatasetError: there is no such span.
    """
    span = _span(spans, number)
    return [*spans[: number - 1], SubtaskSpan(span.start, span.stop, text), *spans[number:]]


def merge(spans: Spans, first: int, last: int, text: str | None = None) -> Spans:
    """Make spans `first` to `last`, counted from 1, one; it says what the first said, or `text`.

    Raises:
        DatasetError: there are no such spans, or only one.
    """
    begin, end = _span(spans, first), _span(spans, last)
    if first >= last:
        raise DatasetError(f"{first} to {last} is not two spans or more; give the first and the last one")
    merged = SubtaskSpan(begin.start, end.stop, begin.text if text is None else text)
    return [*spans[: first - 1], merged, *spans[last:]]


def fused(spans: Spans) -> Spans:
    """Join neighbours that say the same."""
    joined: Spans = []
    for span in spans:
        if joined and joined[-1].text == span.text:
            span = SubtaskSpan(joined.pop().start, span.stop, span.text)
        joined.append(span)
    return joined


def apply(store: LabelStore, episode: str, operation: str, change: Change) -> Spans:
    """Change the spans of an episode and return them.

    Raises:
        DatasetError: the change is not possible, or changes nothing.
    """
    before = store.spans(episode)
    try:
        after = fused(change(before))
    except DatasetError as error:
        raise DatasetError(f"{episode}: {error}\n{describe(before, store.rate(episode))}") from None
    if after == before:
        raise DatasetError(f"{episode}: that changes nothing\n{describe(before, store.rate(episode))}")
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    store.journal.push(Entry(now, episode, operation, before, after))
    store.write(episode, after)
    return after


def undo(store: LabelStore) -> Entry:
    """Take the newest change back and return it.

    Raises:
        DatasetError: there is none, or the spans were changed by something else since.
    """
    entry = store.journal.last()
    if entry is None:
        raise DatasetError("nothing to undo")
    there = store.spans(entry.episode)
    if there not in (entry.after, entry.before):
        raise DatasetError(
            f"{entry.episode}: its spans were changed by something else since {entry.operation!r} of {entry.time}; "
            f"they are\n{describe(there, store.rate(entry.episode))}"
        )
    if there != entry.before:  # else the change was announced and never made
        store.write(entry.episode, entry.before)
    store.journal.pop()
    return entry


def describe(spans: Sequence[SubtaskSpan], rate: float) -> str:
    """Return a table of spans, times in seconds from the start of the episode."""
    origin = spans[0].start if spans else 0
    rows = [(number, (s.start - origin) / rate, (s.stop - origin) / rate, s.text) for number, s in enumerate(spans, 1)]
    return "\n".join(f"  {number:3d}  {start:8.2f} s  {stop:8.2f} s  {text!r}" for number, start, stop, text in rows)


def _span(spans: Spans, number: int) -> SubtaskSpan:
    if not 1 <= number <= len(spans):
        raise DatasetError(f"no span {number}; spans are numbered 1 to {len(spans)}")
    return spans[number - 1]
