"""Small robots that the controller's tests drive: a pendulum, and an arm with a gripper and a lift."""

from collections.abc import Callable

import mujoco
import numpy as np
import yaml
from numpy.typing import NDArray

from pi05_ros.contract import Contract
from pi05_ros.control.chunk import Chunk
from pi05_ros.control.config import ControllerConfig
from pi05_ros.control.dynamics import RobotDynamics
from pi05_ros.control.hardware import JointReading
from pi05_ros.control.limits import BaseLimits, JointLimits
from pi05_ros.control.pd import PdController
from pi05_ros.paths import share_file

Array = NDArray[np.float64]

TICK_NS = 2_000_000
STEP_NS = 20_000_000
H = 50

BASE = [
    {"group": "base", "kind": "velocity", "unit": "m/s", "names": ["base_vx", "base_vy"]},
    {"group": "base_yaw", "kind": "velocity", "unit": "rad/s", "names": ["base_wz"]},
]
PENDULUM = """
<mujoco>
  <option timestep="0.002" integrator="implicitfast"/>
  <worldbody>
    <body>
      <joint name="swing" type="hinge" axis="0 1 0" armature="0.1" damping="0.5"/>
      <geom type="capsule" fromto="0 0 0 0.4 0 0" size="0.03" mass="2"/>
    </body>
  </worldbody>
</mujoco>
"""
ARM = """
<mujoco>
  <option timestep="0.002" integrator="implicitfast"/>
  <worldbody>
    <body>
      <joint name="lift" type="slide" axis="0 0 1" damping="20" armature="1"/>
      <geom type="box" size="0.1 0.1 0.1" mass="5" contype="0" conaffinity="0"/>
      <body pos="0.1 0 0">
        <joint name="shoulder" type="hinge" axis="0 1 0" armature="0.1" damping="0.5" frictionloss="0.1"/>
        <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.03" mass="1.5" contype="0" conaffinity="0"/>
        <body pos="0.3 0 0">
          <joint name="elbow" type="hinge" axis="0 1 0" armature="0.05" damping="0.5"/>
          <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.03" mass="1" contype="0" conaffinity="0"/>
          <body pos="0.33 0.01 0">
            <joint name="finger" type="slide" axis="0 1 0" armature="0.05" damping="5"/>
            <geom type="box" size="0.03 0.005 0.01" mass="0.05"/>
          </body>
          <body pos="0.33 -0.01 0">
            <joint name="finger_mimic" type="slide" axis="0 -1 0" armature="0.05" damping="5"/>
            <geom type="box" size="0.03 0.005 0.01" mass="0.05"/>
          </body>
        </body>
      </body>
    </body>
  </worldbody>
  <equality>
    <joint joint1="finger_mimic" joint2="finger" polycoef="0 1 0 0 0" solref="0.005 1"/>
  </equality>
</mujoco>
"""


def contract_of(*groups: dict[str, object]) -> Contract:
    """Return the house's contract with another vector; the base's three entries come last."""
    raw = yaml.safe_load(share_file("config/contract.yaml").read_text(encoding="utf-8"))
    return Contract(**{**raw, "vector": [*groups, *BASE]})


def pendulum_contract() -> Contract:
    return contract_of({"group": "arm", "kind": "position", "unit": "rad", "names": ["swing"]})


def arm_contract() -> Contract:
    return contract_of(
        {"group": "arm", "kind": "position", "unit": "rad", "names": ["shoulder", "elbow"]},
        {"group": "grip", "kind": "gripper", "unit": "fraction", "names": ["finger"], "open": 0.045, "closed": 0.0},
        {"group": "torso", "kind": "position", "unit": "m", "names": ["lift"]},
    )


def pendulum_limits() -> JointLimits:
    one = np.ones(1)
    return JointLimits(-2.5 * one, 2.5 * one, 6.0 * one, 60.0 * one, 80.0 * one, 8000.0 * one)


def arm_limits() -> JointLimits:
    """Order: shoulder, elbow, finger, lift."""
    return JointLimits(
        lower=np.array([-1.5, -2.0, 0.0, 0.0]),
        upper=np.array([1.5, 2.0, 0.045, 0.4]),
        velocity=np.array([3.0, 3.0, 0.3, 0.3]),
        acceleration=np.array([12.0, 12.0, 3.0, 1.5]),
        effort=np.array([80.0, 60.0, 40.0, 400.0]),
        effort_rate=np.array([4000.0, 4000.0, 4000.0, 20000.0]),
    )


def base_limits() -> BaseLimits:
    return BaseLimits(velocity=np.array([0.5, 0.5, 1.0]), acceleration=np.array([1.0, 1.0, 2.0]))


def reading(position: Array, stamp_ns: int = 0, velocity: Array | None = None) -> JointReading:
    position = np.asarray(position, dtype=np.float64)
    return JointReading(stamp_ns, position, np.zeros_like(position) if velocity is None else velocity, np.zeros(3))


def chunk_of(contract: Contract, path: Callable[[Array], Array], stamp_ns: int, twist: Array | None = None) -> Chunk:
    """Return the chunk of a path [n] s -> [n, J] seen at a stamp."""
    due_s = (stamp_ns + STEP_NS * np.arange(1, H + 1)) * 1e-9
    base = np.zeros((H, 3)) if twist is None else np.broadcast_to(twist, (H, 3))
    return Chunk(stamp_ns, contract.names, contract.from_joint_units(path(due_s), base))


class Plant:
    """A MuJoCo robot behind the Hardware protocol; `tamper` may change or withhold what is read."""

    def __init__(self, mjcf: str, contract: Contract, position: Array) -> None:
        self.model = mujoco.MjModel.from_xml_string(mjcf)
        self.data = mujoco.MjData(self.model)
        self._qpos = [self.model.joint(name).qposadr[0] for name in contract.joint_names]
        self._dof = [self.model.joint(name).dofadr[0] for name in contract.joint_names]
        self.data.qpos[self._qpos] = position
        for i in range(self.model.neq):
            follower, leader = self.model.eq_obj1id[i], self.model.eq_obj2id[i]
            self.data.qpos[follower] = self.data.qpos[leader]
        self.tamper: Callable[[JointReading], JointReading | None] = lambda r: r
        self.effort = np.zeros(len(contract.joint_names))
        self.twist = np.zeros(3)
        self.now_ns = 0

    @property
    def position(self) -> Array:
        return self.data.qpos[self._qpos].copy()

    def read(self) -> JointReading | None:
        return self.tamper(JointReading(self.now_ns, self.position, self.data.qvel[self._dof].copy(), np.zeros(3)))

    def write(self, effort: Array, base_twist: Array) -> None:
        self.effort, self.twist = effort.copy(), base_twist.copy()

    def step(self) -> None:
        self.data.qfrc_applied[self._dof] = self.effort
        mujoco.mj_step(self.model, self.data)
        self.now_ns += TICK_NS


class Rig:
    """A plant with its controller, run tick by tick."""

    def __init__(
        self,
        mjcf: str,
        contract: Contract,
        limits: JointLimits,
        home: Array,
        config: ControllerConfig | None = None,
    ) -> None:
        self.contract = contract
        self.plant = Plant(mjcf, contract, home)
        dynamics = RobotDynamics(self.plant.model, contract.joint_names)
        self.controller = PdController(self.plant, contract, limits, base_limits(), dynamics, home, config)

    @property
    def now_ns(self) -> int:
        return self.plant.now_ns

    def run(self, duration_s: float, each: Callable[[], object] = lambda: None) -> None:
        for _ in range(round(duration_s * 1e9 / TICK_NS)):
            self.controller.tick(self.now_ns)
            each()
            self.plant.step()

    def follow(
        self, path: Callable[[Array], Array], duration_s: float, each: Callable[[], object] = lambda: None
    ) -> None:
        """Offer a chunk every 0.5 s, 0.1 s after its observation, while running."""
        start_ns, delay_ns = self.now_ns, 100_000_000
        for i in range(round(duration_s / 0.5)):
            stamp_ns = start_ns + i * 500_000_000
            self.run((stamp_ns + delay_ns - self.now_ns) * 1e-9, each)
            self.controller.offer(chunk_of(self.contract, path, stamp_ns), self.now_ns)
        self.run((start_ns + duration_s * 1e9 - self.now_ns) * 1e-9, each)


HOME = np.array([0.3, 0.6, 0.03, 0.1])


def arm_rig(config: ControllerConfig | None = None) -> Rig:
    return Rig(ARM, arm_contract(), arm_limits(), HOME, config)


def rest_at(position: Array) -> Callable[[Array], Array]:
    return lambda t: np.broadcast_to(position, (len(t), len(position)))
