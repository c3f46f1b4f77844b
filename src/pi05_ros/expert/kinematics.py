"""Differential kinematics of one arm, in the frame of base_link, through MuJoCo's Jacobians."""

import mujoco
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class ArmKinematics:
    """Forward and differential kinematics from arm joints to the tool centre point.

    Args:
        model: compiled robot alone, base fixed at the origin.
        joint_names: the J actuated joints, in contract order.
        side: "left" or "right"; the arm's joints are those called `<side>_joint…`, its tool is site `<side>_tcp`.
    """

    def __init__(self, model: mujoco.MjModel, joint_names: tuple[str, ...], side: str) -> None:
        self._model = model
        self._data = mujoco.MjData(model)
        self._qpos = np.array([model.joint(name).qposadr[0] for name in joint_names])
        self.arm = np.array([i for i, name in enumerate(joint_names) if name.startswith(f"{side}_joint")])
        dofs = np.array([model.joint(name).dofadr[0] for name in joint_names])
        self._dofs = dofs[self.arm]
        self._range = np.array([model.joint(joint_names[i]).range for i in self.arm])
        self._site = model.site(f"{side}_tcp").id
        self._jacobian = np.zeros((6, model.nv))

    def update(self, joints: Array) -> tuple[Array, Array]:
        """Set all joints [J]; return the tool's position [3] m and rotation [3, 3] in the base frame."""
        self._data.qpos[self._qpos] = joints
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        position = self._data.site_xpos[self._site].copy()
        rotation = self._data.site_xmat[self._site].reshape(3, 3).copy()
        return position, rotation

    def jacobian(self) -> Array:
        """Return the geometric Jacobian [6, 6] (linear rows first) at the joints of the last `update`."""
        mujoco.mj_jacSite(self._model, self._data, self._jacobian[:3], self._jacobian[3:], self._site)
        return self._jacobian[:, self._dofs]

    def joint_velocity(self, twist: Array, damping: float = 1e-3) -> Array:
        """Return arm joint velocities [6] rad/s for a tool twist [6] (m/s, rad/s) by damped least squares."""
        jacobian = self.jacobian()
        normal = jacobian @ jacobian.T + damping * np.eye(6)
        velocity: Array = jacobian.T @ np.linalg.solve(normal, twist)
        return velocity

    def clip(self, arm_joints: Array, margin: float = 0.02) -> Array:
        """Clip arm joints [6] into their limits, `margin` rad inside."""
        clipped: Array = np.clip(arm_joints, self._range[:, 0] + margin, self._range[:, 1] - margin)
        return clipped


def rotation_error(target: Array, current: Array) -> Array:
    """Return the rotation vector [3] rad, in the base frame, that turns `current` into `target` (both [3, 3])."""
    quat, error = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quat, np.ascontiguousarray(target @ current.T).ravel())
    mujoco.mju_quat2Vel(error, quat, 1.0)
    return error


def top_down(yaw: float) -> Array:
    """Return the tool rotation [3, 3] that points down (tool x), fingers opening along (cos yaw, sin yaw, 0)."""
    down = np.array([0.0, 0.0, -1.0])
    opening = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    return np.stack([down, opening, np.cross(down, opening)], axis=1)
