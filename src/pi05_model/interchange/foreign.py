"""Folders that lerobot or openpi (PyTorch) wrote, read as far as headers and JSON go.

lerobot   model.safetensors (or shards and their index), config.json with "type", policy_preprocessor.json
openpi    model.safetensors, config.json with "action_horizon" (or none), assets/<robot>/norm_stats.json
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pi05_model.checkpoint import FORMAT, STATS, read_description
from pi05_model.config import ModelConfig
from pi05_model.interchange.names import EMBEDDING, JOINT, LEROBOT_PREFIX, TEXT_HEAD, canonical, is_unread
from pi05_model.interchange.sizes import Derivation, derive, feature_dim
from pi05_model.interchange.stats import find_openpi, read_lerobot, read_openpi, read_project
from pi05_model.normalize import Family, Method, NormStats
from pi05_model.weights import CheckpointError, WeightFiles, find_weights

OWN_CONFIG = "pi05_ros.json"
"""What `exporter` leaves beside an exported network, so that it comes back as it was."""


@dataclass(frozen=True)
class Choices:
    """What a user may say about a checkpoint that its folder does not.

    Attributes:
        sizes: see `sizes`; for reduced networks.
        settings: fields of ModelConfig, such as {"horizon": 15, "state_in_prompt": False}.
        tokenizer: source for `load_tokenizer`.
        action_tokenizer: folder of one, for π0-FAST.
        stats: a norm_stats.json to use instead of the folder's.
        asset_id: which robot's statistics of an openpi folder.
        action_dim: real entries of state and action, when the statistics are padded.
    """

    sizes: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Path | str | None = None
    action_tokenizer: Path | None = None
    stats: Path | None = None
    asset_id: str | None = None
    action_dim: int | None = None


@dataclass(frozen=True)
class Foreign:
    """A folder of lerobot or openpi, read without its tensors' data.

    Attributes:
        family: who wrote it.
        config: the same network here.
        weights: the tensors under the names in the files.
        stored: openpi's name -> name in the files.
        unread: names of tensors that no policy computes with.
        stats: normalisation statistics, None when the folder has none.
        extra: what the checkpoint should keep about its source.
        notes: what had to be assumed.
    """

    path: Path
    family: Family
    config: ModelConfig
    weights: WeightFiles
    stored: Mapping[str, str]
    unread: tuple[str, ...]
    stats: Mapping[str, NormStats] | None
    extra: Mapping[str, Any]
    notes: tuple[str, ...]


def is_foreign(path: Path) -> bool:
    """Tell whether a folder looks like lerobot's or openpi's rather than this project's."""
    if "format" in _described(path) or not any(path.glob("model*.safetensors")):
        return False
    return any(canonical(name).startswith(JOINT) for name in WeightFiles(find_weights(path)))


def read_foreign(path: Path | str, choices: Choices | None = None) -> Foreign:
    """Read what a folder of lerobot or openpi holds.

    Raises:
        CheckpointError: it is no such folder, or its parts contradict each other.
    """
    path, choices = Path(path), choices or Choices()
    if not path.is_dir():
        raise CheckpointError(f"no folder at {path}")
    described = _described(path)
    if "format" in described:
        raise CheckpointError(f"{path} is a checkpoint of this project already (format {described['format']})")
    family: Family = "lerobot" if "type" in described or _has_prefix(path) else "openpi"
    weights = WeightFiles(find_weights(path))
    stored, unread = _names(weights)
    specs = {name: weights.specs[file_name] for name, file_name in stored.items()}
    own = _described(path, OWN_CONFIG)
    if own:
        derivation = Derivation(_own_config(path, own, choices.settings))
    else:
        derivation = derive(specs, described, choices.sizes, choices.settings, family)
    config = derivation.config
    head = next((name for name in unread if canonical(name) == TEXT_HEAD), None)
    if config.policy == "pi0_fast" and head is not None and not torch.equal(weights[head], weights[stored[EMBEDDING]]):
        config = dataclasses.replace(config, tied_head=False)
        stored, unread = {**stored, TEXT_HEAD: head}, tuple(name for name in unread if name != head)
    extra = dict(own["extra"]) if own else _source(family, described)
    stats = _stats(path, family, config, weights, described, choices, bool(own))
    notes = [*derivation.notes, *([f"not read: {', '.join(unread)}"] if unread else [])]
    return Foreign(path, family, config, weights, stored, unread, stats, extra, tuple(notes))


def _described(path: Path, name: str = "config.json") -> dict[str, Any]:
    file = path / name
    if not file.is_file():
        return {}
    try:
        described = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    if not isinstance(described, dict):
        raise CheckpointError(f"{file} is damaged: not a JSON object")
    return described


def _own_config(path: Path, own: Mapping[str, Any], settings: Mapping[str, Any]) -> ModelConfig:
    if own.get("format") != FORMAT:
        raise CheckpointError(f"{path / OWN_CONFIG}: format is {own.get('format')!r}, expected {FORMAT!r}")
    return dataclasses.replace(read_description(path / OWN_CONFIG).config, **settings)


def _has_prefix(path: Path) -> bool:
    return any(name.startswith(LEROBOT_PREFIX) for name in WeightFiles(find_weights(path)))


def _names(weights: WeightFiles) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return openpi's name -> stored name, and the stored names that no policy reads."""
    stored: dict[str, str] = {}
    unread = []
    for name in weights:
        known = canonical(name)
        if is_unread(known):
            unread.append(name)
        elif known in stored:
            raise CheckpointError(f"{name} and {stored[known]} are the same tensor {known}; remove one")
        else:
            stored[known] = name
    head = stored.pop(TEXT_HEAD, None)
    if head is not None:  # tied: a file may hold either name
        stored.setdefault(EMBEDDING, head)
        if stored[EMBEDDING] != head:
            unread.append(head)
    return stored, tuple(sorted(unread))


def _source(family: Family, described: Mapping[str, Any]) -> dict[str, Any]:
    source: dict[str, Any] = {"family": family}
    names = described.get("action_feature_names")
    action_dim = feature_dim(described, "output_features", "action")
    return {"source": source | ({"action_dim": action_dim} if action_dim else {})} | (
        {"names": list(names)} if names else {}
    )


def _stats(
    path: Path,
    family: Family,
    config: ModelConfig,
    weights: WeightFiles,
    described: Mapping[str, Any],
    choices: Choices,
    own: bool,
) -> dict[str, NormStats] | None:
    method: Method = "mean_std" if config.policy == "pi0" else "quantile"
    if choices.stats is not None:
        return read_openpi(choices.stats, family, method, choices.action_dim)
    if own and (path / STATS).is_file():
        return read_project(path / STATS)
    if family == "lerobot" and (stats := read_lerobot(path, weights, described)):
        return stats
    file = find_openpi(path, choices.asset_id)
    return None if file is None else read_openpi(file, family, method, choices.action_dim)
