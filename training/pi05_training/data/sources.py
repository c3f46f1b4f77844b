"""Which messages of a bag mean what: the topics of this robot, under any namespace."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np

from pi05_ros import topics
from pi05_ros.contract import Contract
from pi05_ros.control.config import ControllerConfig
from pi05_ros.ingest import STATE, StateMerger
from pi05_ros.messages import MessageError, chunk_from, stamp_to_ns, state_from
from pi05_ros.recording import recorded_topics
from pi05_training.data.bags import Bag, BagMessage
from pi05_training.data.commands import ChunkCommands, Commands
from pi05_training.data.episode import DatasetError
from pi05_training.data.frames import FrameMaker, PartFrame

NS = 1_000_000_000
# Clocks of receipt and of stamps further apart than this are different clocks (a bag that was played and recorded) [s].
OTHER_CLOCK_S = 60.0
# So many messages are looked at for a stamp.
_LOOK_AT = 100
# Entries of the state that differ more in age are not one state [s]; as state_node has it.
MERGE_MAX_AGE_S = 0.1


class Source(Protocol):
    """Tells messages of a bag to a `FrameMaker`.

    Attributes:
        topics: full names of the topics to read.
        cameras: the contract's cameras that the bag has.
        commands: what was commanded.
        refused: messages that could not be used, by "source: reason".
        shift_ns: how far the clock of receipt is ahead of the clock of the stamps.
        by_log_time: whether messages are wanted sorted by time of receipt rather than in the order of writing.
    """

    topics: tuple[str, ...]
    cameras: tuple[str, ...]
    commands: Commands
    refused: Counter[str]
    shift_ns: int
    by_log_time: bool

    def explain(self) -> str:
        """Say why there may be no state; "" when nothing is known to be wrong."""

    def feed(self, message: BagMessage, maker: FrameMaker) -> Iterator[PartFrame]:
        """Tell one message; yields the frames that this completes."""


def receive_shift_ns(bag: Bag, stamped: Sequence[str]) -> int:
    """Return how far the clock of receipt is ahead of the clock of the stamps; 0 while both are the same clock.

    Args:
        bag: the recording.
        stamped: topics whose messages have headers.
    """
    for message in islice(bag.messages(stamped), _LOOK_AT):
        header = getattr(message.message, "header", None)
        stamp_ns = 0 if header is None else stamp_to_ns(header.stamp)
        if stamp_ns:
            ahead_ns = message.log_ns - stamp_ns
            return ahead_ns if abs(ahead_ns) > OTHER_CLOCK_S * NS else 0
    return 0


class RobotSource:
    """A bag of this robot (`Source`): the topics that the recorder writes.

    Without `state`, `joint_states` and `odom` are merged as state_node merges them.

    Args:
        bag: the recording.
        contract: the robot.
        namespace: that of the topics; None finds it out.

    Raises:
        DatasetError: topics are missing, or those of several robots are in the bag; names them.
    """

    by_log_time = False  # our recorder writes what it receives at once, also when a simulator's clock starts again

    def __init__(self, bag: Bag, contract: Contract, namespace: str | None = None) -> None:
        self._contract = contract
        names = _resolve(bag, contract, namespace)
        self.cameras = tuple(name for name in contract.cameras if topics.camera_image(name) in names)
        self._merger: StateMerger | None = None
        wanted = [topics.camera_image(name) for name in self.cameras]
        wanted += [topics.TASK, topics.SUBTASK, topics.ACTION_CHUNK]
        if topics.STATE in names:
            wanted.append(topics.STATE)
        else:
            wanted += [topics.JOINT_STATES, topics.ODOM]
            self._merger = StateMerger(contract, MERGE_MAX_AGE_S, base_required=topics.ODOM in names)
        self._relative = {names[topic]: topic for topic in wanted if topic in names}
        self.topics = tuple(self._relative)
        self._camera_of = {topics.camera_image(name): name for name in self.cameras}
        self.chunks = ChunkCommands(contract, ControllerConfig())
        self.commands: Commands = self.chunks
        self.refused: Counter[str] = Counter()
        said = (topics.TASK, topics.SUBTASK)
        self.shift_ns = receive_shift_ns(bag, [name for name in self.topics if self._relative[name] not in said])

    def explain(self) -> str:
        """Say which parts of a merged state are missing."""
        missing = {} if self._merger is None else self._merger.missing()
        return ", ".join(f"{name} {reason}" for name, reason in missing.items())

    def feed(self, message: BagMessage, maker: FrameMaker) -> Iterator[PartFrame]:
        """Tell one message; yields the frames that this completes."""
        topic, said = self._relative[message.topic], message.message
        log_ns = message.log_ns - self.shift_ns
        maker.received(log_ns)
        try:
            if topic in self._camera_of:
                yield from maker.add_image(self._camera_of[topic], stamp_to_ns(said.header.stamp), said.data)
            elif topic == topics.STATE:
                yield from maker.add_state(stamp_to_ns(said.header.stamp), state_from(said, self._contract))
            elif topic == topics.ACTION_CHUNK:
                self.chunks.offer(chunk_from(said), log_ns, maker.state)
            elif topic in (topics.TASK, topics.SUBTASK):
                maker.add_text(topic, log_ns, str(said.data))
            else:
                yield from self._merge(topic, said, maker)
        except MessageError as error:
            self.refused[f"{topic}: {error}"] += 1

    def _merge(self, topic: str, said: Any, maker: FrameMaker) -> Iterator[PartFrame]:
        assert self._merger is not None
        stamp_ns = stamp_to_ns(said.header.stamp)
        if topic == topics.JOINT_STATES:
            refused = self._merger.add_joints(stamp_ns, said.name, said.position)
        else:
            twist = said.twist.twist
            refused = self._merger.add_twist(stamp_ns, np.array([twist.linear.x, twist.linear.y, twist.angular.z]))
        if refused:
            self.refused[f"{topic}: not finite"] += refused
        merged = self._merger.merge()
        if merged is not None:
            yield from maker.add_state(*merged)


def _resolve(bag: Bag, contract: Contract, namespace: str | None) -> dict[str, str]:
    """Return full topic names by relative name, of topics that have messages.

    Raises:
        DatasetError: see `RobotSource`.
    """
    kinds = recorded_topics(contract)
    spaces: dict[str, dict[str, str]] = {}
    for topic in bag.topics.values():
        for relative, kind in kinds.items():
            if topic.count and topic.kind == kind and f"/{topic.name}".endswith(f"/{relative}"):
                space = topic.name.removesuffix(relative).strip("/")
                spaces.setdefault(space, {})[relative] = topic.name
    # A topic such as "/arm/state" of another program does not make "/arm" a robot.
    robots = {space: names for space, names in spaces.items() if STATE in names or topics.JOINT_STATES in names}
    wanted = namespace if namespace is not None else bag.custom.get("namespace", "")
    if wanted.strip("/") in robots:
        return robots[wanted.strip("/")]
    there = ", ".join(f"{t.name} ({t.kind}, {t.count})" for t in bag.topics.values()) or "none"
    if namespace is not None or not robots:
        where = f"under {namespace!r} " if namespace is not None else ""
        raise DatasetError(
            f"{bag.path}: no `state` or `joint_states` (sensor_msgs/msg/JointState) {where}in it; topics: {there}. "
            "For another robot's bag give --mapping"
        )
    if len(robots) > 1:
        spaces_text = ", ".join(f"/{space}" for space in sorted(robots))
        raise DatasetError(f"{bag.path}: holds several robots ({spaces_text}); choose one with --namespace")
    return next(iter(robots.values()))
