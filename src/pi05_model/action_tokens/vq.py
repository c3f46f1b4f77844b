"""VQ: a learned codebook (VQ-VAE, arXiv 1711.00937) on a small transformer's latents.

The gradient passes straight through to the encoder, which a commitment loss keeps near its codes. The codebook follows
the latents by exponential moving averages (appendix A.1 of the paper) instead of a loss, and a code that has hardly
been chosen for a while is put where a latent of the batch is (dead-code revival, as in arXiv 2005.00341).
"""

from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

from pi05_model.action_tokens.latent import (
    FitConfig,
    LatentConfig,
    LatentNetwork,
    LatentTokenizer,
    Progress,
    Quantiser,
)
from pi05_model.action_tokens.protocol import ActionSpace, ActionTokenizerError, check_chunks


@dataclass(frozen=True)
class VqConfig(LatentConfig):
    """Sizes of a VQ tokenizer."""

    codes: int = 512
    """Vectors in the codebook: the vocabulary."""
    code_width: int = 16
    """Entries of a vector."""
    commitment: float = 0.25
    """Weight of the commitment loss."""
    decay: float = 0.98
    """Of the moving averages."""
    revive_below: float = 0.03
    """A code chosen less than this often per step, on average, is dead and moved to a latent of the batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codes < 2 or self.code_width < 1:
            raise ActionTokenizerError(
                f"a codebook has at least 2 codes of width 1, got {self.codes} of {self.code_width}"
            )
        if not 0 <= self.decay < 1:
            raise ActionTokenizerError(f"decay must be in [0, 1), got {self.decay}")


class VectorQuantiser(Quantiser):
    """Chooses the nearest vector of a codebook."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        self.width, self.vocab_size = config.code_width, config.codes
        self._config = config
        self.codebook: Tensor
        self.counts: Tensor
        self.sums: Tensor
        self.filled: Tensor
        self.register_buffer("codebook", torch.zeros(config.codes, config.code_width))
        self.register_buffer("counts", torch.zeros(config.codes))
        self.register_buffer("sums", torch.zeros(config.codes, config.code_width))
        self.register_buffer("filled", torch.tensor(False))

    def forward(self, latents_BKC: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes [B, K, C], straight through, and the commitment loss. In training the codebook follows."""
        if self.training:
            self._follow(latents_BKC.detach().flatten(0, -2))
        codes = self.codes(self.indices(latents_BKC))
        loss = self._config.commitment * F.mse_loss(latents_BKC, codes)
        return latents_BKC + (codes - latents_BKC).detach(), loss

    def indices(self, latents_BKC: Tensor) -> Tensor:
        """Return ids [B, K] of the nearest codes."""
        distance = self.codebook.square().sum(dim=-1) - 2 * latents_BKC @ self.codebook.T
        return distance.argmin(dim=-1)

    def codes(self, indices_BK: Tensor) -> Tensor:
        """Return codes [B, K, C]."""
        return self.codebook[indices_BK]

    @torch.no_grad()
    def _follow(self, latents_NC: Tensor) -> None:
        """Move the codes towards the latents that chose them, and dead ones to latents."""
        config = self._config
        if not self.filled:
            self._revive(torch.ones_like(self.counts, dtype=torch.bool), latents_NC)
            self.filled.fill_(True)
        chosen = F.one_hot(self.indices(latents_NC), config.codes).to(latents_NC.dtype)
        self.counts.lerp_(chosen.sum(dim=0), 1 - config.decay)
        self.sums.lerp_(chosen.T @ latents_NC, 1 - config.decay)
        self.codebook.copy_(self.sums / self.counts.clamp_min(1e-5)[:, None])
        self._revive(self.counts < config.revive_below, latents_NC)

    def _revive(self, dead: Tensor, latents_NC: Tensor) -> None:
        count = int(dead.sum())
        if not count:
            return
        source = latents_NC[torch.randint(len(latents_NC), (count,))]
        # Apart from each other, so that codes placed on one latent do not stay the same.
        source = source + 0.01 * latents_NC.std() * torch.randn_like(source)
        self.codebook[dead] = source
        # Soon dead again unless it is chosen: the latents may have left by then, early in training above all.
        self.counts[dead] = 2 * self._config.revive_below
        self.sums[dead] = 2 * self._config.revive_below * source


class VqTokenizer(LatentTokenizer):
    """Fixed number of tokens, learned codebook."""

    kind = "vq"
    config_class = VqConfig

    @classmethod
    def build(cls, config: VqConfig) -> LatentNetwork:
        """Return a new network."""
        return LatentNetwork(config, VectorQuantiser(config))

    @classmethod
    def fit(
        cls,
        chunks: ArrayLike,
        config: VqConfig | None = None,
        fit: FitConfig | None = None,
        space: ActionSpace | None = None,
        progress: Progress | None = None,
    ) -> "VqTokenizer":
        """Fit to normalised chunks [N, H, D]; without a config, of their size.

        Raises:
            ActionTokenizerError: wrong shape or values, no chunks, or the loss stops being finite.
        """
        _, horizon, dim = check_chunks(chunks).shape
        tokenizer: VqTokenizer = cls.fit_network(
            chunks, config or VqConfig(horizon, dim), fit or FitConfig(), space, progress
        )
        return tokenizer
