"""policy_node: planner_node and action_expert_node in one process, with one set of weights and one inference thread.

The subtask still travels over its topic, so that the expert follows whoever speaks there and a split graph behaves the
same.
"""

import sys
from collections.abc import Sequence

from pi05_ros.inference import PolicyHost
from pi05_ros.nodes.action_expert_node import ActionExpertNode
from pi05_ros.nodes.base import run
from pi05_ros.nodes.inference import InferenceNode
from pi05_ros.nodes.planner_node import PlannerNode


def make_nodes() -> list[InferenceNode]:  # type: ignore[type-arg]
    """Make both nodes around one policy; the expert comes first, because the planner's word would wait for it."""
    host = PolicyHost()
    return [ActionExpertNode(host=host), PlannerNode(host=host)]


def main(args: Sequence[str] | None = None) -> None:
    """Run both nodes."""
    sys.exit(run(make_nodes, args))


if __name__ == "__main__":
    main()
