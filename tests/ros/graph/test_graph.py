"""The graph description: what starts for which arguments, and what is refused before anything starts."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pi05_ros.contract import load_contract
from pi05_ros.graph import MODULES, GraphArguments, GraphError, NodeSpec, argument_table, build_graph

ROOT = Path(__file__).parents[3]


@pytest.fixture
def arguments(tmp_path: Path) -> GraphArguments:
    """Arguments whose checkpoint and parameter file exist."""
    params = tmp_path / "nodes.yaml"
    params.write_text("{}")
    return GraphArguments(policy=str(tmp_path), params_file=str(params))


def names(specs: list[NodeSpec]) -> list[str]:
    return [spec.name for spec in specs]


def test_mujoco_with_shared_policy(arguments: GraphArguments) -> None:
    specs = build_graph(arguments)
    assert names(specs) == ["sim_node", "state_node", "policy_node"]
    assert set(specs[0].nodes) == {"sim_node", "pd_controller_node"}
    assert set(specs[2].nodes) == {"planner_node", "action_expert_node"}
    assert [spec.critical for spec in specs] == [True, False, False]


def test_split_policy_and_controller_on_topics(arguments: GraphArguments) -> None:
    specs = build_graph(replace(arguments, policy_process="split", controller="topics"))
    assert names(specs) == ["sim_node", "state_node", "pd_controller_node", "planner_node", "action_expert_node"]
    assert set(specs[0].nodes) == {"sim_node"}


def test_real_robot_has_a_camera_node_per_camera_and_wall_time(arguments: GraphArguments) -> None:
    specs = build_graph(replace(arguments, sim="none", policy_process="split"))
    cameras = [spec for spec in specs if spec.executable == "camera_node"]
    assert [spec.nodes[spec.name]["camera"] for spec in cameras] == list(load_contract().cameras)
    assert not any(values["use_sim_time"] for spec in specs for values in spec.nodes.values())
    assert next(spec for spec in specs if spec.name == "pd_controller_node").critical


def test_recorder_only_on_request(arguments: GraphArguments, tmp_path: Path) -> None:
    assert "recorder_node" not in names(build_graph(arguments))
    recorder = build_graph(replace(arguments, record=str(tmp_path / "bags")))[-1]
    assert recorder.nodes["recorder_node"]["directory"] == str(tmp_path / "bags")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sim": "webots"}, "unknown sim 'webots'; valid: mujoco, gazebo, none"),
        ({"sim": "gazebo"}, "no Gazebo world"),
        ({"policy": "/nowhere"}, "policy: /nowhere does not exist"),
        ({"params_file": "/nowhere.yaml"}, "params_file: /nowhere.yaml does not exist"),
        ({"sim": "none", "driver": "demonstrator"}, "ground truth"),
        ({"realtime_factor": -1.0}, "negative"),
        ({"record": __file__}, "is a file"),
    ],
)
def test_bad_arguments_are_one_clear_line(arguments: GraphArguments, change: dict[str, str], told: str) -> None:
    with pytest.raises(GraphError, match=told) as error:
        build_graph(replace(arguments, **change))
    assert "\n" not in str(error.value)


def test_strings_of_a_launch_file_are_the_same_arguments() -> None:
    assert GraphArguments.from_strings({row.name: row.default for row in argument_table()}) == GraphArguments()
    with pytest.raises(GraphError, match=r"autostart:='maybe' is neither"):
        GraphArguments.from_strings({"autostart": "maybe"})
    with pytest.raises(GraphError, match=r"seed:='x' is no int"):
        GraphArguments.from_strings({"seed": "x"})
    with pytest.raises(GraphError, match="unknown argument simulator; valid: sim, "):
        GraphArguments.from_strings({"simulator": "mujoco"})


def test_every_argument_is_described() -> None:
    table = {row.name: row for row in argument_table()}
    asked = "sim task policy namespace use_sim_time params_file autostart log_level record dry_run"
    assert set(asked.split()) <= set(table)
    assert all(len(row.help) > 15 for row in table.values())


def test_parameters_keep_their_type_and_are_fully_qualified(arguments: GraphArguments) -> None:
    task = 'yes: "10" \n pick ä'
    sim = build_graph(replace(arguments, namespace="/robot1/", task=task, realtime_factor=0.0))[0]
    written = yaml.safe_load(sim.parameters_yaml())["/robot1/sim_node"]["ros__parameters"]
    assert written["task"] == task
    assert isinstance(written["realtime_factor"], float)
    assert "__ns:=/robot1" in sim.ros_arguments("p.yaml")


def test_every_executable_has_a_module_with_a_main() -> None:
    for module in MODULES.values():
        tree = ast.parse((ROOT / "src" / Path(*module.split("."))).with_suffix(".py").read_text())
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert "main" in functions, module
