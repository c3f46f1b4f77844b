"""A checkpoint of this project -> a folder that lerobot or openpi (PyTorch) reads.

The networks are the same, so every tensor goes over bit for bit. What the other side has no place for (camera roles,
the tokenizer, exact statistics) lies beside it in files of this project, and `importer` brings all of it back.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pi05_model.checkpoint import (
    ACTION_TOKENIZER,
    CONFIG,
    FORMAT,
    STATS,
    TOKENIZER,
    Description,
    open_checkpoint,
    staging,
)
from pi05_model.config import ModelConfig
from pi05_model.interchange.foreign import OWN_CONFIG
from pi05_model.interchange.lerobot import config_json, write_processors
from pi05_model.interchange.names import EMBEDDING, EXPERT_HEAD, LEROBOT_PREFIX, TEXT_HEAD, rows, split_sizes
from pi05_model.interchange.sizes import variant_of
from pi05_model.interchange.stats import openpi_arrays, read_project
from pi05_model.normalize import NormStats
from pi05_model.weights import WEIGHTS, CheckpointError, TensorSpec, WeightFiles, is_finite, write_weights

Target = Literal["lerobot", "openpi"]
ASSET_ID = "pi05_ros"


@dataclass(frozen=True)
class Exported:
    """What an export did.

    Attributes:
        tensors: how many were written.
        notes: what the other side will not do as this project does.
    """

    tensors: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Part:
    """Where a tensor of the other side comes from: rows `begin` to `end` of one of ours; None for zeros."""

    ours: str | None
    begin: int
    end: int
    spec: TensorSpec


def export_checkpoint(path: Path | str, out: Path | str, to: Target) -> Exported:
    """Write a folder that the other side reads.

    Args:
        path: checkpoint folder of this project; statistics and tokenizer may be missing.
        out: folder to write, new or empty.
        to: whose layout.

    Raises:
        CheckpointError: the checkpoint is damaged, or the network has parts that the other side lacks.
    """
    path = Path(path)
    description, weights = open_checkpoint(path)
    _require_counterpart(description.config, to)
    parts = _parts(description.config, weights, LEROBOT_PREFIX if to == "lerobot" else "")
    stats = read_project(path / STATS) if (path / STATS).is_file() else None
    with staging(Path(out), fresh=True) as folder:
        write_weights(
            folder / WEIGHTS, {name: part.spec for name, part in parts.items()}, lambda name: _cut(weights, parts[name])
        )
        _write_own(folder, path, description)
        described = (
            _write_lerobot(folder, description, stats, weights)
            if to == "lerobot"
            else _openpi_json(description, weights)
        )
        (folder / CONFIG).write_text(json.dumps(described, indent=4) + "\n", "utf-8")
        if stats is not None and to == "openpi":
            _write_openpi_stats(folder, stats)
    return Exported(len(parts), tuple(_notes(description.config, stats, path)))


def _require_counterpart(config: ModelConfig, to: Target) -> None:
    problems = []
    if config.vision.stem_channels:
        problems.append("the convolutional stem of its vision tower")
    if config.conditions:
        problems.append("the condition embedding")
    if config.vlm.heads != 8:
        problems.append(f"{config.vlm.heads} attention heads (their joint attention is written for 8)")
    if config.policy == "pi0_fast" and to == "openpi":
        problems.append("π0-FAST (openpi has it in JAX alone)")
    if problems:
        raise CheckpointError(f"{to} has no counterpart for {', nor for '.join(problems)}")


def _parts(config: ModelConfig, weights: WeightFiles, prefix: str) -> dict[str, _Part]:
    parts: dict[str, _Part] = {}
    for ours, theirs in rows(config):
        spec = weights.specs[ours]
        begin = 0
        for name, length in zip(theirs, split_sizes(ours, config, spec.shape[0]), strict=True):
            shape = (length, *spec.shape[1:])
            if ours == "vision.embed.proj.weight":
                shape = (length, 3, config.vision.patch, config.vision.patch)
            parts[prefix + name] = _Part(ours, begin, begin + length, TensorSpec(spec.dtype, shape))
            begin += length
    # Both loaders find the embedding under the name of the tied head; lerobot's finds it nowhere else.
    if config.tied_head:
        parts[prefix + TEXT_HEAD] = parts.pop(prefix + EMBEDDING)
    if config.expert is not None:
        shape = (config.vocab_size, config.expert.width)
        parts[prefix + EXPERT_HEAD] = _Part(None, 0, 0, TensorSpec(weights.specs["embed.weight"].dtype, shape))
    return parts


def _cut(weights: WeightFiles, part: _Part) -> Tensor:
    if part.ours is None:
        return torch.zeros(part.spec.shape, dtype=part.spec.dtype)
    tensor = weights[part.ours][part.begin : part.end]
    if not is_finite(tensor):
        raise CheckpointError(f"{part.ours} holds values that are not finite")
    return tensor.reshape(part.spec.shape)


def _write_own(folder: Path, path: Path, description: Description) -> None:
    own = {"format": FORMAT, "config": description.config.to_dict(), "extra": description.extra}
    (folder / OWN_CONFIG).write_text(json.dumps(own, indent=1) + "\n", "utf-8")
    for name in (STATS, TOKENIZER):
        if (path / name).is_file():
            shutil.copyfile(path / name, folder / name)
    if (path / ACTION_TOKENIZER).is_dir():
        shutil.copytree(path / ACTION_TOKENIZER, folder / ACTION_TOKENIZER)


def _write_lerobot(
    folder: Path, description: Description, stats: Mapping[str, NormStats] | None, weights: WeightFiles
) -> dict[str, Any]:
    names = description.extra.get("names", ())
    described = config_json(description.config, stats, weights.specs["embed.weight"].dtype, names)
    if stats is not None:
        write_processors(folder, described, stats)
    return described


def _openpi_json(description: Description, weights: WeightFiles) -> dict[str, Any]:
    """Return what openpi's conversion script leaves beside a network."""
    config = description.config
    return {
        "action_dim": config.max_action_dim,
        "action_horizon": config.horizon,
        "paligemma_variant": variant_of(config.vlm),
        "action_expert_variant": None if config.expert is None else variant_of(config.expert),
        "precision": "bfloat16" if weights.specs["embed.weight"].dtype == torch.bfloat16 else "float32",
    }


def _write_openpi_stats(folder: Path, stats: Mapping[str, NormStats]) -> None:
    groups = {name: {key: a.tolist() for key, a in openpi_arrays(group).items()} for name, group in stats.items()}
    file = folder / "assets" / ASSET_ID / STATS
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"norm_stats": groups}, indent=2) + "\n", "utf-8")


def _notes(config: ModelConfig, stats: Mapping[str, NormStats] | None, path: Path) -> list[str]:
    notes = []
    if variant_of(config.vlm) is None or (config.expert is not None and variant_of(config.expert) is None):
        notes.append("they name Gemma sizes, and this network's have no name: their constructors need the sizes")
    if stats is None:
        notes.append("the checkpoint has no statistics")
    if not (path / TOKENIZER).is_file():
        notes.append("the checkpoint has no tokenizer")
    else:
        notes.append("they read text with PaliGemma's tokenizer, whatever tokenizer.json holds")
    if config.clip_state:
        notes.append("they do not clip the state in the prompt; this network was trained with clipped states")
    return notes
