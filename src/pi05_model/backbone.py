"""The vision-language model that every policy is built on: images and text in, hidden states, keys and text out.

Shapes: B batch, N cameras, P tokens of an image, L text tokens, T = N * P + L prefix tokens, W width, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pi05_model.batch import Text
from pi05_model.config import ModelConfig
from pi05_model.gemma import GemmaStack, KeyValues, Rope
from pi05_model.layers import Linear
from pi05_model.masks import block_mask, positions
from pi05_model.siglip import VisionEncoder


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

    @property
    def prompt(self) -> Tensor:
        """Bool [B, T], True for images and prompt: what stands before the answer. Actions see nothing else."""
        return self.valid & (self.starts.cumsum(dim=1) == 0)


@dataclass(frozen=True)
class Place:
    """Where some tokens stand and what they see; the same in every layer and in every solver step."""

    rope: Rope
    mask: Tensor | None


class Backbone(nn.Module):
    """SigLIP, token embedding and Gemma. The text head is the embedding, unless the configuration unties it.

    Args:
        config: sizes.
        compute_dtype: of activations and matrix products. Weights keep the dtype they are stored in and are cast
            where they are used; norms, position embedding, action heads and time MLP stay in float32.
    """

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.vision = VisionEncoder(config.vision, config.vlm.width)
        self.embed = nn.Embedding(config.vocab_size, config.vlm.width)
        self.vlm = GemmaStack(config.vlm)
        nn.init.normal_(self.embed.weight, std=config.vlm.width**-0.5)
        if not config.tied_head:
            self.head = Linear(config.vlm.width, config.vocab_size, bias=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.weight.device

    def encode_images(self, images_BN3SS: Tensor) -> Tensor:
        """Return vision features [B, N, P, W] of float images in [-1, 1] or of uint8 images."""
        batch, cameras = images_BN3SS.shape[:2]
        images = images_BN3SS.flatten(0, 1)
        if images.dtype == torch.uint8:
            images = images.float() * (2 / 255) - 1
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

    def run_prefix(self, prefix: Prefix, dense: bool = False) -> tuple[Tensor, list[KeyValues]]:
        """Return hidden states [B, T, W] and the keys and values of every layer."""
        place = self.prefix_place(prefix, dense)
        hidden, cache = self.vlm(prefix.embeddings, place.rope, place.mask)
        return hidden, cache

    def prefix_keys_values(self, prefix: Prefix, dense: bool = False) -> list[KeyValues]:
        """Return the keys and values alone, which is all that an action expert reads."""
        place = self.prefix_place(prefix, dense)
        return self.vlm.keys_values(prefix.embeddings, place.rope, place.mask)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return vocabulary logits [..., V] in float32."""
        if not self.config.tied_head:
            return self.head(hidden).float()  # type: ignore[no-any-return]
        return F.linear(hidden, self.embed.weight.to(hidden.dtype)).float()

    def text_loss(self, hidden_BTW: Tensor, text: Text, longest: int) -> tuple[Tensor, Tensor]:
        """Return what each sample's target tokens cost, [B] (sum of cross entropies), and how many were right, [B].

        Args:
            hidden_BTW: of a prefix that ends with `text`.
            text: prompt and answer; the targets of a sample stand together.
            longest: no sample has more targets.
        """
        # A window of fixed length holds the targets: no logits for the prompt, and shapes that stay the same.
        window = torch.arange(min(longest, text.tokens.shape[1]), device=hidden_BTW.device)
        wanted_BS = text.targets.int().argmax(dim=1, keepdim=True) + window
        index_BS = wanted_BS.clamp(max=text.tokens.shape[1] - 1)
        real_BS = text.targets.gather(1, index_BS) & (wanted_BS == index_BS)
        images = hidden_BTW.shape[1] - text.tokens.shape[1]
        before = (index_BS + images - 1)[..., None].expand(-1, -1, hidden_BTW.shape[2])
        logits_BSV = self.logits(hidden_BTW.gather(1, before))
        labels_BS = text.tokens.gather(1, index_BS)
        losses_BS = F.cross_entropy(logits_BSV.transpose(1, 2), labels_BS, reduction="none")
        hits_BS = (logits_BSV.detach().argmax(dim=-1) == labels_BS) & real_BS
        return (losses_BS * real_BS).sum(dim=1), hits_BS.sum(dim=1)
