"""SigLIP vision encoder and the projector that turns its patches into prefix tokens.

Arithmetic of the published So400m/14: patches plus learned positions, pre-norm blocks with biases, tanh-GELU, a last
layer norm, one linear map to the width of the language model. No class token, no pooling.

Shapes: B images, N patches, W width, H heads, D = W / H.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pi05_model.attention import attend
from pi05_model.config import VisionConfig
from pi05_model.layers import LayerNorm, Linear, PackedLinear, init_linear

STEM_STRIDE = 4


class VisionBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm1 = LayerNorm(config.width)
        self.qkv = Linear(config.width, 3 * config.width)
        self.out = Linear(config.width, config.width)
        self.norm2 = LayerNorm(config.width)
        self.fc1: nn.Module = Linear(config.width, config.mlp_dim)
        self.fc2 = Linear(config.mlp_dim, config.width)
        self.activation: nn.Module = nn.GELU(approximate="tanh")
        small = (2 * config.depth) ** -0.5
        for layer, gain in ((self.qkv, 1.0), (self.out, small), (self.fc1, 1.0), (self.fc2, small)):
            assert isinstance(layer, Linear)
            init_linear(layer, gain)

    def forward(self, x_BNW: Tensor) -> Tensor:
        x_BNW = x_BNW + self._attend(self.norm1(x_BNW))
        hidden = self.activation(self.fc1(self.norm2(x_BNW)))
        out: Tensor = x_BNW + self.fc2(hidden)
        return out

    def packed(self) -> "VisionBlock":
        """Put GELU into the kernel of the layer before it, for inference on a CPU; changes this block."""
        assert isinstance(self.fc1, Linear)
        self.fc1 = PackedLinear(self.fc1.weight, self.fc1.bias, activation="gelu")
        self.activation = nn.Identity()
        return self

    def _attend(self, x_BNW: Tensor) -> Tensor:
        batch, patches, width = x_BNW.shape
        qkv_BNCHD = self.qkv(x_BNW).view(batch, patches, 3, self.heads, width // self.heads)
        q_BHND, k_BHND, v_BHND = qkv_BNCHD.permute(2, 0, 3, 1, 4)
        out_BHND = attend(q_BHND, k_BHND, v_BHND)
        out: Tensor = self.out(out_BHND.transpose(1, 2).reshape(batch, patches, width))
        return out


class PatchEmbedding(nn.Module):
    """Non-overlapping patches through one linear map, after an optional convolutional stem."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        channels, self.patch = 3, config.patch
        self.stem: nn.Module = nn.Identity()
        if config.stem_channels:
            channels, self.patch = config.stem_channels, config.patch // STEM_STRIDE
            self.stem = ConvStem(channels)
        self.proj = Linear(channels * self.patch**2, config.width)
        init_linear(self.proj)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        x_BCHW = self.stem(images_B3HW)
        batch, channels, height, width = x_BCHW.shape
        rows, columns = height // self.patch, width // self.patch
        x = x_BCHW.reshape(batch, channels, rows, self.patch, columns, self.patch)
        # Channel, row, column: the order of a convolution's weight.
        x_BNF = x.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * self.patch**2)
        patches: Tensor = self.proj(x_BNF)
        return patches


class ConvStem(nn.Module):
    """3 channels at full resolution -> `channels` at a quarter of it, with one 3x3 layer of context."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, channels, STEM_STRIDE, STEM_STRIDE)
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        x = _conv(self.down, x_B3HW)
        return x + _conv(self.mix, F.gelu(x, approximate="tanh"))


def _conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    assert layer.bias is not None
    return F.conv2d(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype), layer.stride, layer.padding)


class VisionEncoder(nn.Module):
    """Images in [-1, 1] -> tokens of the language model's width."""

    def __init__(self, config: VisionConfig, out_width: int) -> None:
        super().__init__()
        self.embed = PatchEmbedding(config)
        self.position = nn.Parameter(torch.randn(config.tokens, config.width, dtype=torch.float32) * 0.02)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.norm = LayerNorm(config.width)
        self.projector = Linear(config.width, out_width)
        init_linear(self.projector)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return [B, N, out_width] in the dtype of the images."""
        dtype = images_B3HW.dtype
        x_BNW = (self.embed(images_B3HW).float() + self.position).to(dtype)
        for block in self.blocks:
            x_BNW = block(x_BNW)
        tokens: Tensor = self.projector(self.norm(x_BNW))
        return tokens
