"""Bags that were cut off: found, read up to the cut, and made whole again, with an account of what is gone.

A bag is cut off when its recorder was killed, when power or disk failed, or when a copy broke off: metadata.yaml is
missing, or the MCAP file has no footer. Every record in front of the cut is whole (mcap.dev/spec: records carry their
length, chunks a CRC), so nothing is guessed. A chunk in the middle that does not decompress is left out and counted.

    state_of(folder), find_bags(root)     what lies there
    salvage(folder, target)               a new, whole bag; the input is not touched
    repair(folder)                        the same in place; the cut file stays beside it as *.mcap.cut
"""

import re
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

import yaml
import zstandard
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Channel, Chunk, McapRecord, Message, Metadata, Schema
from mcap.stream_reader import breakup_chunk
from mcap.writer import MCAP0_MAGIC

from pi05_ros.bagfile import METADATA, NOTES_RECORD, BagFile, BagTopic, locked, sync_folder

NS = 1_000_000_000
CUT = ".cut"  # added to the name of a file that was replaced by a repaired one
_TEMPORARY = ".repair-"
_HEAD = struct.Struct("<BQ")  # opcode and length of a record
_BROKEN = (McapError, struct.error, ValueError, zstandard.ZstdError, EOFError)


class RepairError(OSError):
    """A folder that holds nothing to repair; the message says what it holds."""


class State(Enum):
    """What a folder holds."""

    FINISHED = "finished"
    CUT_OFF = "cut off"
    RECORDING = "being recorded"


@dataclass
class Loss:
    """What could be read of a bag, and what could not.

    Attributes:
        messages: that could be read.
        first_ns, last_ns: when the first and the last of them were received, ROS clock.
        bytes_read, bytes_lost: of the files; lost are those behind the cut and in broken chunks.
        broken_chunks: chunks in the middle that could not be read.
        without_end: files that have no footer.
    """

    messages: int = 0
    first_ns: int = 0
    last_ns: int = 0
    bytes_read: int = 0
    bytes_lost: int = 0
    broken_chunks: int = 0
    without_end: int = 0

    def saw(self, stamp_ns: int) -> None:
        """Count a message."""
        self.first_ns = stamp_ns if self.messages == 0 else min(self.first_ns, stamp_ns)
        self.last_ns = max(self.last_ns, stamp_ns)
        self.messages += 1

    def text(self) -> str:
        """Say it in a line."""
        seconds = (self.last_ns - self.first_ns) / NS
        told = f"{self.messages} messages over {seconds:.1f} s kept, {self.bytes_lost} bytes unreadable"
        if self.broken_chunks:
            told += f", {self.broken_chunks} broken chunks left out"
        if self.without_end:
            told += f"; cut off {seconds:.1f} s after the first message: what the recorder had in memory is gone too"
        return told


@dataclass(frozen=True)
class Repaired:
    """A bag that was made whole: its folder, what is gone, and the notes that it explains itself with."""

    folder: Path
    loss: Loss
    notes: dict[str, str] = field(default_factory=dict)


def state_of(folder: Path) -> State | None:
    """Return what a folder holds; None: no bag."""
    files = _files(folder)
    if not files:
        return State.FINISHED if (folder / METADATA).is_file() else None
    if any(locked(path) for path in files):
        return State.RECORDING
    whole = (folder / METADATA).is_file() and all(_has_end(path) for path in files)
    return State.FINISHED if whole else State.CUT_OFF


def find_bags(root: Path) -> list[tuple[Path, State]]:
    """List the bags in a folder and below, in the order of their names; the folder may be a bag itself.

    Raises:
        NotADirectoryError: there is no such folder.
    """
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is no folder")
    folders = [root, *sorted(path for path in root.rglob("*") if path.is_dir() and _is_visible(path, root))]
    found = ((folder, state_of(folder)) for folder in folders)
    return [(folder, state) for folder, state in found if state is not None]


def salvage(folder: Path, target: Path) -> Repaired:
    """Write what can be read of a bag as a new, whole bag.

    Args:
        folder: the bag; not touched.
        target: folder of the new bag; must not exist.

    Raises:
        RepairError: no bag, or one that is still being recorded.
        OSError: the target exists, or cannot be written.
    """
    files = _files(folder)
    if not files:
        raise RepairError(f"{folder} holds no MCAP file")
    if any(locked(path) for path in files):
        raise RepairError(f"{folder} is still being recorded; stop its recorder first")
    loss, notes = Loss(), dict[str, str]()
    bag = BagFile(target, {}, ballast_bytes=0)
    try:
        for path in files:
            _copy(path, bag, loss, notes)
    except OSError:
        bag.abandon()
        raise
    notes = {"outcome": "unknown"} | notes
    if loss.bytes_lost or loss.without_end or "lost" not in notes:  # else a repair that was itself interrupted
        notes |= {"repaired": datetime.now(timezone.utc).isoformat(timespec="seconds"), "lost": loss.text()}
    bag.finish(notes)
    return Repaired(target, loss, notes)


def repair(folder: Path) -> Repaired:
    """Make a bag whole in place. The cut file stays beside it, with ".cut" added to its name.

    Killed half-way, it can simply be called again.

    Raises:
        RepairError: no bag, one that is still being recorded, or one that is whole.
        OSError: no room; the bag is as it was.
    """
    if state_of(folder) == State.FINISHED:
        raise RepairError(f"{folder} is whole; there is nothing to repair")
    temporary = folder.parent / f"{_TEMPORARY}{folder.name}"
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir()
    try:
        repaired = salvage(folder, temporary / folder.name)
        for path in _files(folder):
            if path.suffix != CUT:
                path.rename(path.with_name(path.name + CUT))
        for path in sorted(repaired.folder.iterdir(), key=lambda path: path.name == METADATA):  # metadata.yaml last
            path.rename(folder / path.name)
        sync_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Repaired(folder, repaired.loss, repaired.notes)


def read_notes(folder: Path) -> dict[str, str]:
    """Return the notes at the beginning of a bag's file, which are there however it ended; empty: there are none.

    Raises:
        OSError: the file cannot be read.
    """
    for path in _files(folder)[:1]:
        for record in read_records(path, Loss()):
            if isinstance(record, Metadata):
                return _notes(record)
            if isinstance(record, Message):
                break
    return {}


def bag_notes(folder: Path) -> dict[str, str]:
    """Return the `custom_data` of a finished bag.

    Raises:
        OSError: there is no metadata.yaml.
        RepairError: it cannot be understood.
    """
    try:
        told = yaml.safe_load((folder / METADATA).read_text(encoding="utf-8"))["rosbag2_bagfile_information"]
        return {str(key): str(value) for key, value in (told.get("custom_data") or {}).items()}
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise RepairError(f"{folder / METADATA} is no metadata of a bag: {error}") from error


def read_records(path: Path, loss: Loss) -> Iterator[McapRecord]:
    """Yield schemas, channels, messages and metadata of an MCAP file up to its end or cut, chunks taken apart.

    Args:
        path: the file.
        loss: receives what could not be read, and the bytes that could.

    Raises:
        OSError: the file cannot be read at all.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        good = len(MCAP0_MAGIC) if file.read(len(MCAP0_MAGIC)) == MCAP0_MAGIC else 0
        ended = False
        while good and not ended:
            opcode, content = _read_record(file, size)
            if content is None:
                break
            good = file.tell()
            ended = opcode == Opcode.DATA_END
            try:
                records = _parse(opcode, content)
            except _BROKEN:
                loss.broken_chunks += 1
                loss.bytes_lost += len(content)
                continue
            yield from records
    if ended and _has_end(path):
        good = size  # behind the data lie only index and footer
    else:
        loss.without_end += 1
    loss.bytes_read += good
    loss.bytes_lost += size - good


def _read_record(file: BinaryIO, size: int) -> tuple[int, bytes | None]:
    """Return opcode and content of the next record; content None: it is not whole."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return 0, None
    opcode, length = _HEAD.unpack(head)
    if opcode == 0 or length > size - file.tell():  # 0 is no opcode: blocks that a power failure left empty
        return opcode, None
    return opcode, file.read(length)


def _parse(opcode: int, content: bytes) -> list[McapRecord]:
    stream = ReadDataStream(BytesIO(content))
    if opcode == Opcode.CHUNK:
        return list(breakup_chunk(Chunk.read(stream), validate_crc=True))
    if opcode == Opcode.MESSAGE:
        return [Message.read(stream, len(content))]
    kinds: dict[int, Any] = {Opcode.SCHEMA: Schema, Opcode.CHANNEL: Channel, Opcode.METADATA: Metadata}
    return [kinds[opcode].read(stream)] if opcode in kinds else []


def _copy(path: Path, bag: BagFile, loss: Loss, notes: dict[str, str]) -> None:
    """Copy what can be read of a file into a bag, and its notes into `notes`."""
    schemas: dict[int, Schema] = {}
    channels: dict[int, int] = {}
    for record in read_records(path, loss):
        if isinstance(record, Schema):
            schemas[record.id] = record
        elif isinstance(record, Channel) and record.id not in channels and record.schema_id in schemas:
            channels[record.id] = bag.add_topic(_topic(record, schemas[record.schema_id]))
        elif isinstance(record, Message) and record.channel_id in channels:
            bag.write(channels[record.channel_id], record.log_time, record.data, record.publish_time)
            bag.commit()
            loss.saw(record.log_time)
        elif isinstance(record, Metadata):
            notes |= _notes(record)


def _topic(channel: Channel, schema: Schema) -> BagTopic:
    told = channel.metadata
    try:
        qos = yaml.safe_load(told.get("offered_qos_profiles", "")) or []
    except yaml.YAMLError:
        qos = []
    return BagTopic(
        channel.topic,
        schema.name,
        schema.data,
        told.get("topic_type_hash", ""),
        [profile for profile in qos if isinstance(profile, dict)],
        schema.encoding,
        channel.message_encoding,
    )


def _notes(record: Metadata) -> dict[str, str]:
    """Return what a metadata record says about the bag: this project's own, or rosbag2's custom_data."""
    if record.name == NOTES_RECORD:
        return dict(record.metadata)
    try:
        told = yaml.safe_load(record.metadata.get("serialized_metadata", "")) or {}
    except yaml.YAMLError:
        return {}
    custom = cast(dict[str, Any], told).get("custom_data") if isinstance(told, dict) else None
    return {str(key): str(value) for key, value in (custom or {}).items()}


def _files(folder: Path) -> list[Path]:
    """Return the MCAP files of a bag in order (bag_2 before bag_10); cut ones only where nothing replaced them."""
    if not folder.is_dir():
        return []
    files = [path for path in folder.iterdir() if path.suffix == ".mcap" and path.is_file()]
    cut = [path for path in folder.iterdir() if path.name.endswith(f".mcap{CUT}")]
    return sorted(files or cut, key=lambda path: [int(n) if n.isdigit() else n for n in re.split(r"(\d+)", path.name)])


def _has_end(path: Path) -> bool:
    """Return whether a file ends as an MCAP file does."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - len(MCAP0_MAGIC)))
        return size > 2 * len(MCAP0_MAGIC) and file.read() == MCAP0_MAGIC


def _is_visible(path: Path, root: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(root).parts)
