"""Normalisation of states and actions, and the file that carries its statistics.

π0.5 maps the quantiles q01 and q99 to -1 and 1. A dimension that hardly moved in the data would blow small deviations
up without bound (users of openpi report losses of 40,000), so the range has a floor: `MIN_RANGE` in units of the
dimension. A dimension at its floor is named by `NormStats.narrow`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

MIN_RANGE = 1e-2
"""Smallest q99 - q01 that is divided by [rad, m, m/s or fraction]."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NormStats:
    """Statistics of one vector, each float64 [D].

    Attributes:
        mean, std, q01, q99, min, max: over all frames.
        count: frames they were computed from; 0 when the file did not say.
        min_range: floor of q99 - q01 in `normalise`.
    """

    mean: Floats
    std: Floats
    q01: Floats
    q99: Floats
    min: Floats
    max: Floats
    count: int = 0
    min_range: float = MIN_RANGE

    def __post_init__(self) -> None:
        for name in ("mean", "std", "q01", "q99", "min", "max"):
            value = np.asarray(getattr(self, name), dtype=np.float64)
            object.__setattr__(self, name, value)
            if value.shape != (self.dim,) or not np.isfinite(value).all():
                raise ValueError(f"{name} must be {self.dim} finite numbers, got {value}")

    @property
    def dim(self) -> int:
        """Length of the vector."""
        return len(np.atleast_1d(self.mean))

    @property
    def narrow(self) -> list[int]:
        """Indices whose range is at the floor."""
        return [int(i) for i in np.flatnonzero(self.q99 - self.q01 < self.min_range)]

    @classmethod
    def from_samples(cls, samples: ArrayLike) -> "NormStats":
        """Compute from samples [..., D] that fit into memory."""
        x = np.asarray(samples, dtype=np.float64)
        x = x.reshape(-1, x.shape[-1])
        q01, q99 = np.quantile(x, [0.01, 0.99], axis=0)
        return cls(x.mean(axis=0), x.std(axis=0), q01, q99, x.min(axis=0), x.max(axis=0), len(x))

    def normalise(self, values: ArrayLike) -> Floats:
        """Map [..., D] in physical units so that q01 becomes -1 and q99 becomes 1; not clipped."""
        centre, half = self._centre_and_half()
        return (np.asarray(values, dtype=np.float64) - centre) / half

    def unnormalise(self, values: ArrayLike) -> Floats:
        """Invert `normalise`."""
        centre, half = self._centre_and_half()
        return np.asarray(values, dtype=np.float64) * half + centre

    def _centre_and_half(self) -> tuple[Floats, Floats]:
        return (self.q99 + self.q01) / 2, np.maximum(self.q99 - self.q01, self.min_range) / 2


def load_norm_stats(path: Path | str) -> dict[str, NormStats]:
    """Read openpi's norm_stats.json: {"norm_stats": {"state": {...}, "actions": {...}}}.

    `min`, `max`, `count` and `min_range` are this project's additions; without them q01 and q99 stand in.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: a key is missing; the message names it and the file.
    """
    path = Path(path)
    try:
        groups = json.loads(path.read_text("utf-8"))["norm_stats"]
        return {name: _parse(group) for name, group in groups.items()}
    except KeyError as error:
        raise ValueError(f"{path}: missing key {error}") from error


def save_norm_stats(stats: Mapping[str, NormStats], path: Path | str) -> None:
    """Write openpi's norm_stats.json."""
    groups = {name: _plain(group) for name, group in stats.items()}
    Path(path).write_text(json.dumps({"norm_stats": groups}, indent=1) + "\n", "utf-8")


def _parse(group: Mapping[str, Any]) -> NormStats:
    return NormStats(
        mean=group["mean"],
        std=group["std"],
        q01=group["q01"],
        q99=group["q99"],
        min=group.get("min", group["q01"]),
        max=group.get("max", group["q99"]),
        count=int(group.get("count", 0)),
        min_range=float(group.get("min_range", MIN_RANGE)),
    )


def _plain(group: NormStats) -> dict[str, Any]:
    arrays = {name: getattr(group, name).tolist() for name in ("mean", "std", "q01", "q99", "min", "max")}
    return {**arrays, "count": group.count, "min_range": group.min_range}
