"""What π0 and π0.5 share: an action expert that reads the VLM's keys and values and says the velocity of a chunk.

The prefix (images and prompt) runs once. The noisy chunk is one bidirectional block after it, which nothing in the
VLM sees. The two policies differ in how flow time, state and condition enter: see `pi05` and `pi0`.

Shapes: B batch, H steps of a chunk, A = max_action_dim, W expert width, S = 1, or H where every step has a flow time
of its own, R = draws * B.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pi05_model.backbone import Backbone, Place
from pi05_model.batch import TrainBatch
from pi05_model.config import ModelConfig
from pi05_model.flow import free_steps, interpolate, sample_time
from pi05_model.gemma import GemmaStack, KeyValues, Modulation, Past, Rope
from pi05_model.layers import HeadLinear, init_linear
from pi05_model.masks import positions, suffix_mask

TIME_PERIODS = (4e-3, 4.0)


def time_embedding(time: Tensor, width: int) -> Tensor:
    """Return sin|cos features [..., width] of flow times [...]: periods 4e-3 to 4.0, geometric, from float64."""
    low, high = TIME_PERIODS
    fraction = torch.linspace(0, 1, width // 2, dtype=torch.float64, device=time.device)
    angle = time.double()[..., None] * (2 * math.pi / (low * (high / low) ** fraction))
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


@dataclass(frozen=True)
class Step:
    """What depends on flow time and condition alone, so that it is computed once per solver step and kept.

    Attributes:
        modulations: of every norm of the expert; None for each plain norm.
        features: [B or 1, S, W], what joins the action embeddings.
        condition: [B or 1, 1, W], what is added to them; None without one.
    """

    modulations: Sequence[Modulation | None]
    features: Tensor | None = None
    condition: Tensor | None = None


class FlowPolicy(Backbone, ABC):
    """VLM and action expert. Sampling and decoding are in `engine`."""

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype, adaptive: bool) -> None:
        super().__init__(config, compute_dtype)
        assert config.expert is not None
        self.expert_config = config.expert
        width = config.expert.width
        self.expert = GemmaStack(config.expert, adaptive=adaptive)
        self.action_in = HeadLinear(config.max_action_dim, width)
        self.action_out = HeadLinear(width, config.max_action_dim)
        for head in (self.action_in, self.action_out):
            init_linear(head)
        if config.conditions:
            # Row 0 means no condition and is never trained; the others start there, at the policy without one.
            self.condition = nn.Embedding(config.conditions, width, padding_idx=0, dtype=torch.float32)
            nn.init.zeros_(self.condition.weight)

    @abstractmethod
    def step(self, time_BS: Tensor, condition_B: Tensor | None = None) -> Step:
        """Return what flow times [B, S] and condition rows int64 [B] mean to the network (None: no condition)."""

    @abstractmethod
    def embed_actions(self, noisy_BHA: Tensor, step: Step) -> Tensor:
        """Return the expert's input tokens [B, H, W] in float32."""

    def extend(
        self, cache: Sequence[KeyValues], prompt_BT: Tensor, state_BA: Tensor | None
    ) -> tuple[Sequence[KeyValues], Tensor]:
        """Return keys and values, and which of them a chunk sees (bool), with what a policy puts before the chunk."""
        return cache, prompt_BT

    def context(
        self, cache: Sequence[KeyValues], prompt_BT: Tensor, state_BA: Tensor | None = None, dense: bool = False
    ) -> tuple[Sequence[KeyValues], Place]:
        """Return what the action tokens read, keys and values by layer, and where they stand.

        Args:
            cache: of the prefix.
            prompt_BT: bool, True where actions may look; see `Prefix.prompt`.
            state_BA: normalised, padded state, for a policy that reads it beside the prompt.
            dense: promises that `prompt_BT` is True everywhere, so that no mask is needed.
        """
        cache, prompt_BT = self.extend(cache, prompt_BT, state_BA)
        valid = torch.ones(len(prompt_BT), self.config.horizon, dtype=torch.bool, device=prompt_BT.device)
        mask = None if dense else suffix_mask(prompt_BT, torch.zeros_like(valid), valid)
        after = positions(valid) + prompt_BT.sum(dim=1, keepdim=True)
        return cache, Place(Rope.at(after, self.expert_config.head_dim), mask)

    def velocity(self, noisy_BHA: Tensor, step: Step, past: Sequence[Past], place: Place) -> Tensor:
        """Return the velocity [B, H, A] in float32 of a noisy chunk; `past` and `place` come from `context`."""
        tokens = self.embed_actions(noisy_BHA, step).to(self.compute_dtype)
        hidden, _ = self.expert(tokens, place.rope, place.mask, past, step.modulations)
        out: Tensor = self.action_out(hidden)
        return out

    def condition_embedding(self, condition_B: Tensor | None) -> Tensor | None:
        """Return [B, 1, W] of condition rows, or None without one.

        Raises:
            ValueError: the network has no condition embedding.
        """
        if condition_B is None:
            return None
        if not self.config.conditions:
            raise ValueError("the network has no condition embedding; build it with ModelConfig(conditions=2)")
        embedded: Tensor = self.condition(condition_B)
        return embedded[:, None]

    def losses(
        self,
        batch: TrainBatch,
        alpha: float = 10.0,
        insulate: bool | None = None,
        noise: Tensor | None = None,
        time: Tensor | None = None,
        draws: int = 1,
        given: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return scalar losses: total = text + fast + alpha * flow.

        Args:
            batch: what to learn from.
            alpha: weight of the flow loss; 0 leaves the action expert out (pre-training).
            insulate: keep the flow loss out of the VLM; by default what the configuration says.
            noise: [R, H, A], drawn from a standard normal distribution by default.
            time: [R] flow times, drawn by `flow.sample_time` by default.
            draws: noises and times per sample; all share the work of one prefix.
            given: int [R], leading steps of each chunk that are given clean and not learned (arXiv 2512.05964).

        Returns:
            "total", "text" and "token_accuracy" (planner's answer), "fast" and "fast_accuracy" (action tokens after the
            expert's prompt), "flow" (mean over real action dimensions and steps). A part that is not trained is 0.
        """
        sums = self.row_losses(batch, alpha != 0, insulate, noise, time, draws, given)
        counts = {name: rows.sum() for name, rows in batch.counts(draws, given).items()}
        return combine(sums, counts, alpha)

    def row_losses(
        self,
        batch: TrainBatch,
        flow: bool = True,
        insulate: bool | None = None,
        noise: Tensor | None = None,
        time: Tensor | None = None,
        draws: int = 1,
        given: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return what each sample adds to each loss, [B], to be divided by `TrainBatch.counts`.

        Sums instead of means, so that a batch that is spread over processes, accumulation steps or sources has the same
        loss as in one piece. Arguments are those of `losses`.

        Returns:
            "text", "text_hits", "fast", "fast_hits" (tokens predicted right) and "flow"; zeros for what is left out.
        """
        insulate = self.config.insulate if insulate is None else insulate
        none = torch.zeros(len(batch.actions), device=batch.actions.device)
        rows = dict.fromkeys(("text", "text_hits", "fast", "fast_hits", "flow"), none)
        seen = self.config.expert_camera_indices
        if batch.planner is None:
            features = self.encode_images(batch.images[:, seen])
        else:
            everything = self.encode_images(batch.images)
            hidden, _ = self.run_prefix(self.embed_prefix(everything, batch.image_mask, batch.planner))
            rows["text"], rows["text_hits"] = self.text_loss(hidden, batch.planner, self.config.max_subtask_tokens)
            features = everything[:, seen]
        cache: list[KeyValues] = []
        prefix = self.embed_prefix(features, batch.image_mask[:, seen], batch.expert)
        if batch.action_tokens:
            hidden, cache = self.run_prefix(prefix)
            rows["fast"], rows["fast_hits"] = self.text_loss(hidden, batch.expert, self.config.max_action_tokens)
        if flow:
            if not cache:
                # Insulated keys and values need no history at all, which saves the VLM's backward pass.
                with torch.no_grad() if insulate else nullcontext():
                    cache = self.prefix_keys_values(prefix)
            cache = [kv.detach() for kv in cache] if insulate else cache
            rows["flow"] = self._flow_loss(batch, prefix.prompt, cache, noise, time, draws, given)
        return rows

    forward = row_losses

    def _flow_loss(
        self,
        batch: TrainBatch,
        prompt_BT: Tensor,
        cache: Sequence[KeyValues],
        noise: Tensor | None,
        time: Tensor | None,
        draws: int,
        given: Tensor | None,
    ) -> Tensor:
        count, device = len(batch.actions), batch.actions.device
        actions, mask = batch.actions.repeat(draws, 1, 1), batch.action_mask.repeat(draws, 1, 1)
        noise = torch.randn_like(actions) if noise is None else noise
        time = sample_time(draws * count, device) if time is None else time
        times_RS = time[:, None]
        if given is not None:
            free_RH = free_steps(given, actions.shape[1])
            times_RS, mask = torch.where(free_RH, times_RS, 0.0), mask & free_RH[..., None]
        errors = self.flow_errors(actions, noise, times_RS, prompt_BT, cache, batch.state, batch.condition)
        return (errors * mask).sum(dim=(1, 2)).view(draws, count).sum(dim=0)

    def flow_errors(
        self,
        actions_RHA: Tensor,
        noise_RHA: Tensor,
        time_RS: Tensor,
        prompt_BT: Tensor,
        cache: Sequence[KeyValues],
        state_BA: Tensor | None = None,
        condition_B: Tensor | None = None,
    ) -> Tensor:
        """Return squared velocity errors [R, H, A]; what belongs to a sample serves all its draws."""
        draws = len(actions_RHA) // len(prompt_BT)
        cache = [kv.repeat(draws) for kv in cache]
        state = None if state_BA is None else state_BA.repeat(draws, 1)
        condition = None if condition_B is None else condition_B.repeat(draws)
        noisy, target = interpolate(noise_RHA, actions_RHA, time_RS)
        past, place = self.context(cache, prompt_BT.repeat(draws, 1), state)
        return (self.velocity(noisy, self.step(time_RS, condition), past, place) - target).square()


def combine(sums: Mapping[str, Tensor], counts: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return the means that `FlowPolicy.losses` describes.

    Args:
        sums: from `row_losses`, any number of samples.
        counts: what each loss is a mean over, a scalar each; where nothing counts, the loss is 0.
        alpha: weight of the flow loss.
    """
    over = {name: count.clamp(min=1) for name, count in counts.items()}
    text, fast, flow = (sums[name].sum() / over[name] for name in ("text", "fast", "flow"))
    return {
        "total": text + fast + alpha * flow,
        "text": text,
        "token_accuracy": sums["text_hits"].sum() / over["text"],
        "fast": fast,
        "fast_accuracy": sums["fast_hits"].sum() / over["fast"],
        "flow": flow,
    }
