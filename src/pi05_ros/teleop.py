"""Teleoperation as action chunks: what a person does becomes what a policy would have said. Free of rclpy.

Two modes. "leader": the joints of a leader arm become the targets, blended in from the present pose. "jog": a gamepad
or keyboard moves the base, or one tool through inverse kinematics. Both roll a reference out over the 50 steps of a
chunk, within a share of the robot's own limits, from exactly where the chunk before has it now, so that chunks join
without a step. What always holds: a chunk goes on for `input_timeout_s`, then brakes, and its last rows stand still.
Whoever dies, person, stick or node, the robot stops.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from pi05_ros.config import Doc, OneOf, Range
from pi05_ros.contract import Contract
from pi05_ros.control.limits import BaseLimits, JointLimits, ReferenceLimiter, approach
from pi05_ros.expert.kinematics import ArmKinematics
from pi05_ros.teleop_joy import SIDES, JogCommand, TeleopError

Array = NDArray[np.float64]
NS = 1_000_000_000
LEASH_RAD = 0.3  # a reference further from the measured joints than this starts again from them
SMOOTHING_S = 0.05  # of the leader's velocity


@dataclass(frozen=True)
class TeleopConfig:
    """How a person drives; part of teleop_node's parameters."""

    mode: Annotated[str, Doc("leader: a leader arm; jog: gamepad or keyboard"), OneOf(("jog", "leader"))] = "jog"
    period_s: Annotated[float, Doc("time between two chunks [s]"), Range(0.02, 0.5)] = 0.1
    speed: Annotated[float, Doc("share of the robot's speed and acceleration limits"), Range(0.05, 1.0)] = 0.5
    ramp_s: Annotated[
        float, Doc("blending from the present pose to the leader's takes this long [s]"), Range(0.1, 20)
    ] = 2.0
    input_timeout_s: Annotated[float, Doc("input older than this counts as none [s]"), Range(0.05, 0.4)] = 0.3
    tool_speed: Annotated[float, Doc("a tool at full deflection [m/s]"), Range(0.01, 1.0)] = 0.2
    tool_turn_speed: Annotated[float, Doc("a tool at full deflection [rad/s]"), Range(0.05, 3.0)] = 0.8


@dataclass
class _Leader:
    """What is known of the leader: joints [J] it speaks for, their position and velocity, joint units."""

    position: Array
    velocity: Array
    spoken: NDArray[np.bool_]
    stamp_ns: int | None = None
    heard_s: float = float("-inf")


@dataclass
class _Reference:
    """The rows of the last chunk: joints and their velocities [H, J], base twists [H, 3], and when row -1 was."""

    stamp_ns: int
    position: Array
    velocity: Array
    twist: Array
    begin: tuple[Array, Array, Array] = field(repr=False)

    def at(self, stamp_ns: int, step_s: float) -> tuple[Array, Array, Array]:
        """Return joints, velocities and twist at a time, linear between two rows."""
        where = (stamp_ns - self.stamp_ns) / NS / step_s  # row k is due at k + 1
        low = int(np.clip(np.floor(where), 0, len(self.position) - 1))
        share = float(np.clip(where - low, 0.0, 1.0))
        before = self.begin if low == 0 else (self.position[low - 1], self.velocity[low - 1], self.twist[low - 1])
        after = (self.position[low], self.velocity[low], self.twist[low])
        mixed = [(1.0 - share) * a + share * b for a, b in zip(before, after, strict=True)]
        return mixed[0], mixed[1], mixed[2]


class Teleop:
    """Turns input into chunks.

    Args:
        contract: order and units of the action.
        config: mode and speeds.
        joints, base: the robot's limits.
        arms: kinematics by side; only "jog" needs them.
    """

    def __init__(
        self,
        contract: Contract,
        config: TeleopConfig,
        joints: JointLimits,
        base: BaseLimits,
        arms: Mapping[str, ArmKinematics],
    ) -> None:
        self._contract, self._config, self._arms = contract, config, arms
        self._limits = replace(
            joints, velocity=config.speed * joints.velocity, acceleration=config.speed * joints.acceleration
        )
        self._base = BaseLimits(config.speed * base.velocity, config.speed * base.acceleration)
        count = len(contract.joint_names)
        self._leader = _Leader(np.zeros(count), np.zeros(count), np.zeros(count, dtype=np.bool_))
        self._command, self._commanded_s = JogCommand(), float("-inf")
        self._grip = dict.fromkeys(SIDES, 0.0)
        self._grippers = {side: contract.joint_names.index(f"{side}_gripper") for side in SIDES}
        self._torso = contract.joint_names.index("torso_lift")
        self._reference: _Reference | None = None
        self._start = np.zeros(count)  # where blending in began, and when
        self._blending_ns: int | None = None

    def hear_leader(self, names: Sequence[str], position: Sequence[float], stamp_ns: int, now_s: float) -> None:
        """Take the leader's joints: any of the contract's joints, by name, in joint units.

        Raises:
            TeleopError: no joint of the contract, numbers that do not fit the names, or not finite.
        """
        given = np.asarray(position, dtype=np.float64)
        known = {name: k for k, name in enumerate(self._contract.joint_names)}
        if len(given) != len(names) or not np.isfinite(given).all():
            raise TeleopError(
                f"leader: {len(names)} names with {len(given)} positions, or positions that are not finite"
            )
        pairs = [(known[name], value) for name, value in zip(names, given.tolist(), strict=True) if name in known]
        if not pairs:
            raise TeleopError(f"leader: none of {', '.join(names)} is a joint of the robot; valid: {', '.join(known)}")
        leader, fresh = self._leader, now_s - self._leader.heard_s <= self._config.input_timeout_s
        index, target = np.array([k for k, _ in pairs]), np.array([value for _, value in pairs])
        passed_s = (stamp_ns - leader.stamp_ns) / NS if leader.stamp_ns is not None else 0.0
        if fresh and passed_s > 0:
            speed = (target - leader.position[index]) / passed_s
            share = min(1.0, passed_s / SMOOTHING_S)
            leader.velocity[index] += share * (speed - leader.velocity[index])
        else:
            leader.velocity[:] = 0.0
        leader.position[index] = np.clip(target, self._limits.lower[index], self._limits.upper[index])
        leader.spoken[index] = True
        leader.stamp_ns, leader.heard_s = stamp_ns, now_s

    def hear_jog(self, command: JogCommand, now_s: float) -> None:
        """Take what sticks and keys ask for."""
        self._command, self._commanded_s = command, now_s
        if command.grip and command.target in SIDES:
            self._grip[command.target] = 1.0 if command.grip > 0 else 0.0

    def silent(self, now_s: float) -> bool:
        """Return whether there is no fresh input: the robot holds still."""
        heard_s = self._leader.heard_s if self._config.mode == "leader" else self._commanded_s
        return now_s - heard_s > self._config.input_timeout_s

    def plan(self, state: Array, stamp_ns: int, now_s: float) -> Array:
        """Return the actions [H, D] of a chunk, row k due k + 1 steps after `stamp_ns`.

        Args:
            state: measured vector [D] at that time, contract units.
            stamp_ns: its time.
            now_s: the clock that judges whether input is fresh.
        """
        begin, silent = self._continue(state, stamp_ns), self.silent(now_s)
        if silent:
            self._blending_ns = None
        elif self._blending_ns is None:
            self._start, self._blending_ns = begin[0], stamp_ns
        limiter, twist, step_s = ReferenceLimiter(self._limits, begin[0]), begin[2], self._contract.step_s
        limiter.place(*begin[:2])
        rows: list[tuple[Array, Array, Array]] = []
        for k in range(self._contract.rates.chunk_steps):
            ahead_s = (k + 1) * step_s
            idle = silent or ahead_s > self._config.input_timeout_s
            if self._config.mode == "leader":
                self._follow(limiter, stamp_ns, ahead_s, idle)
                twist = approach(twist, np.zeros(3), self._base, step_s)
            else:
                twist = self._jog(limiter, twist, JogCommand() if idle else self._command)
            rows.append((limiter.position, limiter.velocity, twist))
        position, velocity, twists = (np.stack(part) for part in zip(*rows, strict=True))
        self._reference = _Reference(stamp_ns, position, velocity, twists, begin)
        return self._actions(position, twists)

    def _continue(self, state: Array, stamp_ns: int) -> tuple[Array, Array, Array]:
        """Return where the reference is now: where the last chunk has it, or else where the robot is, at rest."""
        measured = self._contract.to_joint_units(state)
        reference, chunk_ns = self._reference, self._contract.rates.chunk_steps * self._contract.step_s * NS
        if reference is not None and 0 <= stamp_ns - reference.stamp_ns <= chunk_ns:
            begin = reference.at(stamp_ns, self._contract.step_s)
            off = np.abs(begin[0] - measured)
            off[list(self._grippers.values())] = 0.0  # a closed hand never reaches its target
            if off.max() < LEASH_RAD:
                return begin
        self._blending_ns = None
        if reference is None:
            for side in SIDES:
                self._grip[side] = float(np.round(state[self._contract.slice(f"{side}_gripper")][0]))
        inside = np.clip(measured, self._limits.lower, self._limits.upper)
        return inside, np.zeros_like(inside), state[self._contract.base_index].copy()

    def _follow(self, limiter: ReferenceLimiter, stamp_ns: int, ahead_s: float, idle: bool) -> None:
        """One step towards where the leader will be."""
        leader, step_s = self._leader, self._contract.step_s
        if idle or self._blending_ns is None:
            limiter.brake(step_s)
            return
        share = min(1.0, ((stamp_ns - self._blending_ns) / NS + ahead_s) / self._config.ramp_s)
        share = share * share * (3.0 - 2.0 * share)
        # It is taken to go on as it does until the chunk after the next; while it is blended in, to stand.
        moving = leader.spoken & (share == 1.0)
        reach_s = min(ahead_s, 2.0 * self._config.period_s)
        aim = leader.position + np.where(moving, reach_s * leader.velocity, 0.0)
        aim = self._start + share * (np.clip(aim, self._limits.lower, self._limits.upper) - self._start)
        target = np.where(leader.spoken, aim, self._start)
        velocity = np.where(moving & (ahead_s <= reach_s), leader.velocity, 0.0)
        limiter.follow(np.stack([target, velocity, np.zeros_like(target)]), step_s)

    def _jog(self, limiter: ReferenceLimiter, twist: Array, command: JogCommand) -> Array:
        """One step as the sticks ask; return the base's twist."""
        config, step_s = self._config, self._contract.step_s
        speed = np.zeros_like(limiter.position)
        base = np.zeros(3)
        if command.target == "base":
            base = self._base.velocity * [command.linear[0], command.linear[1], command.angular[2]]
        else:
            wanted = np.concatenate(
                [config.tool_speed * np.array(command.linear), config.tool_turn_speed * np.array(command.angular)]
            )
            arm = self._arms[command.target]
            if wanted.any():
                arm.update(limiter.position)
                joint_speed = arm.joint_velocity(wanted)
                # Slowed as a whole, so that the tool keeps its direction.
                over = float((np.abs(joint_speed) / self._limits.velocity[arm.arm]).max())
                speed[arm.arm] = joint_speed / max(over, 1.0)
        speed[self._torso] = command.torso * self._limits.velocity[self._torso]
        change = self._limits.acceleration * step_s
        speed = np.clip(speed, limiter.velocity - change, limiter.velocity + change)
        # A little inside the limits, where the limiter takes the target as it is.
        target = np.clip(limiter.position + speed * step_s, self._limits.lower, self._limits.upper)
        limiter.follow(np.stack([target, speed, np.zeros_like(target)]), step_s)
        return approach(twist, base, self._base, step_s)

    def _actions(self, joints: Array, twists: Array) -> Array:
        """Return joints [H, J] and twists [H, 3] as actions [H, D]; a jogged gripper is open or closed."""
        actions = self._contract.from_joint_units(joints, twists)
        if self._config.mode == "jog":
            for side in SIDES:
                actions[:, self._contract.slice(f"{side}_gripper")] = self._grip[side]
        return actions
