"""Low-rank updates (LoRA, arXiv 2106.09685) of any linear layer, chosen by pattern.

A chosen layer computes `W x + (alpha / rank) B A x`; W and its bias are frozen, A [rank, in] starts random and B
[out, rank] at zero, so that a new network is the old one. Names of weights stay as they are; beside `x.weight` stand
`x.lora_a` and `x.lora_b`. The updates are stored in float32 and computed in the dtype of the layer's output.
"""

import fnmatch
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pi05_model.layers import HeadLinear, Linear

DOWN, UP = "lora_a", "lora_b"
FORMAT = "pi05_lora/1"


class LoraError(ValueError):
    """Low-rank updates do not fit the network."""


class LowRank(nn.Linear):
    """A linear layer with a low-rank update, in the place of `base`, whose weights it takes over and freezes."""

    lora_a: nn.Parameter
    lora_b: nn.Parameter

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        nn.Module.__init__(self)  # not nn.Linear's, which would allocate weights
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        for frozen in (self.weight, self.bias):
            if frozen is not None:
                frozen.requires_grad_(False)
        self.scale, self.folded = alpha / rank, False
        down = torch.empty(rank, base.in_features, device=base.weight.device, dtype=torch.float32)
        up = torch.zeros(base.out_features, rank, device=base.weight.device, dtype=torch.float32)
        self.lora_a = nn.Parameter(nn.init.normal_(down, std=base.in_features**-0.5))
        self.lora_b = nn.Parameter(up)

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        if self.folded:
            return out
        inner = F.linear(x.to(out.dtype), self.lora_a.to(out.dtype))
        return out + F.linear(inner, (self.lora_b * self.scale).to(out.dtype))

    def delta(self) -> Tensor:
        """Return what the update adds to the weight, in float32."""
        return self.scale * (self.lora_b.detach() @ self.lora_a.detach())


class LowRankLinear(LowRank, Linear):
    """`pi05_model.layers.Linear` with an update."""


class LowRankHead(LowRank, HeadLinear):
    """`pi05_model.layers.HeadLinear` with an update."""


_KINDS: dict[type[nn.Linear], type[LowRank]] = {Linear: LowRankLinear, HeadLinear: LowRankHead, nn.Linear: LowRank}


def add_lora(model: nn.Module, patterns: Sequence[str], rank: int, alpha: float | None = None) -> list[str]:
    """Give low-rank updates to the linear layers whose names fit a pattern; everything else stays trainable.

    Args:
        model: network; changed in place, before it is wrapped or compiled.
        patterns: shell style, such as "vlm.layers.*.attention.*".
        rank: of the updates.
        alpha: scale of the update times rank; `rank` by default, that is a scale of 1.

    Returns:
        Names of the layers.

    Raises:
        LoraError: a pattern fits no linear layer, a layer has an update already, or the rank is not positive.
    """
    if rank < 1:
        raise LoraError(f"rank is {rank}; valid: 1 and more")
    linears = {name: layer for name, layer in model.named_modules() if type(layer) in _KINDS}
    done = [name for name, layer in model.named_modules() if isinstance(layer, LowRank)]
    for pattern in patterns:
        if twice := fnmatch.filter(done, pattern):
            raise LoraError(f"{twice[0]} has a low-rank update already; `fold` merges it for good")
        if not fnmatch.filter(linears, pattern):
            raise LoraError(f"no linear layer is called {pattern!r}; there are {', '.join(list(linears)[:8])}, …")
    chosen = [name for name in linears if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    for name in chosen:
        _replace(model, name, _KINDS[type(linears[name])](linears[name], rank, rank if alpha is None else alpha))
    return chosen


def fold(model: nn.Module) -> None:
    """Add the updates to the weights for good: the network has plain layers again, all of them trainable."""
    for name, layer in list(_updated(model)):
        kind = next(plain for plain, low_rank in _KINDS.items() if type(layer) is low_rank)
        base = kind.__new__(kind)
        nn.Module.__init__(base)
        base.in_features, base.out_features = layer.in_features, layer.out_features
        base.weight = nn.Parameter(_merge(layer.weight.detach(), layer.delta()))
        base.bias = layer.bias
        if base.bias is not None:
            base.bias.requires_grad_()
        _replace(model, name, base)


@contextmanager
def folded(model: nn.Module) -> Iterator[None]:
    """Within, the updates are part of the weights, which are exactly what they were afterwards."""
    layers = [layer for _, layer in _updated(model)]
    kept = [layer.weight.detach().clone() for layer in layers]
    try:
        for layer in layers:
            layer.weight.data.copy_(_merge(layer.weight.detach(), layer.delta()))
            layer.folded = True
        yield
    finally:
        for layer, weight in zip(layers, kept, strict=True):
            layer.weight.data.copy_(weight)
            layer.folded = False


def merged_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a plain network from those of `model`, which may be spread over processes.

    Args:
        model: network with updates, for their scales alone.
        state: whole tensors by name, such as averages; not changed.
    """
    merged = {name: tensor for name, tensor in state.items() if not is_adapter(name)}
    for name, layer in _updated(model):
        delta = layer.scale * (state[f"{name}.{UP}"].float() @ state[f"{name}.{DOWN}"].float())
        merged[f"{name}.weight"] = _merge(state[f"{name}.weight"], delta)
    return merged


def is_adapter(name: str) -> bool:
    """Return whether a parameter belongs to a low-rank update."""
    return name.rpartition(".")[2] in (DOWN, UP)


def save_adapters(path: Path | str, model: nn.Module, state: Mapping[str, Tensor] | None = None) -> None:
    """Write the updates alone, as one safetensors file.

    Args:
        path: file.
        model: network with updates.
        state: whole tensors by name, where those of `model` are spread or averages are meant.

    Raises:
        LoraError: the network has no updates.
    """
    scales = {name: layer.scale for name, layer in _updated(model)}
    if not scales:
        raise LoraError("the network has no low-rank updates; call add_lora before training")
    tensors = {n: t.detach().cpu().contiguous() for n, t in (state or model.state_dict()).items() if is_adapter(n)}
    save_file(tensors, path, metadata={"format": FORMAT, "scales": json.dumps(scales)})


def load_adapters(path: Path | str, model: nn.Module) -> list[str]:
    """Add the updates of a file to a network; return the names of the layers.

    Raises:
        LoraError: the file is damaged, or its layers are not those of the network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            described = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise LoraError(f"{path} cannot be read: {error}") from error
    if described.get("format") != FORMAT:
        raise LoraError(f"{path} holds no low-rank updates of this project (format {described.get('format')!r})")
    linears = {name: layer for name, layer in model.named_modules() if type(layer) in _KINDS}
    scales: dict[str, float] = json.loads(described["scales"])
    for name in scales:
        down, up = tensors[f"{name}.{DOWN}"], tensors[f"{name}.{UP}"]
        layer = linears.get(name)
        fits = isinstance(layer, nn.Linear) and (layer.out_features, layer.in_features) == (len(up), down.shape[1])
        if not fits:
            raise LoraError(f"{path}: the network has no linear layer {name} of {down.shape[1]} -> {len(up)}")
    for name, scale in scales.items():
        down, up = tensors[f"{name}.{DOWN}"], tensors[f"{name}.{UP}"]
        new = _KINDS[type(linears[name])](linears[name], len(down), scale * len(down))
        new.lora_a.data.copy_(down)
        new.lora_b.data.copy_(up)
        _replace(model, name, new)
    return list(scales)


def _updated(model: nn.Module) -> Iterator[tuple[str, LowRank]]:
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, LowRank))


def _merge(weight: Tensor, delta: Tensor) -> Tensor:
    return (weight.float() + delta).to(weight.dtype)


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
