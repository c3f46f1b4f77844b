"""Talks to a running graph from a plain program: services, parameters, lifecycle, /diagnostics. Not an executable.

Part of `pi05 record`. The node spins in a thread of its own; calls return futures that any thread may wait for.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import SetParameters
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Joy
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from pi05_ros import topics
from pi05_ros.config import Value
from pi05_ros.messages import stamp_to_ns
from pi05_ros.nodes.qos import profile
from pi05_ros.qos import offered, requested

TRANSITIONS = {"activate": Transition.TRANSITION_ACTIVATE, "deactivate": Transition.TRANSITION_DEACTIVATE}


class Pending:
    """An answer that is on its way.

    Args:
        what: what was asked, for messages.
        ask: asks, and returns the future of the answer.
        read: the answer as whether it went well, and what was said.
        repeatable: whether asking twice does no harm.

    Attributes:
        what: what was asked, for messages.
    """

    def __init__(
        self, what: str, ask: Callable[[], Any], read: Callable[[Any], tuple[bool, str]], repeatable: bool = False
    ) -> None:
        self.what, self._ask, self._read, self._repeatable = what, ask, read, repeatable
        self._futures = [ask()]

    def ask_again(self) -> None:
        """Ask once more, where that does no harm: a server that has not discovered this client yet drops its answer."""
        if self._repeatable:
            self._futures.append(self._ask())

    def done(self) -> bool:
        """Return whether an answer is there."""
        return any(future.done() for future in self._futures)

    def result(self) -> tuple[bool, str]:
        """Return whether it went well, and what was said."""
        return self._read(next(future for future in self._futures if future.done()).result())


class RecordClient:
    """A participant of the graph. A context manager.

    Args:
        namespace: of the nodes it talks to, without leading slash.

    Attributes:
        now_ns: newest /clock; 0 before one came.
        status: newest /diagnostics entry by name, as (level, message, values).
    """

    def __init__(self, namespace: str = "") -> None:
        self._namespace = f"/{namespace}" if namespace else ""
        self.now_ns = 0
        self.status: dict[str, tuple[int, str, dict[str, str]]] = {}
        self._clients: dict[str, Any] = {}
        self._joy: Any = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._spin, name="record_client", daemon=True)

    def __enter__(self) -> "RecordClient":
        self._context = Context()
        rclpy.init(context=self._context)
        self._node = Node("record_client", namespace=self._namespace, context=self._context)
        listen: list[tuple[Any, str, Callable[[Any], None]]] = [
            (Clock, topics.CLOCK, self._on_clock),
            (DiagnosticArray, topics.DIAGNOSTICS, self._on_diagnostics),
        ]
        for kind, topic, callback in listen:
            self._node.create_subscription(kind, topic, callback, profile(requested(topic)))
        self._subtask = self._node.create_publisher(String, topics.SUBTASK, profile(offered(topics.SUBTASK)))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._node.destroy_node()
        rclpy.try_shutdown(context=self._context)

    def ready(self, service: str, kind: Any = Trigger) -> bool:
        """Return whether somebody offers a service, such as "recorder_node/start"."""
        return bool(self._client(service, kind).service_is_ready())

    def trigger(self, service: str) -> Pending:
        """Call a std_srvs/Trigger."""
        return self._call(service, Trigger, Trigger.Request(), _said)

    def set_bool(self, service: str, value: bool) -> Pending:
        """Call a std_srvs/SetBool."""
        return self._call(service, SetBool, SetBool.Request(data=value), _said)

    def set_parameters(self, node: str, values: Mapping[str, Value]) -> Pending:
        """Set parameters of a node."""
        request = SetParameters.Request()
        request.parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        return self._call(f"{node}/set_parameters", SetParameters, request, _all_set, repeatable=True)

    def transition(self, node: str, name: str) -> Pending:
        """Change a node's lifecycle state: "activate" or "deactivate"."""
        request = ChangeState.Request(transition=Transition(id=TRANSITIONS[name]))
        return self._call(f"{node}/change_state", ChangeState, request, lambda answer: (bool(answer.success), name))

    def joy(self, axes: Sequence[float], buttons: Sequence[int]) -> None:
        """Say what a gamepad would."""
        if self._joy is None:
            self._joy = self._node.create_publisher(Joy, topics.JOY, profile(offered(topics.JOY)))
        message = Joy(axes=list(axes), buttons=list(buttons))
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._joy.publish(message)

    def withdraw_subtask(self) -> None:
        """Say that no subtask is in force any more."""
        self._subtask.publish(String(data=""))

    def withdrawn(self) -> bool:
        """Return whether everybody who listens has that."""
        heard = self._subtask.get_subscription_count() > 0
        return heard and bool(self._subtask.wait_for_all_acked())

    def _client(self, service: str, kind: Any) -> Any:
        if service not in self._clients:
            self._clients[service] = self._node.create_client(kind, service)
        return self._clients[service]

    def _call(
        self,
        service: str,
        kind: Any,
        request: Any,
        read: Callable[[Any], tuple[bool, str]],
        repeatable: bool = False,
    ) -> Pending:
        client = self._client(service, kind)
        return Pending(service, lambda: client.call_async(request), read, repeatable)

    def _spin(self) -> None:
        executor = SingleThreadedExecutor(context=self._context)
        executor.add_node(self._node)
        try:
            while not self._stopping.is_set():
                executor.spin_once(timeout_sec=0.05)
        except ExternalShutdownException:
            return
        finally:
            executor.shutdown()

    def _on_clock(self, message: Any) -> None:
        self.now_ns = stamp_to_ns(message.clock)

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            values = {pair.key: pair.value for pair in status.values}
            self.status[status.name] = (status.level[0], status.message, values)


def _said(answer: Any) -> tuple[bool, str]:
    return bool(answer.success), str(answer.message)


def _all_set(answer: Any) -> tuple[bool, str]:
    wrong = [result.reason for result in answer.results if not result.successful]
    return not wrong, "; ".join(wrong)
