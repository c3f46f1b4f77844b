"""Noise and flow times of a training step, as a function of seed, step and place in the global batch.

Whatever the number of processes, accumulation steps and interruptions, a sample meets the same noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pi05_model.flow import sample_time


@dataclass(frozen=True)
class Noise:
    """The noise of one step.

    Attributes:
        seed, step: what it is a function of.
        shape: (H, A) of a chunk.
        draws: noises and times per sample.
    """

    seed: int
    step: int
    shape: tuple[int, int]
    draws: int

    def of(self, rows: Sequence[int], batch_size: int, device: torch.device) -> dict[str, Tensor]:
        """Return "noise" [draws * B, H, A] and "time" [draws * B] of some rows of a global batch, and "draws"."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.step) % 2**63)
        time = sample_time(self.draws * batch_size, generator=generator).view(self.draws, batch_size)
        noise = torch.randn(self.draws, batch_size, *self.shape, generator=generator)
        index = torch.tensor(rows)
        return {
            "noise": noise[:, index].flatten(0, 1).to(device),
            "time": time[:, index].flatten().to(device),
            "draws": self.draws,  # type: ignore[dict-item]
        }
