"""Checkpoints: a folder that holds everything a policy needs.

    model.safetensors   weights, float32 or bfloat16
    config.json         {"format", "config": Pi05Config, "extra": anything the policy or its user keeps with it}
    norm_stats.json     openpi's layout
    tokenizer.json      vocabulary

Loading is all or nothing: a missing, unexpected or misshaped tensor is an error that lists it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pi05_model.config import Pi05Config
from pi05_model.normalize import NormStats, load_norm_stats, save_norm_stats
from pi05_model.pi05 import Pi05
from pi05_model.tokenizer import PolicyTokenizer, Tokenizer

FORMAT = "pi05_ros/1"
WEIGHTS, CONFIG, STATS, TOKENIZER = "model.safetensors", "config.json", "norm_stats.json", "tokenizer.json"
FILES = (CONFIG, WEIGHTS, STATS, TOKENIZER)


class CheckpointError(ValueError):
    """A checkpoint cannot be loaded."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds."""

    model: Pi05
    stats: dict[str, NormStats]
    tokenizer: PolicyTokenizer
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> Pi05Config:
        """Sizes of the network."""
        return self.model.config


def save_checkpoint(
    path: Path | str,
    model: Pi05,
    stats: Mapping[str, NormStats],
    tokenizer: Tokenizer,
    dtype: torch.dtype = torch.float32,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder.

    Args:
        path: folder, made when missing.
        model: network; its weights are stored in `dtype`.
        stats: statistics of "state" and "actions".
        tokenizer: the vocabulary it was trained with.
        dtype: float32 or bfloat16.
        extra: JSON values kept beside the configuration, such as the list of subtasks and the names of the actions.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()}
    description = {"format": FORMAT, "config": model.config.to_dict(), "extra": dict(extra or {})}
    # Whole files take the place of old ones: an interrupted save leaves no half-written weights behind.
    with TemporaryDirectory(dir=path, prefix=".saving-") as folder:
        new = Path(folder)
        save_file(weights, new / WEIGHTS)
        (new / CONFIG).write_text(json.dumps(description, indent=1) + "\n", "utf-8")
        save_norm_stats(stats, new / STATS)
        (new / TOKENIZER).write_text(tokenizer.to_json(), "utf-8")
        for name in FILES:
            (new / name).replace(path / name)


def load_checkpoint(path: Path | str, compute_dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Read a checkpoint folder; the weights are held in float32.

    Raises:
        CheckpointError: the folder or one of its files is missing or damaged, or tensors do not fit the configuration.
    """
    path = Path(path)
    _require_files(path)
    try:
        description = json.loads((path / CONFIG).read_text("utf-8"))
        if description.get("format") != FORMAT:
            raise ValueError(f"format is {description.get('format')!r}, expected {FORMAT!r}")
        config = Pi05Config.from_dict(description["config"])
        stats = load_norm_stats(path / STATS)
        tokenizer = PolicyTokenizer.from_json((path / TOKENIZER).read_text("utf-8"))
        weights = load_file(path / WEIGHTS)
    except (ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {error}") from error
    model = Pi05(config, compute_dtype)
    load_weights(model, weights, source=str(path / WEIGHTS))
    return Checkpoint(model, stats, tokenizer, description.get("extra", {}))


def load_weights(model: Pi05, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into `model`, all or nothing.

    Raises:
        CheckpointError: tensors are missing, unexpected, misshaped or not finite; the message lists them.
    """
    wanted = model.state_dict()
    problems = [f"missing {name} {tuple(wanted[name].shape)}" for name in wanted if name not in weights]
    problems += [f"unexpected {name} {tuple(weights[name].shape)}" for name in weights if name not in wanted]
    for name in wanted.keys() & weights.keys():
        if weights[name].shape != wanted[name].shape:
            problems.append(f"{name} is {tuple(weights[name].shape)}, expected {tuple(wanted[name].shape)}")
        elif not bool(torch.isfinite(weights[name]).all()):
            problems.append(f"{name} holds values that are not finite")
    if problems:
        raise CheckpointError(f"{source} does not fit the network:\n  " + "\n  ".join(sorted(problems)))
    model.load_state_dict(dict(weights))


def fingerprint(path: Path | str) -> str:
    """Return the sha256 over a checkpoint's files, in the order of their names.

    Raises:
        CheckpointError: the folder or one of its files is missing.
    """
    path = Path(path)
    _require_files(path)
    digest = hashlib.sha256()
    for name in sorted(FILES):
        digest.update(name.encode() + b"\0" + hashlib.sha256((path / name).read_bytes()).digest())
    return digest.hexdigest()


def _require_files(path: Path) -> None:
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint folder at {path}; train one with `pi05 train` or give the path of one")
    missing = [name for name in FILES if not (path / name).is_file()]
    if missing:
        raise CheckpointError(f"checkpoint {path} lacks {', '.join(missing)}; copy the whole folder")
