"""The scripted expert, closed loop in the simulator: it clears the table, recovers, and does what it is told."""

import numpy as np
import pytest

from pi05_ros.contract import Contract, load_contract
from pi05_ros.expert.expert import ScriptedExpert, pickable
from pi05_ros.expert.kinematics import ArmKinematics, rotation_error, top_down
from pi05_ros.rollout import ExpertBrain, Look, Rollout, RolloutConfig
from pi05_ros.sim.description import home_joints
from pi05_ros.sim.model import robot_only_model
from pi05_ros.sim.simulator import Simulator
from pi05_ros.sim.tasks import CLEAR_TABLE, Subtask, put_text


@pytest.fixture(scope="module")
def contract() -> Contract:
    return load_contract()


@pytest.fixture(scope="module")
def expert(contract: Contract) -> ScriptedExpert:
    return ScriptedExpert(contract)


@pytest.fixture(scope="module")
def rollout(contract: Contract) -> Rollout:
    return Rollout(contract, Simulator(contract), RolloutConfig(look_period_s=0.4, looks_per_chunk=1, looks_per_plan=2))


def test_clears_the_table(rollout: Rollout, expert: ScriptedExpert) -> None:
    outcome = rollout.run(3, CLEAR_TABLE, ExpertBrain(expert))
    assert outcome.success, outcome
    assert outcome.cleared == outcome.objects >= 2
    assert not outcome.refused
    words = [text.split()[0] for _, text in outcome.subtasks]
    assert words[0] == "drive" and {"pick", "put"} <= set(words)


def test_recovers_from_disturbances(rollout: Rollout, expert: ScriptedExpert, contract: Contract) -> None:
    rng = np.random.default_rng(0)
    arms = [contract.slice("left_arm"), contract.slice("right_arm")]

    def push(actions: np.ndarray) -> np.ndarray:
        bent = actions.copy()
        if rng.random() < 0.3:
            for arm in arms:
                bent[:, arm] += np.linspace(0, 1, len(bent))[:, None] * rng.normal(0, 0.05, 6)
        return bent

    assert rollout.run(4, CLEAR_TABLE, ExpertBrain(expert), disturb=push).success


def test_a_named_object_goes_into_the_bin_and_nothing_else(rollout: Rollout, expert: ScriptedExpert) -> None:
    rollout.simulator.reset(7)
    wanted = rollout.simulator.snapshot().objects[0].name
    outcome = rollout.run(7, put_text(wanted), ExpertBrain(expert))
    assert outcome.success
    assert [item.name for item in rollout.simulator.snapshot().objects if item.in_bin] == [wanted]


def test_a_plan_depends_on_the_world_alone(rollout: Rollout, expert: ScriptedExpert, contract: Contract) -> None:
    looks: list[Look] = []
    rollout.run(5, CLEAR_TABLE, ExpertBrain(expert), on_look=lambda look, _: looks.append(look))
    other = ScriptedExpert(contract)
    for look in looks[::7]:
        np.testing.assert_array_equal(
            expert.plan(look.world, CLEAR_TABLE).actions, other.plan(look.world, CLEAR_TABLE).actions
        )


def test_it_answers_for_any_subtask(rollout: Rollout, expert: ScriptedExpert, contract: Contract) -> None:
    rollout.simulator.reset(11)
    rollout.simulator.set_joints(home_joints(contract), np.zeros(3))
    world = rollout.simulator.snapshot()
    picks = pickable(world, CLEAR_TABLE)
    assert {pick.object_name for pick in picks} == {item.name for item in world.objects}
    chunks = [expert.plan_subtask(world, pick) for pick in picks]
    for pick, chunk in zip(picks, chunks, strict=True):
        moving, still = ("left", "right") if pick.side == "left" else ("right", "left")
        travel = {side: np.ptp(chunk[:, contract.slice(f"{side}_arm")], axis=0).max() for side in (moving, still)}
        assert travel[moving] > 0.2 > travel[still], (pick, travel)
    with pytest.raises(KeyError, match="no object 'pink cube'"):
        expert.plan_subtask(world, Subtask("pick", "pink cube", "left"))
    with pytest.raises(ValueError, match="is no subtask"):
        expert.plan_text(world, "dance")


def test_jacobian_against_finite_differences(contract: Contract) -> None:
    arm = ArmKinematics(robot_only_model(), contract.joint_names, "right")
    joints, step = home_joints(contract), 1e-6
    position, rotation = arm.update(joints)
    jacobian = arm.jacobian().copy()
    for column, index in enumerate(arm.arm):
        moved = joints.copy()
        moved[index] += step
        p, r = arm.update(moved)
        measured = np.concatenate([(p - position) / step, rotation_error(r, rotation) / step])
        np.testing.assert_allclose(jacobian[:, column], measured, atol=1e-4)


def test_top_down_points_down_and_opens_along_yaw() -> None:
    rotation = top_down(0.3)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(rotation[:, 0], [0, 0, -1], atol=1e-12)
    np.testing.assert_allclose(rotation[:, 1], [np.cos(0.3), np.sin(0.3), 0], atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
