"""Weights under lerobot's π0.5 names -> this package's names. One table; nothing else knows those names.

A row is (this name, the other names it is made of). Rows whose sources are several stack them along the output
dimension: queries, keys and values are one matrix here, and so are the gate and the up projection.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pi05_model.config import Pi05Config

Row = tuple[str, tuple[str, ...]]

_PALI = "model.paligemma_with_expert.paligemma"
_TOWER = f"{_PALI}.model.vision_tower.vision_model"
_TEXT = f"{_PALI}.model.language_model"
_EXPERT = "model.paligemma_with_expert.gemma_expert.model"

# Never read: the text head is tied to the embedding, and the expert has no text.
_UNUSED = (f"{_PALI}.lm_head.weight", "model.paligemma_with_expert.gemma_expert.lm_head.weight")


def rows(config: Pi05Config) -> Iterator[Row]:
    """Yield the table for a network of this size."""
    yield "embed.weight", (f"{_TEXT}.embed_tokens.weight",)
    yield from _vision_rows(config.vision.depth)
    for i in range(config.vlm.depth):
        yield from _layer_rows(f"vlm.layers.{i}", f"{_TEXT}.layers.{i}", ("weight",), "")
    yield "vlm.norm.weight", (f"{_TEXT}.norm.weight",)
    for i in range(config.expert.depth):
        yield from _layer_rows(f"expert.layers.{i}", f"{_EXPERT}.layers.{i}", ("weight", "bias"), "dense.")
    for kind in ("weight", "bias"):
        yield f"expert.norm.dense.{kind}", (f"{_EXPERT}.norm.dense.{kind}",)
        yield f"action_in.{kind}", (f"model.action_in_proj.{kind}",)
        yield f"action_out.{kind}", (f"model.action_out_proj.{kind}",)
        yield f"time_in.{kind}", (f"model.time_mlp_in.{kind}",)
        yield f"time_out.{kind}", (f"model.time_mlp_out.{kind}",)


def from_lerobot(weights: Mapping[str, Tensor], config: Pi05Config) -> dict[str, Tensor]:
    """Rename weights.

    A checkpoint without `embed_tokens` takes its text head instead, which is tied to it. Tensors that the table does
    not know keep their names, so that `load_weights` lists them as unexpected; absent ones it lists as missing.
    """
    source = dict(weights)
    source.setdefault(f"{_TEXT}.embed_tokens.weight", source.get(_UNUSED[0], torch.empty(0)))
    for name in _UNUSED:
        source.pop(name, None)
    renamed: dict[str, Tensor] = {}
    for name, parts in rows(config):
        if all(part in source for part in parts):
            tensor = torch.cat([source.pop(part) for part in parts])
            # A patch embedding is a convolution there and a linear map of the flattened patch here.
            renamed[name] = tensor.flatten(1) if tensor.ndim == 4 else tensor
    return {**renamed, **source}


def _vision_rows(depth: int) -> Iterator[Row]:
    yield "vision.position", (f"{_TOWER}.embeddings.position_embedding.weight",)
    for kind in ("weight", "bias"):
        yield f"vision.embed.proj.{kind}", (f"{_TOWER}.embeddings.patch_embedding.{kind}",)
        yield f"vision.norm.{kind}", (f"{_TOWER}.post_layernorm.{kind}",)
        yield f"vision.projector.{kind}", (f"{_PALI}.model.multi_modal_projector.linear.{kind}",)
        for i in range(depth):
            ours, theirs = f"vision.blocks.{i}", f"{_TOWER}.encoder.layers.{i}"
            yield f"{ours}.norm1.{kind}", (f"{theirs}.layer_norm1.{kind}",)
            yield f"{ours}.norm2.{kind}", (f"{theirs}.layer_norm2.{kind}",)
            yield f"{ours}.qkv.{kind}", tuple(f"{theirs}.self_attn.{x}_proj.{kind}" for x in "qkv")
            yield f"{ours}.out.{kind}", (f"{theirs}.self_attn.out_proj.{kind}",)
            yield f"{ours}.fc1.{kind}", (f"{theirs}.mlp.fc1.{kind}",)
            yield f"{ours}.fc2.{kind}", (f"{theirs}.mlp.fc2.{kind}",)


def _layer_rows(ours: str, theirs: str, norm_kinds: tuple[str, ...], norm_part: str) -> Iterator[Row]:
    yield f"{ours}.attention.qkv.weight", tuple(f"{theirs}.self_attn.{x}_proj.weight" for x in "qkv")
    yield f"{ours}.attention.out.weight", (f"{theirs}.self_attn.o_proj.weight",)
    yield f"{ours}.mlp.gate_up.weight", (f"{theirs}.mlp.gate_proj.weight", f"{theirs}.mlp.up_proj.weight")
    yield f"{ours}.mlp.down.weight", (f"{theirs}.mlp.down_proj.weight",)
    for kind in norm_kinds:
        for norm, name in (("attention_norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm")):
            yield f"{ours}.{norm}.{norm_part}{kind}", (f"{theirs}.{name}.{norm_part}{kind}",)
