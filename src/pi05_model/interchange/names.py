"""Parameter names of openpi's PyTorch networks and of lerobot, beside this package's. Nothing else knows them.

lerobot's names are openpi's behind the prefix `model.`; both are read from their sources (openpi
src/openpi/models_pytorch, lerobot 0.6 policies/pi0, pi05, pi0_fast). A row of the table is (this name, the names it is
made of). Rows of several sources stack them along the output dimension: queries, keys and values are one matrix here,
and so are the gate and the up projection.
"""

import re
from collections.abc import Iterator

from pi05_model.config import GemmaConfig, ModelConfig

Row = tuple[str, tuple[str, ...]]

LEROBOT_PREFIX = "model."
JOINT = "paligemma_with_expert"
_PALI = f"{JOINT}.paligemma"
TOWER = f"{_PALI}.model.vision_tower.vision_model"
VLM = f"{_PALI}.model.language_model"
EXPERT = f"{JOINT}.gemma_expert.model"
EMBEDDING = f"{VLM}.embed_tokens.weight"
TEXT_HEAD = f"{_PALI}.lm_head.weight"
"""Tied to the embedding in openpi; lerobot keeps a second tensor."""
EXPERT_HEAD = f"{JOINT}.gemma_expert.lm_head.weight"
"""The expert says no text; lerobot's strict loader wants the tensor nevertheless."""

ADAPTIVE_NORM = f"{EXPERT}.norm.dense.weight"
PLAIN_NORM = f"{EXPERT}.norm.weight"

_WRAPPERS = ("module.", "_orig_mod.", LEROBOT_PREFIX)
_OLD_NAMES = (  # transformers before 4.52 nested the parts of PaliGemma the other way round
    (f"{_PALI}.language_model.lm_head.", f"{_PALI}.lm_head."),
    (f"{_PALI}.language_model.model.", f"{VLM}."),
    (f"{_PALI}.vision_tower.", f"{_PALI}.model.vision_tower."),
    (f"{_PALI}.multi_modal_projector.", f"{_PALI}.model.multi_modal_projector."),
)
_UNREAD = re.compile(
    rf"{re.escape(EXPERT_HEAD)}|{re.escape(EXPERT)}\.embed_tokens\.weight"
    r"|.*\.vision_model\.head\..*|.*\.position_ids|.*\.rotary_emb\.inv_freq"
    r"|(normalize_inputs|normalize_targets|unnormalize_outputs)\..*"
)


def rows(config: ModelConfig) -> Iterator[Row]:
    """Yield the table for a network of this size, sources under openpi's names."""
    yield "embed.weight", (EMBEDDING,)
    if not config.tied_head:
        yield "head.weight", (TEXT_HEAD,)
    yield from _vision_rows(config.vision.depth)
    yield from _stack_rows("vlm", VLM, config.vlm, adaptive=False)
    if config.expert is None:
        return
    yield from _stack_rows("expert", EXPERT, config.expert, adaptive=config.policy == "pi05")
    heads = {"action_in": "action_in_proj", "action_out": "action_out_proj"}
    if config.policy == "pi05":
        heads |= {"time_in": "time_mlp_in", "time_out": "time_mlp_out"}
    else:
        heads |= {
            "state_in": "state_proj",
            "action_time_in": "action_time_mlp_in",
            "action_time_out": "action_time_mlp_out",
        }
    for ours, theirs in heads.items():
        for kind in ("weight", "bias"):
            yield f"{ours}.{kind}", (f"{theirs}.{kind}",)


def canonical(name: str) -> str:
    """Return openpi's present name for a name of any age of either library; other names stay as they are."""
    for prefix in _WRAPPERS:
        name = name.removeprefix(prefix)
    for old, new in _OLD_NAMES:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def is_unread(canonical_name: str) -> bool:
    """Tell tensors that no policy computes with: the expert's text head, SigLIP's pooling head, kept constants."""
    return _UNREAD.fullmatch(canonical_name) is not None


def split_sizes(ours: str, config: ModelConfig, length: int) -> list[int]:
    """Return the lengths, along the output dimension, of the parts that a stacked tensor of `length` is made of."""
    if ".mlp.gate_up." in ours:
        return [length // 2] * 2
    if ".attention.qkv." in ours:
        stack = config.vlm if ours.startswith("vlm.") or config.expert is None else config.expert
        return [heads * stack.head_dim for heads in (stack.heads, stack.kv_heads, stack.kv_heads)]
    return [length // 3] * 3 if ".qkv." in ours else [length]


def _vision_rows(depth: int) -> Iterator[Row]:
    yield "vision.position", (f"{TOWER}.embeddings.position_embedding.weight",)
    for kind in ("weight", "bias"):
        yield f"vision.embed.proj.{kind}", (f"{TOWER}.embeddings.patch_embedding.{kind}",)
        yield f"vision.norm.{kind}", (f"{TOWER}.post_layernorm.{kind}",)
        yield f"vision.projector.{kind}", (f"{_PALI}.model.multi_modal_projector.linear.{kind}",)
        for i in range(depth):
            ours, theirs = f"vision.blocks.{i}", f"{TOWER}.encoder.layers.{i}"
            yield f"{ours}.norm1.{kind}", (f"{theirs}.layer_norm1.{kind}",)
            yield f"{ours}.norm2.{kind}", (f"{theirs}.layer_norm2.{kind}",)
            yield f"{ours}.qkv.{kind}", tuple(f"{theirs}.self_attn.{x}_proj.{kind}" for x in "qkv")
            yield f"{ours}.out.{kind}", (f"{theirs}.self_attn.out_proj.{kind}",)
            yield f"{ours}.fc1.{kind}", (f"{theirs}.mlp.fc1.{kind}",)
            yield f"{ours}.fc2.{kind}", (f"{theirs}.mlp.fc2.{kind}",)


def _stack_rows(ours: str, theirs: str, config: GemmaConfig, adaptive: bool) -> Iterator[Row]:
    kinds = ("dense.weight", "dense.bias") if adaptive else ("weight",)
    for i in range(config.depth):
        yield from _layer_rows(f"{ours}.layers.{i}", f"{theirs}.layers.{i}", kinds)
    for kind in kinds:
        yield f"{ours}.norm.{kind}", (f"{theirs}.norm.{kind}",)


def _layer_rows(ours: str, theirs: str, norm_kinds: tuple[str, ...]) -> Iterator[Row]:
    yield f"{ours}.attention.qkv.weight", tuple(f"{theirs}.self_attn.{x}_proj.weight" for x in "qkv")
    yield f"{ours}.attention.out.weight", (f"{theirs}.self_attn.o_proj.weight",)
    yield f"{ours}.mlp.gate_up.weight", (f"{theirs}.mlp.gate_proj.weight", f"{theirs}.mlp.up_proj.weight")
    yield f"{ours}.mlp.down.weight", (f"{theirs}.mlp.down_proj.weight",)
    for kind in norm_kinds:
        yield f"{ours}.attention_norm.{kind}", (f"{theirs}.input_layernorm.{kind}",)
        yield f"{ours}.mlp_norm.{kind}", (f"{theirs}.post_attention_layernorm.{kind}",)
