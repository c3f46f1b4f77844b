"""Real rclpy for the tests of this folder: nodes on an own domain, spun by the test itself."""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from pi05_ros.graph import PROFILE
from pi05_ros.paths import share_file


class Ros:
    """Nodes in one context and executor; `until` spins them."""

    def __init__(self, domain: int) -> None:
        self.context = Context()
        rclpy.init(context=self.context, domain_id=domain)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._nodes: list[Node] = []

    def add(self, node: Node) -> Any:
        self._executor.add_node(node)
        self._nodes.append(node)
        return node

    def node(self, name: str = "tester") -> Any:
        return self.add(Node(name, context=self.context))

    def until(self, predicate: Callable[[], object], seconds: float = 30.0) -> bool:
        """Spin until the predicate holds or the deadline has passed; return whether it holds."""
        end = time.monotonic() + seconds
        while not predicate() and time.monotonic() < end:
            self._executor.spin_once(timeout_sec=0.02)
        return bool(predicate())

    def call(self, node: Node, kind: Any, name: str, request: Any = None) -> Any:
        """Call a service of a node on the graph and return its response."""
        client = node.create_client(kind, name)
        assert self.until(client.service_is_ready), f"no service {name}"
        future = client.call_async(request or kind.Request())
        assert self.until(future.done), f"{name} did not answer"
        node.destroy_client(client)
        return future.result()

    def close(self) -> None:
        for node in self._nodes:
            finish = getattr(node, "finish", node.destroy_node)
            finish()
        self._executor.shutdown()
        rclpy.shutdown(context=self.context)


@pytest.fixture(scope="session")
def domain() -> int:
    """A DDS domain of this test run."""
    os.environ.setdefault("FASTDDS_DEFAULT_PROFILES_FILE", str(share_file(PROFILE)))
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    return int(os.environ.get("ROS_DOMAIN_ID") or os.getpid() % 100 + 1)


@pytest.fixture
def ros(domain: int) -> Iterator[Ros]:
    graph = Ros(domain)
    yield graph
    graph.close()
