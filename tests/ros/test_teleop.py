"""Teleoperation: smooth, within limits, following its input, and stopping when the input does."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pi05_ros.contract import load_contract
from pi05_ros.control.assembly import assemble_controller, robot_limits
from pi05_ros.control.chunk import Chunk
from pi05_ros.control.executor import Accepted
from pi05_ros.expert.kinematics import ArmKinematics
from pi05_ros.sim.description import home_joints
from pi05_ros.sim.model import robot_only_model
from pi05_ros.sim.simulator import Simulator
from pi05_ros.teleop import Teleop, TeleopConfig
from pi05_ros.teleop_joy import AXES, BUTTONS, JogCommand, TeleopError, jog_from_joy
from pi05_ros.teleop_keys import FIRST_S, HANDS, MOVES, NEXT_S, RECORD, TARGETS, Keyboard

Array = NDArray[np.float64]
CONTRACT = load_contract()
JOINTS, BASE = robot_limits(CONTRACT)
STEP_S, NS = CONTRACT.step_s, 1_000_000_000
HOME = home_joints(CONTRACT)
ARM = [k for k, name in enumerate(CONTRACT.joint_names) if "joint" in name]


@cache
def arms() -> dict[str, ArmKinematics]:
    model = robot_only_model()
    return {side: ArmKinematics(model, CONTRACT.joint_names, side) for side in ("left", "right")}


class Ride:
    """A robot that does exactly what the chunks say, in time with them."""

    def __init__(self, **config: object) -> None:
        self.config = TeleopConfig(**config)  # type: ignore[arg-type]
        self.teleop = Teleop(CONTRACT, self.config, JOINTS, BASE, arms())
        self.now_s, self.joints, self.twist = 100.0, HOME.copy(), np.zeros(3)
        self.path: list[Array] = [HOME.copy()]
        self.twists: list[Array] = [np.zeros(3)]
        self.chunk = np.zeros((0, CONTRACT.dim))

    @property
    def stamp_ns(self) -> int:
        return round(self.now_s * NS)

    def play(self, seconds: float, speak: Callable[["Ride"], None] = lambda _: None) -> None:
        """Let time pass; `speak` gives input before every chunk."""
        steps = round(self.config.period_s / STEP_S)
        for _ in range(round(seconds / self.config.period_s)):
            speak(self)
            state = CONTRACT.from_joint_units(self.joints, self.twist)
            self.chunk = self.teleop.plan(state, self.stamp_ns, self.now_s)
            for row in self.chunk[:steps]:
                self.joints, self.twist = CONTRACT.to_joint_units(row), row[CONTRACT.base_index]
                self.path.append(self.joints)
                self.twists.append(self.twist)
            self.now_s += self.config.period_s

    def leads(self, joints: Array) -> None:
        self.teleop.hear_leader(CONTRACT.joint_names, joints.tolist(), self.stamp_ns, self.now_s)

    def jogs(self, **command: object) -> None:
        self.teleop.hear_jog(JogCommand(**command), self.now_s)  # type: ignore[arg-type]

    def check(self) -> None:
        """Everything that was driven stays within the share of the limits, and joins without a step."""
        path, twists, share = np.array(self.path)[:, ARM], np.array(self.twists), self.config.speed
        speed = np.diff(path, axis=0) / STEP_S
        assert (np.abs(speed) <= share * JOINTS.velocity[ARM] + 1e-6).all()
        change = np.diff(speed, axis=0) / STEP_S
        # One step may end a braking that the next begins anew from between two rows.
        assert (np.abs(change) <= 2.0 * share * JOINTS.acceleration[ARM] + 1e-6).all()
        assert (path >= JOINTS.lower[ARM] - 1e-9).all() and (path <= JOINTS.upper[ARM] + 1e-9).all()
        assert (np.abs(twists) <= share * BASE.velocity + 1e-9).all()
        assert (np.abs(np.diff(twists, axis=0)) <= share * BASE.acceleration * STEP_S + 1e-9).all()


def stands(chunk: Array) -> bool:
    """Return whether the end of a chunk moves nothing."""
    return (
        bool(np.abs(np.diff(chunk[-3:, CONTRACT.joint_index], axis=0)).max() < 1e-9)
        and not chunk[-1, CONTRACT.base_index].any()
    )


def test_no_input_holds() -> None:
    for mode in ("jog", "leader"):
        ride = Ride(mode=mode)
        ride.play(1.0)
        assert ride.teleop.silent(ride.now_s)
        assert ride.chunk.shape == (CONTRACT.rates.chunk_steps, CONTRACT.dim)
        np.testing.assert_allclose(ride.joints[ARM], HOME[ARM], atol=1e-12)
        np.testing.assert_array_equal(ride.chunk[:, CONTRACT.base_index], 0.0)


def test_a_leader_that_is_far_away_is_approached_gently_and_reached() -> None:
    ride, far = Ride(mode="leader", ramp_s=2.0), HOME.copy()
    far[ARM] += np.resize([0.2, -0.3], len(ARM))
    ride.play(0.2, lambda r: r.leads(far))
    first = np.abs(ride.joints - HOME)[ARM].max()
    assert 0 < first < 0.03
    ride.play(4.0, lambda r: r.leads(far))
    np.testing.assert_allclose(ride.joints[ARM], far[ARM], atol=1e-3)
    ride.check()


def test_a_moving_leader_is_followed_without_lag() -> None:
    ride, index = Ride(mode="leader", ramp_s=0.5), ARM[1]

    def wave(r: Ride) -> Array:
        joints = HOME.copy()
        joints[index] += 0.3 * np.sin(2.0 * (r.now_s - 100.0))
        return joints

    ride.play(3.0, lambda r: r.leads(wave(r)))
    errors = []

    def speak(r: Ride) -> None:
        errors.append(float(r.joints[index] - wave(r)[index]))
        r.leads(wave(r))

    ride.play(4.0, speak)
    # 0.6 rad/s at most: a chunk that only ever aimed at where the leader was would be a period behind, 0.06 rad.
    assert np.abs(errors).max() < 0.03
    ride.check()


def test_a_leader_that_falls_silent_stops_the_robot_and_is_blended_in_again() -> None:
    ride, goal = Ride(mode="leader", ramp_s=1.0, speed=0.3), HOME.copy()
    goal[ARM[0]] += 1.0
    ride.play(0.8, lambda r: r.leads(goal))
    assert stands(ride.chunk)
    ride.play(2.0)
    held = ride.joints.copy()
    assert 0.02 < held[ARM[0]] - HOME[ARM[0]] < 0.98
    ride.play(1.0)
    np.testing.assert_allclose(ride.joints, held, atol=1e-12)
    ride.play(0.1, lambda r: r.leads(goal))
    assert abs(ride.joints[ARM[0]] - held[ARM[0]]) < 0.02
    ride.play(6.0, lambda r: r.leads(goal))
    assert ride.joints[ARM[0]] == pytest.approx(goal[ARM[0]], abs=1e-3)
    ride.check()


def test_one_leader_arm_leaves_the_other_alone() -> None:
    ride = Ride(mode="leader", ramp_s=0.5)
    names = [name for name in CONTRACT.joint_names if name.startswith("left_")]
    index = [CONTRACT.joint_names.index(name) for name in names]
    goal = HOME[index] + np.array([0.2] * 6 + [-0.03])

    def speak(r: Ride) -> None:
        r.teleop.hear_leader([*names, "elbow_of_somebody_else"], [*goal, 1.0], r.stamp_ns, r.now_s)

    ride.play(3.0, speak)
    np.testing.assert_allclose(ride.joints[index], goal, atol=1e-3)
    other = [k for k in range(len(HOME)) if k not in index]
    np.testing.assert_allclose(ride.joints[other], HOME[other], atol=1e-9)


def test_a_robot_that_is_elsewhere_starts_again_from_where_it_is() -> None:
    ride, goal = Ride(mode="leader", ramp_s=1.0), HOME.copy()
    goal[ARM[0]] += 0.5
    ride.play(3.0, lambda r: r.leads(goal))
    ride.joints = HOME.copy()  # somebody reset the scene
    ride.play(0.1, lambda r: r.leads(goal))
    assert np.abs(ride.joints - HOME).max() < 0.02


@pytest.mark.parametrize(
    ("names", "position", "told"),
    [
        (["elbow"], [0.0], "none of elbow is a joint of the robot; valid: left_joint1"),
        (["left_joint1"], [0.0, 1.0], "1 names with 2 positions"),
        (["left_joint1"], [float("nan")], "not finite"),
    ],
)
def test_a_leader_that_makes_no_sense(names: list[str], position: list[float], told: str) -> None:
    with pytest.raises(TeleopError, match=told):
        Ride(mode="leader").teleop.hear_leader(names, position, 1, 1.0)


def test_the_base_drives_as_the_stick_says_and_brakes() -> None:
    ride = Ride()
    ride.play(2.0, lambda r: r.jogs(linear=(1.0, 0.0, 0.0), angular=(0.0, 0.0, -0.5)))
    np.testing.assert_allclose(ride.twist, [0.5 * BASE.velocity[0], 0.0, -0.25 * BASE.velocity[2]], atol=1e-9)
    assert stands(ride.chunk)
    ride.play(0.1, lambda r: r.jogs())
    assert 0 < ride.twist[0] < 0.5 * BASE.velocity[0]
    ride.play(1.5)
    np.testing.assert_array_equal(ride.twist, 0.0)
    ride.check()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_tool_moves_straight(side: str, axis: int) -> None:
    ride, arm = Ride(tool_speed=0.1), arms()[side]
    linear = np.zeros(3)
    linear[axis] = 1.0
    start, rotation = arm.update(HOME)
    ride.play(1.0, lambda r: r.jogs(target=side, linear=tuple(linear)))
    ride.play(1.0)
    end, turned = arm.update(ride.joints)
    moved = end - start
    assert moved @ linear == pytest.approx(0.1, abs=0.04)
    assert np.linalg.norm(moved - (moved @ linear) * linear) < 0.01
    np.testing.assert_allclose(turned, rotation, atol=0.05)
    others = [k for k in range(len(HOME)) if k not in arm.arm]
    np.testing.assert_allclose(ride.joints[others], HOME[others], atol=1e-9)
    ride.check()


def test_grippers_open_and_close_and_stay() -> None:
    ride, column = Ride(), CONTRACT.slice("left_gripper").start
    ride.play(0.2)
    assert ride.chunk[0, column] == 0.0
    ride.play(0.2, lambda r: r.jogs(target="left", grip=1))
    ride.play(0.5)
    assert (ride.chunk[:, column] == 1.0).all()
    assert ride.chunk[0, CONTRACT.slice("right_gripper").start] == 0.0
    ride.play(0.2, lambda r: r.jogs(target="left", grip=-1))
    assert (ride.chunk[:, column] == 0.0).all()


unit = st.floats(-1, 1)
commands = st.builds(
    JogCommand,
    target=st.sampled_from(["base", "left", "right"]),
    linear=st.tuples(unit, unit, unit),
    angular=st.tuples(unit, unit, unit),
    torso=unit,
    grip=st.sampled_from([-1, 0, 1]),
)


@settings(max_examples=25, deadline=None)
@given(said=st.lists(st.tuples(commands, st.sampled_from([0.1, 0.3, 0.6])), min_size=1, max_size=6))
def test_whatever_is_asked_for_stays_within_limits_and_ends_at_rest(said: list[tuple[JogCommand, float]]) -> None:
    ride = Ride(speed=1.0, tool_speed=1.0, tool_turn_speed=3.0)
    for command, seconds in said:
        ride.play(seconds, lambda r, c=command: r.teleop.hear_jog(c, r.now_s))  # type: ignore[misc]
        assert stands(ride.chunk)
    ride.check()


def test_the_simulated_robot_takes_every_chunk() -> None:
    """Tool up, then sideways, closed loop with the real controller and physics."""
    simulator = Simulator(CONTRACT, render=False)
    simulator.reset(0)
    controller = assemble_controller(CONTRACT, simulator)
    teleop = Teleop(CONTRACT, TeleopConfig(tool_speed=0.1), JOINTS, BASE, arms())
    arm = arms()["left"]
    controller.tick(0)
    start, _ = arm.update(simulator.read().position)
    for k in range(30):
        now_s = simulator.time_ns / NS
        if k < 10:
            teleop.hear_jog(JogCommand("left", (0.0, 0.0, 1.0)), now_s)
        elif k < 20:
            teleop.hear_jog(JogCommand("left", (0.0, 1.0, 0.0)), now_s)
        reading = simulator.read()
        state = CONTRACT.from_joint_units(reading.position, reading.base_twist)
        chunk = Chunk(simulator.time_ns, CONTRACT.names, teleop.plan(state, simulator.time_ns, now_s))
        assert isinstance(controller.offer(chunk, simulator.time_ns), Accepted)
        for _ in range(50):
            controller.tick(simulator.time_ns)
            simulator.step()
    end, _ = arm.update(simulator.read().position)
    np.testing.assert_allclose(end - start, [0.0, 0.1, 0.1], atol=0.04)


def joy(axes: dict[int, float], *pressed: int) -> JogCommand:
    return jog_from_joy([axes.get(k, 0.0) for k in range(AXES)], [int(button in pressed) for button in range(BUTTONS)])


def test_gamepad() -> None:
    assert joy({}) == JogCommand()
    assert joy({0: 0.05, 1: -0.04}) == JogCommand()  # a stick never rests exactly in the middle
    assert joy({0: 0.5, 1: 1.0, 3: -1.0, 7: 1.0}) == JogCommand("base", (1.0, 0.5, 0.0), (0.0, 0.0, -1.0), 1.0)
    assert joy({1: 1.0, 4: 1.0}, 4, 0) == JogCommand("left", (1.0, 0.0, 1.0), grip=1, angular=(0.0, -0.0, 0.0))
    assert joy({6: 1.0, 7: 1.0, 3: 1.0}, 5, 1) == JogCommand("right", angular=(1.0, -1.0, 1.0), grip=-1)
    assert joy({1: 3.0, 0: float("nan")}).linear == (1.0, 0.0, 0.0)
    with pytest.raises(TeleopError, match="joy: 2 axes and 4 buttons; needed: 8 axes and 6 buttons"):
        jog_from_joy([0.0] * 2, [0] * 4)


def test_commands_are_checked() -> None:
    with pytest.raises(TeleopError, match="jog target 'head' is not valid; valid: base, left, right"):
        JogCommand("head")
    with pytest.raises(TeleopError, match=r"valid: numbers in \[-1, 1\]"):
        JogCommand(linear=(2.0, 0.0, 0.0))


def test_a_key_holds_until_its_repeat_is_overdue() -> None:
    keyboard = Keyboard()
    assert keyboard.press("w", 1.0)
    assert jog_from_joy(*keyboard.joy(1.0 + FIRST_S - 0.01)).linear == (0.5, 0.0, 0.0)
    assert keyboard.press("w", 1.5)  # it begins to repeat
    assert jog_from_joy(*keyboard.joy(1.5 + NEXT_S - 0.01)).linear == (0.5, 0.0, 0.0)
    assert jog_from_joy(*keyboard.joy(1.5 + NEXT_S + 0.01)) == JogCommand()
    keyboard.press("w", 3.0)
    keyboard.press(" ", 3.1)
    assert jog_from_joy(*keyboard.joy(3.1)) == JogCommand()


def test_keys_choose_target_speed_and_hand() -> None:
    keyboard = Keyboard()
    keyboard.press("2", 1.0)
    for key in ("+", "+", "r", "c"):
        keyboard.press(key, 1.0)
    assert jog_from_joy(*keyboard.joy(1.1)) == JogCommand("left", (0.0, 0.0, 0.7), (0.0, -0.0, 0.0), 0.0, 1)
    keyboard.press("3", 1.2)  # what was held moves the other arm no further
    assert jog_from_joy(*keyboard.joy(1.2)) == JogCommand("right", angular=(0.0, -0.0, 0.0))
    for _ in range(20):
        keyboard.press("-", 1.0)
    assert keyboard.speed == 0.1
    keyboard.press("1", 1.0)
    keyboard.press("t", 1.0)
    assert jog_from_joy(*keyboard.joy(1.1)).torso == 0.1
    assert not keyboard.press("?", 1.0)


def test_no_key_means_two_things() -> None:
    keys = [*MOVES, *HANDS, *TARGETS, *RECORD]
    assert len(keys) == len(set(keys))
