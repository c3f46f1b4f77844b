"""Subtask labels of a rosbag, kept in a file beside it: the recording itself is never changed.

`labels.json` in the bag's folder, or `<name>.labels.json` beside a single .mcap or .db3 file:

    {"format": "pi05_labels", "version": 1,
     "spans": [{"start_ns": 1000000000, "end_ns": 2500000000, "text": "pick up the red cube"}, …],
     "journal": […]}

Stamps are those of the headers. A span holds for stamps in [start_ns, end_ns); outside all spans nobody said anything.
Where the file is there, it stands for the messages on `subtask`.
"""

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pi05_model.observation import Image
from pi05_ros import topics
from pi05_ros.contract import load_contract
from pi05_ros.messages import MessageError, decode_jpeg, stamp_to_ns
from pi05_training.data.bags import open_bag
from pi05_training.data.episode import DatasetError, SubtaskSpan
from pi05_training.data.label import Entry, Spans, fused
from pi05_training.data.sources import RobotSource

FILE = "labels.json"
FORMAT = {"format": "pi05_labels", "version": 1}
NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class BagLabels:
    """The labels that a sidecar file gives a bag.

    Attributes:
        spans: in order and apart; stamps in ns.
    """

    spans: tuple[SubtaskSpan, ...]

    def at(self, stamp_ns: int) -> str:
        """Return the subtask at a stamp; "" when nobody said."""
        number = bisect_right([span.start for span in self.spans], stamp_ns) - 1
        inside = number >= 0 and stamp_ns < self.spans[number].stop
        return self.spans[number].text if inside else ""


def sidecar_of(bag: Path) -> Path:
    """Return where the labels of a bag are kept."""
    return bag / FILE if bag.is_dir() else bag.with_name(f"{bag.stem}.{FILE}")


def read_labels_sidecar(bag: Path) -> BagLabels | None:
    """Read the labels of a bag; None when it has no sidecar file.

    Raises:
        DatasetError: the file is damaged, or its spans overlap.
    """
    path = sidecar_of(bag)
    return BagLabels(tuple(_spans(path, _load(path)))) if path.exists() else None


class BagLabelStore:
    """The spans of one recording (`LabelStore`); until they are changed, those that were recorded.

    Attributes:
        path: the sidecar file.
        journal: what was changed.

    Raises:
        DatasetError: the bag cannot be read, or is of another robot.
    """

    def __init__(self, bag: Path) -> None:
        self.path = sidecar_of(bag)
        self._bag = open_bag(bag)
        self._contract = self._bag.contract() or load_contract()
        self._source = RobotSource(self._bag, self._contract)
        self.journal = _SidecarJournal(self)

    def episodes(self) -> list[str]:
        """Return the name of the bag."""
        return [self._bag.name]

    def rate(self, episode: str) -> float:
        """Return nanoseconds per second."""
        return float(NS)

    def spans(self, episode: str) -> Spans:
        """Return the spans of the sidecar file, or the recorded ones."""
        return _spans(self.path, self.load()) if self.path.exists() else self._recorded()

    def write(self, episode: str, spans: Spans) -> None:
        """Replace the spans."""
        rows = [{"start_ns": span.start, "end_ns": span.stop, "text": span.text} for span in spans]
        self.save({**self.load(), "spans": rows})

    def images(self, episode: str, ticks: Sequence[int]) -> list[dict[str, Image]]:
        """Return the newest image of each camera at some stamps."""
        names = {self._full(topics.camera_image(camera)): camera for camera in self._source.cameras}
        newest: list[dict[str, bytes]] = [{} for _ in ticks]
        for message in self._bag.messages(list(names)):
            stamp = stamp_to_ns(message.message.header.stamp)
            for tick, found in zip(ticks, newest, strict=True):
                if stamp <= tick:
                    found[names[message.topic]] = bytes(message.message.data)
        return [
            {camera: image for camera, blob in found.items() if (image := _decode(blob)) is not None}
            for found in newest
        ]

    def load(self) -> dict[str, Any]:
        """Return the contents of the sidecar file; those of a new one while there is none."""
        return _load(self.path) if self.path.exists() else {**FORMAT, "journal": []}

    def save(self, data: dict[str, Any]) -> None:
        """Write the sidecar file, all or nothing."""
        if "spans" not in data:  # the journal comes first; the file must be whole nevertheless
            spans = [{"start_ns": span.start, "end_ns": span.stop, "text": span.text} for span in self._recorded()]
            data = {**data, "spans": spans}
        partial = self.path.with_name(f".{self.path.name}.part")
        partial.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", "utf-8")
        partial.replace(self.path)

    def _recorded(self) -> Spans:
        """Read the subtasks that were said while recording, from the first state or image to the last."""
        said: list[tuple[int, str]] = []
        stamps: list[int] = []
        names = [name for name in self._source.topics if _is(name, topics.SUBTASK)]
        untimed = (topics.SUBTASK, topics.TASK, topics.ACTION_CHUNK)
        timed = [name for name in self._source.topics if not any(_is(name, topic) for topic in untimed)]
        for message in self._bag.messages([*names, *timed]):
            if message.topic in names:
                said.append((message.log_ns - self._source.shift_ns, str(message.message.data)))
            else:
                stamps.append(stamp_to_ns(message.message.header.stamp))
        if not stamps:
            raise DatasetError(f"{self._bag.path}: holds neither states nor images")
        first, last = min(stamps), max(stamps) + 1
        edges = [(first, ""), *((min(max(at, first), last), text) for at, text in sorted(said, key=lambda one: one[0]))]
        ends = [*(at for at, _ in edges[1:]), last]
        spans = [SubtaskSpan(at, end, text) for (at, text), end in zip(edges, ends, strict=True) if at < end]
        return fused(spans)

    def _full(self, relative: str) -> str:
        return next(name for name in self._source.topics if _is(name, relative))


class _SidecarJournal:
    """The journal in the sidecar file (`Journal`)."""

    def __init__(self, store: BagLabelStore) -> None:
        self._store = store

    def last(self) -> Entry | None:
        entries = self._store.load()["journal"]
        return Entry.parse(entries[-1]) if entries else None

    def push(self, entry: Entry) -> None:
        data = self._store.load()
        self._store.save({**data, "journal": [*data["journal"], entry.plain()]})

    def pop(self) -> None:
        data = self._store.load()
        self._store.save({**data, "journal": data["journal"][:-1]})


def _is(name: str, relative: str) -> bool:
    """Tell whether a full topic name is a topic of ours under any namespace."""
    return f"/{name}".endswith(f"/{relative}")


def _load(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
        if not isinstance(data, dict) or {key: data.get(key) for key in FORMAT} != FORMAT:
            raise ValueError(f"format and version must be {FORMAT}")
        return {"journal": [], **data}
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: no labels of a bag ({error}); correct or remove it") from error


def _spans(path: Path, data: dict[str, Any]) -> Spans:
    try:
        spans = [SubtaskSpan(int(row["start_ns"]), int(row["end_ns"]), str(row["text"])) for row in data["spans"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path}: a span lacks or breaks {error}; it needs start_ns, end_ns and text") from error
    ends = [0, *(span.stop for span in spans)]
    for number, span in enumerate(spans):
        if not ends[number] <= span.start < span.stop:
            raise DatasetError(f"{path}: span {number + 1}: [{span.start}, {span.stop}) ns is empty or out of order")
    return spans


def _decode(blob: bytes) -> Image | None:
    try:
        return decode_jpeg(blob)
    except MessageError:
        return None
