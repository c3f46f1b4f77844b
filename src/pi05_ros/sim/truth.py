"""The simulated world's ground truth as text, for topics that only a demonstrator and reports may hear."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np

from pi05_ros.sim.world import ObjectState, WorldState

WORLD = "~/world"  # std_msgs/String of sim_node
WORLD_OF_SIM = "sim_node/world"  # the same, for other nodes of the namespace
_OBJECT_ARRAYS = ("position", "size")
_ARRAYS = (
    "base_pose",
    "base_twist",
    "position",
    "velocity",
    "bin_position",
    "bin_half_size",
    "work_pose",
)


def world_to_json(world: WorldState) -> str:
    """Return a world as one line of JSON; floats keep every bit."""
    return json.dumps(asdict(world), default=lambda array: array.tolist())


def world_from_json(text: str) -> WorldState:
    """Return the world that `world_to_json` wrote.

    Raises:
        ValueError: the text is no such world.
    """
    try:
        raw: dict[str, Any] = json.loads(text)
        objects = tuple(ObjectState(**_with_arrays(item, _OBJECT_ARRAYS)) for item in raw.pop("objects"))
        return WorldState(objects=objects, **_with_arrays(raw, _ARRAYS))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a world: {error!r}") from error


def _with_arrays(raw: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {**raw, **{name: np.array(raw[name], dtype=np.float64) for name in names}}
