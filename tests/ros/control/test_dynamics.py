"""Torques of the description against MuJoCo's own inverse dynamics."""

import mujoco
import numpy as np
import pytest
from control_rig import ARM, HOME, arm_contract

from pi05_ros.control.dynamics import FRICTION_SPEED, RobotDynamics

JOINTS = arm_contract().joint_names


@pytest.fixture
def model() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(ARM)


def test_equals_mujocos_inverse_dynamics(model: mujoco.MjModel) -> None:
    """mj_inverse without constraints; the mimic finger's effort is carried by the driving one (virtual work)."""
    dynamics = RobotDynamics(model, JOINTS)
    rng = np.random.default_rng(0)
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_CONSTRAINT)
    data = mujoco.MjData(model)
    columns = {name: int(model.joint(name).dofadr[0]) for name in (*JOINTS, "finger_mimic")}
    for _ in range(5):
        q, dq, ddq = rng.uniform(-0.5, 0.5, (3, len(JOINTS)))
        for source, target in ((q, data.qpos), (dq, data.qvel), (ddq, data.qacc)):
            for value, name in zip(source, JOINTS, strict=True):
                target[columns[name]] = value
            target[columns["finger_mimic"]] = source[JOINTS.index("finger")]
        mujoco.mj_inverse(model, data)
        expected = np.array([data.qfrc_inverse[columns[name]] for name in JOINTS])
        expected[JOINTS.index("finger")] += data.qfrc_inverse[columns["finger_mimic"]]
        expected[JOINTS.index("shoulder")] += 0.1 * np.tanh(dq[JOINTS.index("shoulder")] / FRICTION_SPEED)
        np.testing.assert_allclose(dynamics.torque(q, dq, ddq), expected, atol=1e-9)


def test_gravity_carries_the_weight(model: mujoco.MjModel) -> None:
    held = RobotDynamics(model, JOINTS).gravity(np.zeros(4))
    mass = 5 + 1.5 + 1 + 0.1
    assert held[JOINTS.index("lift")] == pytest.approx(9.81 * mass)
    reach = 1.5 * 0.15 + 1 * 0.45 + 0.1 * 0.63
    assert held[JOINTS.index("shoulder")] == pytest.approx(-9.81 * reach)
    assert held[JOINTS.index("finger")] == pytest.approx(0.0)


def test_inertia_is_the_mass_matrix_with_armature_and_mimic(model: mujoco.MjModel) -> None:
    inertia = RobotDynamics(model, JOINTS).inertia(HOME)
    assert inertia[JOINTS.index("finger")] == pytest.approx(2 * (0.05 + 0.05))
    assert inertia[JOINTS.index("lift")] == pytest.approx(5 + 1.5 + 1 + 0.1 + 1)


def test_unfit_models_are_told(model: mujoco.MjModel) -> None:
    with pytest.raises(KeyError, match=r"lacks joint 'knee'; it has: lift, shoulder, elbow"):
        RobotDynamics(model, ("knee",))
    loose = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><body><freejoint name="f"/><geom size="1"/></body></worldbody></mujoco>'
    )
    with pytest.raises(ValueError, match="'f' must be hinge or slide"):
        RobotDynamics(loose, ("f",))
