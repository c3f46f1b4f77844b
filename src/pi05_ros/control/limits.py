"""Joint and base limits, and the reference that never leaves them.

Order of the clamps: position soft limits, velocity, acceleration (here, on the reference), then torque and torque
rate (on the command). Always holds: a reference that starts inside the limits stays inside them, whatever the target
and however irregular the ticks are, because it never goes faster than it can still brake before a position limit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CLAMPS = ("position", "velocity", "acceleration", "effort", "effort_rate")
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class JointLimits:
    """Limits of J joints, arrays [J] in joint units (rad or m, and their time derivatives; Nm or N).

    Attributes:
        lower, upper: positions the reference may take.
        velocity, acceleration: largest absolute values of the reference.
        effort: largest absolute command.
        effort_rate: largest change of the command [Nm/s or N/s].
    """

    lower: Array
    upper: Array
    velocity: Array
    acceleration: Array
    effort: Array
    effort_rate: Array

    def __post_init__(self) -> None:
        """Check that every limit is usable.

        Raises:
            ValueError: a limit is not positive and finite, or lower is not below upper.
        """
        for name in ("velocity", "acceleration", "effort", "effort_rate"):
            value = getattr(self, name)
            if not (np.isfinite(value).all() and (value > 0).all()):
                raise ValueError(f"{name} limits must be finite and positive, got {value}")
        if not (self.lower < self.upper).all():
            raise ValueError(f"lower limits {self.lower} must be below upper limits {self.upper}")

    def shrunk(self, margin: Array) -> "JointLimits":
        """Return the same limits with positions `margin` [J] inside (soft limits)."""
        return JointLimits(
            self.lower + margin, self.upper - margin, self.velocity, self.acceleration, self.effort, self.effort_rate
        )


@dataclass(frozen=True, slots=True)
class BaseLimits:
    """Largest absolute body velocity and acceleration [3] of the base: x, y [m/s, m/s²], yaw [rad/s, rad/s²]."""

    velocity: Array
    acceleration: Array


def limits_from_urdf(
    urdf: str, joint_names: tuple[str, ...], acceleration: Mapping[str, float], effort_rate: Mapping[str, float]
) -> JointLimits:
    """Read position, velocity and effort limits from a robot description.

    Args:
        urdf: the description as XML text.
        joint_names: the J joints wanted, in order.
        acceleration, effort_rate: what URDF cannot say, by joint name.

    Raises:
        KeyError: a joint or one of its limits is missing; names it.
    """
    found = {j.get("name"): j.find("limit") for j in ElementTree.fromstring(urdf).findall("joint")}
    rows = []
    for name in joint_names:
        limit = found.get(name)
        if limit is None:
            raise KeyError(f"joint {name!r} has no <limit> in the description; it has: {', '.join(map(str, found))}")
        missing = [key for key in ("lower", "upper", "velocity", "effort") if limit.get(key) is None]
        if missing:
            raise KeyError(f"joint {name!r}: <limit> lacks {', '.join(missing)}")
        told = [float(limit.get(key, "nan")) for key in ("lower", "upper", "velocity", "effort")]
        rows.append([*told, acceleration[name], effort_rate[name]])
    lower, upper, velocity, effort, accelerations, rates = np.array(rows).T
    return JointLimits(lower, upper, velocity, accelerations, effort, rates)


def braking_speed(distance: Array, acceleration: Array, dt_s: float) -> Array:
    """Return the largest speed [J] from which braking still ends within a distance [J] >= 0.

    It solves w·dt + w²/(2A) = distance: the step taken now at speed w, then braking at A. Ticks of any later length
    keep the bound, since braking first and moving after never covers more than w²/(2A).
    """
    speed: Array = 2.0 * distance / (dt_s + np.sqrt(dt_s * dt_s + 2.0 * distance / acceleration))
    return speed


class ReferenceLimiter:
    """The reference's state, moved by ticks towards a target within position, velocity and acceleration limits.

    A target inside the limits is passed on exactly; one outside is followed as fast as the limits allow.

    Attributes:
        position, velocity, acceleration: [J] current reference; replaced, never written into.
        counts: ticks in which a clamp acted on any joint, by kind.
    """

    def __init__(self, limits: JointLimits, position: Array) -> None:
        self._limits = limits
        self._half_inverse = 0.5 / limits.acceleration
        self._changes = np.zeros((3, len(position)))
        self._bounds = np.zeros((3, len(position)))
        self._bounds[1] = limits.velocity * (1.0 + _ROUNDING)
        self.counts = dict.fromkeys(CLAMPS[:3], 0)
        self.place(position)

    @property
    def state(self) -> Array:
        """Position, velocity and acceleration as [3, J]."""
        return np.stack([self.position, self.velocity, self.acceleration])

    def place(self, position: Array, velocity: Array | None = None) -> None:
        """Put the reference somewhere: at rest, or with a velocity [J] (clamped)."""
        rest = np.zeros_like(position)
        self.position = position.copy()
        self.velocity = rest if velocity is None else np.clip(velocity, -self._limits.velocity, self._limits.velocity)
        self.acceleration = rest.copy()

    def follow(self, target: Array, dt_s: float) -> None:
        """Move one tick of `dt_s` > 0 towards a target state [3, J]."""
        p, v, a = target
        limits, changes, bounds = self._limits, self._changes, self._bounds
        lag = p - self.position - v * dt_s
        changes[0], changes[1], changes[2] = lag, v, v - self.velocity
        bounds[2] = limits.acceleration * dt_s + _ROUNDING
        bounds[0] = limits.acceleration * (dt_s * dt_s) + _ROUNDING
        stop = p + v * np.abs(v) * self._half_inverse
        inside = (np.minimum(p, stop) >= limits.lower - _ROUNDING) & (np.maximum(p, stop) <= limits.upper + _ROUNDING)
        free = (np.abs(changes) <= bounds).all(axis=0) & inside
        if free.all():
            self.position, self.velocity = p, v
            self.acceleration = np.clip(a, -limits.acceleration, limits.acceleration)
            return
        self._advance(v + np.sign(lag) * braking_speed(np.abs(lag), limits.acceleration, dt_s), dt_s, counted=~free)
        self.position = np.where(free, p, self.position)
        self.velocity = np.where(free, v, self.velocity)
        self.acceleration = np.where(free, np.clip(a, -limits.acceleration, limits.acceleration), self.acceleration)

    def brake(self, dt_s: float) -> bool:
        """Move one tick, slowing down by the acceleration limit; return whether every joint is at rest."""
        if not self.velocity.any():
            self.acceleration = np.zeros_like(self.velocity)
            return True
        self._advance(np.zeros_like(self.velocity), dt_s, counted=None)
        return False

    def _advance(self, wanted: Array, dt_s: float, counted: NDArray[np.bool_] | None) -> None:
        limits = self._limits
        room_up = braking_speed(np.maximum(limits.upper - self.position, 0.0), limits.acceleration, dt_s)
        room_down = braking_speed(np.maximum(self.position - limits.lower, 0.0), limits.acceleration, dt_s)
        change = limits.acceleration * dt_s
        placed = np.clip(wanted, -room_down, room_up)
        slowed = np.clip(placed, -limits.velocity, limits.velocity)
        velocity = np.clip(slowed, self.velocity - change, self.velocity + change)
        if counted is not None:
            for kind, before, after in zip(CLAMPS, (wanted, placed, slowed), (placed, slowed, velocity), strict=False):
                self.counts[kind] += bool((np.abs(before - after)[counted] > _ROUNDING).any())
        self.acceleration = (velocity - self.velocity) / dt_s
        self.position = self.position + velocity * dt_s
        self.velocity = velocity


def approach(value: Array, target: Array, limits: BaseLimits, dt_s: float) -> Array:
    """Return a base twist [3] moved from `value` towards `target` within velocity and acceleration limits."""
    change = limits.acceleration * dt_s
    return np.clip(np.clip(target, -limits.velocity, limits.velocity), value - change, value + change)
