"""What the robot's own description says about torque: inverse dynamics, gravity and inertia with a fixed base.

MuJoCo's recursive Newton-Euler runs on a private MjData of a robot-only model, without collisions or constraints.
Mimic joints (joint equalities of the model) move with the joint that drives them, and their load is carried by it.
"""

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Dry friction is fed forward as a smooth step over this speed [rad/s or m/s], so that holding still does not chatter.
FRICTION_SPEED = 0.02


class RobotDynamics:
    """Torques of J joints, addressed by name, in joint units.

    Args:
        model: compiled MjModel of the robot with every non-listed joint locked where `qpos0` puts it.
        joint_names: the J joints, in the order of every array here.

    Raises:
        KeyError: the model lacks a joint; lists those it has.
        ValueError: a joint is neither hinge nor slide.
    """

    def __init__(self, model: Any, joint_names: tuple[str, ...]) -> None:
        self._model = model
        self._data = mujoco.MjData(model)
        self._spread, self._offset, self._qpos = _coupling(model, joint_names)
        self._gather = np.ascontiguousarray(self._spread.T)
        self._result = np.zeros(model.nv)
        self._rest = np.zeros(len(joint_names))
        squared = self._gather**2
        self._armature = squared @ np.asarray(model.dof_armature).reshape(-1)
        self._damping = squared @ np.asarray(model.dof_damping).reshape(model.nv, -1)[:, 0]
        self._friction = np.abs(self._gather) @ np.asarray(model.dof_frictionloss).reshape(-1)

    def torque(self, position: Array, velocity: Array, acceleration: Array) -> Array:
        """Return efforts [J] that give this acceleration: inertia, armature, Coriolis, gravity, damping, friction."""
        torque: Array = self._newton_euler(position, velocity, acceleration)
        torque += self._armature * acceleration
        torque += self._damping * velocity
        torque += self._friction * np.tanh(velocity / FRICTION_SPEED)
        return torque

    def gravity(self, position: Array) -> Array:
        """Return efforts [J] that hold the robot still."""
        torque: Array = self._newton_euler(position, self._rest, self._rest)
        return torque

    def inertia(self, position: Array) -> Array:
        """Return the diagonal [J] of the mass matrix, armature included (kg m² or kg)."""
        held = self.gravity(position)
        unit = np.eye(len(held))
        columns = [self._newton_euler(position, self._rest, unit[j])[j] - held[j] for j in range(len(held))]
        inertia: Array = np.array(columns) + self._armature
        return inertia

    def _newton_euler(self, position: Array, velocity: Array, acceleration: Array) -> Array:
        model, data = self._model, self._data
        data.qpos[self._qpos] = self._spread @ position + self._offset
        data.qvel[:] = self._spread @ velocity
        data.qacc[:] = self._spread @ acceleration
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_comVel(model, data)
        mujoco.mj_rne(model, data, 1, self._result)
        torque: Array = self._gather @ self._result
        return torque


def _coupling(model: Any, joint_names: tuple[str, ...]) -> tuple[Array, Array, NDArray[np.intp]]:
    """Return matrix [nv, J] from listed joints to all, offset [nv], and the address in qpos of every dof [nv]."""
    scalar = (int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE))
    names = [model.joint(i).name for i in range(model.njnt)]
    unfit = [name for name, kind in zip(names, model.jnt_type, strict=True) if kind not in scalar]
    if unfit:
        raise ValueError(f"joint {unfit[0]!r} must be hinge or slide; give the robot without free bodies")
    missing = [name for name in joint_names if name not in names]
    if missing:
        raise KeyError(f"the model lacks joint {', '.join(map(repr, missing))}; it has: {', '.join(names)}")
    dof, qpos0 = model.jnt_dofadr, model.qpos0[model.jnt_qposadr]
    qpos = np.empty(model.nv, dtype=np.intp)
    qpos[dof] = model.jnt_qposadr
    spread = np.zeros((model.nv, len(joint_names)))
    offset = np.empty(model.nv)
    offset[dof] = qpos0
    for column, name in enumerate(joint_names):
        spread[dof[names.index(name)], column] = 1.0
        offset[dof[names.index(name)]] = 0.0
    for i in range(model.neq):
        if model.eq_type[i] == int(mujoco.mjtEq.mjEQ_JOINT) and model.eq_obj2id[i] >= 0:
            follower, leader = model.eq_obj1id[i], model.eq_obj2id[i]
            # y - y0 = a0 + a1 (x - x0); higher powers do not occur in a URDF's mimic.
            intercept, slope = model.eq_data[i, :2]
            spread[dof[follower]] = slope * spread[dof[leader]]
            offset[dof[follower]] = qpos0[follower] + intercept + slope * (offset[dof[leader]] - qpos0[leader])
    return spread, offset, qpos
