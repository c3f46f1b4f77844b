"""The one description of the running system: arguments in, processes to start out.

`pi05 up` (plain virtual environment) and launch/mobile_manipulator.launch.py (ROS 2 installation) both read it, and
neither repeats it. It imports neither rclpy nor launch. Whatever is wrong with the arguments is told here, before
anything starts, as a `GraphError` of one sentence.
"""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from pi05_ros.contract import load_contract
from pi05_ros.paths import share_dir

Value = bool | int | float | str

# Executable -> module with main(); setup.py installs the same pairs.
MODULES = {
    "camera_node": "pi05_ros.nodes.camera_node",
    "state_node": "pi05_ros.nodes.state_node",
    "planner_node": "pi05_ros.nodes.planner_node",
    "action_expert_node": "pi05_ros.nodes.action_expert_node",
    "policy_node": "pi05_ros.nodes.policy_process",
    "pd_controller_node": "pi05_ros.nodes.pd_controller_node",
    "recorder_node": "pi05_ros.nodes.recorder_node",
    "sim_node": "pi05_ros.nodes.sim_process",
    "demonstrator_node": "pi05_ros.nodes.demonstrator_node",
    "teleop_node": "pi05_ros.nodes.teleop_node",
}
EMBEDDED_POLICY = "checkpoints/pi05_tiny"
NODES_YAML = "config/nodes.yaml"
PROFILE = "config/fastdds_shm.xml"


class GraphError(ValueError):
    """Arguments from which no graph can be started; the message says what to change."""


def _arg(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class GraphArguments:
    """What a user chooses about the graph. Every field is a flag of `pi05 up` and a launch argument.

    The help texts are in the fields' metadata; `argument_table` lists them.
    """

    sim: Literal["mujoco", "gazebo", "none"] = _arg("mujoco", "what stands in for the robot; none: a real robot")
    task: str = _arg("clear the table", "what the robot is asked to do; later tasks come on the topic `task`")
    driver: Literal["policy", "demonstrator", "teleop", "none"] = _arg(
        "policy",
        "who makes action chunks: the policy, the scripted expert (simulation only), a person, or nobody (hold)",
    )
    teleop: Literal["jog", "leader"] = _arg("jog", "how a person drives: gamepad or keyboard on `joy`, or a leader arm")
    policy: str = _arg("", "checkpoint folder of the policy; empty: the one that the package ships")
    policy_process: Literal["shared", "split"] = _arg(
        "shared", "planner and action expert in one process with one set of weights, or in two"
    )
    namespace: str = _arg("", "namespace of all nodes and of their relative topics")
    use_sim_time: Literal["auto", "true", "false"] = _arg("auto", "clock of the nodes; auto: /clock if simulated")
    params_file: str = _arg("", f"ROS parameter file; empty: the package's {NODES_YAML}")
    autostart: bool = _arg(True, "configure and activate the lifecycle nodes at once")
    log_level: Literal["debug", "info", "warn", "error", "fatal"] = _arg("info", "least severity that nodes print")
    record: str = _arg("", "folder for rosbags; recording starts with the graph; empty: no recording")
    dry_run: bool = _arg(False, "publish chunks on `action_chunk_dry_run` only, where nothing executes them")
    viewer: bool = _arg(False, "show the simulator in a window (mujoco)")
    seed: int = _arg(0, "layout of the simulated scene (mujoco)")
    realtime_factor: float = _arg(1.0, "simulated seconds per second at most; 0: as fast as possible (mujoco)")
    controller: Literal["in_process", "topics"] = _arg(
        "in_process", "PD controller inside the simulator's process and step, or its own process over topics (mujoco)"
    )

    @classmethod
    def from_strings(cls, values: Mapping[str, str]) -> "GraphArguments":
        """Build from text, as launch files pass it.

        Raises:
            GraphError: unknown name, or a value that is not of the field's type; names the valid ones.
        """
        table = {argument.name: argument for argument in argument_table()}
        unknown = sorted(set(values) - set(table))
        if unknown:
            raise GraphError(f"unknown argument {', '.join(unknown)}; valid: {', '.join(table)}")
        chosen: dict[str, Any] = {name: table[name].parse(text) for name, text in values.items()}
        return cls(**chosen)


@dataclass(frozen=True)
class Argument:
    """One row of the argument table: `default` is text as a launch file wants it; `choices` is empty for free text."""

    name: str
    kind: type
    default: str
    choices: tuple[str, ...]
    help: str

    def parse(self, text: str) -> Value:
        """Convert text to the argument's type.

        Raises:
            GraphError: the text is no value of that type.
        """
        if self.kind is bool:
            if text.lower() not in ("true", "false", "1", "0"):
                raise GraphError(f"{self.name}:={text!r} is neither true nor false")
            return text.lower() in ("true", "1")
        try:
            value: Value = self.kind(text)
        except ValueError:
            raise GraphError(f"{self.name}:={text!r} is no {self.kind.__name__}") from None
        return value


def argument_table() -> list[Argument]:
    """Return all graph arguments with default, valid values and help, in order."""
    hints = typing.get_type_hints(GraphArguments)
    table = []
    for item in dataclasses.fields(GraphArguments):
        hint = hints[item.name]
        choices = typing.get_args(hint)
        default = str(item.default).lower() if hint is bool else str(item.default)
        kind = str if choices else hint
        table.append(Argument(item.name, kind, default, choices, item.metadata["help"]))
    return table


@dataclass(frozen=True)
class NodeSpec:
    """One process of the graph.

    Attributes:
        executable: key of `MODULES`, and the name that `ros2 run pi05_ros` knows.
        name: what its output is prefixed with; when it hosts one node, the name of that node.
        nodes: parameters of each node that the process hosts, by node name; they come after the file's.
        namespace: ROS namespace of its nodes, without leading slash; empty: the global one.
        params_file: ROS parameter file, read first.
        log_level: least severity printed.
        respawn: start it again when it dies; safe for nodes without state that matters.
        critical: the graph ends when it does.
    """

    executable: str
    name: str
    nodes: Mapping[str, Mapping[str, Value]]
    namespace: str = ""
    params_file: str = ""
    log_level: str = "info"
    respawn: bool = False
    critical: bool = False

    @property
    def module(self) -> str:
        """Python module with the executable's main()."""
        return MODULES[self.executable]

    def parameters_yaml(self) -> str:
        """Return the nodes' parameters as a ROS parameter file.

        Keys are fully qualified, so that they win over `/**` and `/**/name` entries of `params_file`; command-line
        rules (`-p`) know bare node names only and do not match in a namespace.
        """
        prefix = f"/{self.namespace}" if self.namespace else ""
        content = {f"{prefix}/{node}": {"ros__parameters": dict(values)} for node, values in self.nodes.items()}
        return str(yaml.safe_dump(content, allow_unicode=True, width=1 << 20))

    def ros_arguments(self, parameters_file: Path | str) -> list[str]:
        """Return what follows `--ros-args`.

        Args:
            parameters_file: where the caller wrote `parameters_yaml`.
        """
        arguments = ["--log-level", self.log_level]
        if self.namespace:
            arguments += ["-r", f"__ns:=/{self.namespace}"]
        if len(self.nodes) == 1:
            arguments += ["-r", f"__node:={self.name}"]
        if self.params_file:
            arguments += ["--params-file", self.params_file]
        return [*arguments, "--params-file", str(parameters_file)]


def build_graph(arguments: GraphArguments) -> list[NodeSpec]:
    """Return the processes of the graph.

    Raises:
        GraphError: what was asked for cannot be started; says what to change.
    """
    _check_choices(arguments)
    _check_combination(arguments)
    common = _common(arguments)
    robot = _robot(arguments, common)
    return [*robot, *_driver(arguments, common), *_recorder(arguments)]


def _common(arguments: GraphArguments) -> dict[str, Any]:
    """Fields that every node spec of a graph shares."""
    return {
        "namespace": arguments.namespace.strip("/"),
        "params_file": _params_file(arguments),
        "log_level": arguments.log_level,
    }


def _robot(arguments: GraphArguments, common: dict[str, Any]) -> list[NodeSpec]:
    """The robot, or what stands in for it, with its controller."""
    lifecycle = _lifecycle(arguments)
    state = _single("state_node", lifecycle, respawn=True, **common)
    # A controller that died has lost its reference; on a robot a person decides whether it may move again.
    controller = _single("pd_controller_node", lifecycle, critical=True, **common)
    if arguments.sim == "none":
        cameras = [
            _single("camera_node", {**lifecycle, "camera": name}, name=f"{name}_camera", respawn=True, **common)
            for name in load_contract().cameras
        ]
        return [*cameras, state, controller]
    chosen: dict[str, Value] = {
        "seed": arguments.seed,
        "task": arguments.task,
        "viewer": arguments.viewer,
        "realtime_factor": arguments.realtime_factor,
        "controller": arguments.controller,
    }
    if arguments.driver == "none":
        chosen["lockstep_s"] = 0.0  # nobody to wait for
    apart = arguments.controller == "topics"
    nodes: dict[str, dict[str, Value]] = {"sim_node": {**lifecycle, **chosen}}
    if not apart:
        nodes["pd_controller_node"] = lifecycle
    sim = NodeSpec("sim_node", "sim_node", nodes, critical=True, **common)
    return [sim, state, controller] if apart else [sim, state]


def _driver(arguments: GraphArguments, common: dict[str, Any]) -> list[NodeSpec]:
    """Whoever makes action chunks."""
    lifecycle = _lifecycle(arguments)
    if arguments.driver == "none":
        return []
    if arguments.driver == "demonstrator":
        chosen: dict[str, Value] = {"task": arguments.task, "dry_run": arguments.dry_run}
        return [_single("demonstrator_node", {**lifecycle, **chosen}, respawn=True, **common)]
    if arguments.driver == "teleop":
        drives: dict[str, Value] = {"mode": arguments.teleop, "dry_run": arguments.dry_run}
        return [_single("teleop_node", {**lifecycle, **drives}, respawn=True, **common)]
    policy = _policy(arguments)
    planner = {**lifecycle, "policy": policy, "task": arguments.task}
    expert = {**lifecycle, "policy": policy, "dry_run": arguments.dry_run}
    if arguments.policy_process == "shared":
        nodes = {"planner_node": planner, "action_expert_node": expert}
        return [NodeSpec("policy_node", "policy_node", nodes, respawn=True, **common)]
    return [
        _single("planner_node", planner, respawn=True, **common),
        _single("action_expert_node", expert, respawn=True, **common),
    ]


def _recorder(arguments: GraphArguments) -> list[NodeSpec]:
    return [recorder_spec(arguments, arguments.record)] if arguments.record else []


def recorder_spec(arguments: GraphArguments, directory: Path | str, on_activate: bool = True) -> NodeSpec:
    """Return the recorder of a graph.

    Args:
        arguments: the graph.
        directory: folder of the bags.
        on_activate: record at once; otherwise it waits for `~/start`.

    Raises:
        GraphError: the folder is a file.
    """
    directory = Path(directory).absolute()
    if directory.exists() and not directory.is_dir():
        raise GraphError(f"record: {directory} is a file; give a folder")
    parameters = {**_lifecycle(arguments), "directory": str(directory), "record_on_activate": on_activate}
    return _single("recorder_node", parameters, **_common(arguments))


def _single(executable: str, parameters: Mapping[str, Value], name: str = "", **rest: Any) -> NodeSpec:
    """A process that hosts one node, named as its executable unless told otherwise."""
    name = name or executable
    return NodeSpec(executable, name, {name: parameters}, **rest)


def _lifecycle(arguments: GraphArguments) -> dict[str, Value]:
    """Parameters that every lifecycle node takes."""
    simulated = arguments.sim != "none"
    use_sim_time = simulated if arguments.use_sim_time == "auto" else arguments.use_sim_time == "true"
    return {"use_sim_time": use_sim_time, "autostart": arguments.autostart}


def _check_choices(arguments: GraphArguments) -> None:
    for argument in argument_table():
        value = getattr(arguments, argument.name)
        if argument.choices and value not in argument.choices:
            raise GraphError(f"unknown {argument.name} {value!r}; valid: {', '.join(argument.choices)}")


def _check_combination(arguments: GraphArguments) -> None:
    if arguments.sim == "gazebo":
        raise GraphError(
            "sim:=gazebo cannot start yet: this version ships no Gazebo world, no ros_gz bridge configuration and no "
            "gz_ros2_control hardware in its robot description; use sim:=mujoco"
        )
    if arguments.driver == "demonstrator" and arguments.sim != "mujoco":
        raise GraphError("driver:=demonstrator reads the simulator's ground truth; use it with sim:=mujoco")
    if arguments.realtime_factor < 0:
        raise GraphError(f"realtime_factor:={arguments.realtime_factor} is negative; 0 means as fast as possible")


def _params_file(arguments: GraphArguments) -> str:
    """Absolute path of the parameter file; the package's own unless another is named."""
    path = Path(arguments.params_file).absolute() if arguments.params_file else share_dir() / NODES_YAML
    if not path.is_file():
        raise GraphError(f"params_file: {path} does not exist")
    return str(path)


def _policy(arguments: GraphArguments) -> str:
    """Absolute path of the checkpoint."""
    if arguments.policy:
        path = Path(arguments.policy).absolute()
        hint = "give a checkpoint folder, or leave `policy` empty for the one that the package ships"
    else:
        path = share_dir() / EMBEDDED_POLICY
        hint = "this installation ships no checkpoint; give one with `policy`, or use driver:=demonstrator"
    if not path.exists():
        raise GraphError(f"policy: {path} does not exist; {hint}")
    return str(path)
