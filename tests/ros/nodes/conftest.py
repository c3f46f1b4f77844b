"""Real rclpy in the test's own process: every test has a context and a domain of its own."""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import rclpy
from numpy.typing import NDArray
from rclpy.context import Context
from rclpy.node import Node
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, JointState

from pi05_model.observation import Observation
from pi05_ros import topics
from pi05_ros.contract import load_contract
from pi05_ros.messages import encode_jpeg, fill_compressed, fill_state, set_stamp
from pi05_ros.nodes.base import BaseNode, make_executor
from pi05_ros.nodes.qos import profile
from pi05_ros.qos import offered, recorded

os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
_DOMAINS = itertools.count(os.getpid())
# Generous, for machines under load; a test that passes does not wait for it.
DEADLINE_S = 60.0
CONTRACT = load_contract()
STEP_NS = 20_000_000


class Graph:
    """Nodes under test and a bystander that speaks and listens, all spun by `until`."""

    def __init__(self) -> None:
        self.context = Context()
        # Above 101 the ports would reach into the ephemeral range.
        rclpy.init(context=self.context, domain_id=next(_DOMAINS) % 101)
        self.executor = make_executor(self.context)
        self.nodes: list[BaseNode[Any]] = []
        self.bystander = Node("bystander", context=self.context)
        self.executor.add_node(self.bystander)

    def add(self, make: Callable[..., BaseNode[Any]], start: bool = True, **parameters: Any) -> Any:
        """Make a node with parameters, and configure and activate it."""
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        node = make(context=self.context, parameter_overrides=overrides)
        self.nodes.append(node)
        self.executor.add_node(node)
        if start:
            assert node.autostart(), node.failure
        return node

    def hear(self, message_type: Any, topic: str) -> list[Any]:
        """Return a list that fills with what is said on a topic."""
        heard: list[Any] = []
        self.bystander.create_subscription(message_type, topic, heard.append, profile(recorded(topic)))
        return heard

    def mouth(self, message_type: Any, topic: str) -> Any:
        """Return a publisher of the bystander."""
        return self.bystander.create_publisher(message_type, topic, profile(offered(topic)))

    def every(self, period_s: float, callback: Callable[[], None]) -> Any:
        """Let the bystander do something periodically."""
        return self.bystander.create_timer(period_s, callback)

    def until(self, predicate: Callable[[], Any], what: str = "") -> None:
        """Spin until a predicate holds; fail after the deadline."""
        end = time.monotonic() + DEADLINE_S
        while not predicate():
            assert time.monotonic() < end, f"not within {DEADLINE_S:g} s: {what or predicate}"
            self.executor.spin_once(timeout_sec=0.02)

    def call(self, service_type: Any, name: str, request: Any) -> Any:
        """Call a service and return its answer."""
        client = self.bystander.create_client(service_type, name)
        self.until(client.service_is_ready, f"service {name}")
        answer = client.call_async(request)
        self.until(answer.done, f"answer of {name}")
        return answer.result()

    def close(self) -> None:
        """End every node."""
        for node in self.nodes:
            node.finish()
        self.bystander.destroy_node()
        self.executor.shutdown()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def graph() -> Iterator[Graph]:
    made = Graph()
    yield made
    made.close()


class SmallPolicy:
    """A policy of a few lines: deterministic functions of pixels, state and text.

    The subtask names the brighter half of the front image; the chunk moves every entry from the state by a rate that
    depends on the subtask and on how many images there are.
    """

    def __init__(self, shape: tuple[int, int] = (50, 18)) -> None:
        self.action_shape = shape
        self.seen: list[Observation] = []
        self.spoil: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda actions: actions

    def plan(self, observation: Observation, task: str) -> str:
        image = observation.images["base_0_rgb"]
        side = "left" if image[:, :112].mean() > image[:, 112:].mean() else "right"
        return f"{task}: {side} side"

    def act(self, observation: Observation, subtask: str) -> NDArray[np.float32]:
        self.seen.append(observation)
        steps = np.arange(1, self.action_shape[0] + 1)[:, None]
        rate = 1e-3 * len(subtask) * len(observation.images)
        return self.spoil((observation.state[None] + rate * steps).astype(np.float32))


@pytest.fixture
def policy() -> SmallPolicy:
    return SmallPolicy()


@pytest.fixture
def striped() -> NDArray[np.uint8]:
    """An image whose left half is red and bright, with something to see in every channel."""
    size = load_contract().image
    image = np.zeros((size.height, size.width, 3), dtype=np.uint8)
    image[:, : size.width // 2] = (220, 120, 40)
    image[size.height // 2 :, size.width // 2 :] = (20, 60, 140)
    return image


class Robot:
    """Cameras at 25 Hz, state at 50 Hz and /clock, in simulated time: as fast as the test spins."""

    def __init__(self, graph: Graph, image: NDArray[np.uint8]) -> None:
        self.now_ns = 0
        self.jpeg = encode_jpeg(image, 90)
        self.silent: set[str] = set()
        self.state = np.linspace(-0.5, 0.5, CONTRACT.dim)
        self._clock = graph.mouth(Clock, topics.CLOCK)
        self._cameras = {n: graph.mouth(CompressedImage, t) for n, t in topics.camera_images(CONTRACT).items()}
        self._states = graph.mouth(JointState, topics.STATE)
        self.timer = graph.every(0.005, self.speak)

    def speak(self) -> None:
        self.now_ns += STEP_NS
        clock = Clock()
        set_stamp(clock.clock, self.now_ns)
        self._clock.publish(clock)
        if "state" not in self.silent:
            self._states.publish(fill_state(JointState(), CONTRACT, self.now_ns, self.state))
        for name, publisher in self._cameras.items():
            if self.now_ns % (2 * STEP_NS) == 0 and name not in self.silent:
                publisher.publish(fill_compressed(CompressedImage(), self.now_ns, name, self.jpeg))


@pytest.fixture
def robot(graph: Graph, striped: NDArray[np.uint8]) -> Robot:
    return Robot(graph, striped)
