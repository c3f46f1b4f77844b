"""Chunks in, one reference out: refusals, seamless splices, holds."""

from collections.abc import Callable

import numpy as np
import pytest
from control_rig import (
    HOME,
    STEP_NS,
    TICK_NS,
    H,
    arm_contract,
    arm_limits,
    base_limits,
    chunk_of,
    reading,
    rest_at,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pi05_ros.control.chunk import Chunk
from pi05_ros.control.config import ControllerConfig
from pi05_ros.control.executor import Accepted, ChunkExecutor, Reason, Reference, Refusal, State

CONTRACT = arm_contract()
SECOND = 1_000_000_000
NOW = 5 * SECOND


def executor(config: ControllerConfig | None = None) -> ChunkExecutor:
    return ChunkExecutor(CONTRACT, arm_limits(), base_limits(), config or ControllerConfig(), reading(HOME))


def ideal(made: ChunkExecutor, start_ns: int, duration_s: float) -> list[Reference]:
    """Sample at 500 Hz as if the robot were exactly on its reference."""
    seen: list[Reference] = []
    where = reading(HOME)
    for now_ns in range(start_ns, start_ns + round(duration_s * SECOND), TICK_NS):
        seen.append(made.sample(now_ns, where))
        where = reading(seen[-1].position, now_ns)
    return seen


def sway(t: np.ndarray) -> np.ndarray:
    s = t - 5.0
    x = np.clip(s / 0.5, 0.0, 1.0)
    ramp = x**3 * (10 - 15 * x + 6 * x**2)
    return HOME + (ramp * np.sin(3.0 * s))[:, None] * np.array([0.15, 0.12, 0.003, 0.015])


def states(seen: list[Reference]) -> np.ndarray:
    return np.array([[r.position, r.velocity, r.acceleration] for r in seen])


Edit = Callable[[Chunk], Chunk]


def with_actions(actions: Callable[[np.ndarray], np.ndarray]) -> Edit:
    return lambda c: Chunk(c.stamp_ns, c.names, actions(c.actions.copy()))


def poke(value: float) -> Edit:
    def edit(actions: np.ndarray) -> np.ndarray:
        actions[17, 3] = value
        return actions

    return with_actions(edit)


def late(seconds: float) -> Edit:
    return lambda c: Chunk(c.stamp_ns - round(seconds * SECOND), c.names, c.actions)


@pytest.mark.parametrize(
    ("edit", "reason", "told"),
    [
        (poke(np.nan), Reason.NOT_FINITE, "1 entries"),
        (poke(-np.inf), Reason.NOT_FINITE, "1 entries"),
        (lambda c: Chunk(c.stamp_ns, c.names[::-1], c.actions), Reason.WRONG_NAMES, "expected"),
        (with_actions(lambda a: a[:, :-1]), Reason.WRONG_SHAPE, r"\(50, 6\), expected \(50, 7\)"),
        (with_actions(lambda a: a[:49]), Reason.WRONG_SHAPE, r"\(49, 7\)"),
        (with_actions(lambda a: a[None]), Reason.WRONG_SHAPE, "shape"),
        (late(0.81), Reason.STALE, "0.810 s old, limit 0.800 s"),
        (late(-0.021), Reason.FROM_FUTURE, "0.021 s ahead"),
        (with_actions(lambda a: a + np.array([0.81, 0, 0, 0, 0, 0, 0])), Reason.JUMP, "shoulder: 0.810"),
        (with_actions(lambda a: a - np.array([0, 0, 0, 0.09, 0, 0, 0])), Reason.JUMP, "lift: 0.090"),
    ],
)
def test_refusals_change_nothing(edit: Edit, reason: Reason, told: str) -> None:
    made, control = executor(), executor()
    good = chunk_of(CONTRACT, sway, NOW)
    for e in (made, control):
        ideal(e, NOW, 0.1)
        assert isinstance(e.offer(good, NOW + SECOND // 10, reading(HOME)), Accepted)
    refused = made.offer(edit(chunk_of(CONTRACT, rest_at(HOME), NOW + SECOND // 10)), NOW + SECOND // 10, reading(HOME))
    assert isinstance(refused, Refusal)
    assert refused.reason is reason
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(refused.detail)
    later = NOW + SECOND // 10
    np.testing.assert_array_equal(states(ideal(made, later, 0.5)), states(ideal(control, later, 0.5)))


def test_a_gripper_may_step() -> None:
    closed = HOME * np.array([1, 1, 0, 1])
    made = executor()
    made.sample(NOW, reading(HOME))
    assert isinstance(made.offer(chunk_of(CONTRACT, rest_at(closed), NOW), NOW, reading(HOME)), Accepted)
    seen = ideal(made, NOW + TICK_NS, 0.6)
    assert seen[-1].position[2] == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(seen[-1].position[[0, 1, 3]], HOME[[0, 1, 3]], atol=1e-9)


def test_a_chunk_older_than_the_running_one_is_stale() -> None:
    made = executor()
    made.sample(NOW, reading(HOME))
    assert isinstance(made.offer(chunk_of(CONTRACT, rest_at(HOME), NOW), NOW, reading(HOME)), Accepted)
    refused = made.offer(chunk_of(CONTRACT, rest_at(HOME), NOW - 1), NOW, reading(HOME))
    assert isinstance(refused, Refusal) and refused.reason is Reason.STALE


def test_consumed_rows_are_dropped_by_stamp() -> None:
    made = executor()
    made.sample(NOW, reading(HOME))
    stamp = NOW - round(7.5 * STEP_NS)
    accepted = made.offer(chunk_of(CONTRACT, rest_at(HOME), stamp), NOW, reading(HOME))
    assert accepted == Accepted(dropped=7)
    assert len(made.leftover(NOW)) == H - 7
    assert len(made.leftover(NOW + 10 * SECOND)) == 0


def test_row_k_is_reached_k_plus_1_steps_after_the_stamp() -> None:
    made = executor()
    made.sample(NOW, reading(HOME))
    made.offer(chunk_of(CONTRACT, sway, NOW), NOW, reading(HOME))
    seen = ideal(made, NOW, 0.9)
    per_step = STEP_NS // TICK_NS
    for row in range(10, 44):
        expected = sway(np.array([(NOW + (row + 1) * STEP_NS) * 1e-9]))[0]
        np.testing.assert_allclose(seen[(row + 1) * per_step].position, expected, atol=1e-9)


def test_splices_are_c2() -> None:
    """Chunks that disagree by up to 20 mrad, offered between ticks: no step in position, velocity, acceleration."""
    made = executor()
    rng = np.random.default_rng(1)
    seen: list[Reference] = []
    now = NOW
    for _ in range(8):
        seen += ideal(made, now, 0.3)
        now += 300_000_000
        offset = rng.uniform(-0.02, 0.02, 4) * np.array([1, 1, 0.05, 0.1])
        chunk = chunk_of(CONTRACT, lambda t, o=offset: sway(t) + o, now - 97_000_000)
        before = made.sample(now + 1_000_000, reading(seen[-1].position))
        assert isinstance(made.offer(chunk, now + 1_300_000, reading(seen[-1].position)), Accepted)
        after = made.sample(now + 1_000_001, reading(seen[-1].position))
        for name in ("position", "velocity", "acceleration"):
            np.testing.assert_allclose(getattr(after, name), getattr(before, name), atol=1e-5, err_msg=name)
        now += TICK_NS
    assert not any(made.clamps.values())
    jerk = np.abs(np.diff(states(seen)[:, 2, :2], axis=0)).max()
    assert jerk < 3.0, "acceleration of two ticks differs by more than a bridge's jerk allows"


def test_idle_holds_what_is_measured() -> None:
    made = executor()
    for r in ideal(made, NOW, 0.2):
        np.testing.assert_array_equal(r.position, HOME)
        assert r.state is State.IDLE and not r.velocity.any() and not r.base_twist.any()


def test_end_of_chunk_brakes_to_a_hold_of_the_measured_position() -> None:
    made = executor()
    made.sample(NOW, reading(HOME))
    drive = chunk_of(
        CONTRACT, lambda t: HOME + 1.0 * (t[:, None] - 5.0) * np.array([1.0, 0, 0, 0]), NOW, np.array([0.4, 0, 0])
    )
    made.offer(drive, NOW, reading(HOME))
    seen = ideal(made, NOW, 1.0 + TICK_NS * 1e-9)
    assert seen[-1].state is State.TRACKING and seen[-1].velocity[0] == pytest.approx(1.0, abs=1e-3)
    assert seen[-1].base_twist[0] == pytest.approx(0.4)
    offset = np.array([0.01, -0.02, 0.008, 0.002])
    after: list[Reference] = []
    now = NOW + SECOND + TICK_NS
    for _ in range(600):
        after.append(made.sample(now, reading((after[-1] if after else seen[-1]).position + offset)))
        now += TICK_NS
    assert {r.state for r in after} == {State.HOLDING}
    limits = arm_limits()
    steps = np.diff(states(after)[:, 1], axis=0)
    assert (np.abs(steps) <= limits.acceleration * 0.002 * (1 + 1e-6)).all()
    stopped = next(i for i, r in enumerate(after) if not r.velocity.any())
    assert stopped * 0.002 == pytest.approx(1.0 / 12.0, abs=0.005)
    # The hold is where the robot was measured when it came to rest; the gripper keeps its target.
    expected = after[stopped].position + offset * np.array([1, 1, 0, 1])
    np.testing.assert_allclose(after[-1].position, expected, atol=1e-6)
    twists = np.array([r.base_twist[0] for r in after])
    assert twists[-1] == 0.0 and np.abs(np.diff(twists)).max() <= 1.0 * 0.002 * (1 + 1e-9)
    assert made.holds == 1


def test_stop_brakes_and_only_reset_leaves_it() -> None:
    made = executor()
    made.sample(NOW, reading(HOME))
    made.offer(chunk_of(CONTRACT, sway, NOW, np.array([0.0, 0.3, 0.0])), NOW, reading(HOME))
    moving = ideal(made, NOW, 0.5)[-1]
    made.stop()
    here = reading(moving.position)
    seen = ideal(made, NOW + SECOND // 2, 0.8)
    assert seen[-1].state is State.STOPPED and not seen[-1].velocity.any() and not seen[-1].base_twist.any()
    assert np.abs(np.diff(states(seen)[:, 1], axis=0) / arm_limits().acceleration).max() <= 0.002 * (1 + 1e-6)
    refused = made.offer(chunk_of(CONTRACT, rest_at(HOME), NOW + SECOND), NOW + SECOND, here)
    assert isinstance(refused, Refusal) and refused.reason is Reason.STOPPED
    made.reset(here)
    held = made.sample(NOW + 2 * SECOND, here)
    assert held.state is State.IDLE
    arms = [0, 1, 3]
    np.testing.assert_array_equal(held.position[arms], here.position[arms])
    assert isinstance(
        made.offer(chunk_of(CONTRACT, rest_at(held.position), NOW + 2 * SECOND), NOW + 2 * SECOND, here), Accepted
    )


def test_rows_outside_the_soft_limits_are_clamped_and_counted() -> None:
    made = executor()
    made.sample(NOW, reading(HOME))
    beyond = chunk_of(
        CONTRACT, lambda t: HOME + np.clip(3.0 * (t[:, None] - 5.0), 0, 5) * np.array([1.0, 0, 0, 0]), NOW
    )
    assert isinstance(made.offer(beyond, NOW, reading(HOME)), Accepted)
    seen = ideal(made, NOW, 1.5)
    assert states(seen)[:, 0, 0].max() <= 1.5 - ControllerConfig().soft_margin_rad + 1e-6
    assert made.clamps["position"] >= 1


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float64, (3, H, 4), elements=st.floats(0.0, 1.0)),
    arrays(np.float64, (3, H, 3), elements=st.floats(-2.0, 2.0)),
    st.lists(st.integers(1, 45), min_size=3, max_size=3),
    st.lists(st.sampled_from([2_000_000, 2_400_000, 9_000_000, 30_000_000]), min_size=1, max_size=7),
)
def test_no_finite_chunk_leads_outside_the_limits(
    rows: np.ndarray, twists: np.ndarray, gaps: list[int], periods: list[int]
) -> None:
    config = ControllerConfig(jump_rad=6.3, jump_m=2.0, soft_margin_rad=0.0)
    made, limits, base = executor(config), arm_limits(), base_limits()
    now, where = NOW, reading(HOME)
    last = made.sample(now, where)
    for knots, twist, gap in zip(rows, twists, gaps, strict=True):
        joints = limits.lower + knots * (limits.upper - limits.lower)
        chunk = Chunk(now - 31_000_000, CONTRACT.names, CONTRACT.from_joint_units(joints, twist))
        assert isinstance(made.offer(chunk, now, where), Accepted)
        for i in range(gap):
            period = periods[i % len(periods)]
            now += period
            r = made.sample(now, where)
            where = reading(r.position, now)
            dt = min(period * 1e-9, config.longest_tick_s)
            assert (r.position >= limits.lower - 1e-8).all() and (r.position <= limits.upper + 1e-8).all()
            assert (np.abs(r.velocity) <= limits.velocity * (1 + 1e-8)).all()
            assert (np.abs(r.acceleration) <= limits.acceleration * (1 + 1e-8)).all()
            assert (np.abs(r.velocity - last.velocity) <= limits.acceleration * dt + 1e-8).all()
            assert (np.abs(r.base_twist) <= base.velocity).all()
            assert (np.abs(r.base_twist - last.base_twist) <= base.acceleration * dt * (1 + 1e-8)).all()
            last = r
