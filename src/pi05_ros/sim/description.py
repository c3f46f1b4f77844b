"""The robot description: xacro and config/robot.yaml, expanded and read once."""

from functools import cache
from typing import Any

import numpy as np
import xacro
import yaml
from numpy.typing import NDArray

from pi05_ros.contract import Contract, load_contract
from pi05_ros.paths import share_file

Array = NDArray[np.float64]


@cache
def robot_urdf(sim: str = "none", hardware_plugin: str = "mock_components/GenericSystem") -> str:
    """Return the robot's URDF as XML text.

    Args:
        sim: "mujoco" adds MuJoCo's compiler hints; "gazebo" and "none" do not.
        hardware_plugin: ros2_control plugin to name in it.
    """
    mappings = {"config": str(share_file("config/robot.yaml")), "sim": sim, "hardware_plugin": hardware_plugin}
    document = xacro.process_file(str(share_file(load_contract().description)), mappings=mappings)
    return str(document.toxml())


@cache
def robot_parameters() -> dict[str, Any]:
    """Return config/robot.yaml: what a URDF cannot say, beside the numbers that the xacro takes from it."""
    loaded: dict[str, Any] = yaml.safe_load(share_file("config/robot.yaml").read_text(encoding="utf-8"))
    return loaded


def joint_parameter(joint: str, parameter: str) -> float:
    """Return one number of a joint such as "left_joint3" or "torso_lift" from config/robot.yaml.

    Raises:
        KeyError: no such joint or parameter; lists the valid ones.
    """
    kinds = robot_parameters()["joints"]
    kind = joint.removesuffix("_mimic").rpartition("_")[2]
    if kind not in kinds or parameter not in kinds[kind]:
        valid = kinds.get(kind, kinds)
        raise KeyError(f"config/robot.yaml has no {parameter!r} for joint {joint!r}; valid: {', '.join(valid)}")
    return float(kinds[kind][parameter])


def home_joints(contract: Contract | None = None) -> Array:
    """Return the resting posture [J] in contract order and joint units."""
    home = robot_parameters()["home"]
    values = {f"joint{i + 1}": angle for i, angle in enumerate(home["arm"])}
    values |= {"gripper": home["gripper"], "lift": home["lift"]}
    names = (contract or load_contract()).joint_names
    return np.array([values[name.rpartition("_")[2]] for name in names], dtype=np.float64)
