"""Steps between physical units and what the network reads and says, each with its inverse.

A transform is a small frozen value with `apply` and `invert`; `Compose` runs several in order, and back in the other
order. Actions go this way (openpi's order: relative, then normalised, then padded):

    actions [..., H, D] in rad, m, m/s  -Relative->  less the state  -Normalise->  about [-1, 1]  -PadTo->  [..., H, 32]

Vectors are float64 NumPy arrays, images torch tensors. What a transform cannot take is an error that names it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pi05_model.images import Placement, resize_with_pad, to_uint8, to_unit
from pi05_model.normalize import NormStats
from pi05_model.prompts import BINS, bin_centres, state_bins

Floats = NDArray[np.float64]
T = TypeVar("T")


class Transform(Protocol[T]):
    """A map with an inverse."""

    def apply(self, values: T) -> T:
        """Go towards the network."""

    def invert(self, values: T) -> T:
        """Come back from it."""


@dataclass(frozen=True)
class Compose(Generic[T]):
    """Transforms in order; the inverse runs them backwards."""

    steps: tuple[Transform[T], ...]

    def apply(self, values: T) -> T:
        for step in self.steps:
            values = step.apply(values)
        return values

    def invert(self, values: T) -> T:
        for step in reversed(self.steps):
            values = step.invert(values)
        return values


@dataclass(frozen=True)
class Normalise:
    """Physical units <-> about [-1, 1], by the family and method of the statistics."""

    stats: NormStats

    def apply(self, values: Floats) -> Floats:
        return self.stats.normalise(values)

    def invert(self, values: Floats) -> Floats:
        return self.stats.unnormalise(values)


@dataclass(frozen=True)
class PadTo:
    """[..., dim] <-> [..., size], with zeros behind the real entries.

    Raises:
        ValueError: `dim` entries do not fit.
    """

    dim: int
    size: int = 32

    def __post_init__(self) -> None:
        if not 0 < self.dim <= self.size:
            raise ValueError(f"{self.dim} entries do not fit into the network's {self.size}; at most {self.size} do")

    def apply(self, values: Floats) -> Floats:
        values = _last(values, self.dim, "values")
        return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, self.size - self.dim)])

    def invert(self, values: Floats) -> Floats:
        return _last(values, self.size, "padded values")[..., : self.dim].copy()


@dataclass(frozen=True, eq=False)
class Relative:
    """Actions [..., H, D] <-> the same with the state [..., D] taken off some entries (openpi's delta actions).

    Attributes:
        entries: indices that become relative; the others, such as grippers and velocities, stay.
        states: [..., D] at the observations that the chunks belong to.
    """

    entries: tuple[int, ...]
    states: ArrayLike

    def __post_init__(self) -> None:
        dim = np.shape(self.states)[-1]
        wrong = [i for i in self.entries if not 0 <= i < dim]
        if wrong or len(set(self.entries)) < len(self.entries):
            raise ValueError(f"relative entries {list(self.entries)} must be different indices within 0 ... {dim - 1}")

    def apply(self, values: Floats) -> Floats:
        return relative_actions(values, self.states, self.entries)

    def invert(self, values: Floats) -> Floats:
        return relative_actions(values, self.states, self.entries, sign=1.0)


@dataclass(frozen=True)
class StateBins:
    """Normalised entries <-> the bins 0 ... 255 of a prompt; the inverse gives the middle of each bin."""

    clip: bool = True

    def apply(self, values: Floats) -> NDArray[np.int64]:
        return state_bins(values, self.clip)

    def invert(self, values: NDArray[np.int64]) -> Floats:
        bins = np.asarray(values)
        if bins.size and not (bins.min() >= 0 and bins.max() < BINS):
            raise ValueError(f"bins are 0 ... {BINS - 1}, got {bins.min()} ... {bins.max()}")
        return bin_centres(bins)


@dataclass(frozen=True)
class ToUnit:
    """uint8 images <-> float32 in [-1, 1]; the inverse rounds."""

    def apply(self, values: Tensor) -> Tensor:
        return to_unit(values)

    def invert(self, values: Tensor) -> Tensor:
        return to_uint8(values)


@dataclass(frozen=True)
class ResizeWithPad:
    """Images [..., 3, height, width] <-> [..., 3, size, size]; the inverse takes the border off and resizes back."""

    height: int
    width: int
    size: int = 224

    def apply(self, values: Tensor) -> Tensor:
        if tuple(values.shape[-2:]) != (self.height, self.width):
            raise ValueError(f"images are {tuple(values.shape)}, expected [..., {self.height}, {self.width}]")
        return resize_with_pad(values, self.size)

    def invert(self, values: Tensor) -> Tensor:
        return Placement.of(self.height, self.width, self.size).undo(values)


def action_transform(
    stats: NormStats, states: ArrayLike, entries: Sequence[int] = (), size: int = 32
) -> Compose[NDArray[np.float64]]:
    """Return the way of actions [..., H, D] at states [..., D] to the network's [..., H, size] and back."""
    return Compose((Relative(tuple(entries), states), Normalise(stats), PadTo(stats.dim, size)))


def relative_actions(
    actions: ArrayLike, states: ArrayLike, entries: Sequence[int], sign: float = -1.0
) -> NDArray[np.float64]:
    """Return actions [..., H, D] with the state [..., D] taken off (or, with sign 1, put back on) some entries.

    Raises:
        ValueError: actions and states have different widths.
    """
    moved = np.array(actions, dtype=np.float64)
    offset = np.asarray(states, dtype=np.float64)
    chosen = list(entries)
    if chosen and offset.shape[-1:] != moved.shape[-1:]:
        raise ValueError(f"actions are {moved.shape}, states {offset.shape}: the last dimensions differ")
    moved[..., chosen] += sign * offset[..., None, chosen]
    return moved


def _last(values: ArrayLike, dim: int, what: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.shape[-1:] != (dim,):
        raise ValueError(f"{what} are {array.shape}, expected [..., {dim}]")
    return array
