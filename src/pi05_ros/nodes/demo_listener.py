"""Listens to a running graph and writes what it hears into a `DemoLog`. Part of `pi05 demo`, not an executable."""

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from pi05_ros import topics
from pi05_ros.messages import MessageError, chunk_from, stamp_to_ns
from pi05_ros.nodes.qos import profile
from pi05_ros.qos import recorded
from pi05_ros.report.log import ChunkSeen, DemoLog

SUCCESS_PERIOD_S = 0.5
SUCCESS_SERVICE = topics.SIM_SUCCESS.replace("~", "sim_node")


class DemoListener:
    """Hears everything a report needs, in a thread of its own. A context manager.

    Args:
        log: what is filled. Read it only after the listener was left, or under `lock`.
    """

    def __init__(self, log: DemoLog) -> None:
        self.log = log
        self.lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._spin, name="demo_listener", daemon=True)
        self._asked_at = 0.0
        self._answer: Any = None

    def __enter__(self) -> "DemoListener":
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self._node = Node("demo_listener")
        listen: list[tuple[Any, str, Callable[[Any], None]]] = [
            (Clock, topics.CLOCK, self._on_clock),
            (JointState, topics.JOINT_STATES, self._on_joints),
            (Odometry, topics.ODOM, self._on_odom),
            (JointTrajectory, topics.ACTION_CHUNK, self._on_chunk),
            (String, topics.SUBTASK, self._on_subtask),
            (DiagnosticArray, topics.DIAGNOSTICS, self._on_diagnostics),
        ]
        for message_type, topic, callback in listen:
            self._node.create_subscription(message_type, topic, self._locked(callback), profile(recorded(topic)))
        for name, topic in topics.camera_images(self.log.contract).items():
            callback = self._locked(self._camera_callback(name))
            self._node.create_subscription(CompressedImage, topic, callback, profile(recorded(topic)))
        self._success = self._node.create_client(Trigger, SUCCESS_SERVICE)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._node.destroy_node()
        rclpy.try_shutdown()

    def _spin(self) -> None:
        executor = SingleThreadedExecutor()
        executor.add_node(self._node)
        try:
            while not self._stopping.is_set():
                executor.spin_once(timeout_sec=0.1)
                self._ask_for_success()
        except ExternalShutdownException:
            return
        finally:
            executor.shutdown()

    def _locked(self, callback: Callable[[Any], None]) -> Callable[[Any], None]:
        def heard(message: Any) -> None:
            with self.lock:
                callback(message)

        return heard

    def _ask_for_success(self) -> None:
        """Ask the simulator twice a second whether the task is done."""
        if self._answer is not None and self._answer.done():
            with self.lock:
                reply = self._answer.result()
                self.log.success.append((self.log.now_ns, reply.success, reply.message))
            self._answer = None
        if self._answer is None and time.monotonic() - self._asked_at > SUCCESS_PERIOD_S:
            self._asked_at = time.monotonic()
            if self._success.service_is_ready():
                self._answer = self._success.call_async(Trigger.Request())

    def _on_clock(self, message: Any) -> None:
        self.log.clock.append((time.monotonic_ns(), stamp_to_ns(message.clock)))

    def _on_joints(self, message: Any) -> None:
        names = self.log.contract.joint_names
        if not set(names) <= set(message.name):
            return
        order = [message.name.index(name) for name in names]
        position = np.asarray(message.position, dtype=np.float64)[order]
        self.log.joints.append((stamp_to_ns(message.header.stamp), position))

    def _on_odom(self, message: Any) -> None:
        pose = message.pose.pose
        yaw = 2.0 * np.arctan2(pose.orientation.z, pose.orientation.w)
        self.log.base.append((stamp_to_ns(message.header.stamp), pose.position.x, pose.position.y, float(yaw)))

    def _on_chunk(self, message: Any) -> None:
        try:
            chunk = chunk_from(message)
        except MessageError as error:
            self.log.warn(f"action_chunk: {error}")
            return
        # A chunk can overtake the clock, which ticks at its own rate; it cannot come before its observation.
        heard_ns = max(self.log.now_ns, chunk.stamp_ns)
        self.log.chunks.append(ChunkSeen(chunk.stamp_ns, heard_ns, chunk.actions))

    def _on_subtask(self, message: Any) -> None:
        if not self.log.subtasks or self.log.subtasks[-1][1] != message.data:
            self.log.subtasks.append((self.log.now_ns, message.data))

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            self.log.rounds[status.name] += 1
            self.log.diagnostics[status.name] = {pair.key: pair.value for pair in status.values}
            # Until the first chunk the nodes wait for each other, and say so.
            if status.level != b"\x00" and self.log.chunks:
                self.log.warn(f"{status.name}: {status.message}")

    def _camera_callback(self, name: str) -> Callable[[Any], None]:
        frames = self.log.frames.setdefault(name, [])

        def heard(message: Any) -> None:
            frames.append((stamp_to_ns(message.header.stamp), bytes(message.data)))

        return heard
