"""The trajectory of a chunk: through its knots, C2, and starting exactly in the running reference's state."""

import numpy as np
import pytest
from control_rig import STEP_NS, H
from hypothesis import given, settings
from hypothesis import strategies as st

from pi05_ros.control.spline import Trajectory, second_derivative_operator

V, A = np.array([3.0, 3.0]), np.array([20.0, 20.0])
finite = st.floats(-1.0, 1.0)


def sine(t: np.ndarray) -> np.ndarray:
    """State [3, n, 2] of two sines."""
    w, phase = np.array([3.0, 5.0]), np.array([0.0, 1.0])
    angle = w * np.asarray(t)[:, None] + phase
    return np.stack([np.sin(angle), w * np.cos(angle), -(w**2) * np.sin(angle)])


def trajectory(knots: np.ndarray, start: np.ndarray, start_ns: int) -> Trajectory:
    return Trajectory(knots, STEP_NS, STEP_NS, start, start_ns, V, A)


def test_follows_a_sine_in_position_velocity_and_acceleration() -> None:
    times = STEP_NS * np.arange(1, H + 1)
    path = trajectory(sine(times * 1e-9)[0], sine(np.array([0.1]))[:, 0], 100_000_000)
    now = np.arange(100_000_000, 950_000_000, 1_700_000)
    got = np.stack([path.evaluate(int(t)) for t in now], axis=1)
    error = np.abs(got - sine(now * 1e-9)).max(axis=(1, 2))
    assert error[0] < 2e-5 and error[1] < 2e-3 and error[2] < 0.05, error


@settings(max_examples=50, deadline=None)
@given(
    st.lists(finite, min_size=2 * H, max_size=2 * H),
    st.lists(finite, min_size=6, max_size=6),
    st.integers(0, 500_000_000),
)
def test_starts_in_the_given_state_and_is_c2(knots: list[float], state: list[float], start_ns: int) -> None:
    start = np.array(state).reshape(3, 2)
    path = trajectory(np.array(knots).reshape(H, 2), start, start_ns)
    np.testing.assert_allclose(path.evaluate(start_ns), start, atol=1e-9)
    # One nanosecond to either side of each knot, the state may only change as its own derivative says.
    for knot_ns in range((start_ns // STEP_NS + 1) * STEP_NS, path.end_ns, STEP_NS):
        before, after = path.evaluate(knot_ns - 1), path.evaluate(knot_ns + 1)
        assert np.abs(after - before).max(axis=1) == pytest.approx(np.zeros(3), abs=1e-2)
        np.testing.assert_allclose(after[:2] - before[:2], before[1:] * 2e-9, atol=1e-6)


def test_difference_has_died_out_when_the_limits_allow() -> None:
    knots = np.zeros((H, 2))
    path = trajectory(knots, np.array([[0.05, 0.0], [0.5, 0.0], [3.0, 0.0]]), 100_000_000)
    steep = np.stack([path.evaluate(t) for t in range(100_000_000, 600_000_000, 1_000_000)])
    assert np.abs(steep[:, 2]).max() <= A.max()
    np.testing.assert_allclose(path.evaluate(600_000_000), np.zeros((3, 2)), atol=1e-9)
    np.testing.assert_array_equal(steep[:, :, 1], 0.0)


def test_too_few_knots_are_told() -> None:
    with pytest.raises(ValueError, match="at least 3 knots, got 2"):
        second_derivative_operator(2)
