"""Normalisation of states and actions, and the file that carries its statistics.

π0.5 and π0-FAST map the quantiles q01 and q99 to -1 and 1, π0 maps mean and standard deviation to 0 and 1. A dimension
that hardly moved in the data would blow small deviations up without bound (users of openpi report losses of 40,000),
so in this project the range has a floor: `MIN_RANGE` in units of the dimension. A dimension at its floor is named by
`NormStats.narrow`. Checkpoints from elsewhere keep their own arithmetic:

    family   quantile (r = q99 - q01)                     mean_std
    project  (x - middle) / max(r, MIN_RANGE) * 2         (x - mean) / max(std, MIN_RANGE / 2)
    openpi   (x - q01) / (r + 1e-6) * 2 - 1               (x - mean) / (std + 1e-6)
    lerobot  (x - q01) / (r, or 1e-8 when 0) * 2 - 1      (x - mean) / (std + 1e-8)

lerobot's inverse of the last one multiplies by std alone; here every inverse undoes its own map.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

MIN_RANGE = 1e-2
"""Smallest q99 - q01 that is divided by [rad, m, m/s or fraction]."""

OPENPI_EPS, LEROBOT_EPS = 1e-6, 1e-8

Floats = NDArray[np.float64]
Family = Literal["project", "openpi", "lerobot"]
"""Where a checkpoint comes from, which decides small differences in arithmetic and prompts."""

Method = Literal["quantile", "mean_std"]
NORMAL_Q99 = 2.3263478740408408
"""99th percentile of the standard normal distribution."""

ARRAYS = ("mean", "std", "q01", "q99", "min", "max")


@dataclass(frozen=True)
class NormStats:
    """Statistics of one vector, each float64 [D].

    Attributes:
        mean, std, q01, q99, min, max: over all frames.
        count: frames they were computed from; 0 when the file did not say.
        min_range: floor of q99 - q01 in `normalise`, of the project's family.
        family: whose arithmetic.
        method: "quantile" for π0.5 and π0-FAST, "mean_std" for π0.

    Raises:
        ValueError: an array has another length, is not finite or is out of order; or a setting is unknown.
    """

    mean: Floats
    std: Floats
    q01: Floats
    q99: Floats
    min: Floats
    max: Floats
    count: int = 0
    min_range: float = MIN_RANGE
    family: Family = "project"
    method: Method = "quantile"

    def __post_init__(self) -> None:
        for field, kind in (("family", Family), ("method", Method)):
            if getattr(self, field) not in get_args(kind):
                raise ValueError(f"{field} {getattr(self, field)!r} is unknown; it is one of {list(get_args(kind))}")
        if not (np.isfinite(self.min_range) and self.min_range > 0):
            raise ValueError(f"min_range must be positive and finite, not {self.min_range}")
        for name in ARRAYS:
            value = np.asarray(getattr(self, name), dtype=np.float64)
            object.__setattr__(self, name, value)
            if value.shape != (self.dim,) or not np.isfinite(value).all():
                raise ValueError(f"{name} must be {self.dim} finite numbers, got {value}")
        if (self.std < 0).any() or (self.q99 < self.q01).any():
            raise ValueError(f"std {self.std} must not be negative, and q01 {self.q01} not above q99 {self.q99}")

    @property
    def dim(self) -> int:
        """Length of the vector."""
        return len(np.atleast_1d(self.mean))

    @property
    def narrow(self) -> list[int]:
        """Indices whose range (or 2 std) is below `min_range`: at the floor, or badly scaled in another family."""
        spread = self.q99 - self.q01 if self.method == "quantile" else 2 * self.std
        return [int(i) for i in np.flatnonzero(spread < self.min_range)]

    @classmethod
    def from_samples(cls, samples: ArrayLike) -> "NormStats":
        """Compute from samples [..., D] that fit into memory."""
        x = np.asarray(samples, dtype=np.float64)
        x = x.reshape(-1, x.shape[-1])
        q01, q99 = np.quantile(x, [0.01, 0.99], axis=0)
        return cls(x.mean(axis=0), x.std(axis=0), q01, q99, x.min(axis=0), x.max(axis=0), len(x))

    def first(self, dim: int) -> "NormStats":
        """Return the statistics of the first `dim` entries; openpi's files may be padded to the network's width.

        Raises:
            ValueError: there are fewer.
        """
        if not 0 < dim <= self.dim:
            raise ValueError(f"the statistics have {self.dim} entries, not the first {dim}")
        return replace(self, **{name: getattr(self, name)[:dim] for name in ARRAYS})

    def normalise(self, values: ArrayLike) -> Floats:
        """Map [..., D] in physical units so that q01 becomes -1 and q99 becomes 1 (or mean 0, std 1); not clipped.

        Raises:
            ValueError: the last dimension is not D.
        """
        origin, scale, offset = self._affine()
        return (self._checked(values) - origin) / scale + offset

    def unnormalise(self, values: ArrayLike) -> Floats:
        """Invert `normalise`."""
        origin, scale, offset = self._affine()
        return (self._checked(values) - offset) * scale + origin

    def _checked(self, values: ArrayLike) -> Floats:
        array = np.asarray(values, dtype=np.float64)
        if array.shape[-1:] != (self.dim,):
            raise ValueError(f"values are {array.shape}, the statistics are of [..., {self.dim}]")
        return array

    def _affine(self) -> tuple[Floats, Floats, float]:
        """Return (origin, scale, offset) of (x - origin) / scale + offset.

        The origin is q01 where the references subtract q01: about the middle, a range near 0 would lose its digits.
        """
        if self.method == "mean_std":
            if self.family == "project":
                return self.mean, np.maximum(self.std, self.min_range / 2), 0.0
            return self.mean, self.std + (OPENPI_EPS if self.family == "openpi" else LEROBOT_EPS), 0.0
        spread = self.q99 - self.q01
        if self.family == "project":
            return (self.q99 + self.q01) / 2, np.maximum(spread, self.min_range) / 2, 0.0
        wide = spread + OPENPI_EPS if self.family == "openpi" else np.where(spread == 0, LEROBOT_EPS, spread)
        return self.q01, wide / 2, -1.0


def load_norm_stats(
    path: Path | str, family: Family | None = None, method: Method | None = None
) -> dict[str, NormStats]:
    """Read openpi's norm_stats.json: {"norm_stats": {"state": {...}, "actions": {...}}}.

    `min`, `max`, `count`, `min_range`, `family` and `method` are this project's additions; without them q01 and q99
    stand in and the project's arithmetic holds. openpi's files for π0 may lack q01 and q99; with method "mean_std" the
    quantiles of a normal distribution stand in, which nothing but a report reads.

    Args:
        path: the file.
        family, method: take the place of what the file says, or does not say, of all vectors.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: a key is missing or a value is wrong; the message names it and the file.
    """
    path = Path(path)
    try:
        groups = json.loads(path.read_text("utf-8"))["norm_stats"]
        chosen = {key: value for key, value in (("family", family), ("method", method)) if value is not None}
        return {name: _parse({**group, **chosen}) for name, group in groups.items()}
    except KeyError as error:
        raise ValueError(f"{path}: missing key {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error


def save_norm_stats(stats: Mapping[str, NormStats], path: Path | str) -> None:
    """Write openpi's norm_stats.json."""
    groups = {name: _plain(group) for name, group in stats.items()}
    Path(path).write_text(json.dumps({"norm_stats": groups}, indent=1) + "\n", "utf-8")


def _parse(group: Mapping[str, Any]) -> NormStats:
    if group.get("method") == "mean_std" and (group.get("q01") is None or group.get("q99") is None):
        mean, reach = np.asarray(group["mean"], float), NORMAL_Q99 * np.asarray(group["std"], float)
        group = {**group, "q01": mean - reach, "q99": mean + reach}
    return NormStats(
        mean=group["mean"],
        std=group["std"],
        q01=group["q01"],
        q99=group["q99"],
        min=group.get("min", group["q01"]),
        max=group.get("max", group["q99"]),
        count=int(group.get("count", 0)),
        min_range=float(group.get("min_range", MIN_RANGE)),
        family=group.get("family", "project"),
        method=group.get("method", "quantile"),
    )


def _plain(group: NormStats) -> dict[str, Any]:
    arrays = {name: getattr(group, name).tolist() for name in ARRAYS}
    settings = {name: getattr(group, name) for name in ("count", "min_range", "family", "method")}
    return {**arrays, **settings}
