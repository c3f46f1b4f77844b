"""Typed inputs of the network.

Shapes: B batch, N cameras, L text tokens, H steps of a chunk, A = max_action_dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Text:
    """Token sequences, padded at the end to a common length.

    Attributes:
        tokens: int64 [B, L].
        valid: bool [B, L], False for padding.
        starts: bool [B, L], True where a new attention block starts (a causal token); see `masks`.
        targets: bool [B, L], True for tokens that the planner has to predict.
    """

    tokens: Tensor
    valid: Tensor
    starts: Tensor
    targets: Tensor

    def to(self, device: torch.device | str) -> "Text":
        """Return a copy on `device`."""
        return Text(*(_move(x, device) for x in (self.tokens, self.valid, self.starts, self.targets)))


@dataclass(frozen=True)
class ModelInput:
    """One call of the planner or of the action expert.

    Attributes:
        images: float [B, N, 3, S, S] in [-1, 1], or uint8, which the network scales itself. None with `features`.
        image_mask: bool [B, N], False for a camera that is missing.
        text: the prompt, and in training the answer.
        features: vision features [B, N, P, W] where they are known already.
    """

    images: Tensor | None
    image_mask: Tensor
    text: Text
    features: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.images is None) == (self.features is None):
            raise ValueError("give either images or their vision features")

    def to(self, device: torch.device | str) -> "ModelInput":
        """Return a copy on `device`."""
        images = None if self.images is None else _move(self.images, device)
        features = None if self.features is None else _move(self.features, device)
        return ModelInput(images, _move(self.image_mask, device), self.text.to(device), features)


@dataclass(frozen=True)
class TrainBatch:
    """One batch for `Pi05.losses`. The vision features of `images` serve both prompts.

    Attributes:
        images, image_mask: as in `ModelInput`, for every camera of `Pi05Config.cameras`.
        planner: prompt with the task, followed by subtask and end of sequence; None trains the expert alone.
        expert: prompt with the subtask.
        actions: float [B, H, A], normalised and padded with zeros.
        action_mask: bool [B, H, A], True for real dimensions of steps that are not padding.
    """

    images: Tensor
    image_mask: Tensor
    planner: Text | None
    expert: Text
    actions: Tensor
    action_mask: Tensor

    def to(self, device: torch.device | str) -> "TrainBatch":
        """Return a copy on `device`."""
        return TrainBatch(
            _move(self.images, device),
            _move(self.image_mask, device),
            None if self.planner is None else self.planner.to(device),
            self.expert.to(device),
            _move(self.actions, device),
            _move(self.action_mask, device),
        )


def _move(x: Tensor, device: torch.device | str) -> Tensor:
    return x.to(device, non_blocking=True)
