"""Typed inputs of the network.

Shapes: B batch, N cameras, L text tokens, H steps of a chunk, A = max_action_dim.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pi05_model.flow import free_steps


@dataclass(frozen=True)
class Text:
    """Token sequences, padded at the end to a common length.

    Attributes:
        tokens: int64 [B, L].
        valid: bool [B, L], False for padding.
        starts: bool [B, L], True where a new attention block starts (a causal token); see `masks`.
        targets: bool [B, L], True for tokens that the network has to predict.

    Raises:
        ValueError: the four differ in shape.
    """

    tokens: Tensor
    valid: Tensor
    starts: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        shapes = {name: tuple(getattr(self, name).shape) for name in ("tokens", "valid", "starts", "targets")}
        if len(set(shapes.values())) != 1 or self.tokens.ndim != 2:
            raise ValueError(f"a text needs four tensors of one shape [B, L], got {shapes}")

    def trimmed(self) -> "Text":
        """Return the same without the columns that are padding in every sample."""
        used = int(self.valid.any(dim=0).sum())
        return Text(*(x[:, :used] for x in (self.tokens, self.valid, self.starts, self.targets)))

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
        state: float [B, A], normalised and padded with zeros, for a policy that reads it beside the prompt (π0).
        condition: int64 [B], rows of the condition embedding; None: no condition.

    Raises:
        ValueError: the parts are of different batches, or both or neither of images and features are there.
    """

    images: Tensor | None
    image_mask: Tensor
    text: Text
    features: Tensor | None = None
    state: Tensor | None = None
    condition: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.images is None) == (self.features is None):
            raise ValueError("give either images or their vision features")
        pictures = self.images if self.features is None else self.features
        assert pictures is not None
        if pictures.shape[:2] != self.image_mask.shape:
            raise ValueError(f"images are {tuple(pictures.shape)}, their mask {tuple(self.image_mask.shape)}")
        if self.images is not None:
            _check_images(self.images)
        _check_batch(self, "image_mask", image_mask=self.image_mask, text=self.text.tokens)

    def to(self, device: torch.device | str) -> "ModelInput":
        """Return a copy on `device`."""
        images, features, state, condition = (
            _maybe(x, device) for x in (self.images, self.features, self.state, self.condition)
        )
        mask = _move(self.image_mask, device)
        return ModelInput(images, mask, self.text.to(device), features, state, condition)


@dataclass(frozen=True)
class TrainBatch:
    """One batch to learn from. The vision features of `images` serve both prompts.

    Attributes:
        images, image_mask: as in `ModelInput`, for every camera of `ModelConfig.cameras`.
        planner: prompt with the task, followed by subtask and end of sequence; None trains without.
        expert: prompt with the subtask; action tokens may follow as targets.
        actions: float [B, H, A], normalised and padded with zeros.
        action_mask: bool [B, H, A], True for the dimensions and steps that count.
        action_tokens: whether `expert` holds targets.
        state, condition: as in `ModelInput`.

    Raises:
        ValueError: the parts are of different batches or do not fit each other.
    """

    images: Tensor
    image_mask: Tensor
    planner: Text | None
    expert: Text
    actions: Tensor
    action_mask: Tensor
    action_tokens: bool = False
    state: Tensor | None = None
    condition: Tensor | None = None

    def __post_init__(self) -> None:
        if self.actions.shape != self.action_mask.shape or self.actions.ndim != 3:
            raise ValueError(f"actions are {tuple(self.actions.shape)}, their mask {tuple(self.action_mask.shape)}")
        if self.images.shape[:2] != self.image_mask.shape:
            raise ValueError(f"images are {tuple(self.images.shape)}, their mask {tuple(self.image_mask.shape)}")
        _check_images(self.images)
        texts = {} if self.planner is None else {"planner": self.planner.tokens}
        _check_batch(self, "actions", actions=self.actions, images=self.images, expert=self.expert.tokens, **texts)

    def counts(self, draws: int = 1, given: Tensor | None = None) -> dict[str, Tensor]:
        """Return what each sample counts in each loss, int [B]: "text" and "fast" tokens, "flow" entries.

        Args:
            draws: of noise and time per sample.
            given: int [draws * B], leading steps that are given and not learned.
        """
        batch = len(self.actions)
        none = torch.zeros(batch, dtype=torch.int64, device=self.actions.device)
        mask = self.action_mask.repeat(draws, 1, 1)
        if given is not None:
            mask = mask & free_steps(given, mask.shape[1])[..., None]
        return {
            "text": none if self.planner is None else self.planner.targets.sum(dim=1),
            "fast": self.expert.targets.sum(dim=1) if self.action_tokens else none,
            "flow": mask.sum(dim=(1, 2)).view(draws, batch).sum(dim=0),
        }

    def trimmed(self) -> "TrainBatch":
        """Return the same with texts no longer than they need to be: quicker, but no batch is like another in shape."""
        planner = None if self.planner is None else self.planner.trimmed()
        return replace(self, planner=planner, expert=self.expert.trimmed())

    def to(self, device: torch.device | str) -> "TrainBatch":
        """Return a copy on `device`."""
        return TrainBatch(
            _move(self.images, device),
            _move(self.image_mask, device),
            None if self.planner is None else self.planner.to(device),
            self.expert.to(device),
            _move(self.actions, device),
            _move(self.action_mask, device),
            self.action_tokens,
            _maybe(self.state, device),
            _maybe(self.condition, device),
        )


def _check_images(images: Tensor) -> None:
    shape = tuple(images.shape)
    if images.ndim != 5 or shape[2] != 3 or shape[3] != shape[4]:
        raise ValueError(f"images are {shape}, expected [B, N, 3, S, S]")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}, expected uint8, or float in [-1, 1]")


def _check_batch(of: ModelInput | TrainBatch, first: str, **parts: Tensor) -> None:
    """Raise ValueError unless every part has as many samples as `first`."""
    optional = {"state": of.state, "condition": of.condition}
    sizes = {name: len(x) for name, x in (parts | optional).items() if x is not None}
    if any(size != sizes[first] for size in sizes.values()):
        raise ValueError(f"parts of one batch must have one length, got {sizes}")


def _move(x: Tensor, device: torch.device | str) -> Tensor:
    return x.to(device, non_blocking=True)


def _maybe(x: Tensor | None, device: torch.device | str) -> Tensor | None:
    return None if x is None else _move(x, device)
