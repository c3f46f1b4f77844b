"""Checkpoints: a folder that holds everything a policy needs.

    model.safetensors   weights, float32 or bfloat16
    config.json         {"format", "config": ModelConfig, "tokenizer": {"sha256", "vocab_size"},
                        "extra": anything the policy or its user keeps with it}
    norm_stats.json     openpi's layout
    tokenizer.json      vocabulary
    action_tokenizer/   of a policy that says actions as tokens (π0-FAST)

Loading is all or nothing: a missing, unexpected, misshaped or non-finite tensor is an error that lists it, and so is a
tokenizer that is not the one the checkpoint was saved with.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from pi05_model.action_tokens import ActionTokenizer, ActionTokenizerError, check_space, load_action_tokenizer
from pi05_model.backbone import Backbone
from pi05_model.build import build
from pi05_model.config import ModelConfig
from pi05_model.normalize import NormStats, load_norm_stats, save_norm_stats
from pi05_model.tokenizer import Tokenizer, tokenizer_from_json
from pi05_model.weights import WEIGHTS, CheckpointError, TensorSpec, WeightFiles, is_finite, spec_of, write_weights

__all__ = [
    "FILES",
    "FORMAT",
    "Checkpoint",
    "CheckpointError",
    "Description",
    "fingerprint",
    "load_checkpoint",
    "load_network",
    "load_weights",
    "open_checkpoint",
    "read_description",
    "save_checkpoint",
    "staging",
    "write_parts",
]

FORMAT = "pi05_ros/1"
CONFIG, STATS, TOKENIZER = "config.json", "norm_stats.json", "tokenizer.json"
FILES = (CONFIG, WEIGHTS, STATS, TOKENIZER)
ACTION_TOKENIZER = "action_tokenizer"


@dataclass(frozen=True)
class Description:
    """What config.json says.

    Attributes:
        config: sizes of the network.
        extra: what the policy or its user keeps with it.
        tokenizer_sha256: of tokenizer.json; None in checkpoints that did not write it down.
    """

    config: ModelConfig
    extra: dict[str, Any] = field(default_factory=dict)
    tokenizer_sha256: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds."""

    model: Backbone
    stats: dict[str, NormStats]
    tokenizer: Tokenizer
    extra: dict[str, Any] = field(default_factory=dict)
    action_tokenizer: ActionTokenizer | None = None

    @property
    def config(self) -> ModelConfig:
        """Sizes of the network."""
        return self.model.config


def save_checkpoint(
    path: Path | str,
    model: Backbone,
    stats: Mapping[str, NormStats],
    tokenizer: Tokenizer,
    dtype: torch.dtype | None = torch.float32,
    extra: Mapping[str, Any] | None = None,
    action_tokenizer: ActionTokenizer | None = None,
) -> None:
    """Write a checkpoint folder.

    Args:
        path: folder, made when missing.
        model: network.
        stats: statistics of "state" and "actions".
        tokenizer: the vocabulary it was trained with.
        dtype: that all weights are stored in, float32 or bfloat16; None keeps the dtype that each has.
        extra: JSON values kept beside the configuration, such as the list of subtasks and the names of the actions.
        action_tokenizer: of a policy that says actions as tokens.

    Raises:
        CheckpointError: a weight is not finite, or a tokenizer does not fit the network; nothing is written.
    """
    weights = model.state_dict()
    _require_finite(weights, f"the network to be saved at {path}")
    specs = {name: TensorSpec(dtype or tensor.dtype, tuple(tensor.shape)) for name, tensor in weights.items()}
    with staging(Path(path)) as folder:
        write_weights(folder / WEIGHTS, specs, lambda name: weights[name].to("cpu", specs[name].dtype))
        write_parts(folder, model.config, stats, tokenizer, extra or {}, action_tokenizer)


def write_parts(
    folder: Path,
    config: ModelConfig,
    stats: Mapping[str, NormStats] | None,
    tokenizer: Tokenizer | None,
    extra: Mapping[str, Any],
    action_tokenizer: ActionTokenizer | None = None,
) -> None:
    """Write the files of a checkpoint beside its weights; without statistics or tokenizer it is not complete.

    Raises:
        CheckpointError: a tokenizer does not fit the network or the statistics.
    """
    if action_tokenizer is not None:
        if stats is not None:
            try:
                check_space(action_tokenizer, stats["actions"], config.relative_entries)
            except ActionTokenizerError as error:
                raise CheckpointError(f"action tokenizer: {error}") from error
        action_tokenizer.save(folder / ACTION_TOKENIZER)
    description = {"format": FORMAT, "config": config.to_dict()}
    if stats is not None:
        save_norm_stats(stats, folder / STATS)
    if tokenizer is not None:
        _require_vocabulary(tokenizer, config, "the tokenizer")
        text = tokenizer.to_json()
        (folder / TOKENIZER).write_text(text, "utf-8")
        description["tokenizer"] = {"sha256": _sha256(text), "vocab_size": tokenizer.vocab_size}
    description["extra"] = dict(extra)
    (folder / CONFIG).write_text(json.dumps(description, indent=1) + "\n", "utf-8")


@contextmanager
def staging(path: Path, fresh: bool = False) -> Iterator[Path]:
    """Give a folder to write files into; whole files then take the place of old ones in `path`.

    An interrupted save leaves no half-written file behind, and a failed one changes nothing.

    Args:
        path: folder, made when missing.
        fresh: refuse a folder that holds files already.

    Raises:
        CheckpointError: the folder holds files and `fresh` is asked for.
    """
    if fresh and path.is_dir() and any(path.iterdir()):
        raise CheckpointError(f"{path} is not empty; choose a new folder")
    new = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(dir=path, prefix=".saving-") as name:
            folder = Path(name)
            yield folder
            # The configuration last: with it a reader finds the rest complete.
            for file in sorted(folder.iterdir(), key=lambda file: file.name == CONFIG):
                if file.is_dir():
                    shutil.rmtree(path / file.name, ignore_errors=True)
                file.replace(path / file.name)
    except BaseException:
        if new and not any(path.iterdir()):
            path.rmdir()
        raise


def load_checkpoint(
    path: Path | str, compute_dtype: torch.dtype = torch.float32, dtype: torch.dtype = torch.float32
) -> Checkpoint:
    """Read a checkpoint folder.

    Args:
        path: folder written by `save_checkpoint`.
        compute_dtype: of activations and matrix products.
        dtype: that matrices and embeddings are held in; norms and heads are float32 in any case. With bfloat16 the
            network never exists in float32.

    Raises:
        CheckpointError: the folder or one of its files is missing or damaged, or its parts do not fit together.
    """
    path = Path(path)
    _require_files(path, FILES)
    description = read_description(path / CONFIG)
    try:
        stats = load_norm_stats(path / STATS)
        text = (path / TOKENIZER).read_text("utf-8")
        tokenizer = tokenizer_from_json(text)
        actions = path / ACTION_TOKENIZER
        action_tokenizer = load_action_tokenizer(actions) if actions.is_dir() else None
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {error}") from error
    if description.tokenizer_sha256 not in (None, _sha256(text)):
        raise CheckpointError(
            f"{path / TOKENIZER} is not the tokenizer that this checkpoint was saved with "
            f"(sha256 {_sha256(text)[:12]}…, {CONFIG} says {str(description.tokenizer_sha256)[:12]}…); "
            "copy the whole folder from where it came"
        )
    _require_vocabulary(tokenizer, description.config, str(path / TOKENIZER))
    model = load_network(path, compute_dtype, dtype)
    return Checkpoint(model, stats, tokenizer, description.extra, action_tokenizer)


def load_network(
    path: Path | str, compute_dtype: torch.dtype = torch.float32, dtype: torch.dtype = torch.float32
) -> Backbone:
    """Read the network alone, from a folder that may lack statistics and tokenizer; arguments of `load_checkpoint`.

    Raises:
        CheckpointError: the folder, its configuration or its weights are missing or damaged, or do not fit.
    """
    path = Path(path)
    description, weights = open_checkpoint(path)
    model = build(description.config, compute_dtype, dtype, device="meta")
    # Copies, tensor by tensor: the network must not hang on a file that another save replaces.
    targets = model.state_dict()
    loaded = {name: weights[name].to(target.dtype, copy=True) for name, target in targets.items()}
    _raise(_not_finite(loaded), str(path / WEIGHTS))
    model.load_state_dict(loaded, assign=True)
    return model


def open_checkpoint(path: Path | str) -> tuple[Description, WeightFiles]:
    """Read what a folder says of its network, without the tensors' data; statistics and tokenizer may be missing.

    Raises:
        CheckpointError: the folder, its configuration or its weights are missing or damaged, or tensors are missing,
            unexpected or misshaped.
    """
    path = Path(path)
    _require_files(path, (CONFIG, WEIGHTS))
    description = read_description(path / CONFIG)
    weights = WeightFiles([path / WEIGHTS])
    wanted = build(description.config, device="meta").state_dict()
    problems = _misfits(wanted, weights.specs)
    if problems:  # then tell everything at once
        problems += _not_finite({name: weights[name] for name in weights if name in wanted})
    _raise(problems, str(path / WEIGHTS))
    return description, weights


def load_weights(model: Backbone, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into `model`, all or nothing.

    Raises:
        CheckpointError: tensors are missing, unexpected, misshaped or not finite; the message lists them.
    """
    specs = {name: spec_of(tensor) for name, tensor in weights.items()}
    _raise(_misfits(model.state_dict(), specs) + _not_finite(weights), source)
    model.load_state_dict(dict(weights))


def read_description(path: Path) -> Description:
    """Read a config.json.

    Raises:
        CheckpointError: it is missing or damaged, or says another format.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        if content.get("format") != FORMAT:
            raise ValueError(f"format is {content.get('format')!r}, expected {FORMAT!r}")
        sha256 = content.get("tokenizer", {}).get("sha256")
        return Description(ModelConfig.from_dict(content["config"]), dict(content.get("extra", {})), sha256)
    except FileNotFoundError as error:
        raise CheckpointError(f"no {path.name} at {path.parent}") from error
    except KeyError as error:
        raise CheckpointError(f"checkpoint {path.parent} is damaged: {path.name} lacks {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path.parent} is damaged: {path.name}: {error}") from error


def fingerprint(path: Path | str) -> str:
    """Return the sha256 over a checkpoint's files, in the order of their names.

    Raises:
        CheckpointError: the folder or one of its files is missing.
    """
    path = Path(path)
    _require_files(path, FILES)
    digest = hashlib.sha256()
    actions = [str(file.relative_to(path)) for file in (path / ACTION_TOKENIZER).rglob("*") if file.is_file()]
    for name in sorted((*FILES, *actions)):
        with (path / name).open("rb") as file:
            digest.update(name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _require_files(path: Path, names: tuple[str, ...]) -> None:
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint folder at {path}; train one with `pi05 train` or give the path of one")
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise CheckpointError(f"checkpoint {path} lacks {', '.join(missing)}; copy the whole folder, or import it anew")


def _require_vocabulary(tokenizer: Tokenizer, config: ModelConfig, what: str) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{what} has {tokenizer.vocab_size} ids, the network {config.vocab_size}: they do not belong together"
        )


def _misfits(wanted: Mapping[str, Tensor], found: Mapping[str, TensorSpec]) -> list[str]:
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    problems = [f"missing {name} {shape}" for name, shape in shapes.items() if name not in found]
    problems += [f"unexpected {name} {spec.shape}" for name, spec in found.items() if name not in shapes]
    other = [name for name in shapes.keys() & found.keys() if found[name].shape != shapes[name]]
    return problems + [f"{name} is {found[name].shape}, expected {shapes[name]}" for name in other]


def _not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    broken = [name for name, tensor in weights.items() if not is_finite(tensor)]
    return [f"{name} holds values that are not finite" for name in broken]


def _require_finite(weights: Mapping[str, Tensor], source: str) -> None:
    if problems := _not_finite(weights):
        raise CheckpointError(f"{source} is not finite:\n  " + "\n  ".join(sorted(problems)))


def _raise(problems: list[str], source: str) -> None:
    if problems:
        raise CheckpointError(f"{source} does not fit the network:\n  " + "\n  ".join(sorted(problems)))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
