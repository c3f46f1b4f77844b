"""Sizes of a network that lerobot or openpi wrote: from its tensors, its config.json, and what the user adds.

Tensors give widths, depths and vocabulary. The number of heads is in no tensor: both libraries' joint attention is
written for 8 query heads, and SigLIP So400m has 16; another number must come from `sizes`, JSON of the form

    {"vlm": {"num_heads": 8, "head_dim": 32}, "expert": {...}, "vision": {"num_attention_heads": 4},
     "vocab": 2048, "image": 224, "chunk": 50, "tok": 200}

Whatever is said twice has to agree.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pi05_model.config import POLICIES, VIEWS, GemmaConfig, ModelConfig, VisionConfig
from pi05_model.interchange.names import ADAPTIVE_NORM, EMBEDDING, EXPERT, TOWER, VLM
from pi05_model.normalize import Family
from pi05_model.prompts import PolicyName
from pi05_model.weights import CheckpointError, TensorSpec

Specs = Mapping[str, TensorSpec]

VARIANTS = {
    "gemma_2b": GemmaConfig(2048, 18, 16384, 8, 1, 256),
    "gemma_300m": GemmaConfig(1024, 18, 4096, 8, 1, 256),
    "dummy": GemmaConfig(64, 4, 128, 8, 1, 16),
}
"""openpi's and lerobot's names of Gemma sizes; a `_lora` after the name changes no size."""

GEMMA_HEADS = 8
VISION_HEADS = {1152: 16}
DEFAULT_HORIZON = 50
PROMPT_TOKENS: dict[PolicyName, int] = {"pi05": 200, "pi0": 48, "pi0_fast": 250}

_GEMMA_KEYS = ("width", "depth", "mlp_dim", "num_heads", "num_kv_heads", "head_dim")
_VISION_KEYS = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
_SIZES_KEYS = {"name", "vlm", "expert", "vision", "vocab", "image", "chunk", "tok"}
_REFUSED = {
    "use_visual_memory": False,
    "use_proprioceptive_memory": False,
    "use_peft": False,
    "min_period": 4e-3,
    "max_period": 4.0,
}


@dataclass
class Derivation:
    """A configuration, and what had to be assumed."""

    config: ModelConfig
    notes: list[str] = field(default_factory=list)


def derive(
    specs: Specs,
    described: Mapping[str, Any],
    sizes: Mapping[str, Any],
    settings: Mapping[str, Any],
    family: Family,
) -> Derivation:
    """Return the configuration of a network.

    Args:
        specs: tensors under openpi's names.
        described: the folder's config.json; empty when there is none.
        sizes: what the module's docstring shows; empty when there is none.
        settings: fields of ModelConfig that the user decides, such as `horizon` or `state_in_prompt`.
        family: who wrote the network.

    Raises:
        CheckpointError: the sources contradict each other, do not suffice, or ask for something that these networks
            lack.
    """
    if unknown := sorted(sizes.keys() - _SIZES_KEYS):
        raise CheckpointError(f"sizes: unknown keys {unknown}; valid: {', '.join(sorted(_SIZES_KEYS))}")
    for key, valid in _REFUSED.items():
        if described.get(key, valid) != valid:
            raise CheckpointError(f"config.json: {key} is {described[key]!r}; only {valid!r} can be imported")
    policy = _policy(specs, described)
    vision = _vision(specs, sizes)
    _agree(described, "image_resolution", [vision.image_size] * 2, "config.json")
    vlm = _gemma(specs, VLM, sizes.get("vlm"), described.get("paligemma_variant"), "vlm")
    expert = None
    if policy != "pi0_fast":
        expert = _gemma(specs, EXPERT, sizes.get("expert"), described.get("action_expert_variant"), "expert")
    vocab = _shape(specs, EMBEDDING)[0]
    _agree(sizes, "vocab", vocab, "sizes")
    values = _settings(specs, policy, described, sizes)
    chosen = settings.get("cameras", values["cameras"])
    if len(chosen) != len(values["cameras"]):
        raise CheckpointError(
            f"{len(chosen)} camera names for the {len(values['cameras'])} that the network knows: "
            f"{', '.join(values['cameras'])}"
        )
    values["expert_cameras"] = chosen
    notes = []
    if not ({"chunk_size", "action_horizon"} & described.keys() or "chunk" in sizes or "horizon" in settings):
        notes.append(f"nothing says how long a chunk is; assumed {DEFAULT_HORIZON} steps (set the horizon)")
    try:
        parts = {"vision": vision, "vlm": vlm, "expert": expert, "vocab_size": vocab}
        config = ModelConfig(**{**parts, "policy": policy, "family": family, **values, **settings})
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"the sizes do not fit together: {error}") from error
    return Derivation(config, notes)


def variant_of(config: GemmaConfig) -> str | None:
    """Return the libraries' name of a size, None for one that has no name."""
    return next((name for name, known in VARIANTS.items() if known == config), None)


def relative_entries(described: Mapping[str, Any], action_dim: int) -> tuple[int, ...]:
    """Return the entries that lerobot's RelativeActionsProcessorStep makes relative."""
    if not described.get("use_relative_actions"):
        return ()
    names = described.get("action_feature_names")
    excluded = [str(word).lower() for word in described.get("relative_exclude_joints") or () if word]
    if not names:
        if excluded:
            raise CheckpointError(
                f"config.json keeps {excluded} absolute but does not name the actions; give the relative entries"
            )
        return tuple(range(action_dim))
    kept = [any(word in str(name).lower() for word in excluded) for name in names[:action_dim]]
    return tuple(i for i in range(action_dim) if i >= len(kept) or not kept[i])


def feature_dim(described: Mapping[str, Any], group: str, key: str) -> int | None:
    """Return the length of a vector feature that lerobot's config.json declares."""
    feature = (described.get(group) or {}).get(key)
    return int(feature["shape"][0]) if feature else None


def _policy(specs: Specs, described: Mapping[str, Any]) -> PolicyName:
    has_expert = any(name.startswith(f"{EXPERT}.") for name in specs)
    found: PolicyName = "pi05" if ADAPTIVE_NORM in specs else "pi0" if has_expert else "pi0_fast"
    declared = described.get("type", found)
    if declared not in POLICIES:
        raise CheckpointError(f"config.json: type {declared!r} cannot be imported; valid: {', '.join(POLICIES)}")
    if declared != found:
        raise CheckpointError(f"config.json says {declared}, the tensors are those of {found}")
    return found


def _settings(
    specs: Specs, policy: PolicyName, described: Mapping[str, Any], sizes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the other fields of ModelConfig."""
    wide = 32 if policy == "pi0_fast" else _shape(specs, "action_in_proj.weight")[1]
    max_action_dim = int(described.get("max_action_dim", described.get("action_dim", wide)))
    action_dim = feature_dim(described, "output_features", "action") or max_action_dim
    prefix = "observation.images."
    cameras = tuple(
        name.removeprefix(prefix)
        for name, feature in (described.get("input_features") or {}).items()
        if feature.get("type") == "VISUAL" and ".empty_camera_" not in name
    )
    values: dict[str, Any] = {
        "horizon": int(described.get("chunk_size", described.get("action_horizon", sizes.get("chunk", 50)))),
        "max_action_dim": max_action_dim,
        "max_prompt_tokens": int(described.get("tokenizer_max_length", sizes.get("tok", PROMPT_TOKENS[policy]))),
        "cameras": cameras or VIEWS,
        "expert_cameras": cameras or VIEWS,
        "clip_state": False,
        "relative_entries": relative_entries(described, action_dim),
    }
    if "max_action_tokens" in described:
        values["max_action_tokens"] = int(described["max_action_tokens"])
    return values


def _gemma(specs: Specs, root: str, sizes: Mapping[str, Any] | None, variant: str | None, label: str) -> GemmaConfig:
    queries, width = _shape(specs, f"{root}.layers.0.self_attn.q_proj.weight")
    keys = _shape(specs, f"{root}.layers.0.self_attn.k_proj.weight")[0]
    mlp_dim = _shape(specs, f"{root}.layers.0.mlp.gate_proj.weight")[0]
    heads = int((sizes or {}).get("num_heads", GEMMA_HEADS))
    head_dim = queries // heads
    if queries % heads or not head_dim or keys % head_dim:
        raise CheckpointError(f"{label}: {queries} query and {keys} key rows are not {heads} heads; give the sizes")
    found = GemmaConfig(width, _depth(specs, root), mlp_dim, heads, keys // head_dim, head_dim)
    values = (found.width, found.depth, found.mlp_dim, found.heads, found.kv_heads, found.head_dim)
    for key, value in zip(_GEMMA_KEYS, values, strict=True):
        _agree(sizes or {}, key, value, f"sizes: {label}")
    named = VARIANTS.get((variant or "").removesuffix("_lora"))
    if variant and named is None:
        raise CheckpointError(f"config.json: unknown Gemma variant {variant!r}; known: {', '.join(VARIANTS)}")
    if sizes is None and named not in (None, found):
        raise CheckpointError(
            f"{label}: config.json says {variant}, {named}, the tensors say {found}; "
            "when this is a reduced network, give its sizes"
        )
    return found


def _vision(specs: Specs, sizes: Mapping[str, Any]) -> VisionConfig:
    given = sizes.get("vision") or {}
    weight = _shape(specs, f"{TOWER}.embeddings.patch_embedding.weight")
    if len(weight) != 4 or weight[1] != 3 or weight[2] != weight[3]:
        raise CheckpointError(f"the patch embedding is {weight}, expected (width, 3, patch, patch)")
    width, patch = weight[0], weight[2]
    edge = round(_shape(specs, f"{TOWER}.embeddings.position_embedding.weight")[0] ** 0.5)
    heads = given.get("num_attention_heads", VISION_HEADS.get(width))
    if heads is None:
        raise CheckpointError(
            f"no tensor tells the number of heads of a vision tower of width {width}; "
            'give the sizes: {"vision": {"num_attention_heads": …}}'
        )
    mlp_dim = _shape(specs, f"{TOWER}.encoder.layers.0.mlp.fc1.weight")[0]
    try:
        found = VisionConfig(width, _depth(specs, f"{TOWER}.encoder"), mlp_dim, int(heads), patch, edge * patch)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    values = (found.width, found.depth, found.mlp_dim, found.heads)
    for key, value in zip(_VISION_KEYS, values, strict=True):
        _agree(given, key, value, "sizes: vision")
    _agree(sizes, "image", found.image_size, "sizes")
    return found


def _depth(specs: Specs, root: str) -> int:
    pattern = re.compile(rf"{re.escape(root)}\.layers\.(\d+)\.")
    return 1 + max(int(match[1]) for name in specs if (match := pattern.match(name)))


def _shape(specs: Specs, name: str) -> tuple[int, ...]:
    if name not in specs:
        raise CheckpointError(f"there is no tensor {name}: not a policy of lerobot or openpi")
    return specs[name].shape


def _agree(given: Mapping[str, Any], key: str, found: object, where: str) -> None:
    value = given.get(key, found)
    if (list(value) if isinstance(value, tuple) else value) != found:
        raise CheckpointError(f"{where}: {key} is {value}, the tensors say {found}")
