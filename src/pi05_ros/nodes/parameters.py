"""Bind a configuration dataclass (see `pi05_ros.config`) to a node's ROS parameters.

A value that is not valid never stops the node from being constructed: it is kept aside and told, with every other
mistake, when the node is configured, so that one run shows all of them.
"""

from typing import Any, Generic, TypeVar, get_args, get_origin

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from pi05_ros.config import ConfigError, FieldSpec, fields_of

ConfigT = TypeVar("ConfigT")

# Parameters that rclpy itself declares or reads.
BUILT_IN = ("use_sim_time", "start_type_description_service")
# Every node has it; the process that hosts the node reads it.
AUTOSTART = FieldSpec("autostart", bool, True, "configure and activate by itself when the process starts", None, ())
_TYPES = {
    bool: Parameter.Type.BOOL,
    int: Parameter.Type.INTEGER,
    float: Parameter.Type.DOUBLE,
    str: Parameter.Type.STRING,
}
_ARRAYS = {str: Parameter.Type.STRING_ARRAY, float: Parameter.Type.DOUBLE_ARRAY}


class Parameters(Generic[ConfigT]):
    """The parameters of one node.

    Args:
        node: a node made with automatically_declare_parameters_from_overrides=True, which is how a value for a
            parameter that does not exist becomes visible.
        config_type: frozen dataclass whose fields become the parameters.
    """

    def __init__(self, node: Node, config_type: type[ConfigT]) -> None:
        self._node, self._config_type = node, config_type
        self._fields = fields_of(config_type)
        self._specs = {spec.name: spec for spec in (*self._fields, AUTOSTART)}
        self._wrong: dict[str, str] = {}
        given = {name: node.get_parameter(name).value for name in _declared(node) if name not in BUILT_IN}
        for name in given.keys() - self._specs.keys():
            self._wrong[name] = f"{name}: no such parameter; valid: {', '.join(self._specs)}"
        for spec in self._specs.values():
            self._declare(spec, given)
        node.add_on_set_parameters_callback(self._on_set)

    def read(self) -> ConfigT:
        """Return the parameters as a configuration.

        Raises:
            ConfigError: one line for every wrong parameter: its name, value and what is valid.
        """
        if self._wrong:
            raise ConfigError("\n".join(self._wrong.values()))
        values = {spec.name: spec.parse(_plain(self._node.get_parameter(spec.name).value)) for spec in self._fields}
        return self._config_type(**values)

    def _declare(self, spec: FieldSpec, given: dict[str, Any]) -> None:
        value = spec.default
        if spec.name in given:
            self._node.undeclare_parameter(spec.name)
            try:
                value = spec.parse(_plain(given[spec.name]))
            except ConfigError as error:
                self._wrong[spec.name] = str(error)
        parameter = Parameter(spec.name, _ros_type(spec.type), list(value) if isinstance(value, tuple) else value)
        self._node.declare_parameter(spec.name, parameter.value, _descriptor(spec), ignore_override=True)

    def _on_set(self, parameters: list[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            spec = self._specs.get(parameter.name)
            if spec is None:
                continue
            try:
                spec.parse(_plain(parameter.value))
            except ConfigError as error:
                return SetParametersResult(successful=False, reason=str(error))
        for parameter in parameters:
            self._wrong.pop(parameter.name, None)
        return SetParametersResult(successful=True)


def _declared(node: Node) -> list[str]:
    return [name for name in node.list_parameters([], 0).names if not name.startswith("qos_overrides.")]


def _plain(value: Any) -> Any:
    """Return a parameter's value as plain Python (arrays arrive as array.array)."""
    return value if isinstance(value, bool | int | float | str) or value is None else list(value)


def _ros_type(kind: Any) -> Parameter.Type:
    return _ARRAYS[get_args(kind)[0]] if get_origin(kind) is tuple else _TYPES[kind]


def _descriptor(spec: FieldSpec) -> ParameterDescriptor:
    # No read_only: a node that is configured again takes new values.
    descriptor = ParameterDescriptor(
        name=spec.name,
        type=_ros_type(spec.type).value,
        description=spec.doc,
        additional_constraints=f"valid: {spec.valid}",
    )
    if spec.range is not None and spec.type is float:
        limits = FloatingPointRange(from_value=float(spec.range.low), to_value=float(spec.range.high))
        descriptor.floating_point_range = [limits]
    elif spec.range is not None and spec.type is int:
        whole = IntegerRange(from_value=int(spec.range.low), to_value=int(spec.range.high), step=1)
        descriptor.integer_range = [whole]
    return descriptor
