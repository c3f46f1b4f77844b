"""Optimizer groups, learning rate and averaged weights, as functions of the step alone."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pi05_training.parallel.sharding import local, named_parameters


def learning_rate(peak: float, final: float, warmup: int, step: int, done: float) -> float:
    """Return the rate at a step: linear warm-up, times a cosine from 1 to `final`.

    Args:
        peak: highest rate.
        final: rate at the end, as a part of the peak.
        warmup: steps of the warm-up; 0 for none.
        step: steps done before this one.
        done: part of the run that is over, 0 to 1: by steps or, in a run that is limited in time, by time.
    """
    warm = min(1.0, (step + 1) / warmup) if warmup else 1.0
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, done))))
    return peak * warm * (final + (1.0 - final) * cosine)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's groups of the trainable parameters: matrices decay; biases, norms and other vectors do not.

    Each group has "params", "param_names" (names of the network) and "weight_decay"; an empty group is left out.

    Args:
        module: network, or what `Parallel.wrap` returned.
        weight_decay: of tensors of two or more dimensions.
    """
    trained = {name: p for name, p in named_parameters(module).items() if p.requires_grad}
    groups = []
    for decay, matrices in ((weight_decay, True), (0.0, False)):
        chosen = {name: p for name, p in trained.items() if (p.ndim >= 2) == matrices}
        if chosen:
            groups.append({"params": list(chosen.values()), "param_names": list(chosen), "weight_decay": decay})
    return groups


def adamw(
    module: nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.95)
) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters, in one kernel per device (fused).

    Raises:
        ValueError: nothing is trainable.
    """
    groups = parameter_groups(module, weight_decay)
    if not groups:
        raise ValueError("no parameter is trainable; freeze fewer of them")
    for group in groups:
        # torch's own names are (name, tensor) pairs; these are for reports.
        group.pop("param_names")
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def ema_decay(decay: float, step: int) -> float:
    """Return the decay after a step: short at first, so that the average soon forgets the random start."""
    return min(decay, (step + 1) / (step + 10))


class Ema:
    """Averaged weights: after each step, average = decay * average + (1 - decay) * weight, in float32.

    Under FSDP every process averages the parts that it holds, without exchange. Frozen parameters have no average:
    theirs would be the weight itself.

    Args:
        module: network, or what `Parallel.wrap` returned.
    """

    def __init__(self, module: nn.Module) -> None:
        self._parameters = {name: p for name, p in named_parameters(module).items() if p.requires_grad}
        self.values: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Take in the weights of the step that was just made."""
        torch._foreach_lerp_(self._ours(), self._theirs(), 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the network has the averaged weights; afterwards its own again, exactly."""
        kept = [tensor.clone() for tensor in self._theirs()]
        with torch.no_grad():
            torch._foreach_copy_(self._theirs(), self._ours())
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._theirs(), kept)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take over averages of the same names and shapes (whole, or parts as this process holds them).

        Raises:
            ValueError: names differ.
        """
        if values.keys() != self.values.keys():
            differing = sorted(values.keys() ^ self.values.keys())
            raise ValueError(f"averages of other parameters: {', '.join(differing[:5])}")
        with torch.no_grad():
            for name, value in values.items():
                self.values[name].copy_(value)

    def _ours(self) -> list[Tensor]:
        return [local(value) for value in self.values.values()]

    def _theirs(self) -> list[Tensor]:
        return [local(p.detach()) for p in self._parameters.values()]
