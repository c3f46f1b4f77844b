"""The simulated robot in its kitchen: MuJoCo physics, cameras and ground truth behind the controller's interface."""

import mujoco
import numpy as np
from numpy.typing import NDArray

from pi05_ros.contract import Contract
from pi05_ros.control.hardware import JointReading
from pi05_ros.sim.description import home_joints, robot_parameters
from pi05_ros.sim.model import BASE_JOINTS, robot_spec
from pi05_ros.sim.platform import BasePlatform, relative_pose, to_body
from pi05_ros.sim.rendering import CameraRenderer
from pi05_ros.sim.scene import Layout, SceneConfig, add_scene, random_layout
from pi05_ros.sim.world import ObjectState, WorldState

Array = NDArray[np.float64]

# The base's velocity servos: gains of the planar joints (N s/m, N m s/rad), and of the pose that they hold.
_SERVO = np.array([4000.0, 4000.0, 1200.0])
_STIFFNESS = 8.0
_SLACK = np.array([0.05, 0.05, 0.1])


class Simulator:
    """A robot that the controller can drive (`pi05_ros.control.hardware.Hardware`).

    Not thread-safe; rendering belongs to the thread that first renders.

    Args:
        contract: joints, cameras and image size.
        config: how scenes are drawn.
        timestep_s: physics step.
        render: whether `render` will be used.
    """

    def __init__(
        self,
        contract: Contract,
        config: SceneConfig | None = None,
        *,
        timestep_s: float = 0.002,
        render: bool = True,
    ) -> None:
        self.contract, self.config, self._timestep_s, self._render = (
            contract,
            config or SceneConfig(),
            timestep_s,
            render,
        )
        base = robot_parameters()["base"]
        self._platform = BasePlatform(
            np.array(base["velocity"], dtype=float), np.array(base["acceleration"], dtype=float), _STIFFNESS, _SLACK
        )
        self._renderer: CameraRenderer | None = None
        self.reset(0)

    def reset(self, seed: int, layout: Layout | None = None) -> None:
        """Start a new episode at time 0.

        Args:
            seed: draws the layout.
            layout: use this scene instead.
        """
        contract = self.contract
        self.layout = layout or random_layout(self.config, seed, tuple(contract.cameras), len(contract.joint_names))
        spec = robot_spec(contract)
        spec.option.timestep = self._timestep_s
        spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
        spec.option.impratio = 10
        add_scene(spec, self.config, self.layout)
        self.model = spec.compile()
        self.model.vis.quality.offsamples = 0
        self.data = mujoco.MjData(self.model)
        self._index(contract)
        self._jitter_cameras()
        if self._renderer is not None:
            self._renderer.load(self.model)
        noise = np.array(self.layout.joint_noise or np.zeros(len(contract.joint_names)))
        noise[[i for i, name in enumerate(contract.joint_names) if "joint" not in name]] = 0.0
        self._steps = 0
        self.set_joints(home_joints(contract) + noise, np.array(self.layout.base_pose))

    def set_joints(self, position: Array, base_pose: Array) -> None:
        """Put the robot somewhere, at rest: joints [J] in joint units and base x, y [m], yaw [rad]."""
        data = self.data
        data.qpos[self._qpos], data.qvel[self._dofs] = position, 0.0
        data.qpos[self._base_qpos], data.qvel[self._base_dofs] = base_pose, 0.0
        for mimic, leader in self._mimics:
            data.qpos[mimic] = data.qpos[leader]
        self._platform.place(base_pose)
        self._effort, self._commanded_twist = np.zeros(len(position)), np.zeros(3)
        mujoco.mj_forward(self.model, data)

    @property
    def time_ns(self) -> int:
        """Simulated time since the reset."""
        return round(self._steps * self._timestep_s * 1e9)

    def read(self) -> JointReading:
        """Return the joints and the base's velocity as measured now."""
        data = self.data
        return JointReading(
            self.time_ns, data.qpos[self._qpos].copy(), data.qvel[self._dofs].copy(), self._body_twist()
        )

    def write(self, effort: Array, base_twist: Array) -> None:
        """Command efforts [J] and a body velocity [3]; held until the next call.

        Raises:
            ValueError: wrong length, or not finite.
        """
        effort, twist = np.array(effort, dtype=np.float64), np.array(base_twist, dtype=np.float64)
        if effort.shape != self._motors.shape or twist.shape != (3,):
            raise ValueError(
                f"expected {len(self._motors)} efforts and 3 velocities, got {effort.shape}, {twist.shape}"
            )
        if not (np.isfinite(effort).all() and np.isfinite(twist).all()):
            raise ValueError(f"efforts {effort} and velocities {twist} must be finite")
        self._effort, self._commanded_twist = effort, twist

    def step(self) -> None:
        """Advance the physics by one step."""
        data = self.data
        wanted = self._platform.set_points(self._commanded_twist, data.qpos[self._base_qpos], self._timestep_s)
        data.ctrl[self._base_motors] = _SERVO * (wanted - data.qvel[self._base_dofs])
        data.ctrl[self._motors] = self._effort
        mujoco.mj_step(self.model, data)
        self._steps += 1

    def render(self, camera: str) -> NDArray[np.uint8]:
        """Return what a camera sees now, RGB uint8 [H, W, 3].

        Raises:
            KeyError: unknown camera; lists those of the contract.
            RuntimeError: the simulator was made without rendering.
        """
        if camera not in self.contract.cameras:
            raise KeyError(f"no camera {camera!r}; cameras: {', '.join(self.contract.cameras)}")
        if not self._render:
            raise RuntimeError("this simulator was made with render=False")
        if self._renderer is None:
            image = self.contract.image
            self._renderer = CameraRenderer(self.model, image.width, image.height)
        return self._renderer.render(self.data, self.model.camera(camera).id)

    def base_pose(self) -> Array:
        """Return the base's x, y [m] and yaw [rad] in the world."""
        pose: Array = self.data.qpos[self._base_qpos].copy()
        return pose

    def odometry(self) -> Array:
        """Return the base's x, y [m] and yaw [rad] in the frame in which it stood at the last reset (REP-105 odom)."""
        return relative_pose(np.array(self.layout.base_pose), self.base_pose())

    def snapshot(self) -> WorldState:
        """Return the ground truth."""
        config = self.config
        reading = self.read()
        return WorldState(
            stamp_ns=reading.stamp_ns,
            base_pose=self.base_pose(),
            base_twist=reading.base_twist,
            position=reading.position,
            velocity=reading.velocity,
            objects=tuple(self._object(index) for index in range(len(self.layout.objects))),
            bin_position=np.array([*config.bin_centre, config.table_top_z + config.bin_height]),
            bin_half_size=np.array(config.bin_half_size),
            table_top_z=config.table_top_z,
            work_pose=np.zeros(3),
        )

    def close(self) -> None:
        """Free the rendering context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _object(self, index: int) -> ObjectState:
        item, config = self.layout.objects[index], self.config
        body = self.data.body(item.name)
        position, rotation = body.xpos.copy(), body.xmat
        yaw = np.arctan2(rotation[3], rotation[0])
        inside = np.abs(position[:2] - config.bin_centre) < config.bin_half_size
        height = position[2] - config.table_top_z
        return ObjectState(
            name=item.name,
            colour=item.colour,
            shape=item.shape,
            position=position,
            yaw=float(yaw),
            size=np.array(item.size),
            in_bin=bool(inside.all() and 0.0 < height < config.bin_height),
            held_by=self._holder(self.model.body(item.name).id),
        )

    def _holder(self, body: int) -> str | None:
        geoms = self.data.contact.geom
        bodies = self.model.geom_bodyid[geoms]
        touching = set(bodies[(bodies == body).any(axis=1)].ravel().tolist())
        for side, fingers in self._fingers.items():
            if fingers <= touching:
                return side
        return None

    def _body_twist(self) -> Array:
        return to_body(self.data.qvel[self._base_dofs], float(self.data.qpos[self._base_qpos[2]]))

    def _index(self, contract: Contract) -> None:
        model, names = self.model, contract.joint_names
        self._qpos, self._dofs = _addresses(model, names)
        self._base_qpos, self._base_dofs = _addresses(model, BASE_JOINTS)
        self._motors = np.array([model.actuator(name).id for name in names])
        self._base_motors = np.array([model.actuator(name).id for name in BASE_JOINTS])
        self._mimics = [
            (model.jnt_qposadr[model.eq_obj1id[i]], model.jnt_qposadr[model.eq_obj2id[i]]) for i in range(model.neq)
        ]
        self._fingers = {
            side: {model.body(f"{side}_finger_{which}").id for which in ("left", "right")} for side in ("left", "right")
        }

    def _jitter_cameras(self) -> None:
        for name, vector in self.layout.camera_jitter.items():
            turn, turned = np.zeros(4), np.zeros(4)
            angle = float(np.linalg.norm(vector))
            mujoco.mju_axisAngle2Quat(turn, np.array(vector) / max(angle, 1e-12), angle)
            camera = self.model.camera(name)
            mujoco.mju_mulQuat(turned, camera.quat.copy(), turn)
            camera.quat[:] = turned


def _addresses(model: mujoco.MjModel, joints: tuple[str, ...]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    qpos = np.array([model.joint(name).qposadr[0] for name in joints])
    return qpos, np.array([model.joint(name).dofadr[0] for name in joints])
