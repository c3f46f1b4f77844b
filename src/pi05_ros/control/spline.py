"""C2 trajectories over an action chunk, continuous with whatever reference was running before.

A chunk's knots are joined by a cubic spline (position, velocity and acceleration continuous). The running reference
is not on that spline at the moment of the splice, so the difference in position, velocity and acceleration is added
to it and dies out along a quintic. The sum starts exactly in the running reference's state and is C2 everywhere.
Shapes: H knots, J joints. A "state" is [3, J]: position, velocity, acceleration.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MIN_KNOTS = 3

# Rows: response of x in [0, 1] to a unit initial position, velocity, acceleration, ending at rest in 0; columns:
# coefficients of 1, x .. x^5 (quintic Hermite interpolation).
_DECAY = np.array(
    [
        [1.0, 0.0, 0.0, -10.0, 15.0, -6.0],
        [0.0, 1.0, 0.0, -6.0, 8.0, -3.0],
        [0.0, 0.0, 0.5, -1.5, 1.5, -0.5],
    ]
)
# Largest |second derivative| of the first two responses and largest |first derivative| of the first.
_PEAK_ACCELERATION_OF_OFFSET = 10.0 / math.sqrt(3.0)
_PEAK_ACCELERATION_OF_VELOCITY = 3.94
_PEAK_VELOCITY_OF_OFFSET = 1.875


@lru_cache(maxsize=8)
def second_derivative_operator(knots: int) -> Array:
    """Return the matrix [H, H] that maps knot values at unit spacing to the C2 spline's second derivatives.

    The spline's first and last interval have constant second derivative ("parabolic run-out"): third order at the
    ends, and less sensitive to a policy's noise than the not-a-knot condition.

    Raises:
        ValueError: fewer than 3 knots.
    """
    if knots < MIN_KNOTS:
        raise ValueError(f"a C2 spline needs at least {MIN_KNOTS} knots, got {knots}; see rates.chunk_steps")
    system = np.zeros((knots, knots))
    differences = np.zeros((knots, knots))
    for i in range(1, knots - 1):
        system[i, i - 1 : i + 2] = (1.0, 4.0, 1.0)
        differences[i, i - 1 : i + 2] = (6.0, -12.0, 6.0)
    system[0, :2] = system[-1, -2:] = (1.0, -1.0)
    operator = np.linalg.solve(system, differences).astype(np.float64)
    operator.setflags(write=False)
    return operator


def spline_coefficients(knots: Array) -> Array:
    """Return coefficients [H-1, 4, J] of 1, s, s², s³ per interval, s in [0, 1], of the C2 spline through [H, J]."""
    bend = second_derivative_operator(len(knots)) @ knots
    coefficients = np.empty((len(knots) - 1, 4, knots.shape[1]))
    coefficients[:, 0] = knots[:-1]
    coefficients[:, 1] = np.diff(knots, axis=0) - (2.0 * bend[:-1] + bend[1:]) / 6.0
    coefficients[:, 2] = bend[:-1] / 2.0
    coefficients[:, 3] = np.diff(bend, axis=0) / 6.0
    return coefficients


def bridge_duration(gap: Array, velocity: Array, acceleration: Array, shortest_s: float, longest_s: float) -> Array:
    """Return how long [J] a state difference needs to die out using at most half of the joint's limits.

    Args:
        gap: [3, J] difference in position, velocity, acceleration.
        velocity: [J] velocity limits.
        acceleration: [J] acceleration limits.
        shortest_s: lower bound [s].
        longest_s: upper bound [s]; a difference too large for it is left to the limiter.
    """
    size = np.abs(gap)
    needed = np.sqrt(_PEAK_ACCELERATION_OF_OFFSET * size[0] / (0.5 * acceleration))
    needed = np.maximum(needed, _PEAK_ACCELERATION_OF_VELOCITY * size[1] / (0.5 * acceleration))
    needed = np.maximum(needed, _PEAK_VELOCITY_OF_OFFSET * size[0] / (0.5 * velocity))
    duration: Array = np.clip(needed, shortest_s, longest_s)
    return duration


class Trajectory:
    """The C2 path of one chunk from the state in which the previous reference was left.

    Args:
        knots: [H, J] positions, equally spaced in time.
        first_ns: time of knot 0.
        step_ns: spacing of the knots.
        start: [3, J] state of the running reference.
        start_ns: time of that state; the trajectory is valid from here to `end_ns`.
        velocity, acceleration: [J] limits, which set how fast the difference may die out.
        shortest_s, longest_s: bounds of that duration [s].
    """

    def __init__(
        self,
        knots: Array,
        first_ns: int,
        step_ns: int,
        start: Array,
        start_ns: int,
        velocity: Array,
        acceleration: Array,
        shortest_s: float = 0.04,
        longest_s: float = 0.5,
    ) -> None:
        self.end_ns = first_ns + (len(knots) - 1) * step_ns
        self._first_ns, self._start_ns = first_ns, start_ns
        self._step_s = step_ns * 1e-9
        self._last = len(knots) - 2
        self._coefficients = spline_coefficients(knots)
        self._cubic = np.zeros((3, 4))
        self._quintic = np.zeros((3, 6))
        gap = start - self._spline(start_ns)
        self._bridge_s = bridge_duration(gap, velocity, acceleration, shortest_s, longest_s)
        self._bridged_s = float(self._bridge_s.max())
        scale_3J = np.stack([np.ones_like(self._bridge_s), self._bridge_s, self._bridge_s**2])
        powers_6J = self._bridge_s ** -np.arange(6.0)[:, None]
        self._decay = (_DECAY.T @ (gap * scale_3J)) * powers_6J

    def evaluate(self, now_ns: int) -> Array:
        """Return the state [3, J] at a time in [start, end]."""
        state = self._spline(now_ns)
        t = (now_ns - self._start_ns) * 1e-9
        if t < self._bridged_s:
            difference = _quintic_basis(t, self._quintic) @ self._decay
            difference *= t < self._bridge_s
            state += difference
        return state

    def _spline(self, now_ns: int) -> Array:
        u = (now_ns - self._first_ns) * 1e-9 / self._step_s
        k = min(max(int(u), 0), self._last)
        state: Array = _cubic_basis(u - k, self._step_s, self._cubic) @ self._coefficients[k]
        return state


def _cubic_basis(s: float, step_s: float, out: Array) -> Array:
    rate = 1.0 / step_s
    out[0] = (1.0, s, s * s, s * s * s)
    out[1] = (0.0, rate, 2.0 * s * rate, 3.0 * s * s * rate)
    out[2] = (0.0, 0.0, 2.0 * rate * rate, 6.0 * s * rate * rate)
    return out


def _quintic_basis(t: float, out: Array) -> Array:
    t2 = t * t
    t3 = t2 * t
    out[0] = (1.0, t, t2, t3, t2 * t2, t2 * t3)
    out[1] = (0.0, 1.0, 2.0 * t, 3.0 * t2, 4.0 * t3, 5.0 * t2 * t2)
    out[2] = (0.0, 0.0, 2.0, 6.0 * t, 12.0 * t2, 20.0 * t3)
    return out
