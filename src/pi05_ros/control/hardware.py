"""The controller's only view of a robot: read joints, write efforts and a base velocity.

Two implementations: topics (a real robot's drivers, ros2_control, Gazebo) and the simulator in the same process.
All arrays are in the order of `contract.joint_names` (J joints) and in joint units (rad, m, Nm, N).
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class JointReading:
    """Measured joints at one time.

    Attributes:
        stamp_ns: time of measurement, in the clock of the controller (ROS time, or simulated time).
        position: [J] rad or m.
        velocity: [J] rad/s or m/s.
        base_twist: [3] body velocity vx, vy [m/s], wz [rad/s] (REP-103 axes of base_link).
    """

    stamp_ns: int
    position: Array
    velocity: Array
    base_twist: Array


class Hardware(Protocol):
    """What the PD controller drives."""

    def read(self) -> JointReading | None:
        """Return the newest reading, or None before the first one."""

    def write(self, effort: Array, base_twist: Array) -> None:
        """Command joint efforts [J] (Nm or N) and a base velocity [3] (m/s, m/s, rad/s); held until the next call."""
