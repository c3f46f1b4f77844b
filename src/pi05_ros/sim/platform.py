"""The mobile base as its own controller makes it behave: body velocities in, bounded acceleration, no drift."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class BasePlatform:
    """Turns a commanded body twist into set points for the velocity servos of the planar joints.

    The twist is limited in speed and acceleration, and integrated into a pose that the servos also hold, as the
    integral part of a real platform's velocity loop does. When something blocks the base, the pose waits for it.

    Args:
        velocity, acceleration: [3] largest absolute body velocity and acceleration (m/s, m/s, rad/s; and per s).
        stiffness: how fast an error of the pose is corrected [1/s].
        slack: [3] largest distance between the integrated pose and the real one (m, m, rad).
    """

    def __init__(self, velocity: Array, acceleration: Array, stiffness: float, slack: Array) -> None:
        self._velocity, self._acceleration = velocity, acceleration
        self._stiffness, self._slack = stiffness, slack
        self._twist, self._pose = np.zeros(3), np.zeros(3)

    def place(self, pose: Array) -> None:
        """Put the base at a world pose [3], at rest."""
        self._twist, self._pose = np.zeros(3), np.array(pose, dtype=np.float64)

    def set_points(self, command: Array, pose: Array, dt_s: float) -> Array:
        """Advance by one step and return the servos' world velocities [3].

        Args:
            command: [3] commanded body twist.
            pose: [3] measured world pose.
            dt_s: length of the step.
        """
        wanted = np.clip(command, -self._velocity, self._velocity)
        most = self._acceleration * dt_s
        self._twist = self._twist + np.clip(wanted - self._twist, -most, most)
        velocity = to_world(self._twist, float(pose[2]))
        self._pose = pose + np.clip(self._pose + velocity * dt_s - pose, -self._slack, self._slack)
        set_points: Array = velocity + self._stiffness * (self._pose - pose)
        return set_points


def to_world(twist: Array, yaw: float) -> Array:
    """Rotate a body twist [3] into world axes."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([cos * twist[0] - sin * twist[1], sin * twist[0] + cos * twist[1], twist[2]])


def to_body(velocity: Array, yaw: float) -> Array:
    """Rotate a world velocity [3] into body axes."""
    return to_world(velocity, -yaw)


def relative_pose(origin: Array, pose: Array) -> Array:
    """Return a world pose [3] in the frame of another; the angle lies in [-pi, pi)."""
    x, y, _ = to_body(pose - origin, float(origin[2]))
    turn = (pose[2] - origin[2] + np.pi) % (2 * np.pi) - np.pi
    return np.array([x, y, turn])
