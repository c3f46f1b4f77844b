"""One rosbag2 bag: a folder with one MCAP file, written so that a crash at any moment leaves a readable file.

    episode_000003/episode_000003_0.mcap    grows chunk by chunk; complete from its first byte to its last whole chunk
    episode_000003/metadata.yaml            version 9; written last, so a folder without it is a bag that was cut off

While it grows, the writer holds a lock (flock) on the MCAP file, which the kernel releases when the process dies: a
folder without metadata.yaml whose file nobody has locked is a bag to repair (`pi05_ros.repair`). What explains the bag
(`notes`) is written twice: as an MCAP metadata record before the first message, and as `custom_data` at the end.

Formats: mcap.dev/spec; metadata.yaml, the "rosbag2" metadata record and the channel keys `offered_qos_profiles` and
`topic_type_hash` as rosbag2_storage and rosbag2_storage_mcap read them. Nothing here knows rclpy or the contract.
"""

import errno
import fcntl
import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from mcap.writer import CompressionType, Writer

NOTES_RECORD = "pi05"  # name of the MCAP metadata record that holds the notes
METADATA = "metadata.yaml"
BALLAST = ".reserve"
BALLAST_BYTES = 8 << 20
CHUNK_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class BagTopic:
    """A topic of a bag.

    Attributes:
        name: full name on the wire.
        type: message type such as "sensor_msgs/msg/JointState".
        definition: its full definition, types it uses included.
        type_hash: RIHS01 hash of the type ("RIHS01_…", REP-2016).
        qos: offered profiles as metadata.yaml version 9 holds them.
        definition_encoding: "ros2msg" or "ros2idl".
        serialization: message encoding.
    """

    name: str
    type: str
    definition: bytes
    type_hash: str
    qos: Sequence[Mapping[str, Any]] = ()
    definition_encoding: str = "ros2msg"
    serialization: str = "cdr"


class TailFile:
    """An append-only file that never ends in half a write of this process. What mcap's writer writes to.

    Each write is a number of whole MCAP records. They are held in memory until `commit`; a write that fails is taken
    back, and can be tried again.

    Raises:
        OSError: the file exists, or cannot be made or locked.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._held: deque[bytes] = deque()
        self._held_bytes = 0
        self.committed = 0  # bytes in the file

    def write(self, data: bytes) -> int:
        """Hold data back until the next commit."""
        if data:
            self._held.append(data)
            self._held_bytes += len(data)
        return len(data)

    def tell(self) -> int:
        """Return where the next write will lie in the file."""
        return self.committed + self._held_bytes

    def flush(self) -> None:
        """Nothing: only `commit` writes (mcap's writer calls this in the middle of its own work)."""

    def commit(self) -> None:
        """Write what is held.

        Raises:
            OSError: disk full, quota, size limit, device error; the file ends after the last write that succeeded.
        """
        while self._held:
            rest = memoryview(self._held[0])
            try:
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
            except OSError:
                os.ftruncate(self._fd, self.committed)
                os.lseek(self._fd, self.committed, os.SEEK_SET)
                raise
            size = len(self._held.popleft())
            self.committed += size
            self._held_bytes -= size

    def sync(self) -> None:
        """Wait until the disk has what was committed."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file, and with it release the lock; what is held is lost."""
        os.close(self._fd)


@dataclass
class _Counts:
    """What metadata.yaml counts."""

    messages: int = 0
    first_ns: int = 0
    last_ns: int = 0
    per_topic: dict[int, int] = field(default_factory=dict)

    def add(self, channel: int, stamp_ns: int) -> None:
        self.first_ns = stamp_ns if self.messages == 0 else min(self.first_ns, stamp_ns)
        self.last_ns = max(self.last_ns, stamp_ns)
        self.messages += 1
        self.per_topic[channel] += 1


class BagFile:
    """A bag being written. Not thread-safe.

    Args:
        folder: made here; its name is the bag's.
        notes: what explains the bag.
        ballast_bytes: disk space that is set aside, so that a bag can be finished on a full disk.

    Attributes:
        full: the disk is full; the bag can still be finished, and should be.

    Raises:
        OSError: the folder exists, cannot be made, or has no room for the ballast.
    """

    def __init__(self, folder: Path, notes: Mapping[str, str], ballast_bytes: int = BALLAST_BYTES) -> None:
        folder.mkdir()
        self.folder, self.notes = folder, dict(notes)
        self.path = folder / f"{folder.name}_0.mcap"
        self.full = False
        self._topics: dict[int, BagTopic] = {}
        self._counts = _Counts()
        self._ballast = _make_ballast(folder / BALLAST, ballast_bytes)
        self._file = TailFile(self.path)
        self._writer = Writer(self._file, chunk_size=CHUNK_BYTES, compression=CompressionType.ZSTD)
        self._writer.start(profile="ros2", library="pi05_ros")
        self._writer.add_metadata(NOTES_RECORD, self.notes)
        self._schemas: dict[str, int] = {}
        self.commit()

    @property
    def messages(self) -> int:
        """Messages written so far."""
        return self._counts.messages

    @property
    def committed(self) -> int:
        """Bytes in the file."""
        return self._file.committed

    def add_topic(self, topic: BagTopic) -> int:
        """Register a topic and return its channel."""
        if topic.type not in self._schemas:
            self._schemas[topic.type] = self._writer.register_schema(
                topic.type, topic.definition_encoding, topic.definition
            )
        told = {
            "offered_qos_profiles": yaml.safe_dump([dict(qos) for qos in topic.qos], sort_keys=False).strip(),
            "topic_type_hash": topic.type_hash,
        }
        channel: int = self._writer.register_channel(topic.name, topic.serialization, self._schemas[topic.type], told)
        self._topics[channel], self._counts.per_topic[channel] = topic, 0
        return channel

    def write(self, channel: int, stamp_ns: int, data: bytes, publish_ns: int | None = None) -> None:
        """Append a serialised message; it is in the file after the next `commit` that ends its chunk.

        Args:
            channel: as `add_topic` returned it.
            stamp_ns: time of receipt.
            data: the message as it came over the wire.
            publish_ns: time of publication; None: that of receipt.
        """
        self._writer.add_message(channel, stamp_ns, data, stamp_ns if publish_ns is None else publish_ns)
        self._counts.add(channel, stamp_ns)

    def end_chunk(self) -> None:
        """End the chunk that is being filled, and commit.

        Raises:
            OSError: as `commit`.
        """
        self._writer.flush()
        self.commit()

    def commit(self) -> None:
        """Write every ended chunk to the file. On a full disk the ballast is let go, and `full` is set.

        Raises:
            OSError: it cannot be written even so; the file ends after the last chunk that could.
        """
        try:
            self._file.commit()
        except OSError as error:
            if error.errno not in _FULL or self._ballast is None:
                raise
            self._drop_ballast()
            self.full = True
            self._file.commit()

    def sync(self) -> None:
        """Wait until the disk has what was committed."""
        self._file.sync()

    def finish(self, notes: Mapping[str, str] | None = None) -> Path:
        """Write index, footer and metadata.yaml.

        Args:
            notes: more notes; they replace those of the same name.

        Returns:
            The bag's folder.

        Raises:
            OSError: no room; the bag can be repaired.
        """
        self.notes |= notes or {}
        information = self._information()
        try:
            self._writer.flush()  # before the metadata record, whose writing would leave it in the chunk behind it
            self._writer.add_metadata("rosbag2", {"serialized_metadata": _dump(information)})
            self._writer.finish()
            self._drop_ballast()
            self._file.commit()
            self._file.sync()
        finally:
            self._close()
        write_atomically(self.folder / METADATA, _dump({"rosbag2_bagfile_information": information}))
        return self.folder

    def abandon(self) -> None:
        """Leave the bag as it is: whole up to its last committed chunk, without index."""
        self._close()

    def _close(self) -> None:
        self._drop_ballast()
        self._file.close()

    def _drop_ballast(self) -> None:
        if self._ballast is not None:
            self._ballast.unlink(missing_ok=True)
            self._ballast = None

    def _information(self) -> dict[str, Any]:
        counts, name = self._counts, self.path.name
        times = {
            "duration": {"nanoseconds": counts.last_ns - counts.first_ns},
            "starting_time": {"nanoseconds_since_epoch": counts.first_ns},
            "message_count": counts.messages,
        }
        topics = [
            {"topic_metadata": _topic_metadata(topic), "message_count": counts.per_topic[channel]}
            for channel, topic in self._topics.items()
        ]
        return {
            "version": 9,
            "storage_identifier": "mcap",
            **times,
            "topics_with_message_count": topics,
            # The chunks are compressed inside the MCAP file; these two are about rosbag2's own compression.
            "compression_format": "",
            "compression_mode": "",
            "relative_file_paths": [name],
            "files": [{"path": name, **times}],
            "custom_data": dict(self.notes),
            "ros_distro": os.environ.get("ROS_DISTRO", "kilted"),
        }


def _topic_metadata(topic: BagTopic) -> dict[str, Any]:
    return {
        "name": topic.name,
        "type": topic.type,
        "serialization_format": topic.serialization,
        "offered_qos_profiles": [dict(qos) for qos in topic.qos],
        "type_description_hash": topic.type_hash,
    }


def _dump(content: Mapping[str, Any]) -> str:
    # One line per scalar: yaml-cpp and people read folded JSON badly. No aliases: rosbag2 writes none.
    return yaml.dump(content, Dumper=_NoAliases, sort_keys=False, allow_unicode=True, width=1 << 30)


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is whole or not there, also after a power failure.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def locked(path: Path) -> bool:
    """Return whether a process is still writing a file (see `TailFile`)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _make_ballast(path: Path, size: int) -> Path | None:
    if size <= 0:
        return None
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.posix_fallocate(fd, 0, size)
    finally:
        os.close(fd)
    return path
