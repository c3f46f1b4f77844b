"""Puts the controller together for the robot of the contract, from its description.

Position, velocity and effort limits come from the URDF; acceleration and effort rate, which URDF cannot say, and the
base's limits from config/robot.yaml.
"""

import numpy as np

from pi05_ros.contract import Contract
from pi05_ros.control.config import ControllerConfig
from pi05_ros.control.dynamics import RobotDynamics
from pi05_ros.control.executor import Strategy
from pi05_ros.control.hardware import Hardware
from pi05_ros.control.limits import BaseLimits, JointLimits, limits_from_urdf
from pi05_ros.control.pd import PdController
from pi05_ros.sim.description import home_joints, joint_parameter, robot_parameters, robot_urdf
from pi05_ros.sim.model import robot_only_model


def robot_limits(contract: Contract) -> tuple[JointLimits, BaseLimits]:
    """Return the limits of the contract's joints, in its order, and of the base.

    Raises:
        KeyError: the description lacks a joint or a limit; names it.
    """
    names = contract.joint_names
    joints = limits_from_urdf(
        robot_urdf(),
        names,
        acceleration={name: joint_parameter(name, "acceleration") for name in names},
        effort_rate={name: joint_parameter(name, "effort_rate") for name in names},
    )
    base = robot_parameters()["base"]
    return joints, BaseLimits(np.array(base["velocity"], dtype=float), np.array(base["acceleration"], dtype=float))


def assemble_controller(
    contract: Contract, hardware: Hardware, config: ControllerConfig | None = None, strategy: Strategy | None = None
) -> PdController:
    """Return a controller of the contract's robot.

    Args:
        contract: the contract.
        hardware: what it drives.
        config: tuning; None takes the defaults.
        strategy: what to play of successive chunks; None plays each as it is.
    """
    joints, base = robot_limits(contract)
    dynamics = RobotDynamics(robot_only_model(), contract.joint_names)
    return PdController(hardware, contract, joints, base, dynamics, home_joints(contract), config, strategy)
