"""Writes episodes as rosbags: `~/start`, `~/stop` (keeps the bag), `~/discard`, `~/mark`. See docs/recording.md."""

import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from std_srvs.srv import SetBool, Trigger

from pi05_ros import topics
from pi05_ros.config import ConfigError, Doc, OneOf
from pi05_ros.health import Status
from pi05_ros.nodes.base import BaseNode, monotonic_ns, run
from pi05_ros.qos import recorded
from pi05_ros.recording import parse_notes, recorded_topics
from pi05_ros.recording_session import Session, SessionConfig


@dataclass(frozen=True)
class RecorderConfig(SessionConfig):
    """Parameters of recorder_node. Those from `allow_missing` on are read whenever a service is called."""

    record_on_activate: Annotated[bool, Doc("record from activation on, whatever is missing")] = False
    allow_missing: Annotated[bool, Doc("start although topics of the contract are missing")] = False
    task: Annotated[str, Doc("the prompt, if nobody says it on the topic `task`")] = ""
    notes: Annotated[str, Doc("for the bag's metadata, as `key=value; key=value` (seed, operator, …)")] = ""
    mark: Annotated[str, Doc("what ~/mark writes")] = ""
    mark_kind: Annotated[str, Doc("which topic of the bag it is written to"), OneOf(("subtask", "event"))] = "subtask"


class RecorderNode(BaseNode[RecorderConfig]):
    """Subscribes to every topic of the contract without decoding, and writes while an episode is open."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__("recorder_node", RecorderConfig, **arguments)

    def build(self, config: RecorderConfig) -> None:
        """Subscribe, and offer the services."""
        self._config = config
        types = {topic: _message_class(kind) for topic, kind in recorded_topics(self.contract).items()}
        self._session = Session(
            self.contract,
            config,
            resolved={topic: self.resolve_topic_name(topic) for topic in types},
            stamped=[topic for topic, kind in types.items() if "header" in kind.get_fields_and_field_types()],
            clock_ns=self.now_ns,
            monotonic_ns=monotonic_ns,
            health=self.health,
        )
        for topic, kind in types.items():
            self.subscribe(kind, topic, self._taker_of(topic), recorded(topic), raw=True)
        self.service(Trigger, topics.RECORD_START, self._on_start)
        self.service(SetBool, topics.RECORD_STOP, self._on_stop)
        self.service(Trigger, topics.RECORD_DISCARD, self._on_discard)
        self.service(Trigger, topics.RECORD_MARK, self._on_mark)
        self.every(0.1, self._guard)

    def start(self) -> None:
        """Begin an episode if asked to."""
        if self._config.record_on_activate:
            self._session.begin(self._notes())

    def stop(self) -> None:
        """Keep what is open: an episode that was not discarded is never lost."""
        if self._session.open:
            bag = self._session.keep({"outcome": "unknown", "ended": "the recorder was deactivated"})
            self.get_logger().info(f"kept as {bag}")

    def report(self) -> Iterable[Status]:
        """Tell what is written, and how every topic does."""
        return self._session.report()

    def _taker_of(self, topic: str) -> Callable[[bytes], None]:
        return lambda data: self._session.heard(topic, data)

    def _guard(self) -> None:
        ended = self._session.guard()
        if ended:
            self.get_logger().error(ended)

    def _notes(self) -> dict[str, str]:
        task, notes = (str(self.get_parameter(name).value) for name in ("task", "notes"))
        return {"task": task, **parse_notes(notes), "namespace": self.get_namespace()}

    def _on_start(self, _: Any, response: Any) -> Any:
        return _answer(response, self._start)

    def _start(self) -> str:
        if not self.active:
            raise ConfigError("the recorder is not active")
        notes, anyway = self._notes(), bool(self.get_parameter("allow_missing").value)
        missing = self._session.missing(self.count_publishers, notes["task"])
        if missing and not anyway and not self._session.open:
            raise ConfigError(f"missing: {missing}; the parameter allow_missing starts anyway")
        return str(self._session.begin(notes))

    def _on_stop(self, request: Any, response: Any) -> Any:
        outcome = "success" if request.data else "failure"
        return _answer(response, lambda: self._session.keep({**self._notes(), "outcome": outcome}))

    def _on_discard(self, _: Any, response: Any) -> Any:
        return _answer(response, lambda: f"{self._session.discard()} discarded")

    def _on_mark(self, _: Any, response: Any) -> Any:
        return _answer(response, self._mark)

    def _mark(self) -> str:
        text, kind = (str(self.get_parameter(name).value) for name in ("mark", "mark_kind"))
        self._session.mark(kind, text)
        return f"{kind}: {text}"


def _answer(response: Any, work: Callable[[], str]) -> Any:
    """Do what a service was called for; what goes wrong is told to the caller."""
    try:
        response.success, response.message = True, work()
    except (OSError, ConfigError) as error:
        response.success, response.message = False, str(error)
    return response


def _message_class(kind: str) -> Any:
    """Return the class of a type such as "sensor_msgs/msg/JointState"."""
    package, _, name = kind.split("/")
    return getattr(importlib.import_module(f"{package}.msg"), name)


def main(args: Sequence[str] | None = None) -> None:
    """Run the node."""
    sys.exit(run(lambda: [RecorderNode()], args))


if __name__ == "__main__":
    main()
