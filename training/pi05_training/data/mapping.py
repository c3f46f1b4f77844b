"""Bags of someone else's robot: a YAML file that says which topics and fields are which entries of the contract.

    contract: my_robot.yaml              # beside this file; without it the package's own contract
    cameras:
      front: /camera/image_raw           # sensor_msgs/Image or CompressedImage
    state:
      max_age_s: 0.1                     # entries further apart are not one state
      sources:
        - topic: /joint_states           # sensor_msgs/JointState, by joint name; value = scale · field + offset
          joints:
            left_joint1: shoulder_pan
            left_gripper: {name: finger_joint, scale: -22.2, offset: 1.0, field: position}
        - topic: /odom                   # any message, by path; name[2] takes an element
          fields: {base_vx: twist.twist.linear.x, base_wz: {path: twist.twist.angular.z, scale: -1}}
      fill: {torso_lift: 0.0}            # entries that the robot does not have
    action: next_state                   # or sources as above (a leader arm, cmd_vel); other entries follow the state
    subtask: /subtask                    # std_msgs/String; may be left out, as may `task`
    task: /task

A message without a header, or with an empty stamp, counts at its time of receipt.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pi05_ros.contract import Contract
from pi05_ros.ingest import STATE
from pi05_ros.messages import Array, MessageError, encode_jpeg, fit, image_to_rgb, stamp_to_ns
from pi05_training.data.bags import Bag, BagMessage
from pi05_training.data.commands import Commands, VectorCommands
from pi05_training.data.episode import DatasetError
from pi05_training.data.frames import FrameMaker, PartFrame
from pi05_training.data.sources import receive_shift_ns

NS = 1_000_000_000
ACTION = "action"
_IMAGES = ("sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/Image")
_JOINTS = "sensor_msgs/msg/JointState"
_STRING = "std_msgs/msg/String"
_STEP = re.compile(r"(\w+)(?:\[(\d+)\])?")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class JointEntry(_Strict):
    """An entry that is a joint: value = scale · field + offset."""

    name: str
    scale: float = 1.0
    offset: float = 0.0
    field: Literal["position", "velocity", "effort"] = "position"


class FieldEntry(_Strict):
    """An entry that is a field of a message: value = scale · field + offset."""

    path: Annotated[str, Field(pattern=r"^\w+(\[\d+\])?(\.\w+(\[\d+\])?)*$")]
    scale: float = 1.0
    offset: float = 0.0


class EntrySource(_Strict):
    """A topic that entries are read from."""

    topic: str
    joints: dict[str, JointEntry | str] = {}
    fields: dict[str, FieldEntry | str] = {}

    def joint(self, entry: str) -> JointEntry:
        """Return how an entry is read."""
        found = self.joints[entry]
        return JointEntry(name=found) if isinstance(found, str) else found

    def field(self, entry: str) -> FieldEntry:
        """Return how an entry is read."""
        found = self.fields[entry]
        return FieldEntry(path=found) if isinstance(found, str) else found


class VectorMapping(_Strict):
    """How a vector is put together."""

    sources: Annotated[tuple[EntrySource, ...], Field(min_length=1)]
    fill: dict[str, float] = {}
    max_age_s: Annotated[float, Field(gt=0)] = 0.1

    def entries(self) -> list[str]:
        """Return the names of all entries that are read or filled."""
        return [*self.fill, *(name for source in self.sources for name in (*source.joints, *source.fields))]


class Mapping(_Strict):
    """A mapping file."""

    contract: str | None = None
    cameras: dict[str, str] = {}
    state: VectorMapping
    action: Literal["next_state"] | VectorMapping = "next_state"
    subtask: str | None = None
    task: str | None = None


def read_mapping(path: Path) -> str:
    """Return the contents of a mapping file.

    Raises:
        DatasetError: not readable.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from error


def contract_of(path: Path) -> Path | None:
    """Return the contract that a mapping file names, relative to itself.

    Raises:
        DatasetError: the file is not valid.
    """
    named = _parse(read_mapping(path)).contract
    return None if named is None else path.parent / named


def parse_mapping(text: str, contract: Contract) -> Mapping:
    """Check a mapping file against the contract.

    Raises:
        DatasetError: names the key, the value and what is valid.
    """
    mapping = _parse(text)
    for camera in mapping.cameras:
        if camera not in contract.cameras:
            known = ", ".join(contract.cameras)
            raise DatasetError(f"mapping: cameras.{camera}: no such camera; the contract has: {known}")
    parts = {"state": mapping.state} | ({} if isinstance(mapping.action, str) else {"action": mapping.action})
    for what, vector in parts.items():
        entries = vector.entries()
        unknown = [name for name in entries if name not in contract.names]
        twice = sorted({name for name in entries if entries.count(name) > 1})
        if unknown:
            known = ", ".join(contract.names)
            raise DatasetError(f"mapping: {what}: no entry {', '.join(unknown)}; the contract has: {known}")
        if twice:
            raise DatasetError(f"mapping: {what}: {', '.join(twice)} is given twice; an entry has one source or `fill`")
    missing = [name for name in contract.names if name not in mapping.state.entries()]
    if missing:
        raise DatasetError(f"mapping: state: nothing for {', '.join(missing)}; name a source, or a value under `fill`")
    return mapping


class VectorMerger:
    """Puts a vector together from several topics.

    Args:
        contract: order of the entries.
        mapping: where they come from.
        complete: whether a vector needs all of them; otherwise what is missing or old is nan.
    """

    def __init__(self, contract: Contract, mapping: VectorMapping, complete: bool) -> None:
        self._mapping, self._complete = mapping, complete
        self._at = {name: index for index, name in enumerate(contract.names)}
        self._values = np.full(contract.dim, np.nan)
        self._stamps = np.full(contract.dim, -(2**62), np.int64)
        self._filled = np.zeros(contract.dim, bool)
        for name, value in mapping.fill.items():
            self._values[self._at[name]], self._filled[self._at[name]] = value, True
        self.names_seen: dict[str, list[str]] = {}

    def add(self, source: EntrySource, stamp_ns: int, message: Any) -> Array | None:
        """Take a message; return the vector [D] as it is now, or None while entries are missing or too old.

        Raises:
            DatasetError: the message has no such field; names topic and fields.
            MessageError: a value is not finite, or there are fewer values than names.
        """
        newest = int(self._stamps.max())
        if stamp_ns < newest - NS:  # the clock jumped back
            self._stamps[:] = -(2**62)
        for entry, value in (*self._joints(source, message), *self._fields(source, message)):
            if not np.isfinite(value):
                raise MessageError(f"{entry} is not finite")
            if stamp_ns >= self._stamps[self._at[entry]]:
                self._values[self._at[entry]], self._stamps[self._at[entry]] = value, stamp_ns
        old = (self._stamps < self._stamps.max() - round(self._mapping.max_age_s * NS)) & ~self._filled
        if self._complete and old.any():
            return None
        return np.where(old, np.nan, self._values)

    def missing(self) -> list[str]:
        """Return the entries that never came."""
        wanted = [name for name in self._mapping.entries() if name not in self._mapping.fill]
        return [name for name in wanted if self._stamps[self._at[name]] <= -(2**62)]

    def _joints(self, source: EntrySource, message: Any) -> Iterator[tuple[str, float]]:
        if not source.joints:
            return
        names = list(message.name)
        if source.topic not in self.names_seen:
            self.names_seen[source.topic] = names
        for entry in source.joints:
            wanted = source.joint(entry)
            if wanted.name in names:  # several arms may speak on one topic
                values = getattr(message, wanted.field)
                if len(values) != len(names):
                    raise MessageError(f"{len(names)} names but {len(values)} values in `{wanted.field}`")
                yield entry, wanted.scale * float(values[names.index(wanted.name)]) + wanted.offset

    def _fields(self, source: EntrySource, message: Any) -> Iterator[tuple[str, float]]:
        for entry in source.fields:
            wanted = source.field(entry)
            value = message
            for step in wanted.path.split("."):
                value = _descend(value, step, source.topic, wanted.path)
            try:
                yield entry, wanted.scale * float(value) + wanted.offset
            except (TypeError, ValueError):
                raise DatasetError(f"mapping: {source.topic}: {wanted.path} is no number") from None


class MappedSource:
    """A bag of another robot (`Source`).

    Args:
        bag: the recording.
        contract: what its samples become.
        mapping: how.

    Raises:
        DatasetError: the bag lacks a topic, or it has another type; names it and the topics there are.
    """

    by_log_time = True  # other programs write one topic after the other, too

    def __init__(self, bag: Bag, contract: Contract, mapping: Mapping) -> None:
        self._contract = contract
        self._cameras = {_topic(bag, topic, _IMAGES): name for name, topic in mapping.cameras.items()}
        self.cameras = tuple(name for name in contract.cameras if name in mapping.cameras)
        self._raw = {topic for topic in self._cameras if bag.topics[topic].kind == _IMAGES[1]}
        self._state = VectorMerger(contract, mapping.state, complete=True)
        self._vectors = VectorCommands(mapping.state.max_age_s)
        self._action: VectorMerger | None = None
        self._sources: dict[str, list[tuple[str, EntrySource]]] = {}
        self._take_sources(bag, STATE, mapping.state)
        if not isinstance(mapping.action, str):
            self._vectors = VectorCommands(mapping.action.max_age_s)
            self._action = VectorMerger(contract, mapping.action, complete=False)
            self._take_sources(bag, ACTION, mapping.action)
        texts = {"task": mapping.task, "subtask": mapping.subtask}
        self._texts = {_topic(bag, topic, (_STRING,)): what for what, topic in texts.items() if topic is not None}
        self.topics = tuple(dict.fromkeys((*self._cameras, *self._sources, *self._texts)))
        self.commands: Commands = self._vectors
        self.refused: Counter[str] = Counter()
        self.shift_ns = receive_shift_ns(bag, [*self._cameras, *self._sources])

    def explain(self) -> str:
        """Say which entries never came, and which joints the topics have."""
        missing = self._state.missing()
        if not missing:
            return ""
        seen = "; ".join(f"{topic} has joints {', '.join(names)}" for topic, names in self._state.names_seen.items())
        return f"nothing was heard of {', '.join(missing)}" + (f" ({seen})" if seen else "")

    def feed(self, message: BagMessage, maker: FrameMaker) -> Iterator[PartFrame]:
        """Tell one message; yields the frames that this completes."""
        stamp_ns = self._stamp(message)
        maker.received(message.log_ns - self.shift_ns)
        said = message.message
        try:
            if message.topic in self._cameras:
                yield from maker.add_image(self._cameras[message.topic], stamp_ns, self._encoded(message))
            elif message.topic in self._texts:
                maker.add_text(self._texts[message.topic], stamp_ns, str(said.data))
            for what, source in self._sources.get(message.topic, ()):
                yield from self._take(what, source, stamp_ns, said, maker)
        except MessageError as error:
            self.refused[f"{message.topic}: {error}"] += 1

    def _take(self, what: str, source: EntrySource, stamp_ns: int, said: Any, maker: FrameMaker) -> Iterator[PartFrame]:
        if what == ACTION and self._action is not None:
            vector = self._action.add(source, stamp_ns, said)
            if vector is not None:
                self._vectors.add(stamp_ns, vector)
            return
        vector = self._state.add(source, stamp_ns, said)
        if vector is not None:
            if self._action is None:
                self._vectors.add(stamp_ns, vector)
            yield from maker.add_state(stamp_ns, vector)

    def _take_sources(self, bag: Bag, what: str, vector: VectorMapping) -> None:
        for source in vector.sources:
            topic = _topic(bag, source.topic, (_JOINTS,) if source.joints else ())
            self._sources.setdefault(topic, []).append((what, source))

    def _stamp(self, message: BagMessage) -> int:
        header = getattr(message.message, "header", None)
        stamp_ns = 0 if header is None else stamp_to_ns(header.stamp)
        return stamp_ns or message.log_ns - self.shift_ns

    def _encoded(self, message: BagMessage) -> Any:
        if message.topic not in self._raw:
            return message.message.data
        size = self._contract.image
        return encode_jpeg(fit(image_to_rgb(message.message), size.width, size.height), size.jpeg_quality)


def _parse(text: str) -> Mapping:
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DatasetError(f"mapping: not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise DatasetError(f"mapping: expected keys {', '.join(Mapping.model_fields)}")
    try:
        return Mapping.model_validate(raw)
    except ValidationError as error:
        lines = (f"mapping: {'.'.join(map(str, e['loc']))}: {e['msg']} (value: {e['input']!r})" for e in error.errors())
        raise DatasetError("\n".join(lines)) from error


def _topic(bag: Bag, topic: str, kinds: tuple[str, ...]) -> str:
    """Return the topic's full name, checked against the bag."""
    name = topic if topic in bag.topics else f"/{topic.strip('/')}"
    listed = ", ".join(f"{t.name} ({t.kind})" for t in bag.topics.values())
    if name not in bag.topics:
        raise DatasetError(f"mapping: {bag.path} has no topic {topic}; it has: {listed}")
    kind = bag.topics[name].kind
    if kinds and kind not in kinds:
        raise DatasetError(f"mapping: topic {name} is {kind}, expected {' or '.join(kinds)}; the bag has: {listed}")
    return name


def _descend(value: Any, step: str, topic: str, path: str) -> Any:
    match = _STEP.fullmatch(step)
    assert match is not None
    name, index = match[1], match[2]
    if not hasattr(value, name):
        known = getattr(type(value), "__dataclass_fields__", {})
        valid = ", ".join(str(field) for field in known if not str(field).startswith("__")) or "no fields"
        raise DatasetError(f"mapping: {topic}: {path}: there is no {name!r}; valid here: {valid}")
    inner = getattr(value, name)
    if index is None:
        return inner
    if int(index) >= len(inner):
        raise DatasetError(f"mapping: {topic}: {path}: {name} has {len(inner)} elements")
    return inner[int(index)]
