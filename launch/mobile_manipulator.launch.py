"""Start the mobile manipulator: `ros2 launch pi05_ros mobile_manipulator.launch.py sim:=mujoco`.

The arguments and the processes come from pi05_ros.graph; this file only turns them into launch actions.
"""

import shutil
import tempfile
from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.event_handlers import OnShutdown
from launch.events import Shutdown
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import Node

from pi05_ros.graph import PROFILE, GraphArguments, NodeSpec, argument_table, build_graph
from pi05_ros.paths import share_file


def generate_launch_description() -> LaunchDescription:
    """Declare every graph argument and start the graph they describe."""
    declared = [
        DeclareLaunchArgument(
            argument.name,
            default_value=argument.default,
            description=argument.help,
            choices=list(argument.choices) or None,
        )
        for argument in argument_table()
    ]
    profile = EnvironmentVariable("FASTDDS_DEFAULT_PROFILES_FILE", default_value=str(share_file(PROFILE)))
    return LaunchDescription(
        [
            *declared,
            SetEnvironmentVariable("FASTDDS_DEFAULT_PROFILES_FILE", profile),
            SetEnvironmentVariable("PYTHONUNBUFFERED", "1"),
            OpaqueFunction(function=start_graph),
        ]
    )


def start_graph(context: LaunchContext) -> list[Node]:
    """Return one action per process of the graph."""
    values = {argument.name: LaunchConfiguration(argument.name).perform(context) for argument in argument_table()}
    specs = build_graph(GraphArguments.from_strings(values))
    folder = Path(tempfile.mkdtemp(prefix="pi05_launch_"))
    remove = OnShutdown(on_shutdown=lambda *_: shutil.rmtree(folder, ignore_errors=True))
    return [RegisterEventHandler(remove), *(node_action(spec, folder) for spec in specs)]


def node_action(spec: NodeSpec, folder: Path) -> Node:
    """Turn a node spec into a launch action whose parameters are written into a folder."""
    parameters = folder / f"{spec.name}.yaml"
    parameters.write_text(spec.parameters_yaml(), encoding="utf-8")
    over = [LogInfo(msg=f"{spec.name} has ended, and the graph with it"), EmitEvent(event=Shutdown(reason=spec.name))]
    return Node(
        package="pi05_ros",
        executable=spec.executable,
        ros_arguments=spec.ros_arguments(parameters),
        output="screen",
        emulate_tty=True,
        respawn=spec.respawn,
        respawn_delay=1.0,
        on_exit=over if spec.critical else None,
    )
