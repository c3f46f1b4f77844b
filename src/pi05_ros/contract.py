"""The contract: what the robot is, read from config/contract.yaml.

Every part of the system takes joint names, their order, units, cameras and rates from here. A vector "in contract
order" is float array [D] (or [..., D]) whose entry i is `contract.names[i]`, in `contract.units[i]`.
"""

from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pi05_ros.paths import share_file

Kind = Literal["position", "gripper", "velocity"]
Part = Literal["planner", "expert"]
Array = NDArray[np.float64]


class ContractError(ValueError):
    """A contract that is not valid; the message names file, key, value and what would be valid."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Group(_Strict):
    """Consecutive entries of the vector that are of one kind.

    Attributes:
        group: name, such as "left_arm".
        kind: what the entries are (see config/contract.yaml).
        unit: unit of every entry.
        names: entry names; for position and gripper these are URDF joint names.
        open, closed: grippers only, joint position [m] at fraction 0 and 1.
    """

    group: str
    kind: Kind
    unit: Literal["rad", "m", "fraction", "m/s", "rad/s"]
    names: Annotated[tuple[str, ...], Field(min_length=1)]
    open: float | None = None
    closed: float | None = None

    @model_validator(mode="after")
    def _gripper_has_range(self) -> "Group":
        has_range = self.open is not None and self.closed is not None
        if (self.kind == "gripper") != has_range or (has_range and self.open == self.closed):
            raise ValueError(f"group {self.group!r}: `open` and `closed` must differ and belong to grippers only")
        return self


class Camera(_Strict):
    """One camera: the policy's name for it, its optical frame (REP-103) and which part of the policy sees it."""

    model_key: str
    frame: str
    seen_by: Annotated[tuple[Part, ...], Field(min_length=1)]


class Image(_Strict):
    """Size [px] and JPEG quality of every image on the wire and in a dataset."""

    width: int = Field(gt=0)
    height: int = Field(gt=0)
    jpeg_quality: int = Field(ge=1, le=100)


class Rates(_Strict):
    """Nominal rates [Hz] and the number of steps in a chunk."""

    action_hz: float = Field(gt=0)
    chunk_steps: int = Field(gt=0)
    planner_hz: float = Field(gt=0)
    camera_hz: float = Field(gt=0)
    joint_state_hz: float = Field(gt=0)
    torque_hz: float = Field(gt=0)


class Contract(_Strict):
    """The validated contract. Build it with `load_contract`."""

    robot: str
    description: str
    vector: Annotated[tuple[Group, ...], Field(min_length=1)]
    cameras: dict[str, Camera]
    image: Image
    rates: Rates

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Contract":
        model_keys = [camera.model_key for camera in self.cameras.values()]
        for what, names in (("vector entry", self.names), ("camera model_key", model_keys)):
            twice = sorted({n for n in names if list(names).count(n) > 1})
            if twice:
                raise ValueError(f"{what} {', '.join(map(repr, twice))} is listed twice")
        return self

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the D vector entries, in order."""
        return tuple(name for group in self.vector for name in group.names)

    @cached_property
    def units(self) -> tuple[str, ...]:
        """Units of the D vector entries."""
        return tuple(group.unit for group in self.vector for _ in group.names)

    @property
    def dim(self) -> int:
        """D, the length of the state and action vectors."""
        return len(self.names)

    @cached_property
    def joint_names(self) -> tuple[str, ...]:
        """URDF names of the J actuated joints, in contract order (the vector without the base)."""
        return tuple(name for group in self.vector if group.kind != "velocity" for name in group.names)

    @cached_property
    def joint_index(self) -> NDArray[np.intp]:
        """Indices [J] of `joint_names` in the vector."""
        return np.array([self.names.index(name) for name in self.joint_names])

    @cached_property
    def base_index(self) -> NDArray[np.intp]:
        """Indices [3] of the base velocities in the vector."""
        return np.array([i for i, name in enumerate(self.names) if name not in self.joint_names])

    @cached_property
    def position_index(self) -> NDArray[np.intp]:
        """Indices of the entries that are joint positions: neither grippers nor velocities."""
        return np.array([i for group in self.vector if group.kind == "position" for i in self._where(group)])

    @property
    def step_s(self) -> float:
        """Duration of one action step [s]."""
        return 1.0 / self.rates.action_hz

    def slice(self, group: str) -> slice:
        """Return where a group lies in the vector.

        Raises:
            KeyError: unknown group; the message lists the valid ones.
        """
        for candidate in self.vector:
            if candidate.group == group:
                where = self._where(candidate)
                return slice(where.start, where.stop)
        raise KeyError(f"no group {group!r} in the contract; groups: {', '.join(g.group for g in self.vector)}")

    def cameras_of(self, part: Part) -> tuple[str, ...]:
        """Names of the cameras that a part of the policy sees, in contract order."""
        return tuple(name for name, camera in self.cameras.items() if part in camera.seen_by)

    def to_joint_units(self, vector: Array) -> Array:
        """Convert [..., D] in contract units to joint units [..., J] (grippers from fraction to metres)."""
        scale, offset = self._joint_affine
        joints: Array = vector[..., self.joint_index] * scale + offset
        return joints

    def from_joint_units(self, joints: Array, base_twist: Array) -> Array:
        """Convert joints [..., J] in joint units and body twist [..., 3] (m/s, m/s, rad/s) to a vector [..., D]."""
        scale, offset = self._joint_affine
        vector = np.empty((*joints.shape[:-1], self.dim))
        vector[..., self.joint_index] = (joints - offset) / scale
        vector[..., self.base_index] = base_twist
        return vector

    def _where(self, group: Group) -> range:
        start = self.names.index(group.names[0])
        return range(start, start + len(group.names))

    @cached_property
    def _joint_affine(self) -> tuple[Array, Array]:
        scale, offset = [], []
        for group in self.vector:
            if group.kind == "velocity":
                continue
            grips = group.open is not None and group.closed is not None
            scale += [group.closed - group.open if grips else 1.0] * len(group.names)  # type: ignore[operator]
            offset += [group.open if grips else 0.0] * len(group.names)
        return np.array(scale, dtype=np.float64), np.array(offset, dtype=np.float64)


def load_contract(path: Path | str | None = None) -> Contract:
    """Read and validate a contract.

    Args:
        path: YAML file; None reads the package's config/contract.yaml (cached).

    Raises:
        ContractError: the file cannot be read or breaks a rule; names file, key, value and the valid ones.
    """
    if path is None:
        return _default_contract()
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ContractError(f"{path}: cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise ContractError(f"{path}: expected a mapping with keys {', '.join(Contract.model_fields)}")
    try:
        return Contract(**raw)
    except ValidationError as error:
        raise ContractError("\n".join(_explain(path, detail) for detail in error.errors())) from error


@cache
def _default_contract() -> Contract:
    return load_contract(share_file("config/contract.yaml"))


def _explain(path: Path, detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"]) or "(whole file)"
    value = repr(detail["input"])
    shown = value if len(value) < 80 else value[:77] + "..."
    return f"{path}: {key}: {detail['msg']} (value: {shown})"


def check_joints(contract: Contract, available: tuple[str, ...], source: str) -> None:
    """Check that a robot description has every joint of the contract.

    Args:
        contract: the contract.
        available: joint names that the description offers.
        source: name of the description, for the message.

    Raises:
        ContractError: names every unknown joint and the valid ones.
    """
    unknown = [name for name in contract.joint_names if name not in available]
    if unknown:
        raise ContractError(
            f"contract of {contract.robot}: vector: unknown joint {', '.join(map(repr, unknown))}; "
            f"{source} has: {', '.join(available)}"
        )
