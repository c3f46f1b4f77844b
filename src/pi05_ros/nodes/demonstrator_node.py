"""demonstrator_node: the scripted expert in the policy's place. Simulation only: it reads the ground truth.

It speaks as planner and action expert do (`subtask`, `action_chunk`), so that controller, recorder and everything
behind them cannot tell the difference.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from pi05_ros import topics
from pi05_ros.config import Doc, Range
from pi05_ros.control.chunk import Chunk
from pi05_ros.expert.expert import ScriptedExpert
from pi05_ros.health import Level, Status
from pi05_ros.inference import Cadence, Latency
from pi05_ros.messages import fill_chunk
from pi05_ros.nodes.base import BaseNode, run
from pi05_ros.qos import Qos
from pi05_ros.sim.truth import WORLD_OF_SIM, world_from_json

NEWEST = Qos(reliable=True, depth=1)


@dataclass(frozen=True)
class DemonstratorConfig:
    """Parameters of demonstrator_node."""

    task: Annotated[str, Doc("what to demonstrate until the topic `task` says something")] = "clear the table"
    inference_period_s: Annotated[float, Doc("simulated time between two chunks [s]"), Range(0.02, 10)] = 0.4
    dry_run: Annotated[bool, Doc("publish chunks on action_chunk_dry_run only, where nothing executes them")] = False


class DemonstratorNode(BaseNode[DemonstratorConfig]):
    """The scripted expert's node."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__("demonstrator_node", DemonstratorConfig, **arguments)

    def build(self, config: DemonstratorConfig) -> None:
        """Make the expert and its topics."""
        self._task, self._told = config.task, ""
        self._expert = ScriptedExpert(self.contract)
        self._cadence, self._latency = Cadence(config.inference_period_s), Latency()
        chunks = topics.ACTION_CHUNK_DRY_RUN if config.dry_run else topics.ACTION_CHUNK
        self._chunks = self.publisher(JointTrajectory, chunks)
        self._subtasks = self.publisher(String, topics.SUBTASK)
        self._tasks = self.publisher(String, topics.TASK)
        self.subscribe(String, topics.TASK, self._on_task)
        self.subscribe(String, WORLD_OF_SIM, self._on_world, NEWEST)

    def start(self) -> None:
        """Say the task, for the recorder and the success check; a subtask is said again after a pause."""
        self._told = ""
        self._tasks.publish(String(data=self._task))

    def report(self) -> list[Status]:
        """Tell about the chunks."""
        return [Status("expert", Level.OK, self._told or "waiting for the simulator", {**self._latency.values()})]

    def _on_task(self, message: Any) -> None:
        self._task = message.data

    def _on_world(self, message: Any) -> None:
        if not self.active:
            return
        world = world_from_json(message.data)
        if not self._cadence.due(world.stamp_ns):
            return
        begin = time.monotonic()
        try:
            plan = self._expert.plan(world, self._task)
        except ValueError as error:  # a task that the expert does not know; the robot holds
            self.health.trouble("task", str(error), Level.ERROR)
            return
        self.health.fine("task")
        self._latency.add(time.monotonic() - begin)
        if plan.subtask.text != self._told:
            self._told = plan.subtask.text
            self._subtasks.publish(String(data=self._told))
        chunk = Chunk(world.stamp_ns, self.contract.names, plan.actions)
        self._chunks.publish(fill_chunk(JointTrajectory(), JointTrajectoryPoint, chunk, self.contract.step_s))


def main(args: Sequence[str] | None = None) -> None:
    """Run the node."""
    sys.exit(run(lambda: [DemonstratorNode()], args))


if __name__ == "__main__":
    main()
