"""Statistics as lerobot keeps them: per episode beside its row, and merged in meta/stats.json.

Those of an episode are exact. Merging is lerobot's (compute_stats.aggregate_feature_stats): quantiles of the whole
cannot be had from those of the parts, so the lowest of the lower and the highest of the upper ones stand for them.
`pi05 stats` computes real ones.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pi05_model.observation import Image

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}

Floats = NDArray[np.float64]
FeatureStats = dict[str, Any]
"""min, max, mean, std, count and QUANTILES of a feature as nested lists of numbers."""


def vector_stats(values: ArrayLike) -> FeatureStats:
    """Describe a feature's values [N, D] over the frames of an episode."""
    x = np.asarray(values, dtype=np.float64)
    x = x.reshape(len(x), -1)
    stats = {"min": x.min(axis=0), "max": x.max(axis=0), "mean": x.mean(axis=0), "std": x.std(axis=0)}
    # One dimension at a time: the sorted copy stays small, however long the episode.
    quantiles = np.stack([np.quantile(column, list(QUANTILES.values())) for column in x.T], axis=1)
    stats |= dict(zip(QUANTILES, quantiles, strict=True))
    return {name: value.tolist() for name, value in stats.items()} | {"count": [len(x)]}


class ImageStats:
    """Statistics of the channels of a camera, from a sample of its images; values in [0, 1].

    Attributes:
        seen: images so far.
    """

    EVERY = 5
    """One image in so many is looked at."""
    STRIDE = 4
    """And every so many pixels of its rows and columns."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, 256), np.int64)
        self._images = 0
        self.seen = 0

    def add(self, bgr: Image) -> None:
        """Take in an image, blue first."""
        if self.seen % self.EVERY == 0:
            self._images += 1
            small = bgr[:: self.STRIDE, :: self.STRIDE, ::-1]
            for channel in range(3):
                self._counts[channel] += np.bincount(small[..., channel].ravel(), minlength=256)
        self.seen += 1

    def stats(self) -> FeatureStats:
        """Return the statistics, each of shape [3, 1, 1]."""
        levels = np.arange(256) / 255
        total = self._counts.sum(axis=1)
        mean = self._counts @ levels / total
        variance = self._counts @ levels**2 / total - mean**2
        below = np.cumsum(self._counts, axis=1) / total[:, None]
        rows = {
            "min": [levels[row.nonzero()[0][0]] for row in self._counts],
            "max": [levels[row.nonzero()[0][-1]] for row in self._counts],
            "mean": mean,
            "std": np.sqrt(np.maximum(variance, 0)),
        }
        rows |= {name: [levels[np.searchsorted(row, q)] for row in below] for name, q in QUANTILES.items()}
        return {name: [[[float(v)]] for v in row] for name, row in rows.items()} | {"count": [self._images]}


def merge_stats(parts: Iterable[Mapping[str, FeatureStats]]) -> dict[str, FeatureStats]:
    """Merge the statistics of several sets of frames; a feature that some lack is merged over the others."""
    lists: dict[str, list[FeatureStats]] = {}
    for part in parts:
        for key, stats in part.items():
            lists.setdefault(key, []).append(stats)
    return {key: _merge(stats) for key, stats in lists.items()}


def _merge(parts: list[FeatureStats]) -> FeatureStats:
    arrays = {name: np.stack([np.asarray(p[name], np.float64) for p in parts]) for name in parts[0] if name != "count"}
    count = np.array([p["count"][0] for p in parts], np.float64)
    share = (count / count.sum()).reshape(-1, *[1] * (arrays["mean"].ndim - 1))
    mean = (share * arrays["mean"]).sum(axis=0)
    variance = (share * (arrays["std"] ** 2 + (arrays["mean"] - mean) ** 2)).sum(axis=0)
    merged = {"mean": mean, "std": np.sqrt(variance)}
    for name in arrays.keys() - merged.keys():
        lower = name == "min" or (name in QUANTILES and QUANTILES[name] <= 0.5)
        merged[name] = arrays[name].min(axis=0) if lower else arrays[name].max(axis=0)
    return {name: merged[name].tolist() for name in arrays} | {"count": [int(count.sum())]}
