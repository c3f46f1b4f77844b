"""The executable sim_node: the simulator, and in its process the PD controller, unless `controller` is "topics".

In one process the controller's tick is a part of the physics step: its 500 Hz are exact in simulated time, whatever the
machine does.
"""

import sys
from collections.abc import Sequence
from typing import Any

from pi05_ros.nodes.base import BaseNode, run
from pi05_ros.nodes.pd_controller_node import PdControllerNode
from pi05_ros.nodes.sim_node import SimNode


def make_nodes(**arguments: Any) -> list[BaseNode[Any]]:
    """Make the nodes of the process, in the order in which they start.

    Args:
        arguments: for both nodes (context, parameter_overrides, …).
    """
    sim = SimNode(**arguments)
    if sim.get_parameter("controller").value == "topics":
        return [sim]
    return [sim, PdControllerNode(sim, **arguments)]


def main(args: Sequence[str] | None = None) -> None:
    """Run the process."""
    sys.exit(run(make_nodes, args))


if __name__ == "__main__":
    main()
