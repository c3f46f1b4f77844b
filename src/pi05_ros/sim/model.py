"""From the robot description to MuJoCo: the same URDF that ros2_control and Gazebo read.

Facts that hold here (MuJoCo 4.0): fixed links stay bodies (fusestatic off), the root gets its three planar joints
here because a URDF root has none, a <mimic> becomes an equality constraint, and armature keeps an explicit torque
loop stable.
"""

from functools import cache

import mujoco

from pi05_ros.contract import Contract, check_joints, load_contract
from pi05_ros.sim.description import joint_parameter, robot_parameters, robot_urdf

BASE_JOINTS = ("base_x", "base_y", "base_yaw")
BASE_FORCE = (1500.0, 1500.0, 600.0)
CAMERA_SUFFIX = "_camera_optical_frame"
VISUAL_GROUP, COLLISION_GROUP = 2, 3

# Neighbours whose shapes overlap where they are joined.
_OVERLAPPING = [("column", "torso_link"), ("base_link", "torso_link"), ("column", "head")] + [
    (f"{side}_{first}", second if second == "torso_link" else f"{side}_{second}")
    for side in ("left", "right")
    for first, second in (
        ("wrist1", "forearm"),
        ("palm", "wrist1"),
        ("finger_left", "finger_right"),
        ("finger_left", "wrist2"),
        ("finger_right", "wrist2"),
        ("upper_arm", "torso_link"),
    )
]


def robot_spec(contract: Contract, mobile: bool = True) -> mujoco.MjSpec:
    """Build the robot as an editable MuJoCo model.

    Args:
        contract: names the joints that get a motor and the cameras.
        mobile: give the base its planar joints; False fixes it at the origin.

    Raises:
        ContractError: the contract names a joint that the description lacks.
    """
    spec = mujoco.MjSpec.from_string(robot_urdf(sim="mujoco"))
    spec.compiler.degree = False
    check_joints(contract, tuple(joint.name for joint in spec.joints), contract.description)
    for joint in spec.joints:
        joint.armature = joint_parameter(joint.name, "armature")
    for name in contract.joint_names:
        _add_motor(spec, name, joint_parameter(name, "effort"))
    if mobile:
        _add_base(spec)
    for equality in spec.equalities:  # the mimic joints, made stiff
        equality.solref = [0.005, 1]
        equality.solimp = [0.95, 0.99, 0.001, 0.5, 2]
    for first, second in _OVERLAPPING:
        spec.add_exclude(bodyname1=first, bodyname2=second)
    for body in spec.bodies:
        _finish_body(body, contract)
    return spec


@cache
def robot_only_model() -> mujoco.MjModel:
    """Return the compiled robot alone, base fixed at the origin: for kinematics and inverse dynamics."""
    return robot_spec(load_contract(), mobile=False).compile()


def _add_motor(spec: mujoco.MjSpec, joint: str, effort: float) -> None:
    spec.add_actuator(
        name=joint,
        target=joint,
        trntype=mujoco.mjtTrn.mjTRN_JOINT,
        gaintype=mujoco.mjtGain.mjGAIN_FIXED,
        biastype=mujoco.mjtBias.mjBIAS_NONE,
        ctrlrange=[-effort, effort],
        ctrllimited=True,
    )


def _add_base(spec: mujoco.MjSpec) -> None:
    root = spec.body("base_footprint")
    slide, hinge = mujoco.mjtJoint.mjJNT_SLIDE, mujoco.mjtJoint.mjJNT_HINGE
    axes = ((slide, (1, 0, 0)), (slide, (0, 1, 0)), (hinge, (0, 0, 1)))
    for name, (kind, axis), force in zip(BASE_JOINTS, axes, BASE_FORCE, strict=True):
        root.add_joint(name=name, type=kind, axis=axis, damping=[10, 0, 0])
        _add_motor(spec, name, force)


def _finish_body(body: mujoco.MjsBody, contract: Contract) -> None:
    for geom in body.geoms:
        geom.group = VISUAL_GROUP if geom.contype == 0 else COLLISION_GROUP
        if geom.contype and "finger" in body.name:
            # Soft, sticky fingertips: what lets a position-controlled grip hold an object without slipping.
            geom.friction, geom.condim, geom.priority = [1.5, 0.02, 0.002], 4, 1
            geom.solref, geom.solimp = [0.01, 1], [0.95, 0.99, 0.001, 0.5, 2]
    camera = body.name.removesuffix(CAMERA_SUFFIX)
    if camera in contract.cameras and camera != body.name:
        # An optical frame looks along +z with y down, a MuJoCo camera along -z with y up: half a turn about x.
        body.add_camera(name=camera, quat=[0, 1, 0, 0], fovy=robot_parameters()["cameras"][camera]["fovy_deg"])
    if body.name.endswith("_tcp"):
        body.add_site(name=body.name)
