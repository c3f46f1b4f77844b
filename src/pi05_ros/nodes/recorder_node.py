"""Writes episodes as rosbags: `~/start`, `~/stop` (keeps the bag), `~/discard` (std_srvs/Trigger)."""

import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rclpy.serialization import deserialize_message
from std_msgs.msg import String
from std_srvs.srv import Trigger

from pi05_ros import topics
from pi05_ros.config import Doc
from pi05_ros.health import Level, Status
from pi05_ros.nodes.base import BaseNode, run
from pi05_ros.qos import offered, recorded
from pi05_ros.recording import BagRecording, recorded_topics


@dataclass(frozen=True)
class RecorderConfig:
    """Parameters of recorder_node."""

    directory: Annotated[str, Doc("folder of the bags")] = "bags"
    record_on_activate: Annotated[bool, Doc("start recording when activated, without waiting for ~/start")] = False


class RecorderNode(BaseNode[RecorderConfig]):
    """Subscribes to every topic of the contract without decoding, and writes while an episode is open."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__("recorder_node", RecorderConfig, **arguments)
        self._recording: BagRecording | None = None
        self._last = ""  # the newest finished bag

    def build(self, config: RecorderConfig) -> None:
        """Subscribe, and offer the services."""
        self._config = config
        self._latched: dict[str, bytes] = {}
        types = recorded_topics(self.contract)
        self._resolved = {topic: self.resolve_topic_name(topic) for topic in types}
        for topic, kind in types.items():
            self.subscribe(_message_class(kind), topic, self._writer_of(topic), recorded(topic), raw=True)
        self.service(Trigger, topics.RECORD_START, self._on_start)
        self.service(Trigger, topics.RECORD_STOP, self._on_stop)
        self.service(Trigger, topics.RECORD_DISCARD, self._on_discard)

    def start(self) -> None:
        """Begin an episode if asked to."""
        if self._config.record_on_activate:
            self._begin()

    def stop(self) -> None:
        """Keep what is open: an episode that was not discarded is never lost."""
        if self._recording is not None:
            self._finish()

    def report(self) -> Iterable[Status]:
        """Tell what is being written."""
        recording = self._recording
        values: dict[str, str | int | float] = {"last_bag": self._last}
        if recording is not None:
            values |= {"messages": recording.messages, "bytes": recording.bytes}
        return [Status("bag", Level.OK, "recording" if recording else "idle", values)]

    def _writer_of(self, topic: str) -> Callable[[bytes], None]:
        latched = offered(topic).latched

        def write(data: bytes) -> None:
            if latched:
                self._latched[topic] = data
            if self._recording is None:
                return
            try:
                self._recording.write(topic, self.now_ns(), data)
            except OSError as error:
                self._recording = None
                self.health.trouble("recording", f"ended, the bag is cut off: {error}", Level.ERROR)

        return write

    def _begin(self) -> None:
        self._recording = BagRecording(Path(self._config.directory), self._resolved, self.contract)
        self.health.fine("recording")
        for topic, data in self._latched.items():  # said before the episode and still in force
            self._recording.write(topic, self.now_ns(), data)

    def _finish(self) -> str:
        assert self._recording is not None
        recording, self._recording = self._recording, None
        task = self._latched.get(topics.TASK)
        said = deserialize_message(task, String).data if task is not None else ""
        self._last = str(recording.close({"task": said, "namespace": self.get_namespace()}))
        self.get_logger().info(f"{recording.messages} messages in {self._last}")
        return self._last

    def _on_start(self, _: Any, response: Any) -> Any:
        if not self.active:
            return _answer(response, False, "the recorder is not active")
        if self._recording is not None:
            return _answer(response, False, "already recording; ~/stop or ~/discard first")
        try:
            self._begin()
        except OSError as error:
            return _answer(response, False, f"cannot record: {error}")
        return _answer(response, True, "recording")

    def _on_stop(self, _: Any, response: Any) -> Any:
        if self._recording is None:
            return _answer(response, False, "not recording")
        try:
            return _answer(response, True, self._finish())
        except OSError as error:
            return _answer(response, False, f"the bag is not complete: {error}")

    def _on_discard(self, _: Any, response: Any) -> Any:
        if self._recording is None:
            return _answer(response, False, "not recording")
        self._recording.discard()
        self._recording = None
        return _answer(response, True, "discarded")


def _answer(response: Any, success: bool, message: str) -> Any:
    response.success, response.message = success, message
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
