"""URDF, MuJoCo model, config/robot.yaml and contract describe one robot."""

from pathlib import Path
from xml.etree import ElementTree

import mujoco
import numpy as np
import pytest
import xacro

from pi05_ros.contract import Contract, check_joints
from pi05_ros.paths import share_file
from pi05_ros.sim.description import SIMS, home_joints, joint_parameter, robot_parameters, robot_urdf
from pi05_ros.sim.model import BASE_JOINTS, robot_only_model, robot_spec

MIMICS = ("left_gripper_mimic", "right_gripper_mimic")


def urdf(sim: str = "none") -> ElementTree.Element:
    return ElementTree.fromstring(robot_urdf(sim))


def moving_joints() -> dict[str, ElementTree.Element]:
    return {str(j.get("name")): j for j in urdf().findall("joint") if j.get("type") != "fixed"}


def limit(joint: ElementTree.Element, key: str) -> float:
    found = joint.find("limit")
    assert found is not None
    return float(found.get(key, "nan"))


def test_urdf_has_the_contracts_joints_and_the_mimic_fingers(contract: Contract) -> None:
    check_joints(contract, tuple(moving_joints()), contract.description)
    assert set(moving_joints()) == {*contract.joint_names, *MIMICS}


def test_ros2_control_commands_the_contracts_joints(contract: Contract) -> None:
    joints = urdf().findall("ros2_control/joint")
    commanded = [j.get("name") for j in joints if j.find("command_interface") is not None]
    assert commanded == list(contract.joint_names)
    for joint, home in zip((j for j in joints if j.get("name") in commanded), home_joints(), strict=True):
        assert [c.get("name") for c in joint.findall("command_interface")] == ["effort", "position"]
        assert [c.get("name") for c in joint.findall("state_interface")] == ["position", "velocity", "effort"]
        assert float(joint.findtext("state_interface/param", "nan")) == home
    mimics = {j.get("name"): j.findtext("param[@name='mimic']") for j in joints if j.get("name") not in commanded}
    assert mimics == {name: name.removesuffix("_mimic") for name in MIMICS}


def test_mujoco_orders_the_actuators_like_the_contract(contract: Contract) -> None:
    model = robot_spec(contract).compile()
    assert tuple(model.actuator(i).name for i in range(model.nu)) == (*contract.joint_names, *BASE_JOINTS)
    assert robot_only_model().nv == len(contract.joint_names) + len(MIMICS)


def test_limits_of_urdf_and_mujoco_are_those_of_the_file(contract: Contract) -> None:
    model, joints = robot_only_model(), moving_joints()
    for name in contract.joint_names:
        told = [joint_parameter(name, key) for key in ("lower", "upper", "effort")]
        np.testing.assert_allclose([limit(joints[name], key) for key in ("lower", "upper", "effort")], told)
        assert limit(joints[name], "velocity") == joint_parameter(name, "velocity")
        np.testing.assert_allclose(model.joint(name).range, told[:2])
        np.testing.assert_allclose(model.actuator(name).ctrlrange, [-told[2], told[2]])


def test_masses_and_inertias_of_urdf_and_mujoco_agree_and_are_physical() -> None:
    model = robot_only_model()
    for link in urdf().findall("link"):
        name, inertial = str(link.get("name")), link.find("inertial")
        if inertial is None:
            assert model.body(name).mass[0] == 0.0
            continue
        mass = float(inertial.find("mass").get("value"))  # type: ignore[union-attr,arg-type]
        tensor = inertial.find("inertia")
        assert tensor is not None
        diagonal = np.array([float(tensor.get(axis, "nan")) for axis in ("ixx", "iyy", "izz")])
        assert mass > 0 and (diagonal > 0).all()
        assert diagonal.sum() > 2 * diagonal.max() * (1 - 1e-9), f"{name} breaks the triangle inequality"
        assert np.sqrt(diagonal.max() / mass) < 0.5, f"{name}: radius of gyration is larger than the link"
        np.testing.assert_allclose(model.body(name).mass, mass, rtol=1e-6)
        np.testing.assert_allclose(np.sort(model.body(name).inertia), np.sort(diagonal), rtol=1e-6)


def test_home_lies_inside_the_limits_and_touches_nothing(contract: Contract) -> None:
    model = robot_only_model()
    data = mujoco.MjData(model)
    for name, angle in zip(contract.joint_names, home_joints(contract), strict=True):
        lower, upper = model.joint(name).range
        assert lower <= angle <= upper
        data.joint(name).qpos = angle
    for name in MIMICS:
        data.joint(name).qpos = data.joint(name.removesuffix("_mimic")).qpos
    mujoco.mj_forward(model, data)
    assert data.ncon == 0


def test_cameras_look_along_the_optical_frames(contract: Contract) -> None:
    model = robot_only_model()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    for name, camera in contract.cameras.items():
        frame, view = data.body(camera.frame).xmat.reshape(3, 3), data.camera(name).xmat.reshape(3, 3)
        np.testing.assert_allclose(-view[:, 2], frame[:, 2], atol=1e-9)
        np.testing.assert_allclose(-view[:, 1], frame[:, 1], atol=1e-9)
        assert model.camera(name).fovy[0] == robot_parameters()["cameras"][name]["fovy_deg"]


def test_gazebo_gets_its_sensors_and_plugins_and_only_gazebo(contract: Contract) -> None:
    gazebo = urdf("gazebo")
    frames = {s.findtext("camera/optical_frame_id") for s in gazebo.findall("gazebo/sensor")}
    assert frames == {camera.frame for camera in contract.cameras.values()}
    assert gazebo.findtext("ros2_control/hardware/plugin") == "gz_ros2_control/GazeboSimSystem"
    for sim in ("mujoco", "none"):
        assert urdf(sim).find("gazebo") is None
        assert urdf(sim).findtext("ros2_control/hardware/plugin") == "mock_components/GenericSystem"
    own = ElementTree.fromstring(robot_urdf("none", hardware_plugin="my_driver/System"))
    assert own.findtext("ros2_control/hardware/plugin") == "my_driver/System"


def test_the_description_needs_no_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `xacro mobile_manipulator.urdf.xacro` from any folder: numbers are found beside the file."""
    monkeypatch.chdir(tmp_path)
    document = xacro.process_file(str(share_file("urdf/mobile_manipulator.urdf.xacro")))
    plain = ElementTree.fromstring(document.toxml())
    assert ElementTree.tostring(plain) == ElementTree.tostring(urdf("none"))


def test_unknown_names_are_told_with_the_valid_ones() -> None:
    with pytest.raises(ValueError, match=r"sim 'webots' is unknown; valid: " + ", ".join(SIMS)):
        robot_urdf("webots")
    with pytest.raises(KeyError, match="'colour' for joint 'left_joint1'; valid: lower, upper"):
        joint_parameter("left_joint1", "colour")
    with pytest.raises(KeyError, match="'left_joint9'; valid: joint1"):
        joint_parameter("left_joint9", "upper")
