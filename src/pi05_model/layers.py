"""Layers with explicit precision, shared by the vision encoder and the Gemma stacks.

The activations carry the compute dtype. `Linear` and `Embedding` follow it (their weights are cast where they are
used, so training keeps fp32 master weights without autocast); norms and the fp32 heads compute in float32 whatever
comes in.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear` whose weights follow the dtype of the input."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dtype == x.dtype:
            return F.linear(x, self.weight, self.bias)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)

    def packed(self) -> nn.Module:
        """Return the same for inference on a CPU."""
        return PackedLinear(self.weight, self.bias)


class PackedLinear(nn.Module):
    """A linear map for inference on a CPU, its weight laid out once as oneDNN's kernels want it.

    Args:
        weight: [out, in].
        bias: [out] or None.
        activation: "none", or "gelu" (tanh form), which costs next to nothing inside the kernel.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self.bias = None if bias is None else bias.detach()
        self._activation, self._form = activation, "tanh" if activation == "gelu" else ""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self._activation, [], self._form)
        return out


def pack_for_cpu(module: nn.Module) -> bool:
    """Replace every layer below `module` that has a `packed` form by it; return whether this torch can.

    Afterwards the module serves inference on the CPU alone: it has no weights to train, save or move.
    """
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not (available and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")):
        return False
    for name, child in list(module.named_children()):
        packed = getattr(child, "packed", None)
        if packed is not None:
            child = packed()
            setattr(module, name, child)
        pack_for_cpu(child)
    return True


class HeadLinear(nn.Linear):
    """`nn.Linear` in float32 whatever the rest is: action heads, time MLP, AdaRMS modulations."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """SigLIP's layer norm in float32; the result has the input's dtype."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.normalized_shape, self.weight, self.bias, self.eps).to(x.dtype)


def init_linear(layer: nn.Linear, gain: float = 1.0) -> None:
    """Draw weights with std gain / sqrt(fan_in); biases start at zero."""
    nn.init.normal_(layer.weight, std=gain * layer.in_features**-0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
