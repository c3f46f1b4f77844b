"""The π0.5 network: one VLM that reads images and text, one action expert that reads the VLM's keys and values.

Two prompts, one set of weights. The planner's prompt holds the task, and its answer (the subtask) is read causally
after it. The expert's prompt holds the subtask, and the noisy action chunk is a bidirectional block after it that
nothing in the VLM sees. Sources: arXiv 2410.24164 (π0), 2504.16054 (π0.5), 2505.23705 (knowledge insulation).

Shapes: B batch, N cameras, P tokens of an image, L text tokens, T = N * P + L prefix tokens, W VLM width, H horizon,
A = max_action_dim, V vocabulary.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pi05_model.batch import Text, TrainBatch
from pi05_model.config import Pi05Config
from pi05_model.flow import interpolate, sample_time
from pi05_model.gemma import GemmaStack, KeyValues, Modulation, Rope
from pi05_model.layers import HeadLinear, init_linear
from pi05_model.masks import block_mask, positions, suffix_mask
from pi05_model.siglip import VisionEncoder

TIME_PERIODS = (4e-3, 4.0)


@dataclass(frozen=True)
class Prefix:
    """Embedded images and text.

    Attributes:
        embeddings: [B, T, W].
        valid, starts: bool [B, T]; see `masks`.
    """

    embeddings: Tensor
    valid: Tensor
    starts: Tensor


@dataclass(frozen=True)
class Place:
    """Where some tokens stand and what they see; the same in every layer and in every solver step."""

    rope: Rope
    mask: Tensor | None


def time_embedding(time_B: Tensor, width: int) -> Tensor:
    """Return sin|cos features [B, width] of flow time, periods 4e-3 to 4.0 in geometric steps, from float64."""
    low, high = TIME_PERIODS
    fraction = torch.linspace(0, 1, width // 2, dtype=torch.float64, device=time_B.device)
    angle = time_B.double()[:, None] * (2 * math.pi / (low * (high / low) ** fraction))
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


class Pi05(nn.Module):
    """Network and losses. Sampling and decoding are in `engine`.

    Args:
        config: sizes.
        compute_dtype: of activations and matrix products. Weights keep the dtype they are stored in and are cast
            where they are used; norms, position embedding, action heads and time MLP stay in float32.
    """

    def __init__(self, config: Pi05Config, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        vlm, expert = config.vlm.width, config.expert.width
        self.vision = VisionEncoder(config.vision, vlm)
        self.embed = nn.Embedding(config.vocab_size, vlm)
        self.vlm = GemmaStack(config.vlm)
        self.expert = GemmaStack(config.expert, adaptive=True)
        self.action_in = HeadLinear(config.max_action_dim, expert)
        self.action_out = HeadLinear(expert, config.max_action_dim)
        self.time_in = HeadLinear(expert, expert)
        self.time_out = HeadLinear(expert, expert)
        nn.init.normal_(self.embed.weight, std=vlm**-0.5)
        for head in (self.action_in, self.action_out, self.time_in, self.time_out):
            init_linear(head)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.weight.device

    def encode_images(self, images_BN3SS: Tensor) -> Tensor:
        """Return vision features [B, N, P, W] of float images in [-1, 1] or of uint8 images."""
        batch, cameras = images_BN3SS.shape[:2]
        images = images_BN3SS.flatten(0, 1)
        if images.dtype == torch.uint8:
            images = images.to(self.compute_dtype) * (2 / 255) - 1
        tokens: Tensor = self.vision(images.to(self.compute_dtype))
        return tokens.view(batch, cameras, *tokens.shape[1:])

    def embed_tokens(self, tokens_BL: Tensor) -> Tensor:
        """Return scaled token embeddings [B, L, W]."""
        embeddings: Tensor = self.embed(tokens_BL)
        return embeddings.to(self.compute_dtype) * math.sqrt(self.config.vlm.width)

    def embed_prefix(self, features_BNPW: Tensor, image_mask_BN: Tensor, text: Text) -> Prefix:
        """Join vision features and text. Image tokens are not scaled, text embeddings are."""
        image_valid = image_mask_BN.repeat_interleave(features_BNPW.shape[2], dim=1)
        return Prefix(
            torch.cat([features_BNPW.flatten(1, 2).to(self.compute_dtype), self.embed_tokens(text.tokens)], dim=1),
            torch.cat([image_valid, text.valid], dim=1),
            torch.cat([torch.zeros_like(image_valid), text.starts], dim=1),
        )

    def prefix_place(self, prefix: Prefix, dense: bool = False) -> Place:
        """Return the place of prefix tokens; `dense` promises one block without padding, which needs no mask."""
        rope = Rope.at(positions(prefix.valid), self.config.vlm.head_dim)
        return Place(rope, None if dense else block_mask(prefix.starts, prefix.valid))

    def suffix_place(self, prefix_valid_BT: Tensor, length: int, dense: bool = False) -> Place:
        """Return the place of `length` bidirectional tokens after a prefix; `dense` promises that it has no padding."""
        valid = torch.ones(len(prefix_valid_BT), length, dtype=torch.bool, device=prefix_valid_BT.device)
        mask = None if dense else suffix_mask(prefix_valid_BT, torch.zeros_like(valid), valid)
        after = positions(valid) + prefix_valid_BT.sum(dim=1, keepdim=True)
        return Place(Rope.at(after, self.config.expert.head_dim), mask)

    def run_prefix(self, prefix: Prefix, dense: bool = False) -> tuple[Tensor, list[KeyValues]]:
        """Return hidden states [B, T, W] and the keys and values of every layer."""
        place = self.prefix_place(prefix, dense)
        hidden, cache = self.vlm(prefix.embeddings, place.rope, place.mask)
        return hidden, cache

    def prefix_keys_values(self, prefix: Prefix, dense: bool = False) -> list[KeyValues]:
        """Return the keys and values alone, which is all that the expert reads."""
        place = self.prefix_place(prefix, dense)
        return self.vlm.keys_values(prefix.embeddings, place.rope, place.mask)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return vocabulary logits [..., V] in float32, through the tied embedding."""
        return F.linear(hidden, self.embed.weight.to(hidden.dtype)).float()

    def time_modulations(self, time_B: Tensor) -> list[Modulation | None]:
        """Return what the flow times [B] do to each norm of the expert."""
        cond = time_embedding(time_B, self.config.expert.width)
        return self.expert.modulations(F.silu(self.time_out(F.silu(self.time_in(cond)))))

    def velocity(
        self,
        noisy_BHA: Tensor,
        modulations: Sequence[Modulation | None],
        cache: Sequence[KeyValues],
        place: Place,
    ) -> Tensor:
        """Return the velocity [B, H, A] in float32 of a noisy chunk after a cached prefix."""
        tokens = self.action_in(noisy_BHA).to(self.compute_dtype)
        hidden, _ = self.expert(tokens, place.rope, place.mask, cache, modulations)
        out: Tensor = self.action_out(hidden)
        return out

    def text_loss(self, prefix: Prefix, text: Text) -> tuple[Tensor, Tensor]:
        """Return (mean cross entropy over the target tokens of the batch, share of them predicted right)."""
        hidden_BTW, _ = self.run_prefix(prefix)
        # Targets stand together, so a window of fixed length holds them: no logits for the prompt, static shapes.
        window = torch.arange(self.config.max_subtask_tokens, device=hidden_BTW.device)
        index_BS = (text.targets.int().argmax(dim=1, keepdim=True) + window).clamp(max=text.tokens.shape[1] - 1)
        inside_BS = text.targets.int().argmax(dim=1, keepdim=True) + window < text.tokens.shape[1]
        real_BS = text.targets.gather(1, index_BS) & inside_BS
        images = hidden_BTW.shape[1] - text.tokens.shape[1]
        before = (index_BS + images - 1)[..., None].expand(-1, -1, hidden_BTW.shape[2])
        logits_BSV = self.logits(hidden_BTW.gather(1, before))
        labels_BS = text.tokens.gather(1, index_BS)
        losses_BS = F.cross_entropy(logits_BSV.transpose(1, 2), labels_BS, reduction="none")
        hits_BS = (logits_BSV.detach().argmax(dim=-1) == labels_BS) & real_BS
        count = real_BS.sum().clamp(min=1)
        return (losses_BS * real_BS).sum() / count, hits_BS.sum() / count

    def flow_loss(
        self, prefix: Prefix, actions_BHA: Tensor, insulate: bool, noise_RHA: Tensor, time_R: Tensor
    ) -> Tensor:
        """Return squared velocity errors [R, H, A]; with `insulate` no gradient reaches what made `prefix`.

        R is a multiple of B: noise and time may be drawn several times for one prefix, which costs most of the work.
        """
        # Insulated keys and values need no history at all, which saves the VLM's backward pass.
        with torch.no_grad() if insulate else nullcontext():
            cache = self.prefix_keys_values(prefix)
        draws = len(time_R) // len(actions_BHA)
        noisy, target = interpolate(noise_RHA, actions_BHA.repeat(draws, 1, 1), time_R)
        place = self.suffix_place(prefix.valid.repeat(draws, 1), noisy.shape[1])
        cache = [KeyValues(kv.key.repeat(draws, 1, 1, 1), kv.value.repeat(draws, 1, 1, 1)) for kv in cache]
        predicted = self.velocity(noisy, self.time_modulations(time_R), cache, place)
        return (predicted - target).square()

    def losses(
        self,
        batch: TrainBatch,
        alpha: float = 10.0,
        insulate: bool | None = None,
        noise: Tensor | None = None,
        time: Tensor | None = None,
        draws: int = 1,
    ) -> dict[str, Tensor]:
        """Return scalar losses: total = text + alpha * flow.

        Args:
            batch: what to learn from.
            alpha: weight of the flow loss; 0 leaves the action expert out (pre-training).
            insulate: keep the flow loss out of the VLM; by default what the configuration says.
            noise: [draws * B, H, A], drawn from a standard normal distribution by default.
            time: [draws * B] flow times, drawn by `flow.sample_time` by default.
            draws: noises and times per sample.

        Returns:
            "total", "text", "flow" (mean over real action dimensions and steps), "token_accuracy".
        """
        insulate = self.config.insulate if insulate is None else insulate
        zero = torch.zeros((), device=batch.actions.device)
        text, flow, accuracy = zero, zero, zero
        seen = [self.config.cameras.index(key) for key in self.config.expert_cameras]
        if batch.planner is None:
            features = self.encode_images(batch.images[:, seen])
        else:
            everything = self.encode_images(batch.images)
            prefix = self.embed_prefix(everything, batch.image_mask, batch.planner)
            text, accuracy = self.text_loss(prefix, batch.planner)
            features = everything[:, seen]
        if alpha != 0:
            prefix = self.embed_prefix(features, batch.image_mask[:, seen], batch.expert)
            noise = torch.randn_like(batch.actions.repeat(draws, 1, 1)) if noise is None else noise
            time = sample_time(draws * len(batch.actions), batch.actions.device) if time is None else time
            errors = self.flow_loss(prefix, batch.actions, insulate, noise, time)
            mask = batch.action_mask.repeat(draws, 1, 1)
            flow = (errors * mask).sum() / mask.sum().clamp(min=1)
        return {"total": text + alpha * flow, "text": text, "flow": flow, "token_accuracy": accuracy}

    forward = losses
