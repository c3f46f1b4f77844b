"""From observations and text to the network's inputs; training and inference use this one path."""

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pi05_model.batch import ModelInput, Text, TrainBatch
from pi05_model.config import ModelConfig
from pi05_model.images import resize_with_pad, to_unit
from pi05_model.normalize import NormStats
from pi05_model.observation import Image, Observation
from pi05_model.prompts import expert_prompt, planner_prompt, state_bins
from pi05_model.tokenizer import BOS_ID, EOS_ID, PAD_ID, Tokenizer

MAX_TASK_CHARACTERS = 1000
PromptForm = Callable[[str, ArrayLike | None], str]


class Preprocessor:
    """Builds prompts, tokens and image tensors.

    Args:
        config: sizes of the network.
        stats: statistics of "state" [D] and "actions" [D], D <= config.max_action_dim.
        tokenizer: text to ids.

    Attributes:
        truncated: prompts cut so far because they did not fit; the first one warns as well.

    Raises:
        ValueError: statistics or vocabulary do not fit the network.
    """

    def __init__(self, config: ModelConfig, stats: Mapping[str, NormStats], tokenizer: Tokenizer) -> None:
        missing = {"state", "actions"} - stats.keys()
        if missing:
            raise ValueError(f"statistics lack {sorted(missing)}; they hold {sorted(stats)}")
        if stats["actions"].dim > config.max_action_dim:
            raise ValueError(f"{stats['actions'].dim} action dimensions exceed max_action_dim {config.max_action_dim}")
        if tokenizer.vocab_size > config.vocab_size:
            raise ValueError(f"the tokenizer has {tokenizer.vocab_size} ids, the network {config.vocab_size}")
        self.config = config
        self.stats = dict(stats)
        self.tokenizer = tokenizer
        self.truncated = 0

    @property
    def action_dim(self) -> int:
        """Entries of a real action."""
        return self.stats["actions"].dim

    def planner_text(self, states: ArrayLike, tasks: Sequence[str], subtasks: Sequence[str] | None = None) -> Text:
        """Return planner prompts, with subtask and end of sequence as targets when `subtasks` are given.

        In training the length is the longest possible one, so that shapes stay the same over batches.
        """
        prompts = self._prompts(planner_prompt, tasks, states)
        if subtasks is None:
            return _pad(prompts, [[] for _ in prompts], max(map(len, prompts)))
        limit = self.config.max_subtask_tokens
        answers = [[*ids[: limit - 1], EOS_ID] for ids in self.tokenizer.encode([s.strip() for s in subtasks])]
        return _pad(prompts, answers, self.config.max_prompt_tokens + limit)

    def expert_text(self, states: ArrayLike, subtasks: Sequence[str], pad: bool = False) -> Text:
        """Return action expert prompts, padded to the longest possible length with `pad`."""
        prompts = self._prompts(expert_prompt, subtasks, states)
        length = self.config.max_prompt_tokens if pad else max(map(len, prompts))
        return _pad(prompts, [[] for _ in prompts], length)

    def planner_inputs(
        self, observations: Sequence[Observation], tasks: Sequence[str], subtasks: Sequence[str] | None = None
    ) -> ModelInput:
        """Return planner inputs of a batch, with all cameras."""
        images, mask = self.images(observations, self.config.cameras)
        return ModelInput(images, mask, self.planner_text(_states(observations), tasks, subtasks))

    def expert_inputs(self, observations: Sequence[Observation], subtasks: Sequence[str]) -> ModelInput:
        """Return action expert inputs of a batch, with the expert's cameras."""
        images, mask = self.images(observations, self.config.expert_cameras)
        return ModelInput(images, mask, self.expert_text(_states(observations), subtasks))

    def images(self, observations: Sequence[Observation], cameras: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return images float32 [B, N, 3, S, S] in [-1, 1] and mask bool [B, N]; a missing camera is black."""
        size = self.config.image_size
        images = torch.full((len(observations), len(cameras), 3, size, size), -1.0)
        mask = torch.zeros(len(observations), len(cameras), dtype=torch.bool)
        for b, observation in enumerate(observations):
            for n, key in enumerate(cameras):
                if key in observation.images:
                    images[b, n], mask[b, n] = self.image(observation.images[key]), True
        return images, mask

    def image(self, image: Image) -> Tensor:
        """Return one uint8 image [H, W, 3] as float32 [3, S, S] in [-1, 1]."""
        chw = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        return to_unit(resize_with_pad(chw[None], self.config.image_size)[0])

    def train_batch(
        self,
        images: Tensor,
        image_mask: Tensor | NDArray[np.bool_],
        states: ArrayLike,
        tasks: Sequence[str] | None,
        subtasks: Sequence[str],
        actions: ArrayLike | Tensor,
        action_is_pad: ArrayLike | Tensor | None = None,
        expert_subtasks: Sequence[str] | None = None,
        device: torch.device | str | None = None,
    ) -> TrainBatch:
        """Assemble a training batch.

        Args:
            images: uint8 [B, N, S, S, 3] or [B, N, 3, S, S], cameras in the order of `config.cameras`.
            image_mask: bool [B, N].
            states: [B, D] in physical units.
            tasks: planner prompts; None trains the expert alone.
            subtasks: what the planner shall answer.
            actions: [B, H, D] in physical units.
            action_is_pad: bool [B, H], True for steps after the end of an episode.
            expert_subtasks: the expert's prompts where they differ from `subtasks`.
            device: where the batch goes; by default where `images` are.

        Raises:
            ValueError: a shape does not fit; the message names it.
        """
        device = images.device if device is None else device
        if images.shape[-1] == 3 and images.shape[2] != 3:
            images = images.permute(0, 1, 4, 2, 3)
        expected = (len(subtasks), len(self.config.cameras), 3, self.config.image_size, self.config.image_size)
        if tuple(images.shape) != expected:
            raise ValueError(f"images are {tuple(images.shape)}, expected {expected} or the same with channels last")
        relative = self.relative(np.asarray(actions, dtype=np.float64), states)
        padded, mask = self._actions(torch.from_numpy(relative), action_is_pad)
        batch = TrainBatch(
            images=images,
            image_mask=torch.as_tensor(image_mask, dtype=torch.bool),
            planner=None if tasks is None else self.planner_text(states, tasks, subtasks),
            expert=self.expert_text(states, subtasks if expert_subtasks is None else expert_subtasks, pad=True),
            actions=padded,
            action_mask=mask,
        )
        return batch.to(device)

    def relative(self, actions: ArrayLike, states: ArrayLike) -> NDArray[np.float64]:
        """Return actions [..., H, D], relative entries less the state [..., D]; the statistics are of these."""
        return relative_actions(actions, states, self.config.relative_entries)

    def physical_actions(self, actions: Tensor, states: ArrayLike) -> NDArray[np.float32]:
        """Return the real dimensions [..., H, D] of normalised actions [..., H, A] in physical units.

        Args:
            actions: what the network says.
            states: [..., D] at the observations that it was said for.
        """
        real = self.stats["actions"].unnormalise(actions[..., : self.action_dim].cpu().numpy())
        return relative_actions(real, states, self.config.relative_entries, sign=1.0).astype(np.float32)

    def _actions(self, actions_BHD: Tensor, is_pad: ArrayLike | Tensor | None) -> tuple[Tensor, Tensor]:
        batch, horizon, dim = actions_BHD.shape
        if (horizon, dim) != (self.config.horizon, self.action_dim):
            raise ValueError(f"actions are {horizon} x {dim}, expected {self.config.horizon} x {self.action_dim}")
        normalised = self.stats["actions"].normalise(actions_BHD.cpu().numpy())
        padded = torch.zeros(batch, horizon, self.config.max_action_dim)
        padded[..., :dim] = torch.from_numpy(normalised)
        mask = torch.zeros_like(padded, dtype=torch.bool)
        real = torch.ones(batch, horizon, dtype=torch.bool)
        if is_pad is not None:
            real = ~torch.as_tensor(is_pad, dtype=torch.bool).cpu()
        mask[..., :dim] = real[..., None]
        return padded, mask

    def _prompts(self, form: PromptForm, texts: Sequence[str], states: ArrayLike) -> list[list[int]]:
        """Return token ids with begin of sequence; a text that does not fit is cut, never the state after it."""
        bins = self._bins(states)
        texts = [self._shorten(text) for text in texts]
        encoded = self.tokenizer.encode([form(text, row) for text, row in zip(texts, bins, strict=True)])
        room = self.config.max_prompt_tokens - 1
        return [
            [BOS_ID, *(ids if len(ids) <= room else self._cut(form, text, row, room))]
            for ids, text, row in zip(encoded, texts, bins, strict=True)
        ]

    def _bins(self, states: ArrayLike) -> Sequence[NDArray[np.int64] | None]:
        normalised = self.stats["state"].normalise(states)
        if not self.config.state_in_prompt:
            return [None] * len(normalised)
        return list(state_bins(normalised, self.config.clip_state))

    def _shorten(self, text: str) -> str:
        if len(text) <= MAX_TASK_CHARACTERS:
            return text
        self._tell_truncation(f"a text of {len(text)} characters was cut to {MAX_TASK_CHARACTERS}")
        return text[:MAX_TASK_CHARACTERS]

    def _cut(self, form: PromptForm, text: str, bins: NDArray[np.int64] | None, room: int) -> list[int]:
        """Return the tokens of the longest beginning of `text` whose prompt fits."""
        if len(self.tokenizer.encode([form("", bins)])[0]) > room:
            raise ValueError(f"the state alone exceeds max_prompt_tokens {self.config.max_prompt_tokens}")
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            fits = len(self.tokenizer.encode([form(text[:middle], bins)])[0]) <= room
            low, high = (middle, high) if fits else (low, middle - 1)
        self._tell_truncation(f"a prompt was cut after {low} characters of its text to fit {room + 1} tokens")
        return self.tokenizer.encode([form(text[:low], bins)])[0]

    def _tell_truncation(self, message: str) -> None:
        if not self.truncated:
            warnings.warn(message + "; further cuts are only counted", stacklevel=2)
        self.truncated += 1


def relative_actions(
    actions: ArrayLike, states: ArrayLike, entries: Sequence[int], sign: float = -1.0
) -> NDArray[np.float64]:
    """Return actions [..., H, D] with the state [..., D] taken off (or, with sign 1, put back on) some entries."""
    moved = np.array(actions, dtype=np.float64)
    chosen = list(entries)
    moved[..., chosen] += sign * np.asarray(states, dtype=np.float64)[..., None, chosen]
    return moved


def _states(observations: Sequence[Observation]) -> NDArray[np.float64]:
    return np.stack([observation.state for observation in observations])


def _pad(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], length: int) -> Text:
    """Join prompts and answers, and pad at the end; answers are causal targets."""
    tokens = np.full((len(prompts), length), PAD_ID, dtype=np.int64)
    valid, targets = np.zeros(tokens.shape, dtype=bool), np.zeros(tokens.shape, dtype=bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        tokens[row, :end] = [*prompt, *answer]
        valid[row, :end] = True
        targets[row, len(prompt) : end] = True
    tensors = (torch.from_numpy(x) for x in (tokens, valid, targets.copy(), targets))
    return Text(*tensors)
