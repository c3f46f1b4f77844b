"""state_node: any number of joint state sources and odometry in, `state` out in the contract's order and units."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from nav_msgs.msg import Odometry
from sensor_msgs.msg import JointState

from pi05_ros import topics
from pi05_ros.config import ConfigError, Doc, Range
from pi05_ros.health import Level, Status
from pi05_ros.ingest import StateMerger
from pi05_ros.messages import MessageError, fill_state, stamp_to_ns
from pi05_ros.nodes.base import BaseNode, monotonic_ns, run
from pi05_ros.qos import STREAM

NS = 1_000_000_000


@dataclass(frozen=True)
class StateConfig:
    """Parameters of state_node; its rate is the contract's joint_state_hz."""

    joint_state_topics: Annotated[tuple[str, ...], Doc("JointState topics to merge")] = (topics.JOINT_STATES,)
    odom_topic: Annotated[str, Doc("Odometry topic whose twist is the base's velocity")] = topics.ODOM
    max_age_s: Annotated[float, Doc("an entry this much older than the newest is stale [s]"), Range(0.005, 10)] = 0.1
    silence_s: Annotated[float, Doc("warn when no source spoke for this long [s]"), Range(0.05, 60)] = 0.5
    base_required: Annotated[bool, Doc("false: without odometry the base counts as standing")] = True


class StateNode(BaseNode[StateConfig]):
    """Publishes a state whenever something new came in, at most at the contract's rate, and only a complete one."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__("state_node", StateConfig, **arguments)

    def build(self, config: StateConfig) -> None:
        """Subscribe to every source."""
        if not config.joint_state_topics:
            raise ConfigError("joint_state_topics: is empty; name at least one JointState topic")
        self._config = config
        self._merger = StateMerger(self.contract, config.max_age_s, config.base_required)
        self._news, self._sent, self._heard_ns = False, 0, monotonic_ns()
        self._state = self.publisher(JointState, topics.STATE)
        for topic in dict.fromkeys(config.joint_state_topics):
            self.subscribe(JointState, topic, self._on_joints, STREAM)
        self.subscribe(Odometry, config.odom_topic, self._on_odom, STREAM)
        self.every(1.0 / self.contract.rates.joint_state_hz, self._tick)

    def report(self) -> list[Status]:
        """Tell how many states went out, and which entries are missing."""
        missing = self._merger.missing()
        text = ", ".join(f"{name} {reason}" for name, reason in missing.items()) or "complete"
        return [Status("merge", Level.WARN if missing else Level.OK, text, {"states": self._sent})]

    def _on_joints(self, message: Any) -> None:
        try:
            refused = self._merger.add_joints(stamp_to_ns(message.header.stamp), message.name, message.position)
        except MessageError as error:
            self.health.drop("joint state: not understood")
            self.health.trouble("joint state", str(error))
            return
        self._heard(refused)

    def _on_odom(self, message: Any) -> None:
        twist = message.twist.twist
        vector = np.array([twist.linear.x, twist.linear.y, twist.angular.z])
        self._heard(self._merger.add_twist(stamp_to_ns(message.header.stamp), vector))

    def _heard(self, refused: int) -> None:
        self._news, self._heard_ns = True, monotonic_ns()
        if refused:
            self.health.drop("not finite", refused)

    def _tick(self) -> None:
        if monotonic_ns() - self._heard_ns > self._config.silence_s * NS:
            sources = ", ".join((*self._config.joint_state_topics, self._config.odom_topic))
            self.health.trouble("sources", f"nothing from {sources} for {self._config.silence_s:g} s")
        if not self._news:
            return
        self._news = False
        self.health.fine("sources")
        merged = self._merger.merge()
        if merged is None:
            missing = self._merger.missing()
            self.health.drop("incomplete state")
            self.health.trouble("state", ", ".join(f"{name} {reason}" for name, reason in missing.items()))
            return
        self.health.fine("state")
        self._sent += 1
        self._state.publish(fill_state(JointState(), self.contract, *merged))


def main(args: Sequence[str] | None = None) -> None:
    """Run state_node."""
    sys.exit(run(lambda: [StateNode()], args))


if __name__ == "__main__":
    main()
