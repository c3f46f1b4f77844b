"""One second of motion, rolled out kinematically in 20 ms steps from the measured state.

All tool positions are in the frame of base_link. Gripper fractions are 0 open … 1 closed and commanded as 0 or 1; the
controller limits their speed and force.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pi05_ros.contract import Contract
from pi05_ros.expert.kinematics import ArmKinematics, rotation_error, top_down
from pi05_ros.sim.platform import relative_pose, to_body, to_world
from pi05_ros.sim.tasks import SIDES, Subtask
from pi05_ros.sim.world import ObjectState, WorldState

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ExpertConfig:
    """Speeds [m/s, rad/s], accelerations, tolerances and heights [m, rad] of the scripted expert."""

    tool_speed: float = 0.40
    tool_accel: float = 2.0
    tool_turn_speed: float = 2.0
    tool_turn_accel: float = 10.0
    tool_gain: float = 5.0
    """Approach speed per distance to go [1/s]."""
    joint_speed: float = 1.5
    joint_accel: float = 6.0
    torso_speed: float = 0.10
    base_speed: float = 0.35
    base_accel: float = 0.5
    base_turn_speed: float = 0.6
    base_turn_accel: float = 1.2
    gripper_rate: float = 4.0
    """Fraction per second at which the rollout assumes a gripper to move."""

    hover: float = 0.10
    """Height of the tool over the grasp when it is not yet above the object."""
    grasp_clearance: float = 0.030
    """Least height of the tool over the table."""
    carry_clearance: float = 0.05
    """Height of a carried object's lower side over the bin's opening."""
    bin_spread: float = 0.035
    """Objects are let go this far from the bin's centre, each where there is room, so that they do not pile up."""
    funnel_slope: float = 3.0
    grasp_tolerance: float = 0.008
    near: float = 0.025
    """Within this distance of the grasp, a half-closed gripper keeps closing."""
    release_tolerance: float = 0.025

    still_speed: float = 0.03
    arrive_m: float = 0.015
    arrive_rad: float = 0.02
    stay_m: float = 0.06
    stay_rad: float = 0.08


class Motion:
    """A kinematic copy of the robot that carries a subtask out.

    Args:
        contract: order and units of the action.
        config: speeds and tolerances.
        arms: kinematics by side.
        home: [J] joints at which an idle arm and the torso rest.
        world: where everything is now.
    """

    def __init__(
        self, contract: Contract, config: ExpertConfig, arms: dict[str, ArmKinematics], home: Array, world: WorldState
    ) -> None:
        self._contract, self._config, self._arms, self._home, self._world = contract, config, arms, home, world
        self._dt = contract.step_s
        self._joints = world.position.copy()
        self._speed = world.velocity.copy()
        self._base = world.base_pose.copy()
        self._base_twist = world.base_twist.copy()
        self._twist = {side: self._measured_twist(side) for side in SIDES}
        state = contract.from_joint_units(world.position, world.base_twist)
        self._fraction = {side: float(state[contract.slice(f"{side}_gripper")][0]) for side in SIDES}
        self._command = {side: 0.0 for side in SIDES}
        self._grip_time = {side: 1.0 if self._at_rest(side) else 0.0 for side in SIDES}
        self._held = {item.held_by: item.name for item in world.objects if item.held_by}
        self._torso = contract.joint_names.index("torso_lift")

    def action(self) -> Array:
        """Return the action [D] of the present step."""
        row = self._contract.from_joint_units(self._joints, self._base_twist)
        for side in SIDES:
            row[self._contract.slice(f"{side}_gripper")] = self._command[side]
        return row

    def step(self, subtask: Subtask) -> None:
        """Advance by one action step."""
        active = self._side_of(subtask)
        for side in SIDES:
            if side != active:
                self._command[side] = 0.0
                self._move_home(side)
            elif subtask.verb == "pick":
                self._pick(side, self._world.object(subtask.object_name))
            else:
                self._put(side, self._world.object(subtask.object_name))
            self._move_gripper(side)
        self._move_torso()
        self._move_base(driving=subtask.verb == "drive")

    def _side_of(self, subtask: Subtask) -> str | None:
        if subtask.verb == "pick":
            return subtask.side
        if subtask.verb == "put":
            holder = next((side for side, name in self._held.items() if name == subtask.object_name), None)
            return holder or nearest_side(self._world.object(subtask.object_name))
        return None

    # The two manipulation skills. Each is a function of tool, gripper and object only.

    def _pick(self, side: str, item: ObjectState) -> None:
        config = self._config
        grasp = self._in_base(item.position)
        grasp[2] = max(grasp[2], self._world.table_top_z + config.grasp_clearance)
        tool, rotation = self._arms[side].update(self._joints)
        lateral, above = float(np.hypot(*(tool - grasp)[:2])), float(tool[2] - grasp[2])
        turned = float(np.linalg.norm(rotation_error(self._grasp_rotation(item), rotation)))
        fraction = self._fraction[side]
        near = lateral < config.near and abs(above) < config.near
        goal = grasp.copy()
        if self._held.get(side) == item.name:
            self._command[side] = 1.0
            if self._grip_time[side] > 0.1:
                goal[2] = self._carry_height(item)
        elif near and fraction > 0.93:  # closed on nothing: back off before opening
            goal[2] += config.hover
        elif near and (fraction > 0.2 or self._on_grasp(lateral, above, turned)):
            self._command[side] = 1.0
        else:
            self._command[side] = 0.0
            off_axis = max(lateral - config.grasp_tolerance, 0.02 * (turned > 0.15), 0.02 * (fraction > 0.15))
            goal[2] += min(config.funnel_slope * off_axis, config.hover)
        self._reach(side, goal, self._grasp_rotation(item))

    def _on_grasp(self, lateral: float, above: float, turned: float) -> bool:
        tolerance = self._config.grasp_tolerance
        return lateral < tolerance and abs(above) < 1.5 * tolerance and turned < 0.15

    def _put(self, side: str, item: ObjectState) -> None:
        config = self._config
        goal = self._in_base(self._world.bin_position)
        goal[:2] += self._free_spot(side)
        goal[2] = self._carry_height(item)
        tool, _ = self._arms[side].update(self._joints)
        lateral = float(np.hypot(*(tool - goal)[:2]))
        held = self._held.get(side) == item.name
        over_bin = lateral < config.release_tolerance
        self._command[side] = 1.0 if held and not over_bin else 0.0
        if held and over_bin and self._fraction[side] < 0.1:
            del self._held[side]
        # Up first, then across: the object must not touch the bin's wall.
        clearance = np.clip((tool[2] - goal[2] + 0.06) / 0.04, 0.0, 1.0)
        goal[:2] = tool[:2] + clearance * (goal[:2] - tool[:2])
        self._reach(side, goal, top_down(np.pi / 2))

    def _free_spot(self, side: str) -> Array:
        """Return the offset [2] from the bin's centre, on the arm's own side, that is furthest from what lies there."""
        spread = self._config.bin_spread
        own = spread if side == "left" else -spread
        centre = self._in_base(self._world.bin_position)
        taken = [(self._in_base(o.position) - centre)[:2] for o in self._world.objects if o.in_bin]
        spots = [np.array([spread, own]), np.array([-spread, own])]
        return max(spots, key=lambda spot: min((float(np.linalg.norm(spot - other)) for other in taken), default=0.0))

    def _carry_height(self, item: ObjectState) -> float:
        return float(self._in_base(self._world.bin_position)[2] + item.size[2] + self._config.carry_clearance)

    def _grasp_rotation(self, item: ObjectState) -> Array:
        """Fingers open along a narrow side of the object, by the smallest turn from straight ahead."""
        yaw = item.yaw - self._world.base_pose[2]
        if item.shape == "cylinder":
            return top_down(np.pi / 2)
        square = abs(item.size[0] - item.size[1]) < 0.004
        narrow = yaw if item.size[0] < item.size[1] else yaw + np.pi / 2
        period = np.pi / 2 if square else np.pi
        turn = (narrow - np.pi / 2 + period / 2) % period - period / 2
        return top_down(np.pi / 2 + turn)

    # Moving parts, each within its speed and acceleration.

    def _reach(self, side: str, goal: Array, rotation: Array) -> None:
        config, arm = self._config, self._arms[side]
        tool, now = arm.update(self._joints)
        wanted = np.concatenate([config.tool_gain * (goal - tool), config.tool_gain * rotation_error(rotation, now)])
        _limit(wanted[:3], config.tool_speed)
        _limit(wanted[3:], config.tool_turn_speed)
        change = wanted - self._twist[side]
        _limit(change[:3], config.tool_accel * self._dt)
        _limit(change[3:], config.tool_turn_accel * self._dt)
        self._twist[side] = self._twist[side] + change
        speed = arm.joint_velocity(self._twist[side])
        speed *= min(1.0, config.joint_speed / max(float(np.abs(speed).max()), 1e-9))
        self._joints[arm.arm] = arm.clip(self._joints[arm.arm] + speed * self._dt)
        self._speed[arm.arm] = speed

    def _move_home(self, side: str) -> None:
        config, arm = self._config, self._arms[side].arm
        wanted = np.clip(3.0 * (self._home[arm] - self._joints[arm]), -config.joint_speed, config.joint_speed)
        most = config.joint_accel * self._dt
        self._speed[arm] += np.clip(wanted - self._speed[arm], -most, most)
        self._joints[arm] += self._speed[arm] * self._dt

    def _move_gripper(self, side: str) -> None:
        step, limit = self._config.gripper_rate * self._dt, 1.0
        held = self._held.get(side)
        closing_on = held or self._between_fingers(side)
        if self._command[side] > 0.5 and closing_on:
            limit = self._contact_fraction(side, self._world.object(closing_on))
        now = self._fraction[side]
        self._fraction[side] = min(now + step, max(limit, now)) if self._command[side] > 0.5 else max(now - step, 0.0)
        if self._command[side] > 0.5 and closing_on and self._fraction[side] >= limit - 1e-6:
            self._held[side] = closing_on
            self._grip_time[side] += self._dt

    def _between_fingers(self, side: str) -> str | None:
        tool, _ = self._arms[side].update(self._joints)
        for item in self._world.objects:
            if np.linalg.norm(self._in_base(item.position) - tool) < 0.03:
                return item.name
        return None

    def _contact_fraction(self, side: str, item: ObjectState) -> float:
        joints = self._joints.copy()
        joints[self._contract.joint_names.index(f"{side}_gripper")] = min(item.size[0], item.size[1])
        vector = self._contract.from_joint_units(joints, self._base_twist)
        return float(vector[self._contract.slice(f"{side}_gripper")][0])

    def _at_rest(self, side: str) -> bool:
        return abs(float(self._world.velocity[self._contract.joint_names.index(f"{side}_gripper")])) < 0.02

    def _move_torso(self) -> None:
        most = self._config.torso_speed * self._dt
        self._joints[self._torso] += np.clip(self._home[self._torso] - self._joints[self._torso], -most, most)

    def _move_base(self, driving: bool) -> None:
        config = self._config
        error = relative_pose(self._base, self._world.work_pose) if driving else np.zeros(3)
        wanted = np.empty(3)
        distance = float(np.hypot(*error[:2]))
        pace = _stopping_speed(distance, config.base_accel, config.base_speed)
        wanted[:2] = error[:2] / max(distance, 1e-9) * pace
        wanted[2] = np.sign(error[2]) * _stopping_speed(abs(error[2]), config.base_turn_accel, config.base_turn_speed)
        change = wanted - self._base_twist
        _limit(change[:2], config.base_accel * self._dt)
        change[2] = np.clip(change[2], -config.base_turn_accel * self._dt, config.base_turn_accel * self._dt)
        self._base_twist = self._base_twist + change
        self._base += to_world(self._base_twist, self._base[2]) * self._dt

    def _in_base(self, point: Array) -> Array:
        x, y, yaw = self._world.base_pose
        return to_body(point - np.array([x, y, 0.0]), yaw)

    def _measured_twist(self, side: str) -> Array:
        arm = self._arms[side]
        arm.update(self._world.position)
        twist: Array = arm.jacobian() @ self._world.velocity[arm.arm]
        return twist


def nearest_side(item: ObjectState) -> str:
    """Return the arm that is nearer to an object when the base is at its work pose."""
    return "left" if item.position[1] >= 0.0 else "right"


def _limit(vector: Array, most: float) -> None:
    """Shorten a vector in place to at most `most`."""
    length = float(np.linalg.norm(vector))
    if length > most:
        vector *= most / length


def _stopping_speed(distance: float, accel: float, most: float) -> float:
    """Return the fastest speed from which `accel` still stops within `distance`, proportional close to the goal."""
    return float(min(most, np.sqrt(2.0 * 0.7 * accel * distance), 3.0 * distance))
