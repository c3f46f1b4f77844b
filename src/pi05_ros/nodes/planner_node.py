"""planner_node: cameras, `state` and `task` in, `subtask` out (latched), at the contract's planner rate.

The `task` parameter holds until the topic `task` speaks. It counts, and is announced on the topic for the recorder,
only after a grace period: a planner that was started again must not override what an operator asked for meanwhile.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from std_msgs.msg import String

from pi05_model.observation import Policy
from pi05_ros import topics
from pi05_ros.config import Doc
from pi05_ros.inference import Cadence, Planner, PolicyHost
from pi05_ros.nodes.base import monotonic_ns, run
from pi05_ros.nodes.inference import NS, InferenceConfig, InferenceNode

# Discovery brings a latched task within this time.
GRACE_S = 1.0


@dataclass(frozen=True)
class PlannerConfig(InferenceConfig):
    """Parameters of planner_node; its rate is the contract's."""

    task: Annotated[str, Doc("what the robot is asked to do until the topic `task` says something")] = ""


class PlannerNode(InferenceNode[PlannerConfig]):
    """The planner."""

    part = "planner"

    def __init__(self, *, host: PolicyHost | None = None, **arguments: Any) -> None:
        super().__init__("planner_node", PlannerConfig, host=host, **arguments)

    def make_logic(self, config: PlannerConfig, policy: Policy) -> tuple[Planner, Cadence]:
        """Make the planner and its topics."""
        subtask = self.publisher(String, topics.SUBTASK)
        self._planner = Planner(
            policy, lambda text: subtask.publish(String(data=text)), self.health, config.max_text_chars
        )
        self._initial, self._asked = config.task, False
        self._announcer = self.publisher(String, topics.TASK) if config.task else None
        self.subscribe(String, topics.TASK, self._on_task)
        self.every(0.1, self._announce)
        return self._planner, Cadence(1.0 / self.contract.rates.planner_hz)

    def start(self) -> None:
        """Begin the grace period; a subtask is said again after a pause."""
        self._since_ns = monotonic_ns()
        self._planner.say_again()

    def _on_task(self, message: Any) -> None:
        self._asked = True
        self._planner.set_task(message.data)
        if self._announcer is not None and message.data != self._initial:
            # Latched, the old task would reach late listeners after the new one.
            self.discard(self._announcer)
            self._announcer = None

    def _announce(self) -> None:
        if self._announcer is None or self._asked or monotonic_ns() - self._since_ns < GRACE_S * NS:
            return
        self._asked = True
        self._planner.set_task(self._initial)
        self._announcer.publish(String(data=self._initial))


def main(args: Sequence[str] | None = None) -> None:
    """Run planner_node."""
    sys.exit(run(lambda: [PlannerNode()], args))


if __name__ == "__main__":
    main()
