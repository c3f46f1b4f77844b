"""FSQ: finite scalar quantisation (arXiv 2309.15505) of a small transformer's latents.

Each entry of a latent is bounded and rounded to one of a few levels; their combinations are the vocabulary. There is no
codebook to learn, so none of it can collapse, and the gradient passes straight through the rounding.
"""

from dataclasses import dataclass
from math import prod

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pi05_model.action_tokens.latent import (
    FitConfig,
    LatentConfig,
    LatentNetwork,
    LatentTokenizer,
    Progress,
    Quantiser,
)
from pi05_model.action_tokens.protocol import ActionSpace, ActionTokenizerError, check_chunks

LEVELS = (8, 5, 5, 5)
"""1000 codes (the paper's choice for about 2^10)."""


@dataclass(frozen=True)
class FsqConfig(LatentConfig):
    """Sizes of an FSQ tokenizer."""

    levels: tuple[int, ...] = LEVELS
    """Levels by latent entry; the vocabulary is their product."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.levels or min(self.levels) < 2:
            raise ActionTokenizerError(f"levels must be at least 2 each, got {list(self.levels)}")


class FiniteScalarQuantiser(Quantiser):
    """Rounds entry i to `levels[i]` values in [-1, 1]."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.width, self.vocab_size = len(levels), prod(levels)
        self.levels: Tensor
        self.strides: Tensor
        strides = [prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("strides", torch.tensor(strides), persistent=False)

    def forward(self, latents_BKC: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes [B, K, C], straight through the rounding, and no loss of its own."""
        bounded = self._bound(latents_BKC)
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / (self.levels // 2), latents_BKC.new_zeros(())

    def indices(self, latents_BKC: Tensor) -> Tensor:
        """Return ids [B, K]: mixed-radix numbers of the levels."""
        digits = self._bound(latents_BKC).round().long() + self.levels // 2
        return (digits * self.strides).sum(dim=-1)

    def codes(self, indices_BK: Tensor) -> Tensor:
        """Return codes [B, K, C]."""
        half = self.levels // 2
        digits = indices_BK[..., None] // self.strides % self.levels
        return (digits - half) / half

    def _bound(self, z: Tensor) -> Tensor:
        """Squash so that rounding gives exactly `levels` values; an even number is shifted by a half (equation 1)."""
        half = (self.levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        shift = torch.atanh(offset / half)
        return torch.tanh(z + shift) * half - offset


class FsqTokenizer(LatentTokenizer):
    """Fixed number of tokens, finite scalar quantisation."""

    kind = "fsq"
    config_class = FsqConfig

    @classmethod
    def build(cls, config: FsqConfig) -> LatentNetwork:
        """Return a new network."""
        return LatentNetwork(config, FiniteScalarQuantiser(config.levels))

    @classmethod
    def fit(
        cls,
        chunks: ArrayLike,
        config: FsqConfig | None = None,
        fit: FitConfig | None = None,
        space: ActionSpace | None = None,
        progress: Progress | None = None,
    ) -> "FsqTokenizer":
        """Fit to normalised chunks [N, H, D]; without a config, of their size.

        Raises:
            ActionTokenizerError: wrong shape or values, no chunks, or the loss stops being finite.
        """
        _, horizon, dim = check_chunks(chunks).shape
        tokenizer: FsqTokenizer = cls.fit_network(
            chunks, config or FsqConfig(horizon, dim), fit or FitConfig(), space, progress
        )
        return tokenizer
