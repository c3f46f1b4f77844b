"""The scripted expert: from ground truth to a subtask and a chunk, with no memory between calls.

Because a plan depends on nothing but the present world, the expert can take over from any state: it recovers from
disturbances, it labels states that a policy reached on its own (dataset aggregation, arXiv 1011.0686), and it answers
for any subtask, not only the one it would choose.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pi05_ros.contract import Contract
from pi05_ros.expert.kinematics import ArmKinematics
from pi05_ros.expert.motion import ExpertConfig, Motion, nearest_side
from pi05_ros.sim.platform import relative_pose
from pi05_ros.sim.tasks import SIDES, Subtask, remaining_objects
from pi05_ros.sim.world import WorldState

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Plan:
    """What the expert would do now: the subtask, and actions [H, D] in contract order (row k due k+1 steps on)."""

    subtask: Subtask
    actions: Array


class ScriptedExpert:
    """Clears the table by inverse kinematics on ground truth.

    Args:
        contract: the robot's contract.
        config: speeds, tolerances and heights.
    """

    def __init__(self, contract: Contract, config: ExpertConfig | None = None) -> None:
        from pi05_ros.sim.description import home_joints
        from pi05_ros.sim.model import robot_only_model

        self._contract = contract
        self._config = config or ExpertConfig()
        model = robot_only_model()
        self._home = home_joints()
        self._arms = {side: ArmKinematics(model, contract.joint_names, side) for side in SIDES}

    def choose(self, world: WorldState, task: str) -> Subtask:
        """Return the subtask that the task needs now.

        What is in a hand goes into the bin; else the base drives up; else the leftmost object that is still on the
        table is picked by the arm on its side; else the robot waits.
        """
        for item in world.objects:
            if item.held_by is not None:
                return Subtask("put", item.name)
        if not self._at_work_pose(world):
            return Subtask("drive")
        picks = pickable(world, task)
        return max(picks, key=lambda pick: world.object(pick.object_name).position[1]) if picks else Subtask("wait")

    def plan(self, world: WorldState, task: str) -> Plan:
        """Choose a subtask for the task and plan it."""
        subtask = self.choose(world, task)
        return Plan(subtask, self.plan_subtask(world, subtask))

    def plan_text(self, world: WorldState, text: str) -> Array:
        """Plan the subtask that a text names.

        Raises:
            ValueError: the text is no subtask.
        """
        return self.plan_subtask(world, Subtask.parse(text))

    def plan_subtask(self, world: WorldState, subtask: Subtask) -> Array:
        """Return the actions [H, D] that carry out a given subtask from the present world.

        Raises:
            KeyError: the subtask names an object that is not in the scene.
        """
        motion = Motion(self._contract, self._config, self._arms, self._home, world)
        rows = np.empty((self._contract.rates.chunk_steps, self._contract.dim))
        for row in rows:
            motion.step(subtask)
            row[:] = motion.action()
        return rows

    def _at_work_pose(self, world: WorldState) -> bool:
        """Arrived, with hysteresis that needs no memory: a moving base is held to the finer tolerance."""
        x, y, yaw = relative_pose(world.base_pose, world.work_pose)
        distance, turn = float(np.hypot(x, y)), abs(float(yaw))
        config = self._config
        if np.linalg.norm(world.base_twist) > config.still_speed:
            return distance < config.arrive_m and turn < config.arrive_rad
        return distance < config.stay_m and turn < config.stay_rad


def pickable(world: WorldState, task: str) -> list[Subtask]:
    """List the picks that a task still needs: objects that stand on the table, each by the arm on its side.

    An object in a hand, over the bin (falling, or leaning on its wall) or on the floor is not among them.
    """
    picks = []
    for item in remaining_objects(world, task):
        over_bin = (np.abs(item.position[:2] - world.bin_position[:2]) < world.bin_half_size).all()
        on_floor = item.position[2] < world.table_top_z - 0.05
        if item.held_by is None and not over_bin and not on_floor:
            picks.append(Subtask("pick", item.name, nearest_side(item)))
    return picks
