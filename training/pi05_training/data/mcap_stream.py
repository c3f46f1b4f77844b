"""An MCAP file as a stream: in the order it was written, one chunk in memory, up to the point where it breaks off.

Order of writing is order of arrival, which sorting by log time would lose when a clock jumps. Format: mcap.dev/spec.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import zstandard

MAGIC = b"\x89MCAP0\r\n"
_HEADER, _FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06
_STATISTICS, _METADATA, _METADATA_INDEX, _DATA_END = 0x0B, 0x0C, 0x0D, 0x0F
_RECORD = struct.Struct("<BQ")
_MESSAGE_HEAD = struct.Struct("<HIQQ")
_FOOTER_BYTES = 20


class McapError(ValueError):
    """A file that is no MCAP file, or uses what cannot be read; says which file and why."""


@dataclass
class Channel:
    """One topic of a file.

    Attributes:
        topic, kind: name and message type.
        schema_encoding, schema: the type's definition, "ros2msg" or "ros2idl".
        encoding: of the messages; ROS 2 has "cdr".
        count: messages.
    """

    topic: str
    kind: str
    schema_encoding: str
    schema: str
    encoding: str
    count: int = 0


@dataclass
class McapStream:
    """One MCAP file.

    Attributes:
        path: the file.
        channels: by id; complete after `index`, or after all messages were read.
        metadata: entries of the file's metadata records, by record name.
        lost_bytes: bytes at the end that cannot be read because the file breaks off; known after `index` or reading.
        bad_chunks: chunks whose content is damaged; they are skipped.
        whole: whether the file was closed properly.
    """

    path: Path
    channels: dict[int, Channel] = field(default_factory=dict)
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    lost_bytes: int = 0
    bad_chunks: int = 0
    whole: bool = True

    def __post_init__(self) -> None:
        self._schemas: dict[int, tuple[str, str, str]] = {}
        self._size = self.path.stat().st_size

    def index(self) -> None:
        """Find out what the file holds: from its summary, or by walking through it when it has none.

        Raises:
            McapError: not an MCAP file.
        """
        with self.path.open("rb") as file:
            start = self._check_magic(file)
            summary = self._summary_start(file)
            if summary is not None:
                offsets = self._read_summary(file, summary)
                for offset in offsets:
                    file.seek(offset)
                    self._next(file)
                return
        counts: dict[int, int] = {}
        for channel, _, _ in self._walk(start):
            counts[channel] = counts.get(channel, 0) + 1
        for number, count in counts.items():
            self.channels[number].count = count

    def messages(self, wanted: frozenset[int] | None = None) -> Iterator[tuple[int, int, bytes]]:
        """Yield (channel id, log time [ns], data) in the order of writing.

        Args:
            wanted: channel ids; None takes all.
        """
        with self.path.open("rb") as file:
            start = self._check_magic(file)
        yield from self._walk(start, wanted)

    def _check_magic(self, file: BinaryIO) -> int:
        if file.read(len(MAGIC)) != MAGIC:
            raise McapError(f"{self.path}: not an MCAP file ({self._size} bytes)")
        return len(MAGIC)

    def _summary_start(self, file: BinaryIO) -> int | None:
        tail = _RECORD.size + _FOOTER_BYTES + len(MAGIC)
        if self._size < len(MAGIC) + tail:
            return None
        file.seek(-tail, 2)
        opcode, length = _RECORD.unpack(file.read(_RECORD.size))
        body = file.read(_FOOTER_BYTES)
        if (opcode, length) != (_FOOTER, _FOOTER_BYTES) or file.read() != MAGIC:
            return None
        start = int.from_bytes(body[:8], "little")
        return start or None

    def _read_summary(self, file: BinaryIO, start: int) -> list[int]:
        file.seek(start)
        offsets: list[int] = []
        counts: dict[int, int] = {}
        while True:
            opcode, body = self._next(file)
            if opcode == _METADATA_INDEX:
                offsets.append(int.from_bytes(body[:8], "little"))
            elif opcode == _STATISTICS:
                counts = dict(struct.iter_unpack("<HQ", body[46 : 46 + int.from_bytes(body[42:46], "little")]))
            elif opcode in (None, _FOOTER):
                break
        for number, count in counts.items():
            if number in self.channels:
                self.channels[number].count = count
        return offsets

    def _walk(self, start: int, wanted: frozenset[int] | None = None) -> Iterator[tuple[int, int, bytes]]:
        self.lost_bytes = self.bad_chunks = 0
        with self.path.open("rb") as file:
            file.seek(start)
            while True:
                at = file.tell()
                opcode, body = self._next(file)
                if opcode is None:
                    self.lost_bytes, self.whole = self._size - at, False
                    return
                if opcode in (_DATA_END, _FOOTER):
                    return
                if opcode == _CHUNK:
                    yield from self._chunk(body, wanted)
                elif opcode == _MESSAGE:
                    yield from self._message(body, 0, len(body), wanted)

    def _next(self, file: BinaryIO) -> tuple[int | None, bytes]:
        """Read one record; opcode None where the file breaks off. Schemas, channels and metadata are taken in."""
        head = file.read(_RECORD.size)
        if len(head) < _RECORD.size:
            return None, b""
        opcode, length = _RECORD.unpack(head)
        if not opcode or length > self._size:  # 0 is no opcode: blocks that a power failure left empty
            return None, b""
        body = file.read(length)
        if len(body) < length:
            return None, b""
        self._take_in(opcode, memoryview(body))
        return opcode, body

    def _take_in(self, opcode: int, body: memoryview) -> None:
        if opcode == _SCHEMA:
            name, at = _string(body, 2)
            encoding, at = _string(body, at)
            definition, _ = _string(body, at)
            self._schemas[_u16(body, 0)] = (name, encoding, definition)
        elif opcode == _CHANNEL:
            number = _u16(body, 0)
            topic, at = _string(body, 4)
            encoding, _ = _string(body, at)
            if number not in self.channels:
                self.channels[number] = Channel(topic, *self._schemas.get(_u16(body, 2), ("", "", "")), encoding)
        elif opcode == _METADATA:
            name, at = _string(body, 0)
            self.metadata[name] = _string_map(body, at)

    def _chunk(self, body: bytes, wanted: frozenset[int] | None) -> Iterator[tuple[int, int, bytes]]:
        view = memoryview(body)
        size, crc = struct.unpack_from("<QI", view, 16)
        compression, at = _string(view, 28)
        packed = view[at + 8 :]
        try:
            data = self._unpack(compression, packed, size)
            if crc and zlib.crc32(data) != crc:
                raise zstandard.ZstdError("checksum")
        except zstandard.ZstdError:
            self.bad_chunks += 1
            return
        records = memoryview(data)
        at = 0
        while at + _RECORD.size <= len(records):
            opcode, length = _RECORD.unpack_from(records, at)
            at += _RECORD.size
            if opcode == _MESSAGE:
                yield from self._message(data, at, at + length, wanted)
            else:
                self._take_in(opcode, records[at : at + length])
            at += length

    def _unpack(self, compression: str, packed: memoryview, size: int) -> bytes:
        if compression == "zstd":
            return zstandard.ZstdDecompressor().decompress(packed, max_output_size=size)
        if not compression:
            return bytes(packed)
        raise McapError(
            f"{self.path}: chunks are compressed with {compression!r}; valid: zstd, none. "
            "Convert the file with the mcap program first (`mcap compress --compression zstd`)"
        )

    def _message(
        self, data: bytes, start: int, end: int, wanted: frozenset[int] | None
    ) -> Iterator[tuple[int, int, bytes]]:
        number, _, log_ns, _ = _MESSAGE_HEAD.unpack_from(data, start)
        if number in self.channels and (wanted is None or number in wanted):
            yield number, log_ns, data[start + _MESSAGE_HEAD.size : end]


def _u16(body: memoryview, at: int) -> int:
    return int.from_bytes(body[at : at + 2], "little")


def _string(body: memoryview, at: int) -> tuple[str, int]:
    length = int.from_bytes(body[at : at + 4], "little")
    return str(body[at + 4 : at + 4 + length], "utf-8"), at + 4 + length


def _string_map(body: memoryview, at: int) -> dict[str, str]:
    end = at + 4 + int.from_bytes(body[at : at + 4], "little")
    at += 4
    entries: dict[str, str] = {}
    while at < end:
        key, at = _string(body, at)
        entries[key], at = _string(body, at)
    return entries
