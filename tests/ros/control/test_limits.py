"""Limits: read from a description, and never left by the reference."""

import numpy as np
import pytest
from control_rig import arm_limits, base_limits
from hypothesis import given, settings
from hypothesis import strategies as st

from pi05_ros.control.limits import ReferenceLimiter, approach, limits_from_urdf

URDF = """
<robot name="r">
  <joint name="a" type="revolute"><limit lower="-1" upper="2" velocity="3" effort="4"/></joint>
  <joint name="b" type="prismatic"><limit lower="0" velocity="3" effort="4"/></joint>
  <joint name="c" type="fixed"/>
</robot>
"""
wild = st.floats(-1e3, 1e3)
ticks = st.sampled_from([0.0005, 0.002, 0.0025, 0.011, 0.02])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(wild, wild, wild, ticks, st.integers(1, 40)), min_size=1, max_size=12))
def test_no_target_leads_outside(steps: list[tuple[float, float, float, float, int]]) -> None:
    limits = arm_limits()
    limiter = ReferenceLimiter(limits, np.array([0.3, 0.6, 0.03, 0.1]))
    for p, v, a, dt, repeat in steps:
        for _ in range(repeat):
            before = limiter.velocity
            limiter.follow(np.full((3, 4), [[p], [v], [a]]), dt)
            assert (limiter.position >= limits.lower - 1e-8).all() and (limiter.position <= limits.upper + 1e-8).all()
            assert (np.abs(limiter.velocity) <= limits.velocity * (1 + 1e-8)).all()
            assert (np.abs(limiter.velocity - before) <= limits.acceleration * dt + 1e-8).all()
            assert (np.abs(limiter.acceleration) <= limits.acceleration * (1 + 1e-8)).all()


def test_reaches_a_far_target_without_overshoot_and_stays() -> None:
    limits = arm_limits()
    limiter = ReferenceLimiter(limits, np.zeros(4))
    target = np.array([[1.2, -1.0, 0.04, 0.3], [0.0] * 4, [0.0] * 4])
    seen = []
    for _ in range(1500):
        limiter.follow(target, 0.002)
        seen.append(limiter.position)
    np.testing.assert_allclose(limiter.state, target, atol=1e-9)
    beyond = (np.array(seen) - target[0]) * np.sign(target[0])
    assert beyond.max() < 2e-4
    assert limiter.counts["velocity"] and limiter.counts["acceleration"]


def test_clamps_act_in_order_and_are_counted_by_kind() -> None:
    limits = arm_limits()
    limiter = ReferenceLimiter(limits, np.array([1.5, 0.0, 0.02, 0.1]))
    limiter.follow(np.array([[2.0, 0.0, 0.02, 0.1], [0.0] * 4, [0.0] * 4]), 0.002)
    # At its position limit the shoulder may not move at all, so neither later clamp has anything to do.
    assert limiter.counts == {"position": 1, "velocity": 0, "acceleration": 0}
    assert limiter.position[0] == 1.5
    limiter.follow(np.array([[1.5, 1.9, 0.02, 0.1], [0.0] * 4, [0.0] * 4]), 0.002)
    assert limiter.counts == {"position": 1, "velocity": 1, "acceleration": 1}


def test_target_inside_the_limits_is_passed_on_exactly() -> None:
    limiter = ReferenceLimiter(arm_limits(), np.zeros(4) + 0.02)
    for i in range(1, 400):
        t = i * 0.002
        target = np.outer([1 - np.cos(t), np.sin(t), np.cos(t)], np.full(4, 0.1)) + np.array([[0.02], [0], [0]])
        target[:, 2] = (0.02, 0.0, 0.0)
        limiter.follow(target, 0.002)
        np.testing.assert_array_equal(limiter.state, target)
    assert not any(limiter.counts.values())


def test_outside_the_limits_it_never_goes_further_out() -> None:
    limiter = ReferenceLimiter(arm_limits(), np.array([1.6, 0.0, 0.02, 0.1]))
    for _ in range(50):
        limiter.follow(np.array([[2.0, 0.0, 0.02, 0.1], [0.0] * 4, [0.0] * 4]), 0.002)
    assert limiter.position[0] == 1.6
    for _ in range(500):
        limiter.follow(np.array([[1.0, 0.0, 0.02, 0.1], [0.0] * 4, [0.0] * 4]), 0.002)
    assert limiter.position[0] == pytest.approx(1.0, abs=1e-9)


def test_brake_takes_the_limits_time() -> None:
    limiter = ReferenceLimiter(arm_limits(), np.zeros(4))
    limiter.place(np.array([0.0, 0.0, 0.02, 0.1]), np.array([2.4, -1.2, 0.0, 0.0]))
    ticks_needed = 0
    while not limiter.brake(0.002):
        ticks_needed += 1
    assert ticks_needed == pytest.approx(2.4 / 12.0 / 0.002, abs=1)
    assert limiter.position[0] == pytest.approx(2.4**2 / 2 / 12.0, abs=5e-3)


def test_base_approach() -> None:
    limits = base_limits()
    twist = np.zeros(3)
    for _ in range(100):
        twist = approach(twist, np.array([9.0, -0.1, 9.0]), limits, 0.002)
    np.testing.assert_allclose(twist, [0.2, -0.1, 0.4])
    for _ in range(1000):
        twist = approach(twist, np.array([9.0, -0.1, 9.0]), limits, 0.002)
    np.testing.assert_allclose(twist, [0.5, -0.1, 1.0])


def test_limits_from_urdf() -> None:
    limits = limits_from_urdf(URDF, ("a",), {"a": 5.0}, {"a": 6.0})
    told = [limits.lower, limits.upper, limits.velocity, limits.effort, limits.acceleration, limits.effort_rate]
    np.testing.assert_array_equal(told, [[-1], [2], [3], [4], [5], [6]])
    with pytest.raises(KeyError, match=r"'b': <limit> lacks upper"):
        limits_from_urdf(URDF, ("b",), {"b": 5.0}, {"b": 6.0})
    with pytest.raises(KeyError, match=r"'x' has no <limit>.*a, b, c"):
        limits_from_urdf(URDF, ("x",), {"x": 5.0}, {"x": 6.0})
    with pytest.raises(ValueError, match="acceleration limits must be finite and positive"):
        limits_from_urdf(URDF, ("a",), {"a": 0.0}, {"a": 6.0})
