"""Talks to a running graph from a plain program: services, parameters, lifecycle, /diagnostics. Not an executable.

Part of `pi05 record`. The node spins in a thread of its own; calls return futures that any thread may wait for.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
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


SERVICES: dict[str, dict[str, Any]] = {
    "recorder_node": {
        "start": Trigger,
        "stop": SetBool,
        "discard": Trigger,
        "mark": Trigger,
        "set_parameters": SetParameters,
    },
    "sim_node": {"reset": Trigger, "success": Trigger, "set_parameters": SetParameters},
    "demonstrator_node": {"change_state": ChangeState},
}
GREET_AGAIN_S = 0.5


class Pending:
    """An answer that is on its way.

    Args:
        what: what was asked, for messages.
        future: of the answer.
        read: the answer as whether it went well, and what was said.

    Attributes:
        what: what was asked, for messages.
    """

    def __init__(self, what: str, future: Any, read: Callable[[Any], tuple[bool, str]]) -> None:
        self.what, self._future, self._read = what, future, read

    def done(self) -> bool:
        """Return whether the answer is there."""
        return bool(self._future.done())

    def result(self) -> tuple[bool, str]:
        """Return whether it went well, and what was said."""
        return self._read(self._future.result())


class Link:
    """The clients of a node's services, and whether calls get there and answers back.

    Services are volatile: a request that leaves before this side has discovered the server is lost without a word, and
    so is an answer to a client that the server has not discovered. `service_is_ready` tells of the first only. The
    second is told by an answer of get_state, which may be asked for any number of times: DDS announces the endpoints of
    a participant reliably and in the order they were made, so that a node that knows the client made last knows all.

    Args:
        node: makes the clients.
        name: the node to talk to, a key of `SERVICES`.
    """

    def __init__(self, node: Node, name: str) -> None:
        kinds = {**SERVICES[name], "get_state": GetState}  # get_state last, see above
        self._clients = {service: node.create_client(kind, f"{name}/{service}") for service, kind in kinds.items()}
        self._greetings: list[Any] = []
        self._greeted_s = -GREET_AGAIN_S

    def up(self) -> bool:
        """Return whether calls and answers get through; ask until they do. To be polled."""
        if not all(client.service_is_ready() for client in self._clients.values()):
            self._greetings.clear()  # not there yet, or gone: whoever comes has to answer anew
            return False
        if any(greeting.done() for greeting in self._greetings):
            return True
        if time.monotonic() - self._greeted_s >= GREET_AGAIN_S:
            self._greeted_s = time.monotonic()
            self._greetings.append(self.call("get_state", GetState.Request()))
        return False

    def call(self, service: str, request: Any) -> Any:
        """Send a request once; return the future of its answer."""
        return self._clients[service].call_async(request)


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
        self._links: dict[str, Link] = {}
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

    def reaches(self, node: str) -> bool:
        """Return whether a node can be called: its services are there, and its answers arrive. To be polled.

        Args:
            node: a key of `SERVICES`; the calls below belong to nodes that have been reached.
        """
        if node not in self._links:
            self._links[node] = Link(self._node, node)
        return self._links[node].up()

    def trigger(self, service: str) -> Pending:
        """Call a std_srvs/Trigger, such as "recorder_node/start"."""
        return self._call(service, Trigger.Request(), _said)

    def set_bool(self, service: str, value: bool) -> Pending:
        """Call a std_srvs/SetBool."""
        return self._call(service, SetBool.Request(data=value), _said)

    def set_parameters(self, node: str, values: Mapping[str, Value]) -> Pending:
        """Set parameters of a node."""
        request = SetParameters.Request()
        request.parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        return self._call(f"{node}/set_parameters", request, _all_set)

    def state(self, node: str) -> Pending:
        """Ask for a node's lifecycle state: the answer says "active", "inactive", …"""
        return self._call(f"{node}/get_state", GetState.Request(), lambda answer: (True, answer.current_state.label))

    def transition(self, node: str, name: str) -> Pending:
        """Change a node's lifecycle state: "activate" or "deactivate"."""
        request = ChangeState.Request(transition=Transition(id=TRANSITIONS[name]))
        return self._call(f"{node}/change_state", request, lambda answer: (bool(answer.success), name))

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

    def _call(self, what: str, request: Any, read: Callable[[Any], tuple[bool, str]]) -> Pending:
        node, _, service = what.partition("/")
        if node not in self._links:
            raise RuntimeError(f"{what} is called before {node} was reached; wait for reaches({node!r})")
        return Pending(what, self._links[node].call(service, request), read)

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
