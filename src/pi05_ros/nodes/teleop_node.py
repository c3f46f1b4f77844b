"""teleop_node: a person in the policy's place. Hears `leader/joint_states` or `joy`, says `action_chunk`.

It speaks as the action expert does, 50 points a chunk, so that controller, recorder and everything behind them cannot
tell the difference. While no input comes it says chunks that hold.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from sensor_msgs.msg import JointState, Joy
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from pi05_ros import topics
from pi05_ros.config import Doc
from pi05_ros.control.chunk import Chunk
from pi05_ros.health import Level, Status
from pi05_ros.inference import Cadence, Latency
from pi05_ros.messages import MessageError, fill_chunk, stamp_to_ns, state_from
from pi05_ros.nodes.base import BaseNode, monotonic_ns, run
from pi05_ros.qos import external
from pi05_ros.teleop import Teleop, TeleopConfig
from pi05_ros.teleop_joy import TeleopError, jog_from_joy

NS = 1_000_000_000


@dataclass(frozen=True)
class TeleopNodeConfig(TeleopConfig):
    """Parameters of teleop_node."""

    dry_run: Annotated[bool, Doc("publish chunks on action_chunk_dry_run only, where nothing executes them")] = False


class TeleopNode(BaseNode[TeleopNodeConfig]):
    """Teleoperation's node."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__("teleop_node", TeleopNodeConfig, **arguments)

    def build(self, config: TeleopNodeConfig) -> None:
        """Make the kinematics and the topics."""
        from pi05_ros.control.assembly import robot_limits
        from pi05_ros.expert.kinematics import ArmKinematics
        from pi05_ros.sim.model import robot_only_model

        self._config, self._said = config, 0
        model = robot_only_model()
        arms = {side: ArmKinematics(model, self.contract.joint_names, side) for side in ("left", "right")}
        self._teleop = Teleop(self.contract, config, *robot_limits(self.contract), arms)
        self._cadence, self._latency = Cadence(config.period_s), Latency()
        chunks = topics.ACTION_CHUNK_DRY_RUN if config.dry_run else topics.ACTION_CHUNK
        self._chunks = self.publisher(JointTrajectory, chunks)
        self.subscribe(JointState, topics.STATE, self._on_state)
        if config.mode == "leader":
            self.subscribe(JointState, topics.LEADER, self._on_leader, external())
        else:
            self.subscribe(Joy, topics.JOY, self._on_joy, external())

    def report(self) -> list[Status]:
        """Tell whether somebody drives."""
        silent = self._teleop.silent(monotonic_ns() / NS)
        source = topics.LEADER if self._config.mode == "leader" else topics.JOY
        message = f"holding: nothing from {source}" if silent else "driving"
        return [Status("teleop", Level.OK, message, {"chunks": self._said, **self._latency.values()})]

    def _on_leader(self, message: Any) -> None:
        stamp_ns = stamp_to_ns(message.header.stamp) or self.now_ns()
        try:
            self._teleop.hear_leader(message.name, message.position, stamp_ns, monotonic_ns() / NS)
        except TeleopError as error:
            self._refuse("leader", error)
            return
        self.health.fine("leader")

    def _on_joy(self, message: Any) -> None:
        try:
            self._teleop.hear_jog(jog_from_joy(message.axes, message.buttons), monotonic_ns() / NS)
        except TeleopError as error:
            self._refuse("joy", error)
            return
        self.health.fine("joy")

    def _refuse(self, source: str, error: Exception) -> None:
        self.health.drop(f"{source}: not understood")
        self.health.trouble(source, str(error))

    def _on_state(self, message: Any) -> None:
        stamp_ns = stamp_to_ns(message.header.stamp)
        if not self.active or not self._cadence.due(stamp_ns):
            return
        begin_ns = monotonic_ns()
        try:
            state = state_from(message, self.contract)
        except MessageError as error:
            self._refuse("state", error)
            return
        self.health.fine("state")
        chunk = Chunk(stamp_ns, self.contract.names, self._teleop.plan(state, stamp_ns, begin_ns / NS))
        self._chunks.publish(fill_chunk(JointTrajectory(), JointTrajectoryPoint, chunk, self.contract.step_s))
        self._said += 1
        self._latency.add((monotonic_ns() - begin_ns) / NS)


def main(args: Sequence[str] | None = None) -> None:
    """Run the node."""
    sys.exit(run(lambda: [TeleopNode()], args))


if __name__ == "__main__":
    main()
