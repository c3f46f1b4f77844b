"""Checkpoints of lerobot and openpi (PyTorch) -> a checkpoint folder of this project.

    lerobot   model.safetensors (or shards and their index), config.json with "type", policy_preprocessor.json
    openpi    model.safetensors, config.json with "action_horizon" (or none), assets/<robot>/norm_stats.json

All or nothing: a missing, unexpected, misshaped or non-finite tensor is an error that lists it, and nothing is written.
Tensors pass through one by one in the dtype that they have; a network of any size needs little memory.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pi05_model.build import build
from pi05_model.checkpoint import FORMAT, read_description, staging, write_parts
from pi05_model.config import ModelConfig
from pi05_model.foreign_stats import find_openpi, read_lerobot, read_openpi, read_project
from pi05_model.names import EMBEDDING, TEXT_HEAD, canonical, is_unread, rows
from pi05_model.normalize import Family, Method, NormStats
from pi05_model.sizes import Derivation, derive, feature_dim
from pi05_model.tokenizer import Tokenizer, load_tokenizer
from pi05_model.weights import WEIGHTS, CheckpointError, TensorSpec, WeightFiles, find_weights, write_weights

OWN_CONFIG = "pi05_ros.json"
"""What `exporter` leaves beside an exported network, so that it comes back as it was."""


@dataclass(frozen=True)
class Choices:
    """What a user may say about a checkpoint that its folder does not.

    Attributes:
        sizes: see `sizes`; for reduced networks.
        settings: fields of ModelConfig, such as {"horizon": 15, "state_in_prompt": False}.
        tokenizer: source for `load_tokenizer`.
        stats: a norm_stats.json to use instead of the folder's.
        asset_id: which robot's statistics of an openpi folder.
        action_dim: real entries of state and action, when the statistics are padded.
    """

    sizes: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Path | str | None = None
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


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes:
        source: what was read.
        missing: files that the checkpoint still lacks before it can run, with what provides them.
    """

    source: Foreign
    missing: tuple[str, ...]


def is_foreign(path: Path) -> bool:
    """Tell whether a folder looks like lerobot's or openpi's rather than this project's."""
    described = _described(path)
    return "format" not in described and any(path.glob("*.safetensors"))


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
        derivation = Derivation(_own_config(path, own))
    else:
        derivation = derive(specs, described, choices.sizes, choices.settings)
    extra = dict(own["extra"]) if own else _source(family, described)
    stats = _stats(path, family, derivation.config, weights, described, choices, bool(own))
    notes = [*derivation.notes, *([f"not read: {', '.join(unread)}"] if unread else [])]
    return Foreign(path, family, derivation.config, weights, stored, unread, stats, extra, tuple(notes))


def convert(source: Foreign) -> tuple[dict[str, TensorSpec], dict[str, tuple[str, ...]]]:
    """Return dtype and shape of every tensor of the network, and the file's tensors that it is made of.

    Raises:
        CheckpointError: tensors are missing, unexpected or misshaped; the message lists them.
    """
    expected = {name: tuple(p.shape) for name, p in build(source.config, device="meta").state_dict().items()}
    specs: dict[str, TensorSpec] = {}
    parts: dict[str, tuple[str, ...]] = {}
    problems: list[str] = []
    left = set(source.stored)
    for ours, theirs in rows(source.config):
        left -= set(theirs)
        if absent := [name for name in theirs if name not in source.stored]:
            problems += [f"missing {name}" for name in absent]
            continue
        parts[ours] = tuple(source.stored[name] for name in theirs)
        found = [source.weights.specs[name] for name in parts[ours]]
        shape = _stacked([spec.shape for spec in found])
        if shape != expected[ours]:
            shapes = " + ".join(str(spec.shape) for spec in found)
            problems.append(f"misshaped {', '.join(theirs)}: {shapes} makes {shape}, expected {expected[ours]}")
        specs[ours] = TensorSpec(_widest([spec.dtype for spec in found]), shape or ())
    problems += [f"unexpected {source.stored[name]} {source.weights.specs[source.stored[name]].shape}" for name in left]
    if lacking := sorted(expected.keys() - {ours for ours, _ in rows(source.config)}):
        problems.append(f"no counterpart for {', '.join(lacking)} of this network")
    if problems:
        raise CheckpointError(f"{source.path} does not fit the network:\n  " + "\n  ".join(sorted(problems)))
    return specs, parts


def assemble(source: Foreign, parts: tuple[str, ...], dtype: torch.dtype) -> Tensor:
    """Return one tensor of the network from the file's tensors that it is made of."""
    tensors = [source.weights[name].to(dtype) for name in parts]
    whole = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
    # A patch embedding is a convolution there and a linear map of the flattened patch here.
    return whole.flatten(1) if whole.ndim == 4 else whole


def import_checkpoint(path: Path | str, out: Path | str, choices: Choices | None = None) -> Imported:
    """Write a checkpoint folder of this project.

    Args:
        path: folder of lerobot or openpi.
        out: folder to write, new or empty.
        choices: what the folder does not say.

    Raises:
        CheckpointError: see `read_foreign` and `convert`; or `out` is not empty; or the tokenizer does not fit.
    """
    choices = choices or Choices()
    source = read_foreign(path, choices)
    specs, parts = convert(source)
    _require_tied(source)
    tokenizer = _tokenizer(source, choices)
    broken: list[str] = []

    def tensor_of(name: str) -> Tensor:
        tensor = assemble(source, parts[name], specs[name].dtype)
        if not bool(torch.isfinite(tensor).all()):
            broken.append(f"{', '.join(parts[name])} holds values that are not finite")
        return tensor

    with staging(Path(out), fresh=True) as folder:
        write_weights(folder / WEIGHTS, specs, tensor_of)
        if broken:
            raise CheckpointError(f"{source.path} is damaged:\n  " + "\n  ".join(broken))
        write_parts(folder, source.config, source.stats, tokenizer, source.extra)
    missing = []
    if source.stats is None:
        missing.append("norm_stats.json (give --stats)")
    if tokenizer is None:
        missing.append("tokenizer.json (give --tokenizer, PaliGemma's tokenizer.model or tokenizer.json)")
    return Imported(source, tuple(missing))


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


def _own_config(path: Path, own: Mapping[str, Any]) -> ModelConfig:
    if own.get("format") != FORMAT:
        raise CheckpointError(f"{path / OWN_CONFIG}: format is {own.get('format')!r}, expected {FORMAT!r}")
    return read_description(path / OWN_CONFIG).config


def _has_prefix(path: Path) -> bool:
    return any(name.startswith("model.") for name in WeightFiles(find_weights(path)))


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


def _require_tied(source: Foreign) -> None:
    """Refuse a π0-FAST whose text head has left the embedding: its actions are text, and here the two are one."""
    heads = [name for name in source.unread if canonical(name) == TEXT_HEAD]
    if source.config.policy != "pi0_fast" or not heads:
        return
    if not torch.equal(source.weights[heads[0]], source.weights[source.stored[EMBEDDING]]):
        raise CheckpointError(
            f"{heads[0]} differs from the token embedding: this π0-FAST was trained with an untied text head, "
            "which this network does not have"
        )


def _source(family: Family, described: Mapping[str, Any]) -> dict[str, Any]:
    source: dict[str, Any] = {"family": family}
    names = described.get("action_feature_names")
    action_dim = feature_dim(described, "output_features", "action")
    return {"source": source | ({"action_dim": action_dim} if action_dim else {})} | (
        {"action_names": list(names)} if names else {}
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
    if own and (path / "norm_stats.json").is_file():
        return read_project(path / "norm_stats.json")
    if family == "lerobot" and (stats := read_lerobot(path, weights, described)):
        return stats
    file = find_openpi(path, choices.asset_id)
    return None if file is None else read_openpi(file, family, method, choices.action_dim)


def _tokenizer(source: Foreign, choices: Choices) -> Tokenizer | None:
    """Return the tokenizer that was asked for, else the one that lies in the folder, else None."""
    chosen = choices.tokenizer
    if chosen is None and (source.path / "tokenizer.json").is_file():
        chosen = source.path / "tokenizer.json"
    if chosen is None:
        return None
    try:
        return load_tokenizer(chosen)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"tokenizer: {error}") from error


def _stacked(shapes: list[tuple[int, ...]]) -> tuple[int, ...] | None:
    """Return the shape of tensors stacked along the first dimension, None when they cannot be."""
    if any(shape[1:] != shapes[0][1:] or not shape for shape in shapes):
        return None
    total = sum(shape[0] for shape in shapes)
    rest = shapes[0][1:]
    return (total, rest[0] * rest[1] * rest[2]) if len(rest) == 3 else (total, *rest)


def _widest(dtypes: list[torch.dtype]) -> torch.dtype:
    widest = dtypes[0]
    for dtype in dtypes[1:]:
        widest = torch.promote_types(widest, dtype)
    return widest
