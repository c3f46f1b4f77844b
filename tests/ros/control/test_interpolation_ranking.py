"""One swinging joint, 50 Hz knots to 500 Hz torque: how well each interpolation is tracked.

The real executor and controller against the common ways, with the same gains, plant and path. Error is rms against
the path itself over 4 s, so lateness counts.
"""

import functools
from collections.abc import Callable

import numpy as np
from control_rig import PENDULUM, STEP_NS, TICK_NS, Plant, Rig, pendulum_contract, pendulum_limits

from pi05_ros.control.dynamics import RobotDynamics

DURATION_S = 5.0
SETTLED_S = 1.0
STEP_S = STEP_NS * 1e-9
PIECE = 10
# A reference law: time -> (position, velocity, acceleration), each one joint.
Law = Callable[[float], tuple[float, float, float]]


def path(t: np.ndarray) -> np.ndarray:
    t = np.asarray(t)
    x = np.clip(t / 1.0, 0.0, 1.0)
    ramp = x**3 * (10 - 15 * x + 6 * x**2)
    return (ramp * (0.6 * np.sin(4.0 * t) + 0.15 * np.sin(9.0 * t)))[..., None]


def zero_order_hold(t: float) -> tuple[float, float, float]:
    return path(np.floor(t / STEP_S) * STEP_S)[0], 0.0, 0.0


def linear_one_knot_late(t: float) -> tuple[float, float, float]:
    u = t / STEP_S - 1.0
    a, b = path(np.floor(u) * STEP_S)[0], path((np.floor(u) + 1) * STEP_S)[0]
    return a + (u - np.floor(u)) * (b - a), (b - a) / STEP_S, 0.0


def at_rest_at_chunk_ends(t: float) -> tuple[float, float, float]:
    """Pieces of ten knots, each a C2 spline that starts and ends at rest."""
    steps = t / STEP_S
    piece = int(steps / PIECE + 1e-9)
    knots, bend = _rest_piece(piece)
    u = min(steps - piece * PIECE, PIECE - 1e-9)
    k = int(u)
    s, r = u - k, 1.0 - (u - k)
    m0, m1 = bend[k], bend[k + 1]
    position = r * knots[k] + s * knots[k + 1] + ((r**3 - r) * m0 + (s**3 - s) * m1) / 6
    velocity = knots[k + 1] - knots[k] + ((1 - 3 * r**2) * m0 + (3 * s**2 - 1) * m1) / 6
    return position, velocity / STEP_S, (r * m0 + s * m1) / STEP_S**2


@functools.cache
def _rest_piece(piece: int) -> tuple[np.ndarray, np.ndarray]:
    """Knots and second derivatives (per step²) of the clamped spline with zero end velocities."""
    y = path((piece * PIECE + np.arange(PIECE + 1)) * STEP_S)[:, 0]
    system = 4.0 * np.eye(PIECE + 1) + np.eye(PIECE + 1, k=1) + np.eye(PIECE + 1, k=-1)
    system[0, 0] = system[-1, -1] = 2.0
    right = np.concatenate([[6 * (y[1] - y[0])], 6 * np.diff(y, 2), [6 * (y[-2] - y[-1])]])
    return y, np.linalg.solve(system, right)


def tracked_by_law(law: Law, feed_forward: bool) -> float:
    contract = pendulum_contract()
    plant = Plant(PENDULUM, contract, np.zeros(1))
    dynamics = RobotDynamics(plant.model, contract.joint_names)
    reference = Rig(PENDULUM, contract, pendulum_limits(), np.zeros(1)).controller
    error = []
    for i in range(round(DURATION_S * 1e9 / TICK_NS)):
        now_s = i * TICK_NS * 1e-9
        q, dq, ddq = (np.array([x]) for x in law(now_s))
        read = plant.read()
        assert read is not None
        effort = reference.kp * (q - read.position) + reference.kd * (dq - read.velocity)
        plant.write(effort + (dynamics.torque(read.position, dq, ddq) if feed_forward else 0.0), np.zeros(3))
        error.append(read.position[0] - path(np.array(now_s))[0])
        plant.step()
    return rms(error)


def tracked_by_controller() -> float:
    rig = Rig(PENDULUM, pendulum_contract(), pendulum_limits(), np.zeros(1))
    error: list[float] = []
    rig.follow(path, DURATION_S, lambda: error.append(rig.plant.position[0] - path(np.array(rig.now_ns * 1e-9))[0]))
    return rms(error)


def rms(error: list[float]) -> float:
    settled = np.array(error[round(SETTLED_S * 1e9 / TICK_NS) :])
    return float(np.sqrt(np.mean(settled**2)) * 1e3)


def test_ranking() -> None:
    ours = tracked_by_controller()
    rest = tracked_by_law(at_rest_at_chunk_ends, feed_forward=True)
    linear = tracked_by_law(linear_one_knot_late, feed_forward=False)
    held = tracked_by_law(zero_order_hold, feed_forward=False)
    print(f"rms [mrad]: seamless {ours:.2f}, rest at chunk ends {rest:.1f}, linear {linear:.0f}, held {held:.0f}")
    assert ours < 2.0
    assert 5.0 * ours < rest < linear < held
