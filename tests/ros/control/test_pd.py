"""The torque loop closed over a simulated arm with a gripper and a lift: tracking, holding, stopping, counting."""

import json
from dataclasses import replace

import mujoco
import numpy as np
import pytest
from control_rig import ARM, HOME, TICK_NS, H, Rig, arm_contract, arm_limits, arm_rig, chunk_of, rest_at

from pi05_ros.config import ConfigError
from pi05_ros.control.chunk import Chunk
from pi05_ros.control.config import ControllerConfig
from pi05_ros.control.executor import Accepted, Reason, Refusal, State
from pi05_ros.control.hardware import JointReading
from pi05_ros.control.pd import Latch

CONTRACT = arm_contract()
ARMS = [0, 1, 3]


def sway(t: np.ndarray) -> np.ndarray:
    x = np.clip(t / 1.0, 0.0, 1.0)
    ramp = x**3 * (10 - 15 * x + 6 * x**2)
    return HOME + (ramp * np.sin(2.5 * t))[:, None] * np.array([0.4, 0.3, 0.01, 0.05])


def lag_of(rig: Rig) -> np.ndarray:
    return rig.plant.position - sway(np.array([rig.now_ns * 1e-9]))[0]


def test_tracks_chunks_and_counts() -> None:
    rig = arm_rig()
    errors: list[np.ndarray] = []
    rig.follow(sway, 4.0, lambda: errors.append(lag_of(rig)))
    rms = np.sqrt(np.mean(np.square(errors), axis=0))
    assert (rms < np.array([2e-3, 2e-3, 1e-3, 1e-3])).all(), rms
    told = rig.controller.snapshot()
    assert told["chunks_accepted"] == 8 and told["chunks_refused"] == {} and told["holds"] == 0
    assert told["rows_dropped"] == 8 * 5
    assert told["latch"] is None and told["state"] == "tracking"
    assert not any(told["clamps"].values()), told["clamps"]
    assert set(told["tracking_rms"]) == set(CONTRACT.joint_names)
    assert 0 < told["tracking_rms"]["shoulder"] < 2e-3
    json.dumps(told)


def test_holds_before_any_chunk_and_after_the_last() -> None:
    rig = arm_rig()
    rig.run(0.5)
    np.testing.assert_allclose(rig.plant.position, HOME, atol=1e-3)
    assert np.abs(rig.plant.effort[0]) > 5.0, "gravity is carried"
    rig.follow(sway, 1.0)
    rig.run(1.5)
    assert rig.controller.state is State.HOLDING
    held = rig.plant.position
    rig.run(0.5)
    np.testing.assert_allclose(rig.plant.position, held, atol=1e-4)


def test_nothing_is_commanded_before_a_reading() -> None:
    rig = arm_rig()
    rig.plant.tamper = lambda r: None
    assert rig.controller.tick(0) is None
    assert not rig.plant.effort.any()
    refused = rig.controller.offer(chunk_of(CONTRACT, sway, 0), 0)
    assert isinstance(refused, Refusal) and refused.reason is Reason.NO_READING


def test_a_nan_chunk_is_counted_and_the_robot_holds() -> None:
    rig = arm_rig()
    rig.run(0.1)
    bad = Chunk(rig.now_ns, CONTRACT.names, np.full((H, CONTRACT.dim), np.nan))
    refused = rig.controller.offer(bad, rig.now_ns)
    assert isinstance(refused, Refusal) and refused.reason is Reason.NOT_FINITE
    rig.run(0.3)
    np.testing.assert_allclose(rig.plant.position, HOME, atol=1e-3)
    assert rig.controller.snapshot()["chunks_refused"] == {"not_finite": 1}


def freeze(rig: Rig) -> None:
    last = rig.plant.read()
    rig.plant.tamper = lambda _: last


def test_stale_readings_latch_until_reset() -> None:
    rig = arm_rig()
    rig.follow(sway, 2.0)
    freeze(rig)
    rig.run(0.048)
    assert rig.controller.latch is None
    rig.run(0.008)
    assert rig.controller.latch is Latch.STALE_READING and rig.controller.state is State.STOPPED
    rig.run(0.3)
    assert np.isfinite(rig.plant.effort).all() and np.abs(rig.plant.effort[0]) > 3.0, "gravity is still carried"
    rig.plant.tamper = lambda r: r
    rig.run(1.0)
    assert rig.controller.latch is Latch.STALE_READING, "readings alone do not leave the stop"
    still = rig.plant.position
    rig.run(0.2)
    np.testing.assert_allclose(rig.plant.position[ARMS], still[ARMS], atol=1e-4)
    rig.controller.reset()
    rig.run(0.1)
    assert rig.controller.latch is None and rig.controller.state is State.IDLE
    now = rig.now_ns
    assert isinstance(rig.controller.offer(chunk_of(CONTRACT, rest_at(rig.plant.position), now), now), Accepted)
    assert rig.controller.snapshot()["latches"] == {"stale_reading": 1}


def test_a_robot_that_moved_unseen_is_not_pulled_back() -> None:
    rig = arm_rig()
    rig.run(0.1)
    freeze(rig)
    rig.run(0.3)
    elbow = int(rig.plant.model.joint("elbow").qposadr[0])
    rig.plant.data.qpos[elbow] += 0.2
    rig.plant.tamper = lambda r: r
    rig.run(0.5)
    assert rig.plant.position[1] == pytest.approx(HOME[1] + 0.2, abs=0.02)


@pytest.mark.parametrize("part", ["position", "velocity"])
def test_not_finite_readings_are_ignored_and_then_stale(part: str) -> None:
    rig = arm_rig()
    rig.run(0.1)

    def spoil(r: JointReading) -> JointReading:
        return replace(r, **{part: r.position * np.nan})

    rig.plant.tamper = spoil
    rig.run(0.02, lambda: np.testing.assert_array_equal(np.isfinite(rig.plant.effort), True))
    rig.plant.tamper = lambda r: r
    rig.run(0.1)
    assert rig.controller.latch is None and rig.controller.snapshot()["bad_readings"] == 10
    rig.plant.tamper = spoil
    rig.run(0.1, lambda: np.testing.assert_array_equal(np.isfinite(rig.plant.effort), True))
    assert rig.controller.latch is Latch.STALE_READING


def test_a_source_whose_clock_runs_ahead_is_still_found_stale() -> None:
    rig = arm_rig()
    ahead = 10**12
    rig.plant.tamper = lambda r: JointReading(r.stamp_ns + ahead, r.position, r.velocity, r.base_twist)
    rig.run(0.1)
    assert rig.controller.latch is None
    freeze(rig)
    rig.run(0.06)
    assert rig.controller.latch is Latch.STALE_READING


def test_stop_latches_and_brakes() -> None:
    rig = arm_rig()
    rig.follow(sway, 2.0)
    rig.controller.stop()
    assert rig.controller.latch is Latch.STOP_CALLED
    rig.run(0.6)
    held = rig.plant.position
    refused = rig.controller.offer(chunk_of(CONTRACT, rest_at(held), rig.now_ns), rig.now_ns)
    assert isinstance(refused, Refusal) and refused.reason is Reason.STOPPED
    rig.run(0.4)
    np.testing.assert_allclose(rig.plant.position[ARMS], held[ARMS], atol=1e-4)
    assert not rig.plant.twist.any()


def test_hold_gives_up_the_chunk_but_takes_the_next() -> None:
    rig = arm_rig()
    rig.controller.hold()
    rig.follow(sway, 2.0)
    rig.controller.hold()
    rig.run(0.4)
    assert rig.controller.state is State.HOLDING and rig.controller.latch is None
    held, now = rig.plant.position, rig.now_ns
    assert isinstance(rig.controller.offer(chunk_of(CONTRACT, rest_at(held), now), now), Accepted)
    assert rig.controller.state is State.TRACKING and rig.controller.snapshot()["holds"] == 1


def test_stop_before_the_first_reading_is_kept() -> None:
    rig = arm_rig()
    rig.controller.stop()
    rig.run(0.1)
    assert rig.controller.state is State.STOPPED
    np.testing.assert_allclose(rig.plant.position, HOME, atol=1e-3)
    rig.controller.reset()
    rig.run(0.01)
    assert rig.controller.state is State.IDLE


def test_a_blocked_arm_latches_and_gives_way() -> None:
    rig = arm_rig(ControllerConfig(tracking_limit_rad=0.1))
    rig.run(0.1)
    elbow = int(rig.plant.model.joint("elbow").dofadr[0])
    rig.plant.model.jnt_limited[elbow] = 1
    rig.plant.model.jnt_range[elbow] = (HOME[1] - 0.02, HOME[1] + 0.02)
    pushes: list[float] = []
    rig.follow(
        lambda t: HOME + np.clip(t - 0.1, 0, 1)[:, None] * np.array([0, 0.8, 0, 0]),
        1.0,
        lambda: pushes.append(abs(rig.plant.effort[1]) if rig.controller.latch else -1.0),
    )
    assert rig.controller.latch is Latch.TRACKING_ERROR
    since = [push for push in pushes if push >= 0.0]
    assert max(pushes) > 12.0 and max(since[10:]) < 6.0, "it stops pushing at once, not after braking"
    rig.run(0.5)
    gravity = abs(9.81 * (1 * 0.15 + 0.1 * 0.33))
    assert abs(rig.plant.effort[1]) < gravity + 1.0, "the pushing is over"


def test_a_gripper_holds_with_a_capped_force_and_never_latches() -> None:
    """A finger closing on something 2 x 20 mm wide: standing error, force capped, no tracking latch, grip kept."""
    config = ControllerConfig(grip_force=8.0, tracking_limit_m=0.005)
    rig = arm_rig(config)
    for name in ("finger", "finger_mimic"):
        i = rig.plant.model.joint(name).id
        rig.plant.model.jnt_limited[i] = 1
        rig.plant.model.jnt_range[i] = (0.02, 0.045)
    closed = HOME * np.array([1, 1, 0, 1])
    rig.run(0.1)
    rig.controller.offer(chunk_of(CONTRACT, rest_at(closed), rig.now_ns), rig.now_ns)
    rig.run(0.8)
    assert rig.plant.effort[2] == pytest.approx(-8.0, abs=0.5)
    rig.run(0.7)
    assert rig.controller.state is State.HOLDING and rig.controller.latch is None
    assert rig.plant.effort[2] == pytest.approx(-8.0, abs=0.5), "a hold keeps gripping"
    rig.controller.stop()
    rig.run(0.3)
    rig.controller.reset()
    rig.run(0.3)
    assert rig.plant.effort[2] == pytest.approx(-8.0, abs=0.5), "so does a reset"
    rig.controller.reset(keep_grip=False)
    rig.run(0.3)
    assert abs(rig.plant.effort[2]) < 1.0, "unless told otherwise"
    clamps = rig.controller.snapshot()["clamps"]
    assert clamps["grip_force"] and not clamps["effort"]


def test_a_clock_that_runs_back_starts_afresh() -> None:
    rig = arm_rig()
    rig.follow(sway, 2.0)
    rig.controller.stop()
    mujoco.mj_resetData(rig.plant.model, rig.plant.data)
    rig.plant.now_ns = 0
    start = rig.plant.position
    rig.run(0.2)
    assert rig.controller.state is State.STOPPED, "a latched stop outlives it"
    np.testing.assert_allclose(rig.plant.position, start, atol=2e-3)
    rig.controller.reset()
    rig.run(0.1)
    assert isinstance(rig.controller.offer(chunk_of(CONTRACT, rest_at(start), rig.now_ns), rig.now_ns), Accepted)


def test_commands_never_leave_the_effort_limits_nor_their_rate() -> None:
    limits = arm_limits()
    weak = type(limits)(
        limits.lower, limits.upper, limits.velocity, limits.acceleration, 0.5 * limits.effort, limits.effort_rate / 20
    )
    rig = Rig(ARM, CONTRACT, weak, HOME, ControllerConfig(jump_rad=6.0, jump_m=1.0, tracking_limit_rad=6.0))
    rng = np.random.default_rng(0)
    rig.run(0.1)
    last = rig.plant.effort
    for _ in range(6):
        wild = rng.uniform(weak.lower, weak.upper, (H, 4))
        chunk = Chunk(rig.now_ns, CONTRACT.names, CONTRACT.from_joint_units(wild, rng.uniform(-1, 1, (H, 3))))
        assert isinstance(rig.controller.offer(chunk, rig.now_ns), Accepted)
        for _ in range(100):
            rig.run(TICK_NS * 1e-9)
            assert (np.abs(rig.plant.effort) <= weak.effort).all()
            assert (np.abs(rig.plant.effort - last) <= weak.effort_rate * 0.002 * (1 + 1e-9)).all()
            last = rig.plant.effort
    clamps = rig.controller.snapshot()["clamps"]
    assert clamps["effort_rate"] and clamps["acceleration"] and clamps["velocity"]


def test_period_statistics_come_from_the_wall_times_given() -> None:
    rig = arm_rig()
    wall_ns = 0
    for i in range(101):
        rig.controller.tick(rig.now_ns, wall_ns)
        rig.plant.step()
        wall_ns += 9_000_000 if i == 50 else 2_000_000
    told = rig.controller.snapshot()["control_period_ms"]
    assert told["p50"] == pytest.approx(2.0) and told["max"] == pytest.approx(9.0)
    assert 2.0 <= told["p99"] <= 9.0


def test_gains_follow_from_inertia() -> None:
    rig = arm_rig(ControllerConfig(gripper_frequency=50.0, damping_ratio=0.7))
    assert rig.controller.kp[2] == pytest.approx(0.2 * 50.0**2)
    assert rig.controller.kd[2] == pytest.approx(2 * 0.7 * 0.2 * 50.0)


def test_configuration_out_of_range_is_told() -> None:
    with pytest.raises(ConfigError, match=r"damping_ratio: -1\.0 is not valid"):
        ControllerConfig(damping_ratio=-1.0)
    with pytest.raises(ConfigError, match="bridge_shortest_s"):
        ControllerConfig(bridge_shortest_s=0.6)
