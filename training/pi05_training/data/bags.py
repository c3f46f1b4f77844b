"""A rosbag2 recording as a stream of messages, in constant memory, whatever its length, namespace or state.

MCAP files are read in the order of writing and, when they break off, up to there; db3 and compressed bags go through
rosbags, sorted by log time. Format: rosbag2 metadata.yaml up to version 9, mcap.dev.
"""

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rosbags.rosbag2 import Reader, ReaderError
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore

from pi05_ros.bagfile import NOTES_RECORD, locked
from pi05_ros.contract import Contract
from pi05_training.data.episode import DatasetError
from pi05_training.data.mcap_stream import McapError, McapStream

METADATA = "metadata.yaml"
_MCAP_METADATA = "rosbag2"
_SUFFIXES = (".mcap", ".db3")
_TEMPORARY = ".repair-"  # of a repair that was killed


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic of a bag: full name, message type such as "sensor_msgs/msg/JointState", number of messages."""

    name: str
    kind: str
    count: int


@dataclass(frozen=True, slots=True)
class BagMessage:
    """A message: full topic name, time of receipt [ns], the deserialised message."""

    topic: str
    log_ns: int
    message: Any


@dataclass
class Damage:
    """What could not be read.

    Attributes:
        lost_bytes: at the end of the files, after the last whole chunk.
        bad_chunks: damaged chunks in the middle.
        unclosed: the recording was never closed.
        repaired: what a repair said is gone.
        undecodable: messages that do not fit their type.
    """

    lost_bytes: int = 0
    bad_chunks: int = 0
    unclosed: bool = False
    repaired: str = ""
    undecodable: int = 0

    def __bool__(self) -> bool:
        return bool(self.describe())

    def describe(self) -> str:
        """Say it in words; "" when everything was read."""
        parts = ["never closed"] * self.unclosed
        parts += [f"repaired ({self.repaired})"] * bool(self.repaired)
        parts += [f"the last {self.lost_bytes} bytes are no whole chunk"] * bool(self.lost_bytes)
        parts += [f"{self.bad_chunks} damaged chunks"] * bool(self.bad_chunks)
        parts += [f"{self.undecodable} messages do not fit their type"] * bool(self.undecodable)
        return ", ".join(parts)


@dataclass
class Bag:
    """A recording. Build it with `open_bag`.

    Attributes:
        path: folder, or a single .mcap or .db3 file.
        topics: what it holds, by full name.
        custom: the metadata's custom_data (task, outcome, contract, …); empty for an unclosed bag.
        damage: what could not be read; complete when all messages were read.
    """

    path: Path
    topics: dict[str, Topic]
    custom: dict[str, str]
    damage: Damage
    _streams: list[McapStream] = field(default_factory=list)
    _types: dict[str, tuple[str, str]] = field(default_factory=dict)
    _decode: tuple[set[str], Callable[[bytes, str], Any]] | None = None

    @property
    def name(self) -> str:
        """Name of the episode: that of the folder or file."""
        return self.path.stem if self.path.is_file() else self.path.name

    def contract(self) -> Contract | None:
        """Return the contract that the recorder wrote into the bag; None when there is none.

        Raises:
            DatasetError: it cannot be read.
        """
        text = self.custom.get("contract", "")
        try:
            return Contract.model_validate_json(text) if text else None
        except ValueError as error:
            raise DatasetError(f"{self.path}: custom_data.contract is not valid: {error}; give --contract") from error

    def messages(self, topics: Sequence[str], by_log_time: bool = False) -> Iterator[BagMessage]:
        """Yield the messages of some topics.

        Args:
            topics: full names.
            by_log_time: sorted by time of receipt; a file that breaks off is read in the order of writing all the same.

        Raises:
            DatasetError: the bag has no such topic; lists those it has.
        """
        unknown = [topic for topic in topics if topic not in self.topics]
        if unknown:
            raise DatasetError(f"{self.path} has no topic {', '.join(unknown)}; it has: {', '.join(self.topics)}")
        decode = self._decoder({self.topics[topic].kind for topic in topics})
        for topic, log_ns, data in self._raw(frozenset(topics), by_log_time):
            try:
                yield BagMessage(topic, log_ns, decode(data, self.topics[topic].kind))
            except (SerdeError, ValueError, IndexError, struct.error):  # what rosbags raises for damaged data
                self.damage.undecodable += 1

    def _raw(self, topics: frozenset[str], by_log_time: bool) -> Iterator[tuple[str, int, bytes]]:
        broken = self.damage.unclosed or self.damage.lost_bytes or self.damage.bad_chunks
        if not self._streams or (by_log_time and not broken):
            with Reader(self.path) as reader:
                wanted = [c for c in reader.connections if c.topic in topics]
                for connection, log_ns, data in reader.messages(wanted) if wanted else ():
                    yield connection.topic, log_ns, data
            return
        for stream in self._streams:
            names = {number: channel.topic for number, channel in stream.channels.items()}
            wanted_ids = frozenset(number for number, name in names.items() if name in topics)
            for number, log_ns, data in stream.messages(wanted_ids):
                yield names[number], log_ns, data
        self._sum_damage()

    def _sum_damage(self) -> None:
        self.damage.lost_bytes = sum(stream.lost_bytes for stream in self._streams)
        self.damage.bad_chunks = sum(stream.bad_chunks for stream in self._streams)
        self.damage.unclosed = self.damage.unclosed or not all(stream.whole for stream in self._streams)

    def _decoder(self, kinds: set[str]) -> Callable[[bytes, str], Any]:
        """Return a CDR reader for types: as the bag defines them, else as ROS 2 Kilted does.

        Raises:
            DatasetError: a type that neither knows.
        """
        if self._decode is not None and kinds <= self._decode[0]:
            return self._decode[1]
        known = get_typestore(Stores.ROS2_KILTED)
        store = get_typestore(Stores.EMPTY)
        types: dict[str, Any] = {}
        for kind in sorted(kinds):
            encoding, text = self._types.get(kind, ("", ""))
            if text and encoding in ("ros2msg", "ros2idl"):
                types |= get_types_from_msg(text, kind) if encoding == "ros2msg" else get_types_from_idl(text)
            elif kind in known.fielddefs:
                types = {**known.fielddefs, **types}
            else:
                raise DatasetError(f"{self.path}: type {kind} is not defined in the bag and not part of ROS 2 Kilted")
        store.register(types)
        decode: Callable[[bytes, str], Any] = store.deserialize_cdr
        self._decode = (kinds, decode)
        return decode


def open_bag(path: Path) -> Bag:
    """Open a recording and find out what it holds; nothing is kept open.

    Args:
        path: bag folder (with or without metadata.yaml), or an .mcap or .db3 file.

    Raises:
        DatasetError: nothing here can be read, or it is still being recorded; says what was found.
    """
    if not path.exists():
        raise DatasetError(f"{path}: no such bag")
    mcap = [path] if path.suffix == ".mcap" else sorted(path.glob("*.mcap"), key=_split_number)
    if any(locked(file) for file in mcap):
        raise DatasetError(f"{path}: is still being recorded; stop its recorder first")
    information = _read_metadata(path / METADATA) if path.is_dir() else {}
    try:
        if mcap and not information.get("compression_mode", ""):
            return _open_mcap(path, mcap, information)
        return _open_with_rosbags(path, information)
    except (ReaderError, McapError, OSError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path}: not a readable bag: {error}") from error


def find_bags(paths: Sequence[Path]) -> list[Path]:
    """Return the bags among paths, and below those that are folders of bags, in order of name.

    A bag that a crash left in a recorder's hidden folder counts too.

    Raises:
        DatasetError: a path with no bag in it.
    """
    found: list[Path] = []
    for path in paths:
        here = [path] if _is_bag(path) else sorted(_bags_below(path))
        if not here:
            raise DatasetError(
                f"{path}: no bag here: neither a folder with metadata.yaml or .mcap files, nor such a file"
            )
        found += [bag for bag in here if bag not in found]
    return found


def _bags_below(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    for child in sorted(folder.iterdir()):
        if _is_bag(child):
            yield child
        elif child.is_dir() and not child.name.startswith(_TEMPORARY):
            yield from _bags_below(child)


def _is_bag(path: Path) -> bool:
    if path.is_file():
        return path.suffix in _SUFFIXES
    return path.is_dir() and ((path / METADATA).exists() or _is_unclosed(path))


def _is_unclosed(folder: Path) -> bool:
    """Tell a bag that was never closed from a folder that holds several recordings."""
    inside = list(folder.iterdir())
    stems = [file.stem for file in inside if file.suffix in _SUFFIXES]
    alone = len(stems) == 1 and not any(path.is_dir() for path in inside)
    own = re.compile(rf"{re.escape(folder.name)}(_\d+)?")  # how rosbag2 names the files of one bag
    return alone or (bool(stems) and all(own.fullmatch(stem) for stem in stems))


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8"))["rosbag2_bagfile_information"]
    except FileNotFoundError:
        return {}
    except (OSError, yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError):
        return {}  # cut off with the rest; the files themselves still say what they hold
    return written if isinstance(written, dict) else {}


def _open_mcap(path: Path, files: Sequence[Path], information: dict[str, Any]) -> Bag:
    streams = [McapStream(file) for file in files]
    custom = {str(key): str(value) for key, value in (information.get("custom_data") or {}).items()}
    counts: dict[str, Topic] = {}
    types: dict[str, tuple[str, str]] = {}
    for stream in streams:
        stream.index()
        custom = custom or _notes_in(stream)
        for channel in stream.channels.values():
            before = counts.get(channel.topic)
            if channel.encoding != "cdr":
                raise DatasetError(f"{path}: topic {channel.topic} is encoded as {channel.encoding!r}; ROS 2 has cdr")
            if before is not None and before.kind != channel.kind:
                raise DatasetError(f"{path}: topic {channel.topic} is both {before.kind} and {channel.kind}")
            count = channel.count + (before.count if before else 0)
            counts[channel.topic] = Topic(channel.topic, channel.kind, count)
            types[channel.kind] = (channel.schema_encoding, channel.schema)
    damage = Damage(unclosed=path.is_dir() and not information, repaired=custom.get("lost", ""))
    bag = Bag(path, counts, custom, damage, streams, types)
    bag._sum_damage()
    return bag


def _notes_in(stream: McapStream) -> dict[str, str]:
    """Return the notes within a file: rosbag2's copy of metadata.yaml, else what our recorder puts at the beginning."""
    text = stream.metadata.get(_MCAP_METADATA, {}).get("serialized_metadata", "")
    inner: dict[str, Any] = (yaml.safe_load(text) or {}) if text else {}
    inner = inner.get("rosbag2_bagfile_information", inner)
    custom = {str(key): str(value) for key, value in (inner.get("custom_data") or {}).items()}
    return custom or stream.metadata.get(NOTES_RECORD, {})


def _open_with_rosbags(path: Path, information: dict[str, Any]) -> Bag:
    target = path
    if path.is_dir() and not information:
        files = sorted(path.glob("*.db3"), key=_split_number)
        if len(files) != 1:
            raise DatasetError(f"{path}: no metadata.yaml, and {len(files)} .db3 files; expected one")
        target = files[0]
    custom = {str(key): str(value) for key, value in (information.get("custom_data") or {}).items()}
    topics: dict[str, Topic] = {}
    types: dict[str, tuple[str, str]] = {}
    with Reader(target) as reader:
        for connection in reader.connections:
            before = topics.get(connection.topic)
            count = connection.msgcount + (before.count if before else 0)
            topics[connection.topic] = Topic(connection.topic, connection.msgtype, count)
            definition: Any = connection.msgdef
            encoding = {"MSG": "ros2msg", "IDL": "ros2idl"}.get(definition.format.name, "")
            types[connection.msgtype] = (encoding, definition.data)
    return Bag(target, topics, custom, Damage(unclosed=target is not path), [], types)


def _split_number(path: Path) -> tuple[int, str]:
    """Sort key of the files of one bag: rosbag2 numbers them, and _10 comes after _9."""
    number = path.stem.rpartition("_")[2]
    return (int(number) if number.isdigit() else 0, path.name)
