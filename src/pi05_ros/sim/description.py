"""The robot description: xacro and config/robot.yaml, expanded and read once."""

from functools import cache
from typing import Any

import numpy as np
import xacro
import yaml
from numpy.typing import NDArray

from pi05_ros.contract import Contract, load_contract
from pi05_ros.paths import share_dir, share_file

Array = NDArray[np.float64]
SIMS = ("mujoco", "gazebo", "none")


@cache
def robot_urdf(sim: str = "none", hardware_plugin: str = "") -> str:
    """Return the robot's URDF as XML text.

    Args:
        sim: "mujoco" adds MuJoCo's compiler hints, "gazebo" its sensors and plugins, "none" nothing.
        hardware_plugin: ros2_control plugin to name in it; empty: the one that fits `sim`.

    Raises:
        ValueError: unknown `sim`; lists the valid ones.
    """
    if sim not in SIMS:
        raise ValueError(f"sim {sim!r} is unknown; valid: {', '.join(SIMS)}")
    mappings = {"sim": sim}
    if sim == "gazebo":
        mappings["controllers"] = str(share_dir() / "config/controllers.yaml")
    if hardware_plugin:
        mappings["hardware_plugin"] = hardware_plugin
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
    values = {"torso_lift": home["lift"]}
    for side in ("left", "right"):
        values |= {f"{side}_joint{i + 1}": angle for i, angle in enumerate(home[f"{side}_arm"])}
        values[f"{side}_gripper"] = home["gripper"]
    return np.array([values[name] for name in (contract or load_contract()).joint_names], dtype=np.float64)
