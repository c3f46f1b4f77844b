"""action_expert_node: the expert's cameras, `state` and `subtask` in, `action_chunk` out."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from pi05_model.observation import Policy
from pi05_ros import topics
from pi05_ros.config import Doc, Range
from pi05_ros.control.chunk import Chunk
from pi05_ros.inference import Cadence, Expert, PolicyHost
from pi05_ros.messages import fill_chunk
from pi05_ros.nodes.base import run
from pi05_ros.nodes.inference import InferenceConfig, InferenceNode


@dataclass(frozen=True)
class ExpertConfig(InferenceConfig):
    """Parameters of action_expert_node."""

    inference_period_s: Annotated[float, Doc("time between two chunks, by the ROS clock [s]"), Range(0.02, 10)] = 0.4
    dry_run: Annotated[bool, Doc("publish chunks on action_chunk_dry_run only, where nothing executes them")] = False


class ActionExpertNode(InferenceNode[ExpertConfig]):
    """The action expert."""

    part = "expert"

    def __init__(self, *, host: PolicyHost | None = None, **arguments: Any) -> None:
        super().__init__("action_expert_node", ExpertConfig, host=host, **arguments)

    def make_logic(self, config: ExpertConfig, policy: Policy) -> tuple[Expert, Cadence]:
        """Make the expert and its topics."""
        topic = topics.ACTION_CHUNK_DRY_RUN if config.dry_run else topics.ACTION_CHUNK
        publisher, step_s = self.publisher(JointTrajectory, topic), self.contract.step_s

        def send(chunk: Chunk) -> None:
            publisher.publish(fill_chunk(JointTrajectory(), JointTrajectoryPoint, chunk, step_s))

        expert = Expert(policy, self.contract, send, self.health, config.max_text_chars)
        self.subscribe(String, topics.SUBTASK, lambda message: expert.set_subtask(message.data))
        return expert, Cadence(config.inference_period_s)


def main(args: Sequence[str] | None = None) -> None:
    """Run action_expert_node."""
    sys.exit(run(lambda: [ActionExpertNode()], args))


if __name__ == "__main__":
    main()
