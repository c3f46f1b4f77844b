"""One episode, one rosbag2 bag, free of rclpy: what belongs into it, and writing it without holding anybody up.

Messages are written as they came over the wire. `BagRecording.write` only queues; a thread of its own fills chunks,
compresses, writes and syncs, so that a slow disk never makes a subscription lose a message. A chunk is ended after
`chunk_s` or 1 MiB, whichever is first: SIGKILL costs at most that (see `pi05_ros.bagfile`, `pi05_ros.repair`).
"""

import shutil
import threading
import time
from collections import deque
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from pi05_ros import topics
from pi05_ros.bagfile import BALLAST_BYTES, BagFile, BagTopic
from pi05_ros.config import ConfigError, Value
from pi05_ros.contract import Contract
from pi05_ros.qos import Qos, offered

NS = 1_000_000_000
EPISODE = "episode_"  # bags are called episode_000000, episode_000001, …
OUTCOMES = ("success", "failure", "unknown")
TICK_S = 0.1  # the writer looks for messages this often
QUEUE_BYTES = 256 << 20  # messages that wait for the disk; more are dropped and counted
_STRING = "std_msgs/msg/String"
_FOREVER = {"sec": 9223372036, "nsec": 854775807}  # how rosbag2 writes "no deadline"


class RecordingError(OSError):
    """An episode cannot be begun or kept; the message says why and what is left of it."""


def recorded_topics(contract: Contract) -> dict[str, str]:
    """Return the message type of every topic that belongs into a bag, by relative topic name."""
    images = dict.fromkeys(topics.camera_images(contract).values(), "sensor_msgs/msg/CompressedImage")
    return {
        **images,
        topics.STATE: "sensor_msgs/msg/JointState",
        topics.JOINT_STATES: "sensor_msgs/msg/JointState",
        topics.ODOM: "nav_msgs/msg/Odometry",
        topics.TASK: "std_msgs/msg/String",
        topics.SUBTASK: "std_msgs/msg/String",
        topics.EVENT: "std_msgs/msg/String",
        topics.ACTION_CHUNK: "trajectory_msgs/msg/JointTrajectory",
        topics.EFFORT_COMMANDS: "std_msgs/msg/Float64MultiArray",
        topics.CMD_VEL: "geometry_msgs/msg/TwistStamped",
        topics.DIAGNOSTICS: "diagnostic_msgs/msg/DiagnosticArray",
    }


def required_topics(contract: Contract) -> tuple[str, ...]:
    """Return the topics without which an episode teaches nothing: cameras, joints, base, state, actions, task."""
    base = (topics.ODOM,) if len(contract.base_index) else ()
    return (
        *topics.camera_images(contract).values(),
        topics.STATE,
        topics.JOINT_STATES,
        *base,
        topics.ACTION_CHUNK,
        topics.TASK,
    )


def nominal_rates(contract: Contract) -> dict[str, float]:
    """Return the rate [Hz] that the contract promises, for the topics that have one.

    The state is derived from the joint states as often as they come; needed is one for every action.
    """
    rates = contract.rates
    cameras = dict.fromkeys(topics.camera_images(contract).values(), rates.camera_hz)
    return {**cameras, topics.STATE: rates.action_hz, topics.JOINT_STATES: rates.joint_state_hz}


def parse_notes(text: str) -> dict[str, str]:
    """Read notes written as "key=value; key=value".

    Raises:
        ConfigError: a part without "=" or without a key; names it.
    """
    notes = {}
    for part in filter(str.strip, text.split(";")):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"notes: {part.strip()!r} is not valid; valid: `key=value; key=value`")
        notes[key.strip()] = value.strip()
    return notes


def software_version() -> str:
    """Return the version of this package, as the bag's metadata names it."""
    try:
        return metadata.version("pi05_ros")
    except metadata.PackageNotFoundError:  # run from a checkout that nobody installed
        return "unknown"


class BagRecording:
    """A bag being written. `write`, `close` and `discard` belong to one thread.

    Args:
        directory: folder of the bags; made if it is missing.
        resolved: full topic name on the wire, by relative topic name (keys of `recorded_topics`).
        contract: the robot; also written into the bag.
        notes: what explains the bag from its first byte (task, seed, operator, …).
        chunk_s: longest time between two chunks [s]; what a killed process loses at most.
        ballast_bytes: see `BagFile`.

    Attributes:
        messages: messages taken.
        bytes: their size.
        dropped: messages refused because the disk was full, or too slow for too long; final after the end.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        resolved: Mapping[str, str],
        contract: Contract,
        notes: Mapping[str, Value] | None = None,
        chunk_s: float = 1.0,
        ballast_bytes: int = BALLAST_BYTES,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        told = {"contract": contract.model_dump_json(), "software": f"pi05_ros {software_version()}"}
        self._file = _open_next(directory, told | _as_text(notes or {}), ballast_bytes)
        types = recorded_topics(contract)
        self._channels = {
            topic: self._file.add_topic(bag_topic(name, types[topic], offered(topic)))
            for topic, name in resolved.items()
        }
        self.messages = self.bytes = self.dropped = 0
        self._chunk_s = chunk_s
        self._queue: deque[tuple[int, int, bytes]] = deque()
        self._written_bytes = 0
        self._failure: OSError | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bag writer", daemon=True)
        self._thread.start()

    @property
    def folder(self) -> Path:
        """The bag's folder."""
        return self._file.folder

    @property
    def full(self) -> bool:
        """The disk is full, and the bag should be closed now: there is just room to finish it."""
        return self._file.full

    @property
    def failure(self) -> OSError | None:
        """What ended the writing, if something did; nothing is written any more."""
        return self._failure

    @property
    def waiting_bytes(self) -> int:
        """Size of the messages that are not yet in a chunk."""
        return self.bytes - self._written_bytes

    def write(self, topic: str, stamp_ns: int, data: bytes) -> None:
        """Take a serialised message.

        Args:
            topic: relative name.
            stamp_ns: time of receipt, ROS clock.
            data: CDR with its encapsulation header.
        """
        if self.waiting_bytes > QUEUE_BYTES or self._file.full:
            self.dropped += 1
            return
        self._queue.append((self._channels[topic], stamp_ns, data))
        self.messages += 1
        self.bytes += len(data)

    def close(self, notes: Mapping[str, Value] | None = None) -> Path:
        """Write what waits, and finish the bag.

        Args:
            notes: what else the metadata should say (outcome, …).

        Returns:
            The bag's folder.

        Raises:
            RecordingError: it could not be finished; says where what was written lies, and how to repair it.
        """
        self._end_thread()
        if self._failure is not None:
            self._file.abandon()
            raise RecordingError(_what_is_left(self.folder, self._failure))
        try:
            return self._file.finish(_as_text({**(notes or {}), "dropped": self.dropped}))
        except OSError as error:
            raise RecordingError(_what_is_left(self.folder, error)) from error

    def discard(self) -> None:
        """Throw away what was written."""
        self._end_thread()
        self._file.abandon()
        shutil.rmtree(self.folder)

    def _end_thread(self) -> None:
        self._stopping.set()
        self._thread.join()
        self.dropped += len(self._queue)
        self._queue.clear()

    def _run(self) -> None:
        chunk_begin = time.monotonic()
        try:
            while not self._stopping.wait(TICK_S):
                self._drain()
                # One tick early rather than late: what waits in the queue is lost with the chunk.
                if time.monotonic() - chunk_begin > self._chunk_s - 2 * TICK_S:
                    self._file.end_chunk()
                    self._file.sync()
                    chunk_begin = time.monotonic()
            self._drain()
        except OSError as error:
            self._failure = error

    def _drain(self) -> None:
        while self._queue and not self._file.full:
            channel, stamp_ns, data = self._queue.popleft()
            self._file.write(channel, stamp_ns, data)
            self._file.commit()
            self._written_bytes += len(data)


@cache
def _store() -> Typestore:
    return get_typestore(Stores.ROS2_KILTED)


@cache
def _definition(kind: str) -> tuple[bytes, str]:
    """Return definition and RIHS01 hash of a message type."""
    definition, _ = _store().generate_msgdef(kind, ros_version=2)
    return definition.encode(), _store().hash_rihs01(kind)


def text_from_cdr(data: bytes) -> str:
    """Return what a serialised std_msgs/String says."""
    return str(_store().deserialize_cdr(data, _STRING).data)


def text_to_cdr(text: str) -> bytes:
    """Return a serialised std_msgs/String."""
    return bytes(_store().serialize_cdr(_store().types[_STRING](text), _STRING))


def bag_topic(name: str, kind: str, qos: Qos) -> BagTopic:
    """Return what a bag says about a topic of a known type.

    Args:
        name: full name on the wire.
        kind: message type.
        qos: what its publishers offer.
    """
    definition, type_hash = _definition(kind)
    return BagTopic(name, kind, definition, type_hash, [_bag_qos(qos)])


def _open_next(directory: Path, notes: Mapping[str, str], ballast_bytes: int) -> BagFile:
    """Open a bag under the next free number; another recorder may be doing the same."""
    while True:
        folder = directory / _next_name(directory)
        try:
            return BagFile(folder, notes, ballast_bytes)
        except FileExistsError:
            continue
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _next_name(directory: Path) -> str:
    taken = [path.name.removeprefix(EPISODE) for path in directory.glob(f"{EPISODE}*")]
    return f"{EPISODE}{max((int(n) for n in taken if n.isdigit()), default=-1) + 1:06d}"


def _as_text(notes: Mapping[str, Value]) -> dict[str, str]:
    return {key: str(value) for key, value in notes.items()}


def _what_is_left(folder: Path, error: OSError) -> str:
    return f"{error.strerror or error}; {folder} is whole up to its last chunk: `pi05 record --repair {folder}`"


def _bag_qos(qos: Qos) -> dict[str, Any]:
    return {
        "history": "keep_last",
        "depth": qos.depth,
        "reliability": "reliable" if qos.reliable else "best_effort",
        "durability": "transient_local" if qos.latched else "volatile",
        "deadline": _bag_time(qos.deadline_s),
        "lifespan": _bag_time(qos.lifespan_s),
        "liveliness": "automatic",
        "liveliness_lease_duration": dict(_FOREVER),
        "avoid_ros_namespace_conventions": False,
    }


def _bag_time(seconds: float | None) -> dict[str, int]:
    if seconds is None:
        return dict(_FOREVER)
    sec, nsec = divmod(round(seconds * NS), NS)
    return {"sec": sec, "nsec": nsec}
