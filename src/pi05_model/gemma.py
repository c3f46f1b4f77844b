"""Gemma transformer stack: the VLM's language model and the action expert are two of these.

The two share attention layer by layer: the VLM fills a cache of keys and values, and the expert's queries attend to
it and to their own. Since the prefix never sees the suffix, running one after the other is the same arithmetic as one
joint pass, in training as in inference; detaching the cache is knowledge insulation.

Arithmetic (reduced lerobot checkpoint reproduced in tests/model): RMSNorm x * rsqrt(mean(x^2) + 1e-6) * (1 + w) in
float32; rotary positions with base 1e4 on split halves; attention scaled by head_dim^-0.5; GeGLU with tanh-GELU.

Shapes: B batch, T tokens, S keys, W width, H heads, K key/value heads, D head_dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pi05_model.attention import attend
from pi05_model.config import GemmaConfig
from pi05_model.layers import HeadLinear, Linear, PackedLinear, init_linear

NORM_EPS = 1e-6
ROPE_BASE = 10_000.0


class Modulation(NamedTuple):
    """What a time embedding does to one norm: norm(x) * scale + shift, and a gate on the residual branch.

    Each is [B, 1, W], or [B, T, W] where every token has a time of its own, in float32; `scale` already contains the
    1 of (1 + scale).
    """

    scale: Tensor
    shift: Tensor
    gate: Tensor


@dataclass(frozen=True)
class KeyValues:
    """Rotated keys and values of one layer, [B, K, S, D]."""

    key: Tensor
    value: Tensor

    def detach(self) -> "KeyValues":
        """Return the same numbers without their history."""
        return KeyValues(self.key.detach(), self.value.detach())

    def repeat(self, times: int) -> "KeyValues":
        """Return these for a batch that is repeated."""
        if times == 1:
            return self
        return KeyValues(self.key.repeat(times, 1, 1, 1), self.value.repeat(times, 1, 1, 1))

    def append(self, new: "KeyValues") -> "KeyValues":
        """Return these followed by `new`."""
        return KeyValues(torch.cat([self.key, new.key], dim=2), torch.cat([self.value, new.value], dim=2))


def rms_normalise(x: Tensor) -> Tensor:
    """Return x * rsqrt(mean(x^2) + eps). One kernel on a GPU; torch's CPU version squares through `pow`, slowly."""
    if x.is_cuda:
        return F.rms_norm(x, x.shape[-1:], None, NORM_EPS)
    return x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + NORM_EPS)


class StaticCache:
    """Keys and values of one layer in memory that is allocated once: what generation appends costs no copy of the past.

    Args:
        past: what is known already, such as the prefix.
        room: how many tokens may follow.
    """

    def __init__(self, past: KeyValues, room: int) -> None:
        batch, heads, length, dim = past.key.shape
        self._key = past.key.new_empty(batch, heads, length + room, dim)
        self._value = torch.empty_like(self._key)
        self._length = 0
        self.append(past)
        self.keep(length)

    def append(self, new: KeyValues) -> KeyValues:
        """Return what is kept followed by `new`. The next call overwrites `new` unless `keep` is called before."""
        end = self._length + new.key.shape[2]
        self._key[:, :, self._length : end] = new.key
        self._value[:, :, self._length : end] = new.value
        return KeyValues(self._key[:, :, :end], self._value[:, :, :end])

    def keep(self, tokens: int) -> None:
        """Keep the next `tokens` tokens of the last `append`."""
        self._length += tokens


Past = KeyValues | StaticCache


class RMSNorm(nn.Module):
    """Root-mean-square norm with Gemma's (1 + weight)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, dtype=torch.float32))

    def forward(self, x_BTW: Tensor, _: Modulation | None = None) -> Tensor:
        return (rms_normalise(x_BTW.float()) * (1 + self.weight.float())).to(x_BTW.dtype)

    def modulation(self, _: Tensor | None) -> None:
        """Return None: this norm does not depend on time."""


class AdaRMSNorm(nn.Module):
    """Root-mean-square norm whose scale, shift and gate come from the time embedding; all zero in a new network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = HeadLinear(width, 3 * width)
        nn.init.zeros_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def forward(self, x_BTW: Tensor, modulation: Modulation | None) -> Tensor:
        if modulation is None:
            raise ValueError("an adaptive norm needs the modulation of a time embedding")
        normed = rms_normalise(x_BTW.float())
        return torch.addcmul(modulation.shift, normed, modulation.scale).to(x_BTW.dtype)

    def modulation(self, cond_BTW: Tensor | None) -> Modulation | None:
        """Return the modulation for time embeddings [B, 1, W] or [B, T, W]."""
        if cond_BTW is None:
            return None
        scale, shift, gate = self.dense(cond_BTW).chunk(3, dim=-1)
        return Modulation(1 + scale, shift, gate)


class Rope(NamedTuple):
    """Rotary factors of some tokens, each [B, 1, T, D] in float32.

    A pair (a, b) of entries half a head apart becomes (a cos - b sin, b cos + a sin), so `sine` is negative in the
    first half.
    """

    cosine: Tensor
    sine: Tensor

    @classmethod
    def at(cls, positions_BT: Tensor, head_dim: int) -> "Rope":
        """Return the factors of tokens at these positions."""
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions_BT.device) / head_dim
        angle_BTD = positions_BT[..., None].float() * (1.0 / ROPE_BASE**exponent)
        cos, sin = angle_BTD.cos()[:, None], angle_BTD.sin()[:, None]
        return cls(torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1))

    def rotate(self, x_BHTD: Tensor) -> Tensor:
        """Rotate queries or keys, in float32."""
        x = x_BHTD.float()
        swapped = x.roll(x.shape[-1] // 2, dims=-1)
        return torch.addcmul(x * self.cosine, swapped, self.sine).to(x_BHTD.dtype)


class Attention(nn.Module):
    """Attention with shared key/value heads, over cached keys and its own."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = Linear(config.width, (config.heads + 2 * config.kv_heads) * config.head_dim, bias=False)
        self.out = Linear(config.heads * config.head_dim, config.width, bias=False)
        init_linear(self.qkv)
        init_linear(self.out, (2 * config.depth) ** -0.5)

    def forward(
        self, x_BTW: Tensor, rope: Rope, mask_BTS: Tensor | None, past: Past | None
    ) -> tuple[Tensor, KeyValues]:
        """Return (output [B, T, W], this call's own keys and values)."""
        config = self.config
        turning = config.heads + config.kv_heads
        heads_BHTD = self._split_heads(self.qkv(x_BTW))
        turned = rope.rotate(heads_BHTD[:, :turning])
        query, key, value = turned[:, : config.heads], turned[:, config.heads :], heads_BHTD[:, turning:]
        own = KeyValues(key, value)
        seen = own if past is None else past.append(own)
        out_BHTD = attend(query, seen.key, seen.value, mask_BTS)
        return self.out(out_BHTD.transpose(1, 2).flatten(2)), own

    def keys_values(self, x_BTW: Tensor, rope: Rope) -> KeyValues:
        """Return keys and values alone, for a last layer whose output nobody reads."""
        heads_BHTD = self._split_heads(self.qkv(x_BTW))
        key, value = heads_BHTD[:, self.config.heads :].chunk(2, dim=1)
        return KeyValues(rope.rotate(key), value)

    def _split_heads(self, x_BTF: Tensor) -> Tensor:
        batch, length, features = x_BTF.shape
        return x_BTF.view(batch, length, features // self.config.head_dim, self.config.head_dim).transpose(1, 2)


class GatedMLP(nn.Module):
    """GeGLU."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.gate_up = Linear(config.width, 2 * config.mlp_dim, bias=False)
        self.down = Linear(config.mlp_dim, config.width, bias=False)
        init_linear(self.gate_up)
        init_linear(self.down, (2 * config.depth) ** -0.5)

    def forward(self, x_BTW: Tensor) -> Tensor:
        gate, up = self.gate_up(x_BTW).chunk(2, dim=-1)
        # A strided input takes the CPU's GELU three times as long as the copy.
        out: Tensor = self.down(F.gelu(gate.contiguous(), approximate="tanh") * up)
        return out

    def packed(self) -> nn.Module:
        """Return the same for inference on a CPU."""
        return PackedGatedMLP(self)


class PackedGatedMLP(nn.Module):
    """`GatedMLP` for inference on a CPU: gate and up apart, GELU inside the gate's kernel."""

    def __init__(self, mlp: GatedMLP) -> None:
        super().__init__()
        gate, up = mlp.gate_up.weight.chunk(2)
        self.gate, self.up = PackedLinear(gate, activation="gelu"), PackedLinear(up)
        self.down = mlp.down.packed()

    def forward(self, x_BTW: Tensor) -> Tensor:
        out: Tensor = self.down(self.gate(x_BTW).mul_(self.up(x_BTW)))
        return out


class Layer(nn.Module):
    """Attention and MLP, each behind a norm that may be modulated by time."""

    def __init__(self, config: GemmaConfig, adaptive: bool) -> None:
        super().__init__()
        norm = AdaRMSNorm if adaptive else RMSNorm
        self.attention_norm = norm(config.width)
        self.attention = Attention(config)
        self.mlp_norm = norm(config.width)
        self.mlp = GatedMLP(config)

    def forward(
        self,
        x_BTW: Tensor,
        rope: Rope,
        mask_BTS: Tensor | None,
        past: Past | None,
        modulations: Sequence[Modulation | None],
    ) -> tuple[Tensor, KeyValues]:
        before, after = modulations
        attended, own = self.attention(self.attention_norm(x_BTW, before), rope, mask_BTS, past)
        x_BTW = _residual(x_BTW, attended, before)
        return _residual(x_BTW, self.mlp(self.mlp_norm(x_BTW, after)), after), own

    def keys_values(self, x_BTW: Tensor, rope: Rope) -> KeyValues:
        """Return keys and values alone, for a last layer whose output nobody reads and whose norms are plain."""
        return self.attention.keys_values(self.attention_norm(x_BTW), rope)


def _residual(x_BTW: Tensor, branch_BTW: Tensor, modulation: Modulation | None) -> Tensor:
    if modulation is None:
        return x_BTW + branch_BTW
    return torch.addcmul(x_BTW, branch_BTW, modulation.gate.to(x_BTW.dtype))


class GemmaStack(nn.Module):
    """Layers and a final norm. `adaptive` stacks take their norms' scale, shift and gate from a time embedding."""

    def __init__(self, config: GemmaConfig, adaptive: bool = False) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config, adaptive) for _ in range(config.depth))
        self.norm = (AdaRMSNorm if adaptive else RMSNorm)(config.width)

    @property
    def _layers(self) -> list[Layer]:
        return cast(list[Layer], list(self.layers))

    def modulations(self, cond_BTW: Tensor | None) -> list[Modulation | None]:
        """Return what time embeddings [B, 1 or T, W] do to each norm, in the order in which `forward` uses them."""
        norms = [norm for layer in self._layers for norm in (layer.attention_norm, layer.mlp_norm)]
        return [norm.modulation(cond_BTW) for norm in (*norms, self.norm)]

    def forward(
        self,
        x_BTW: Tensor,
        rope: Rope,
        mask_BTS: Tensor | None,
        past: Sequence[Past] | None = None,
        modulations: Sequence[Modulation | None] | None = None,
    ) -> tuple[Tensor, list[KeyValues]]:
        """Run the stack.

        Args:
            x_BTW: token embeddings.
            rope: rotary factors of these tokens.
            mask_BTS: bool, True where a token sees a key; S counts `past` first, then these T tokens. None: sees all.
            past: keys and values of earlier tokens, one per layer.
            modulations: from `modulations()`, for an adaptive stack.

        Returns:
            Final hidden states [B, T, W], and the keys and values of these T tokens, one per layer.
        """
        modulations = modulations or self.modulations(None)
        own: list[KeyValues] = []
        for i, layer in enumerate(self._layers):
            before = None if past is None else past[i]
            x_BTW, kv = layer(x_BTW, rope, mask_BTS, before, modulations[2 * i : 2 * i + 2])
            own.append(kv)
        return self.norm(x_BTW, modulations[-1]), own

    def keys_values(
        self, x_BTW: Tensor, rope: Rope, mask_BTS: Tensor | None, past: Sequence[Past] | None = None
    ) -> list[KeyValues]:
        """Return what `forward` would cache, without the last layer's output; for a stack that is not adaptive."""
        own: list[KeyValues] = []
        for i, layer in enumerate(self._layers[:-1]):
            x_BTW, kv = layer(x_BTW, rope, mask_BTS, None if past is None else past[i], (None, None))
            own.append(kv)
        own.append(self._layers[-1].keys_values(x_BTW, rope))
        return own
