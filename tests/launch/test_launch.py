"""launch/mobile_manipulator.launch.py: run by launch_ros where that is installed, read as text where it is not."""

import ast
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pi05_ros.graph import MODULES, GraphArguments, argument_table, build_graph

FILE = Path(__file__).parents[2] / "launch" / "mobile_manipulator.launch.py"
needs_launch = pytest.mark.skipif(
    importlib.util.find_spec("launch_ros") is None,
    reason="launch and launch_ros come with ROS 2, not with the wheels; only the static checks ran",
)
RUN = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
arguments = [tuple(pair.split(":=", 1)) for pair in sys.argv[2:]]
source = PythonLaunchDescriptionSource(sys.argv[1])
service = LaunchService()
service.include_launch_description(
    LaunchDescription([IncludeLaunchDescription(source, launch_arguments=arguments)])
)
sys.exit(service.run())
"""


def literals(tree: ast.AST) -> set[str]:
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_the_launch_file_repeats_nothing_of_the_graph() -> None:
    tree = ast.parse(FILE.read_text(encoding="utf-8"))
    repeated = literals(tree) & ({*MODULES} | {row.name for row in argument_table()})
    assert repeated == set()
    imported = {
        (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom | ast.Import)
        for alias in node.names
    }
    assert imported <= {"launch", "launch_ros", "pi05_ros", "pathlib", "shutil", "tempfile"}


def test_what_the_launch_file_takes_from_the_package_exists() -> None:
    for node in ast.walk(ast.parse(FILE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pi05_ros"):
            module = importlib.import_module(str(node.module))
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def load() -> Any:
    spec = importlib.util.spec_from_file_location("mobile_manipulator_launch", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_launch
def test_every_argument_is_declared_and_described() -> None:
    from launch.actions import DeclareLaunchArgument

    entities = load().generate_launch_description().entities
    declared = {entity.name: entity for entity in entities if isinstance(entity, DeclareLaunchArgument)}
    assert list(declared) == [row.name for row in argument_table()]
    assert all(declared[row.name].description.startswith(row.help) for row in argument_table())


@needs_launch
@pytest.mark.parametrize(
    "chosen", [{"driver": "none"}, {"driver": "demonstrator", "controller": "topics", "namespace": "robot1"}]
)
def test_the_same_processes_as_pi05_up(chosen: dict[str, str]) -> None:
    from launch import LaunchContext
    from launch_ros.actions import Node

    context = LaunchContext()
    for row in argument_table():
        context.launch_configurations[row.name] = chosen.get(row.name, row.default)
    nodes = [action for action in load().start_graph(context) if isinstance(action, Node)]
    assert [node.node_executable for node in nodes] == [
        spec.executable
        for spec in build_graph(GraphArguments(**chosen))  # type: ignore[arg-type]
    ]
    assert {node.node_package for node in nodes} == {"pi05_ros"}


@needs_launch
@pytest.mark.ros
def test_started_by_launch_and_ended_by_one_sigint() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(FILE), "driver:=demonstrator", "namespace:=launched"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
    reader.start()
    try:
        wait_for(lambda: sum("process started" in line for line in lines) == 3, lines)
        wait_for(heard_a_chunk, lines)
        nodes = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30.0)
        reader.join()
    finally:
        process.kill()
    assert not [node for node in nodes if node.is_running()]


def wait_for(predicate: Any, lines: list[str], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < end, "".join(lines)
        time.sleep(0.05)


def heard_a_chunk() -> bool:
    """Listen for a moment, in a context of its own."""
    import rclpy
    from rclpy.context import Context
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.node import Node
    from trajectory_msgs.msg import JointTrajectory

    context = Context()
    rclpy.init(context=context)
    node = Node("listener", context=context)
    heard: list[Any] = []
    node.create_subscription(JointTrajectory, "/launched/action_chunk", heard.append, 1)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    end = time.monotonic() + 10.0
    while not heard and time.monotonic() < end:
        executor.spin_once(timeout_sec=0.1)
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown(context=context)
    return bool(heard)
