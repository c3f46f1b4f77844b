"""From observations and text to the network's inputs; training and inference use this one path."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pi05_model.action_text import ActionText
from pi05_model.action_tokens import ActionTokenizer, check_space
from pi05_model.batch import ModelInput, Text, TrainBatch
from pi05_model.config import ModelConfig
from pi05_model.images import check_image, resize_with_pad, to_unit
from pi05_model.normalize import NORMAL_Q99, NormStats
from pi05_model.observation import Image, Observation, check_cameras, check_state
from pi05_model.prompts import (
    ControlMode,
    expert_prompt,
    fast_prompt,
    pi0_prompt,
    planner_prompt,
    require_text,
    state_bins,
    web_prompt,
)
from pi05_model.tokenizer import BOS_ID, EOS_ID, PAD_ID, Tokenizer
from pi05_model.transforms import action_transform, relative_actions

MAX_TASK_CHARACTERS = 1000
Bins = NDArray[np.int64] | None
States = ArrayLike | Sequence[ArrayLike | None]
"""[B, D] in physical units; a row may be None: a sample without a robot."""

PromptForm = Callable[[str, Bins, ControlMode | None], str]


class Preprocessor:
    """Builds prompts, tokens and image tensors.

    Args:
        config: the network.
        stats: statistics of "state" [D] and "actions" [D], D <= config.max_action_dim.
        tokenizer: text to ids.
        actions: action tokenizer; π0-FAST needs one, π0.5 only to train on action tokens.

    Attributes:
        truncated: prompts and answers cut so far because they did not fit; the first one warns as well.
        action_text: what says and reads action tokens; None without an action tokenizer.

    Raises:
        ValueError: statistics, vocabulary or action tokenizer do not fit the network or each other.
    """

    def __init__(
        self,
        config: ModelConfig,
        stats: Mapping[str, NormStats],
        tokenizer: Tokenizer,
        actions: ActionTokenizer | None = None,
    ) -> None:
        missing = {"state", "actions"} - stats.keys()
        if missing:
            raise ValueError(f"statistics lack {sorted(missing)}; they hold {sorted(stats)}")
        for name in ("state", "actions"):
            if stats[name].dim > config.max_action_dim:
                raise ValueError(f"{stats[name].dim} entries of {name} exceed max_action_dim {config.max_action_dim}")
        if tokenizer.vocab_size > config.vocab_size:
            raise ValueError(f"the tokenizer has {tokenizer.vocab_size} ids, the network {config.vocab_size}")
        self.config = config
        self.stats = dict(stats)
        self.tokenizer = tokenizer
        self.truncated = 0
        self.action_text: ActionText | None = None
        if actions is not None:
            check_space(actions, stats["actions"], config.relative_entries)
            self.action_text = ActionText(config, self.action_dim, tokenizer, actions)
        elif config.policy == "pi0_fast":
            raise ValueError("π0-FAST needs an action tokenizer; fit one with `pi05 tokenizer fit fast DATA --out DIR`")

    @property
    def action_dim(self) -> int:
        """Entries of a real action."""
        return self.stats["actions"].dim

    def planner_text(
        self,
        states: States,
        tasks: Sequence[str],
        answers: Sequence[str | None] | None = None,
        controls: Sequence[ControlMode | None] | None = None,
    ) -> Text:
        """Return planner prompts, with answers and end of sequence as targets when they are given.

        An answer is any text: a subtask, boxes before it (`prompts.answer_text`), a caption; None says nothing. In
        training the length is the longest possible one, so that shapes stay the same over batches.

        Args:
            states: [B, D] in physical units; the prompt of a row that is None is the bare task (web data).
            tasks: what to do, or the question.
            answers: what to say.
            controls: control mode by sample, None leaves it out; by default the configuration's for all.

        Raises:
            ValueError: the policy has no planner, or a task is empty.
        """
        if self.config.policy != "pi05":
            raise ValueError(f"{self.config.policy} has no planner; π0.5 has")
        prompts = self._prompts(planner_prompt, tasks, states, "the task", controls)
        if answers is None:
            return _pad(prompts, [[] for _ in prompts], max(map(len, prompts)))
        limit = self.config.max_subtask_tokens
        encoded = self.tokenizer.encode(["" if text is None else text.strip() for text in answers])
        ends = [[] if text is None else self._end(ids, limit) for text, ids in zip(answers, encoded, strict=True)]
        return _pad(prompts, ends, self.config.max_prompt_tokens + limit)

    def expert_text(
        self,
        states: States,
        subtasks: Sequence[str],
        chunks: Sequence[NDArray[np.float64] | None] | None = None,
        pad: bool = False,
        controls: Sequence[ControlMode | None] | None = None,
    ) -> Text:
        """Return prompts of the action expert, or of π0-FAST.

        Args:
            states: [B, D] in physical units.
            subtasks: what to do.
            chunks: normalised actions [H, D] by sample, to say as action tokens after the prompt: causal targets. None
                says nothing.
            pad: to the longest possible length, so that shapes stay the same over batches.
            controls: control mode by sample, None leaves it out; by default the configuration's for all.

        Raises:
            ValueError: there is no action tokenizer to say `chunks`, or a subtask is empty.
        """
        prompts = self._prompts(_expert_form(self.config), subtasks, states, "the subtask", controls)
        answers: list[list[int]] = [[] for _ in prompts]
        length = self.config.max_prompt_tokens
        if chunks is not None:
            if self.action_text is None:
                raise ValueError("action tokens need an action tokenizer; see `pi05 tokenizer fit`")
            limit = self.config.max_action_tokens
            length += limit
            for row, chunk in enumerate(chunks):
                if chunk is not None:
                    answers[row] = self._end(self.action_text.answers(chunk[None])[0], limit)
        return _pad(prompts, answers, length if pad else max(map(len, map(list.__add__, prompts, answers))))

    def planner_inputs(
        self, observations: Sequence[Observation], tasks: Sequence[str], answers: Sequence[str] | None = None
    ) -> ModelInput:
        """Return planner inputs of a batch, with all cameras."""
        images, mask = self.images(observations, self.config.cameras)
        return ModelInput(images, mask, self.planner_text(_states(observations), tasks, answers))

    def expert_inputs(self, observations: Sequence[Observation], subtasks: Sequence[str]) -> ModelInput:
        """Return inputs of a batch for the part that says actions, with its cameras."""
        images, mask = self.images(observations, self.config.expert_cameras)
        states = _states(observations)
        return ModelInput(images, mask, self.expert_text(states, subtasks), state=self.state_input(states))

    def images(self, observations: Sequence[Observation], cameras: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return images float32 [B, N, 3, S, S] in [-1, 1] and mask bool [B, N]; a missing camera is black.

        Raises:
            ValueError: an observation has a camera that the policy does not know, or a malformed image.
        """
        size = self.config.image_size
        images = torch.full((len(observations), len(cameras), 3, size, size), -1.0)
        mask = torch.zeros(len(observations), len(cameras), dtype=torch.bool)
        for b, observation in enumerate(observations):
            check_cameras(observation, self.config.cameras)
            for n, key in enumerate(cameras):
                if key in observation.images:
                    images[b, n], mask[b, n] = self.image(observation.images[key], key), True
        return images, mask

    def image(self, image: Image, name: str = "image") -> Tensor:
        """Return one uint8 image [H, W, 3] as float32 [3, S, S] in [-1, 1]."""
        chw = torch.from_numpy(np.ascontiguousarray(check_image(image, name))).permute(2, 0, 1)
        return to_unit(resize_with_pad(chw[None], self.config.image_size)[0])

    def state_input(self, states: States) -> Tensor | None:
        """Return states [B, D] normalised and padded [B, A] for a policy that reads them beside the prompt, or None."""
        if self.config.policy != "pi0":
            return None
        normalised = self._normalised_states(states)
        padded = torch.zeros(len(normalised), self.config.max_action_dim)
        padded[:, : normalised.shape[1]] = torch.from_numpy(normalised)
        return padded

    def train_batch(
        self,
        images: Tensor,
        image_mask: Tensor | NDArray[np.bool_],
        states: States,
        tasks: Sequence[str] | None,
        subtasks: Sequence[str | None],
        actions: ArrayLike | Tensor,
        action_is_pad: ArrayLike | Tensor | None = None,
        expert_subtasks: Sequence[str] | None = None,
        device: torch.device | str | None = None,
        action_tokens: bool | Sequence[bool] | None = None,
        action_mask: ArrayLike | None = None,
        controls: Sequence[ControlMode | None] | None = None,
        loss_dimensions: Literal["real", "all"] = "real",
        clip: float | None = None,
    ) -> TrainBatch:
        """Assemble a training batch.

        Args:
            images: uint8 [B, N, S, S, 3] or [B, N, 3, S, S], cameras in the order of `config.cameras`.
            image_mask: bool [B, N].
            states: [B, D] in physical units; None for a sample without a robot.
            tasks: planner prompts; None trains without the planner.
            subtasks: what the planner shall answer; None says nothing.
            actions: [B, H, D] in physical units.
            action_is_pad: bool [B, H], True for steps after the end of an episode.
            expert_subtasks: the expert's prompts where they differ from `subtasks`.
            device: where the batch goes; by default where `images` are.
            action_tokens: say the actions as tokens, too, for all or by sample; by default for π0-FAST alone.
            action_mask: bool [B, D], entries that the sample's robot has; the others are zero and do not count.
            controls: control mode by sample, None leaves it out; by default the configuration's for all.
            loss_dimensions: average the flow loss over the real entries of an action (lerobot) or all (openpi).
            clip: normalised actions are clipped to this, in units of the quantiles' half range.

        Raises:
            ValueError: a shape does not fit; the message names it.
        """
        device = images.device if device is None else device
        if images.shape[-1] == 3 and images.shape[2] != 3:
            images = images.permute(0, 1, 4, 2, 3)
        expected = (len(subtasks), len(self.config.cameras), 3, self.config.image_size, self.config.image_size)
        if tuple(images.shape) != expected:
            raise ValueError(f"images are {tuple(images.shape)}, expected {expected} or the same with channels last")
        padded = self._actions(np.asarray(actions, dtype=np.float64), states)
        if clip is not None:
            reach = clip * (NORMAL_Q99 if self.stats["actions"].method == "mean_std" else 1.0)
            padded.clamp_(-reach, reach)
        mask = torch.ones_like(padded, dtype=torch.bool)
        if loss_dimensions == "real":
            mask[..., self.action_dim :] = False
        if action_mask is not None:
            has = torch.as_tensor(np.asarray(action_mask, dtype=bool))[:, None]
            mask[..., : self.action_dim] &= has
            padded[..., : self.action_dim] *= has
        if action_is_pad is not None:
            mask &= ~torch.as_tensor(action_is_pad, dtype=torch.bool).cpu()[..., None]
        says = self.config.policy == "pi0_fast" if action_tokens is None else action_tokens
        rows = [says] * len(padded) if isinstance(says, bool) else list(says)
        chunks = [padded[i, :, : self.action_dim].double().numpy() if rows[i] else None for i in range(len(rows))]
        prompts = expert_subtasks if expert_subtasks is not None else [_said(text) for text in subtasks]
        batch = TrainBatch(
            images=images,
            image_mask=torch.as_tensor(image_mask, dtype=torch.bool),
            planner=None if tasks is None else self.planner_text(states, tasks, subtasks, controls),
            expert=self.expert_text(states, prompts, chunks if any(rows) else None, pad=True, controls=controls),
            actions=padded,
            action_mask=mask,
            action_tokens=any(rows),
            state=self.state_input(states),
        )
        return batch.to(device)

    def physical_actions(self, actions: Tensor, states: ArrayLike) -> NDArray[np.float32]:
        """Return the real dimensions [..., H, D] of normalised actions [..., H, A] in physical units.

        Args:
            actions: what the network says.
            states: [..., D] at the observations that it was said for.
        """
        normalised = actions[..., : self.action_dim].double().cpu().numpy()
        said = self.stats["actions"].unnormalise(normalised)
        return relative_actions(said, states, self.config.relative_entries, sign=1.0).astype(np.float32)

    def _actions(self, actions_BHD: NDArray[np.float64], states: States) -> Tensor:
        """Return normalised, padded actions [B, H, A]."""
        expected = (self.config.horizon, self.action_dim)
        if actions_BHD.shape[1:] != expected:
            raise ValueError(f"actions are {actions_BHD.shape}, expected [batch, {expected[0]}, {expected[1]}]")
        config = self.config
        at = self._known_states(states) if config.relative_entries else np.zeros((len(actions_BHD), self.action_dim))
        way = action_transform(self.stats["actions"], at, config.relative_entries, config.max_action_dim)
        return torch.from_numpy(way.apply(actions_BHD)).float()

    def _prompts(
        self,
        form: PromptForm,
        texts: Sequence[str],
        states: States,
        what: str,
        controls: Sequence[ControlMode | None] | None,
    ) -> list[list[int]]:
        """Return token ids with begin of sequence; a text that does not fit is cut, never the state after it."""
        bins = self._bins(states)
        modes = [self.config.control_mode] * len(texts) if controls is None else list(controls)
        if not len(texts) == len(bins) == len(modes):
            raise ValueError(f"{len(texts)} texts and {len(modes)} control modes for {len(bins)} states")
        room = self.config.max_prompt_tokens - 1
        writers: list[Callable[[str], str]] = [
            web_prompt if state is None else partial(_write, form, row, mode)
            for state, row, mode in zip(_rows(states), bins, modes, strict=True)
        ]
        texts = [self._shorten(require_text(text, what)) for text in texts]
        encoded = self.tokenizer.encode([write(text) for write, text in zip(writers, texts, strict=True)])
        return [
            [BOS_ID, *(ids if len(ids) <= room else self._cut(write, text, room))]
            for ids, text, write in zip(encoded, texts, writers, strict=True)
        ]

    def _bins(self, states: States) -> Sequence[Bins]:
        normalised = self._normalised_states(states)
        if not self.config.state_in_prompt:
            return [None] * len(normalised)
        return list(state_bins(normalised, self.config.clip_state))

    def _known_states(self, states: States) -> NDArray[np.float64]:
        """Return states [B, D]; a sample without a robot stands in the middle of the statistics."""
        stats = self.stats["state"]
        middle = stats.unnormalise(np.zeros(stats.dim))
        known = np.stack([middle if row is None else np.asarray(row, dtype=np.float64) for row in _rows(states)])
        return check_state(known, stats.dim, self.config.max_action_dim)

    def _normalised_states(self, states: States) -> NDArray[np.float64]:
        return self.stats["state"].normalise(self._known_states(states))

    def _shorten(self, text: str) -> str:
        if len(text) <= MAX_TASK_CHARACTERS:
            return text
        self._tell_truncation(f"a text of {len(text)} characters was cut to {MAX_TASK_CHARACTERS}")
        return text[:MAX_TASK_CHARACTERS]

    def _cut(self, write: Callable[[str], str], text: str, room: int) -> list[int]:
        """Return the tokens of the longest beginning of `text` whose prompt fits."""
        if len(self.tokenizer.encode([write("")])[0]) > room:
            raise ValueError(f"the state alone exceeds max_prompt_tokens {self.config.max_prompt_tokens}")
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            fits = len(self.tokenizer.encode([write(text[:middle])])[0]) <= room
            low, high = (middle, high) if fits else (low, middle - 1)
        self._tell_truncation(f"a prompt was cut after {low} characters of its text to fit {room + 1} tokens")
        return self.tokenizer.encode([write(text[:low])])[0]

    def _end(self, ids: Sequence[int], limit: int) -> list[int]:
        """Return an answer with its end of sequence, at most `limit` tokens."""
        if len(ids) >= limit:
            self._tell_truncation(f"an answer of {len(ids)} tokens and its end was cut to {limit}")
        return [*ids[: limit - 1], EOS_ID]

    def _tell_truncation(self, message: str) -> None:
        if not self.truncated:
            warnings.warn(message + "; further cuts are only counted", stacklevel=2)
        self.truncated += 1


def _expert_form(config: ModelConfig) -> PromptForm:
    """Return how the prompt of the part that says actions is written."""
    forms: dict[str, PromptForm] = {
        "pi05": expert_prompt,
        "pi0": lambda text, bins, control: pi0_prompt(text, config.family),
        "pi0_fast": lambda text, bins, control: fast_prompt(text, bins, config.family, control),
    }
    return forms[config.policy]


def _write(form: PromptForm, bins: Bins, mode: ControlMode | None, text: str) -> str:
    return form(text, bins, mode)


def _said(text: str | None) -> str:
    if text is None:
        raise ValueError("a sample without an answer needs a prompt for its actions: give expert_subtasks")
    return text


def _rows(states: States) -> Sequence[ArrayLike | None]:
    if isinstance(states, np.ndarray):
        return list(np.atleast_2d(states))
    return list(states)  # type: ignore[arg-type]


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
