"""Configuration dataclasses, their ROS parameters and config/nodes.yaml."""

import importlib
import re
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any

import pytest
import yaml
from rcl_interfaces.srv import DescribeParameters
from rclpy.parameter import Parameter

from pi05_ros.config import ConfigError, Doc, OneOf, Range, fields_of
from pi05_ros.nodes.base import BaseNode
from pi05_ros.paths import share_file

WRITTEN = {
    name.removeprefix("/**/"): section["ros__parameters"]
    for name, section in yaml.safe_load(share_file("config/nodes.yaml").read_text()).items()
}


def config_of(node: str) -> type:
    """Return the configuration dataclass of the module that a section is named after."""
    module = importlib.import_module(f"pi05_ros.nodes.{node}")
    own = (item for item in vars(module).values() if getattr(item, "__module__", "") == module.__name__)
    [config] = [item for item in own if is_dataclass(item) and isinstance(item, type)]
    return config


@dataclass(frozen=True)
class Sample:
    rate_hz: Annotated[float, Doc("a rate [Hz]"), Range(1, 10)] = 2.0
    count: Annotated[int, Doc("a count"), Range(0, 5)] = 1
    mode: Annotated[str, Doc("a choice"), OneOf(("slow", "fast"))] = "slow"
    tags: Annotated[tuple[str, ...], Doc("some words")] = ("a", "b")
    on: Annotated[bool, Doc("a switch")] = False


class SampleNode(BaseNode[Sample]):
    def __init__(self, **arguments: Any) -> None:
        super().__init__("sample_node", Sample, **arguments)

    def build(self, config: Sample) -> None:
        self.config = config


@pytest.mark.parametrize("node", WRITTEN)
def test_nodes_yaml_equals_the_fields(node: str) -> None:
    fields = {spec.name: spec for spec in fields_of(config_of(node))}
    assert list(WRITTEN[node]) == list(fields)
    parsed = {key: fields[key].parse(value) for key, value in WRITTEN[node].items()}
    assert parsed == {name: spec.default for name, spec in fields.items()}


def test_the_nodes_of_the_robot_have_a_section() -> None:
    assert {"camera_node", "state_node", "planner_node", "action_expert_node"} <= set(WRITTEN)


@pytest.mark.ros
def test_values_arrive_typed(graph: Any) -> None:
    node = graph.add(SampleNode, rate_hz=3, tags=["x"], mode="fast", on=True)
    assert node.config == Sample(rate_hz=3.0, count=1, mode="fast", tags=("x",), on=True)
    assert isinstance(node.config.rate_hz, float)


@pytest.mark.ros
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rate_hz": 30.0}, r"rate_hz: 30.0 is not valid; valid: float in \[1, 10\] \(a rate \[Hz\]\)"),
        ({"rate_hz": float("nan")}, "rate_hz: nan is not valid"),
        ({"rate_hz": "often"}, "rate_hz: 'often' is not valid"),
        ({"count": 1.5}, r"count: 1.5 is not valid; valid: int in \[0, 5\]"),
        ({"count": True}, "count: True is not valid"),
        ({"mode": "brisk"}, "mode: 'brisk' is not valid; valid: one of 'slow', 'fast'"),
        ({"tags": "x"}, "tags: 'x' is not valid; valid: list of str"),
        ({"rat_hz": 3.0}, "rat_hz: no such parameter; valid: rate_hz, count, mode, tags, on"),
    ],
)
def test_wrong_values_stop_configure_and_are_named(graph: Any, given: dict[str, Any], told: str) -> None:
    node = graph.add(SampleNode, start=False, **given)
    assert not node.autostart()
    assert re.search(told, node.failure)


@pytest.mark.ros
def test_every_mistake_is_told_at_once_and_can_be_mended(graph: Any) -> None:
    node = graph.add(SampleNode, start=False, rate_hz=30.0, mode="brisk")
    assert not node.autostart()
    assert "rate_hz: 30.0" in node.failure and "mode: 'brisk'" in node.failure
    results = node.set_parameters([Parameter("rate_hz", value=4.0), Parameter("mode", value="fast")])
    assert all(result.successful for result in results)
    assert node.autostart()
    assert node.config == Sample(rate_hz=4.0, mode="fast")


@pytest.mark.ros
def test_a_wrong_value_is_refused_while_running(graph: Any) -> None:
    node = graph.add(SampleNode)
    [result] = node.set_parameters([Parameter("mode", value="brisk")])
    assert not result.successful and "one of 'slow', 'fast'" in result.reason
    [result] = node.set_parameters([Parameter("rate_hz", value=11.0)])
    assert not result.successful


@pytest.mark.ros
def test_descriptors_carry_meaning_and_range(graph: Any) -> None:
    graph.add(SampleNode)
    request = DescribeParameters.Request(names=["rate_hz", "count", "mode"])
    rate, count, mode = graph.call(DescribeParameters, "sample_node/describe_parameters", request).descriptors
    assert rate.description == "a rate [Hz]"
    assert (rate.floating_point_range[0].from_value, rate.floating_point_range[0].to_value) == (1.0, 10.0)
    assert (count.integer_range[0].from_value, count.integer_range[0].to_value) == (0, 5)
    assert mode.additional_constraints == "valid: one of 'slow', 'fast'"


def test_a_field_must_say_what_it_is() -> None:
    @dataclass(frozen=True)
    class Silent:
        rate_hz: float = 1.0

    with pytest.raises(TypeError, match=r"Silent.rate_hz: needs Annotated"):
        fields_of(Silent)


def test_infinite_values_are_refused() -> None:
    [rate, *_] = fields_of(Sample)
    with pytest.raises(ConfigError, match="rate_hz: inf"):
        rate.parse(float("inf"))
