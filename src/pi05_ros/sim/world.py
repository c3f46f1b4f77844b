"""Ground truth of the simulated world, in plain arrays: what success checks and the scripted expert read."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ObjectState:
    """One movable object.

    Attributes:
        name: unique name, "<colour> <shape>" such as "red cube"; what language calls it.
        colour, shape: the two words of the name.
        position: [3] centre in the world frame [m].
        yaw: rotation about the vertical [rad].
        size: [3] half extents [m] (cylinder: radius, radius, half height).
        in_bin: the object's centre is inside the bin's inner volume.
        held_by: "left" or "right" when both fingers of that gripper touch it, else None.
    """

    name: str
    colour: str
    shape: str
    position: Array
    yaw: float
    size: Array
    in_bin: bool
    held_by: str | None


@dataclass(frozen=True, slots=True)
class WorldState:
    """Everything the scripted expert may know.

    Attributes:
        stamp_ns: simulated time.
        base_pose: [3] x, y [m], yaw [rad] of base_link in the world.
        base_twist: [3] body velocity vx, vy [m/s], wz [rad/s].
        position, velocity: [J] joints in `contract.joint_names` order and joint units.
        objects: the scene's movable objects.
        bin_position: [3] centre of the bin's opening in the world [m].
        bin_half_size: [2] half extents of the opening in x, y [m].
        table_top_z: height of the table's surface [m].
        work_pose: [3] base pose x, y, yaw from which table and bin are in reach.
    """

    stamp_ns: int
    base_pose: Array
    base_twist: Array
    position: Array
    velocity: Array
    objects: tuple[ObjectState, ...]
    bin_position: Array
    bin_half_size: Array
    table_top_z: float
    work_pose: Array

    def object(self, name: str) -> ObjectState:
        """Return an object by name.

        Raises:
            KeyError: no such object; lists those present.
        """
        for candidate in self.objects:
            if candidate.name == name:
                return candidate
        raise KeyError(f"no object {name!r} in the scene; there are: {', '.join(o.name for o in self.objects)}")
