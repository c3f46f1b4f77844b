"""Checkpoints of lerobot and openpi (PyTorch) -> a checkpoint folder of this project.

All or nothing: a missing, unexpected, misshaped or non-finite tensor is an error that lists it, and nothing is written.
Tensors pass through one by one in the dtype that they have; a network of any size needs little memory.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pi05_model.action_tokens import ActionTokenizer, ActionTokenizerError, load_action_tokenizer
from pi05_model.build import build
from pi05_model.checkpoint import ACTION_TOKENIZER, STATS, TOKENIZER, staging, write_parts
from pi05_model.interchange.foreign import Choices, Foreign, read_foreign
from pi05_model.interchange.names import rows
from pi05_model.tokenizer import Tokenizer, load_tokenizer
from pi05_model.weights import WEIGHTS, CheckpointError, TensorSpec, is_finite, write_weights


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes:
        source: what was read.
        missing: files that the checkpoint still lacks before it can run, with what provides them.
    """

    source: Foreign
    missing: tuple[str, ...]


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
    tokenizer, action_tokenizer = _tokenizer(source, choices), _action_tokenizer(source, choices)
    broken: list[str] = []

    def tensor_of(name: str) -> Tensor:
        tensor = assemble(source, parts[name], specs[name].dtype)
        if not is_finite(tensor):
            broken.append(f"{', '.join(parts[name])} holds values that are not finite")
        return tensor

    with staging(Path(out), fresh=True) as folder:
        write_weights(folder / WEIGHTS, specs, tensor_of)
        if broken:
            raise CheckpointError(f"{source.path} is damaged:\n  " + "\n  ".join(broken))
        write_parts(folder, source.config, source.stats, tokenizer, source.extra, action_tokenizer)
    return Imported(source, tuple(still_missing(source, tokenizer is not None, action_tokenizer is not None)))


def still_missing(source: Foreign, has_tokenizer: bool = False, has_action_tokenizer: bool = False) -> list[str]:
    """Return what a checkpoint made of `source` would lack before it can run, each with what provides it."""
    missing = []
    if source.stats is None:
        missing.append(f"{STATS} (give --stats)")
    if not has_tokenizer:
        missing.append(f"{TOKENIZER} (give --tokenizer, PaliGemma's tokenizer.model or tokenizer.json)")
    if not has_action_tokenizer and source.config.policy == "pi0_fast":
        missing.append(f"{ACTION_TOKENIZER}/ (give --action-tokenizer, a folder of FAST's files)")
    return missing


def _tokenizer(source: Foreign, choices: Choices) -> Tokenizer | None:
    """Return the tokenizer that was asked for, else the one that lies in the folder, else None."""
    chosen = choices.tokenizer
    if chosen is None and (source.path / TOKENIZER).is_file():
        chosen = source.path / TOKENIZER
    if chosen is None:
        return None
    try:
        return load_tokenizer(chosen)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"tokenizer: {error}") from error


def _action_tokenizer(source: Foreign, choices: Choices) -> ActionTokenizer | None:
    folder = choices.action_tokenizer
    if folder is None and (source.path / ACTION_TOKENIZER).is_dir():
        folder = source.path / ACTION_TOKENIZER
    try:
        return None if folder is None else load_action_tokenizer(folder)
    except ActionTokenizerError as error:
        raise CheckpointError(f"action tokenizer: {error}") from error


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
