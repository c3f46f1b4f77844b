"""What the recorder does between two messages: begin, keep, discard, mark, watch, and end when the disk does.

Free of rclpy; the node hands over bytes and clocks. An error that a user can cause is a `RecordingError`.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

from pi05_ros import topics
from pi05_ros.config import Doc, Range, Value
from pi05_ros.contract import Contract
from pi05_ros.health import Health, Level, Status
from pi05_ros.qos import offered
from pi05_ros.recording import (
    NS,
    BagRecording,
    RecordingError,
    nominal_rates,
    required_topics,
    text_from_cdr,
    text_to_cdr,
)
from pi05_ros.recording_watch import TopicWatch, judge, missing_topics

MB = 1_000_000
INF = float("inf")
START_S = 5.0  # a topic that never spoke is told so long after the episode began


@dataclass(frozen=True)
class SessionConfig:
    """How episodes are recorded; part of recorder_node's parameters."""

    directory: Annotated[str, Doc("folder of the bags")] = "bags"
    chunk_s: Annotated[float, Doc("longest time between two chunks: what a kill loses [s]"), Range(0.3, 10)] = 1.0
    min_free_mb: Annotated[int, Doc("less free disk ends the episode [MB]"), Range(0, 10_000_000)] = 500
    silence_s: Annotated[float, Doc("a topic silent for longer is reported [s]"), Range(0.1, 60)] = 1.0


class Session:
    """One recorder.

    Args:
        contract: the robot.
        config: where and how.
        resolved: full topic name on the wire of each of `recorded_topics`.
        stamped: the topics whose messages begin with a header.
        clock_ns: ROS time.
        monotonic_ns: time that judges staleness.
        health: told what is wrong with a topic while an episode runs.
    """

    def __init__(
        self,
        contract: Contract,
        config: SessionConfig,
        resolved: Mapping[str, str],
        stamped: Iterable[str],
        clock_ns: Callable[[], int],
        monotonic_ns: Callable[[], int],
        health: Health,
    ) -> None:
        self._contract, self._config, self._resolved, self._health = contract, config, dict(resolved), health
        self._clock_ns, self._monotonic_ns = clock_ns, monotonic_ns
        self._directory = Path(config.directory).absolute()
        self._required, nominal, with_header = required_topics(contract), nominal_rates(contract), set(stamped)
        self._watches = {topic: TopicWatch(topic in with_header, nominal.get(topic)) for topic in resolved}
        self._latched: dict[str, bytes] = {}
        self._keeps = {topic for topic in resolved if offered(topic).latched}
        self._recording: BagRecording | None = None
        self._begun_ns = 0
        self._silent_by_right: set[str] = set()  # what the present episode does without
        self.last_bag = ""  # the newest bag that was kept
        self.ended = ""  # why the last episode ended by itself

    @property
    def open(self) -> bool:
        """Whether an episode runs."""
        return self._recording is not None

    @property
    def task(self) -> str:
        """The prompt that was last said; empty: none was."""
        data = self._latched.get(topics.TASK)
        return "" if data is None else text_from_cdr(data)

    def heard(self, topic: str, data: bytes) -> None:
        """Take a serialised message of a topic, by relative name."""
        clock_ns = self._clock_ns()
        self._watches[topic].heard(data, self._monotonic_ns(), clock_ns)
        if topic in self._keeps:
            self._latched[topic] = data
        if self._recording is not None:
            self._recording.write(topic, clock_ns, data)

    def missing(self, publishers: Callable[[str], int], task: str) -> str:
        """Name the topics without which an episode should not begin; empty: none.

        Args:
            publishers: number of publishers of a topic, by full name.
            task: the prompt if it is known from elsewhere.
        """
        required = [topic for topic in self._required if topic != topics.TASK or not task]
        counts = {topic: publishers(self._resolved[topic]) for topic in required}
        found = missing_topics(required, self._watches, counts, self._monotonic_ns(), self._config.silence_s)
        return ", ".join(f"{topic} ({reason})" for topic, reason in found.items())

    def begin(self, notes: Mapping[str, Value]) -> Path:
        """Begin an episode and return its folder.

        Args:
            notes: what explains it; `task` is the prompt if none was said.

        Raises:
            RecordingError: one is running, or the disk is as good as full.
            OSError: the folder cannot be written.
        """
        if self._recording is not None:
            raise RecordingError("already recording; ~/stop or ~/discard first")
        free_mb, least_mb = self.free_mb(), self._config.min_free_mb
        if free_mb < least_mb:
            raise RecordingError(f"{free_mb} MB free for {self._directory}, min_free_mb is {least_mb}")
        told = self._told(notes) | {"started": _utc(), "started_ns": self._clock_ns()}
        self._recording = BagRecording(self._directory, self._resolved, self._contract, told, self._config.chunk_s)
        self.ended = ""
        self._begun_ns = self._monotonic_ns()
        self._silent_by_right = {topics.TASK} if told["task"] else set()
        for watch in self._watches.values():
            watch.begin()
        for topic, data in self._latched.items():  # said before the episode and still in force
            if text_from_cdr(data):
                self._recording.write(topic, self._clock_ns(), data)
        return self._recording.folder

    def keep(self, notes: Mapping[str, Value]) -> str:
        """End the episode and return its folder.

        Args:
            notes: more of what explains it (outcome, …).

        Raises:
            RecordingError: none is running, or it could not be finished; says where it lies.
        """
        recording = self._taken()
        told = self._told(notes) | {"stopped": _utc(), "stopped_ns": self._clock_ns()}
        told |= {f"missing.{topic}": watch.missing for topic, watch in self._watches.items() if watch.missing}
        self.last_bag = str(recording.close(told))
        return self.last_bag

    def discard(self) -> str:
        """End the episode, remove it, and return what its folder was.

        Raises:
            RecordingError: none is running.
        """
        recording = self._taken()
        recording.discard()
        return str(recording.folder)

    def mark(self, kind: str, text: str) -> None:
        """Write a subtask, or an event, at this moment of the episode.

        Raises:
            RecordingError: none is running, or there is no text.
        """
        if self._recording is None:
            raise RecordingError(self.ended or "not recording")
        if not text:
            raise RecordingError("nothing to mark; set the parameter `mark`")
        topic = topics.SUBTASK if kind == "subtask" else topics.EVENT
        self._recording.write(topic, self._clock_ns(), text_to_cdr(text))

    def guard(self) -> str:
        """End the episode if the disk is at its end; return what happened, empty: nothing."""
        recording = self._recording
        if recording is None:
            return ""
        why, least_mb = "", self._config.min_free_mb
        if recording.failure is not None:
            why = recording.failure.strerror or str(recording.failure)
        elif recording.full:
            why = "no space left on the disk"
        elif self.free_mb() < least_mb:
            why = f"less than {least_mb} MB (min_free_mb) left on the disk"
        if not why:
            return ""
        try:
            self.ended = f"the episode was ended: {why}; kept as {self.keep({'outcome': 'unknown', 'ended': why})}"
        except RecordingError as error:
            self.ended = f"the episode was ended: {error}"
        return self.ended

    def free_mb(self) -> int:
        """Return the free disk space where the bags go."""
        folder = next(path for path in (self._directory, *self._directory.parents) if path.exists())
        return shutil.disk_usage(folder).free // MB

    def report(self) -> Iterable[Status]:
        """Return the entries of /diagnostics: one for the bag, one for each topic; counts restart with each call."""
        yield self._report_bag()
        now_ns = self._monotonic_ns()
        for topic, watch in self._watches.items():
            figures, wrong = watch.look(now_ns), ""
            if self.open and topic in self._required and topic not in self._silent_by_right:
                steady = watch.nominal_hz is not None or topic == topics.ODOM
                # Chunks pause when nobody acts, and a task is said once: only what flows steadily can fall silent.
                wrong = judge(figures, watch.nominal_hz, self._config.silence_s if steady else INF)
                if figures.age_s == INF and now_ns - self._begun_ns < START_S * NS:
                    wrong = ""  # a graph that records from its start is still starting
            self._health.set(topic, wrong)
            yield Status(topic, Level.WARN if wrong else Level.OK, wrong or "ok", figures.values())

    def _report_bag(self) -> Status:
        recording, free_mb, least_mb = self._recording, self.free_mb(), self._config.min_free_mb
        values: dict[str, str | int | float] = {"disk_free_mb": free_mb, "last_bag": self.last_bag}
        if recording is None:
            return Status("bag", Level.ERROR if self.ended else Level.OK, self.ended or "idle", values)
        values |= {"bag": str(recording.folder), "messages": recording.messages, "bytes": recording.bytes}
        values |= {"waiting_bytes": recording.waiting_bytes, "dropped": recording.dropped}
        if recording.dropped:
            return Status("bag", Level.ERROR, f"the disk is too slow: {recording.dropped} messages dropped", values)
        if free_mb < 2 * least_mb:
            return Status("bag", Level.WARN, f"{free_mb} MB left; the episode ends at {least_mb} MB", values)
        return Status("bag", Level.OK, "recording", values)

    def _told(self, notes: Mapping[str, Value]) -> dict[str, Value]:
        return {**notes, "task": self.task or notes.get("task", "")}

    def _taken(self) -> BagRecording:
        if self._recording is None:
            raise RecordingError(self.ended or "not recording")
        recording, self._recording = self._recording, None
        return recording


def _utc() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
