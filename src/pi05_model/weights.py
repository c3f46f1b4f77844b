"""Safetensors files, one tensor at a time: a network of several gigabytes passes through without a second copy.

Reading maps the file into memory; writing streams (safetensors' own `save_file` first copies every tensor). Format: 8
bytes little-endian length of the header, JSON header of dtype, shape and offsets, data
(see the safetensors documentation).
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_SIZES = {code: torch.empty(0, dtype=dtype).element_size() for code, dtype in DTYPES.items()}


class CheckpointError(ValueError):
    """A checkpoint cannot be read or written."""


@dataclass(frozen=True)
class TensorSpec:
    """What a file's header says about a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return int(torch.Size(self.shape).numel())


class WeightFiles(Mapping[str, Tensor]):
    """The tensors of one or several safetensors files. Nothing but the headers is read before a tensor is asked for.

    Args:
        files: safetensors files; no name may occur twice.

    Raises:
        CheckpointError: a file is damaged, or a tensor is in two files.
    """

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.specs: dict[str, TensorSpec] = {}
        self._handles: dict[str, Any] = {}
        for file in files:
            try:
                handle: Any = safe_open(file, framework="pt")
                specs = {name: _spec(handle.get_slice(name)) for name in handle.keys()}  # noqa: SIM118 (no mapping)
            except (SafetensorError, KeyError, OSError) as error:
                raise CheckpointError(f"{file} is damaged: {error}") from error
            if twice := sorted(specs.keys() & self.specs.keys()):
                raise CheckpointError(f"{file} repeats tensors of another file: {', '.join(twice[:5])}")
            self.specs |= specs
            self._handles |= dict.fromkeys(specs, handle)

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._handles[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


def find_weights(folder: Path) -> list[Path]:
    """Return the weight files of a folder: model.safetensors, or the shards that its index lists.

    Raises:
        CheckpointError: there are none, or a shard is missing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise CheckpointError(f"{folder} holds neither {WEIGHTS} nor {INDEX}{_hint(folder)}")
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / INDEX} is damaged: {error!r}") from error
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}, which {INDEX} lists; copy the whole folder")
    return [folder / name for name in names]


def write_weights(path: Path, specs: Mapping[str, TensorSpec], tensor_of: Callable[[str], Tensor]) -> None:
    """Write a safetensors file, asking for one tensor after another.

    Args:
        path: file to write.
        specs: names, dtypes and shapes of all tensors.
        tensor_of: returns the tensor of a name, as `specs` says.

    Raises:
        ValueError: a tensor is not what `specs` says.
    """
    # Wide types first, as safetensors does, so that every tensor is aligned to its element size.
    names = sorted(specs, key=lambda name: (-_SIZES[_CODES[specs[name].dtype]], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        begin, code = end, _CODES[specs[name].dtype]
        end += specs[name].numel * _SIZES[code]
        header[name] = {"dtype": code, "shape": list(specs[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            _write(file, name, specs[name], tensor_of(name))


def spec_of(tensor: Tensor) -> TensorSpec:
    """Return the header entry of a tensor."""
    return TensorSpec(tensor.dtype, tuple(tensor.shape))


def is_finite(tensor: Tensor) -> bool:
    """Tell whether every element is finite; `aminmax` passes NaN on and takes a fortieth of `isfinite`'s time."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _hint(folder: Path) -> str:
    """Say what a folder without weights probably is."""
    if (folder / "adapter_model.safetensors").is_file():
        return ": it is a PEFT adapter; merge it into its base network first"
    if (folder / "params").is_dir():
        return ": it is a JAX checkpoint of openpi; run openpi's examples/convert_jax_model_to_pytorch.py first"
    inside = sorted(file.parent.name for file in folder.glob(f"*/{WEIGHTS}"))
    return f"; there are weights in its folder {', '.join(inside)}" if inside else ""


def _write(file: BinaryIO, name: str, spec: TensorSpec, tensor: Tensor) -> None:
    if spec_of(tensor) != spec:
        raise ValueError(f"{name} is {spec_of(tensor)}, announced as {spec}")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel():
        file.write(flat.view(torch.uint8).numpy().data)


def _spec(entry: Any) -> TensorSpec:
    return TensorSpec(DTYPES[entry.get_dtype()], tuple(entry.get_shape()))
