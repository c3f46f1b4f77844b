"""Normalisation statistics in the files of lerobot and openpi.

openpi: assets/<id>/norm_stats.json. lerobot: policy_preprocessor.json names the file of its normaliser step, whose
tensors are called "observation.state.q01", "action.mean" and so on; checkpoints before its processors kept buffers
"normalize_inputs.buffer_observation_state.mean" among the weights.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from pi05_model.normalize import (
    ARRAYS,
    LEROBOT_EPS,
    NORMAL_Q99,
    OPENPI_EPS,
    Family,
    Method,
    NormStats,
    load_norm_stats,
)
from pi05_model.weights import CheckpointError, WeightFiles

STATS = "norm_stats.json"
FEATURES = {"state": "observation.state", "actions": "action"}
KINDS = {"state": "STATE", "actions": "ACTION"}
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor", "policy_postprocessor"
NORMALISERS = {PREPROCESSOR: "normalizer_processor", POSTPROCESSOR: "unnormalizer_processor"}
MODES: dict[Method, str] = {"quantile": "QUANTILES", "mean_std": "MEAN_STD"}

_BUFFERS = {"state": "normalize_inputs.buffer_observation_state.", "actions": "unnormalize_outputs.buffer_action."}


def read_openpi(path: Path, family: Family, method: Method, action_dim: int | None = None) -> dict[str, NormStats]:
    """Read a norm_stats.json that openpi wrote.

    Args:
        path: the file.
        family: whose arithmetic the network was trained with.
        method: "quantile" (π0.5, π0-FAST) or "mean_std" (π0).
        action_dim: real entries; openpi pads statistics to the network's width for some robots.

    Raises:
        CheckpointError: the file is damaged or lacks what `method` needs.
    """
    try:
        groups = json.loads(path.read_text("utf-8"))["norm_stats"]
        stats = {name: _complete(groups[name], family, groups[name].get("method", method)) for name in FEATURES}
        return stats if action_dim is None else {name: value.first(action_dim) for name, value in stats.items()}
    except FileNotFoundError as error:
        raise CheckpointError(f"no statistics at {path}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def find_openpi(folder: Path, asset_id: str | None = None) -> Path | None:
    """Return the statistics of an openpi checkpoint, None when it has none.

    Raises:
        CheckpointError: there are those of several robots and `asset_id` chooses none of them.
    """
    found = {str(file.parent.relative_to(folder / "assets")): file for file in (folder / "assets").rglob(STATS)}
    if asset_id is not None and asset_id not in found:
        raise CheckpointError(f"no statistics of {asset_id!r}; {folder / 'assets'} has {sorted(found) or 'none'}")
    if len(found) > 1 and asset_id is None:
        raise CheckpointError(f"statistics of {len(found)} robots: choose an asset id of {', '.join(sorted(found))}")
    chosen = found[asset_id] if asset_id is not None else next(iter(found.values()), None)
    return chosen or ((folder / STATS) if (folder / STATS).is_file() else None)


def read_lerobot(folder: Path, weights: WeightFiles, described: Mapping[str, Any]) -> dict[str, NormStats] | None:
    """Read the statistics of a lerobot checkpoint, None when it has none.

    Raises:
        CheckpointError: a file is damaged, or a normalisation mode has no counterpart here.
    """
    modes = {**(described.get("normalization_mapping") or {})}
    tensors = _buffers(weights)
    for name, step in NORMALISERS.items():
        state, norm_map = _step(folder, name, step)
        tensors = {**state, **tensors} if name == POSTPROCESSOR else {**tensors, **state}
        modes |= norm_map
    stats = {}
    for name, feature in FEATURES.items():
        group = {key.rpartition(".")[2]: value for key, value in tensors.items() if key.rpartition(".")[0] == feature}
        if not group:
            return None
        try:
            stats[name] = _of_mode(group, str(modes.get(KINDS[name], "QUANTILES")))
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{folder}: statistics of {feature}: {error}") from error
    return stats


def read_project(path: Path) -> dict[str, NormStats]:
    """Read this project's norm_stats.json.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return load_norm_stats(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def lerobot_arrays(stats: NormStats) -> dict[str, NDArray[np.float64]]:
    """Return arrays with which lerobot's arithmetic gives this normalisation: the same, unless a floor was at work."""
    arrays = {name: getattr(stats, name) for name in ARRAYS}
    if stats.family == "lerobot":
        return arrays
    low, centre, high = (stats.unnormalise(np.full(stats.dim, value)) for value in (-1.0, 0.0, 1.0))
    if stats.method == "quantile":
        return {**arrays, "q01": low, "q99": high}
    return {**arrays, "mean": centre, "std": np.maximum(high - centre - LEROBOT_EPS, 0.0)}


def openpi_arrays(stats: NormStats) -> dict[str, NDArray[np.float64]]:
    """Return mean, std, q01 and q99 with which openpi's arithmetic gives this normalisation."""
    arrays = {name: getattr(stats, name) for name in ("mean", "std", "q01", "q99")}
    if stats.family == "openpi":
        return arrays
    low, centre, high = (stats.unnormalise(np.full(stats.dim, value)) for value in (-1.0, 0.0, 1.0))
    if stats.method == "quantile":
        return {**arrays, "q01": low, "q99": np.maximum(high - OPENPI_EPS, low)}
    return {**arrays, "mean": centre, "std": np.maximum(high - centre - OPENPI_EPS, 0.0)}


def _complete(group: Mapping[str, Any], family: Family, method: Method) -> NormStats:
    """Build statistics whose file may lack what `method` does not use.

    Raises:
        KeyError: it lacks what `method` uses.
    """
    present = {key: np.asarray(value, dtype=np.float64) for key, value in group.items() if _is_array(value)}
    if method == "quantile":
        q01, q99 = present["q01"], present["q99"]
        mean, std = present.get("mean", (q01 + q99) / 2), present.get("std", (q99 - q01) / (2 * NORMAL_Q99))
    else:
        mean, std = present["mean"], present["std"]
        q01, q99 = present.get("q01", mean - NORMAL_Q99 * std), present.get("q99", mean + NORMAL_Q99 * std)
    low, high = present.get("min", q01), present.get("max", q99)
    count = int(np.max(group["count"])) if group.get("count") is not None else 0
    return NormStats(mean, std, q01, q99, low, high, count, family=family, method=method)


def _of_mode(group: Mapping[str, Any], mode: str) -> NormStats:
    """Build statistics for one of lerobot's normalisation modes; each is an affine map that one of ours can say."""
    if mode == "MEAN_STD":
        return _complete(group, "lerobot", "mean_std")
    if mode == "IDENTITY":
        dim = len(next(value for key, value in group.items() if key != "count"))
        zero, one = np.zeros(dim), np.ones(dim)
        return NormStats(zero, one, -one, one, -one, one, family="project", method="mean_std")
    ends = {"QUANTILES": ("q01", "q99"), "MIN_MAX": ("min", "max"), "QUANTILE10": ("q10", "q90")}
    if mode not in ends:
        raise ValueError(f"normalisation {mode} is unknown; known: MEAN_STD, IDENTITY, {', '.join(ends)}")
    low, high = ends[mode]
    return _complete({**group, "q01": group[low], "q99": group[high]}, "lerobot", "quantile")


def _step(folder: Path, name: str, registry_name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the state and the modes of a processor's normaliser; both empty when there is none."""
    try:
        steps = json.loads((folder / f"{name}.json").read_text("utf-8"))["steps"]
        step: dict[str, Any] = next((step for step in steps if step.get("registry_name") == registry_name), {})
        if "state_file" not in step:
            return {}, {}
        state = load_file(folder / Path(step["state_file"]).name)
        return {key: value.double().numpy() for key, value in state.items()}, dict(step["config"]["norm_map"])
    except FileNotFoundError as error:
        if error.filename is None or Path(error.filename).name != f"{name}.json":
            raise CheckpointError(f"{folder / name}.json: its state file is missing; copy the whole folder") from error
        return {}, {}
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{folder / name}.json: {error!r}") from error


def _buffers(weights: WeightFiles) -> dict[str, Any]:
    found = {}
    for name, prefix in _BUFFERS.items():
        for key in weights:
            if key.startswith(prefix):
                found[f"{FEATURES[name]}.{key.removeprefix(prefix)}"] = weights[key].double().numpy()
    return found


def _is_array(value: object) -> bool:
    return value is not None and np.ndim(value) == 1  # type: ignore[arg-type]
