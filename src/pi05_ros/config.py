"""How a component's frozen dataclass documents and checks its fields, free of ROS.

    @dataclass(frozen=True)
    class CameraConfig:
        rate_hz: Annotated[float, Doc("frames per second"), Range(0.1, 240)] = 25.0

The same dataclass is bound to ROS parameters by `pi05_ros.nodes.parameters`, and a test holds config/nodes.yaml equal
to its fields. Every field has a default. Types: bool, int, float, str, tuple[str, ...], tuple[float, ...].
"""

import math
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, cast, get_args, get_origin, get_type_hints

Value = bool | int | float | str | tuple[str, ...] | tuple[float, ...]


class ConfigError(ValueError):
    """A value that a component cannot work with; the message names field, value and what would be valid."""


@dataclass(frozen=True, slots=True)
class Doc:
    """What a field means, with its unit."""

    text: str


@dataclass(frozen=True, slots=True)
class Range:
    """Inclusive range of a number."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class OneOf:
    """The valid choices of a string."""

    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One documented field.

    Attributes:
        name: field and parameter name.
        type: bool, int, float, str, or the tuple types.
        default: value when nothing is set.
        doc: meaning and unit.
        range: inclusive range, or None.
        choices: valid strings; empty means any.
    """

    name: str
    type: Any
    default: Value
    doc: str
    range: Range | None
    choices: tuple[str, ...]

    @property
    def valid(self) -> str:
        """What is valid, in words."""
        kind = "list of " + get_args(self.type)[0].__name__ if get_origin(self.type) is tuple else self.type.__name__
        if self.range is not None:
            return f"{kind} in [{self.range.low:g}, {self.range.high:g}]"
        return f"one of {', '.join(map(repr, self.choices))}" if self.choices else kind

    def parse(self, raw: Any) -> Value:
        """Return a raw value as this field's type.

        Raises:
            ConfigError: wrong type, out of range, not finite, or not a choice; names field, value and what is valid.
        """
        value = _convert(raw, self.type)
        if value is None or not self._accepts(value):
            raise ConfigError(f"{self.name}: {raw!r} is not valid; valid: {self.valid} ({self.doc})")
        return value

    def _accepts(self, value: Value) -> bool:
        numbers = [v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, float)]
        if not all(map(math.isfinite, numbers)):
            return False
        if self.range is not None and not isinstance(value, str | tuple):
            return self.range.low <= value <= self.range.high
        return not self.choices or value in self.choices


def _convert(raw: Any, kind: Any) -> Value | None:
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        parts = [_convert(v, item) for v in raw] if isinstance(raw, list | tuple) else [None]
        return None if None in parts else cast(Value, tuple(parts))
    if kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    if kind is str and type(raw) is int:
        return str(raw)  # `-p address:=0` is an integer to ROS
    return raw if type(raw) is kind else None


def fields_of(config_type: type) -> tuple[FieldSpec, ...]:
    """Return the documented fields of a configuration dataclass, in order.

    Raises:
        TypeError: a field without `Doc` or without a default.
    """
    hints = get_type_hints(config_type, include_extras=True)
    specs = []
    for item in fields(config_type):
        hint = hints[item.name]
        kind, *meta = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        doc = next((m.text for m in meta if isinstance(m, Doc)), None)
        if doc is None or item.default is MISSING:
            raise TypeError(f"{config_type.__name__}.{item.name}: needs Annotated[…, Doc(…)] and a default")
        limits = next((m for m in meta if isinstance(m, Range)), None)
        choices = next((m.choices for m in meta if isinstance(m, OneOf)), ())
        specs.append(FieldSpec(item.name, kind, item.default, doc, limits, choices))
    return tuple(specs)
