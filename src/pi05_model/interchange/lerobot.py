"""The files beside the weights that lerobot reads: config.json and its two processors.

Written as lerobot 0.6.1 writes them. What it has no field for lies in files of this project beside them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pi05_model.config import GemmaConfig, ModelConfig
from pi05_model.interchange.sizes import variant_of
from pi05_model.interchange.stats import (
    FEATURES,
    KINDS,
    MODES,
    NORMALISERS,
    POSTPROCESSOR,
    PREPROCESSOR,
    lerobot_arrays,
)
from pi05_model.normalize import LEROBOT_EPS, NormStats

TOKENIZER_NAME = "google/paligemma-3b-pt-224"
ACTION_TOKENIZER_NAME = "lerobot/fast-action-tokenizer"
_ABSOLUTE = "absolute"

Stats = Mapping[str, NormStats]
Step = dict[str, Any]


def config_json(config: ModelConfig, stats: Stats | None, dtype: torch.dtype, names: Sequence[str]) -> dict[str, Any]:
    """Return lerobot's config.json.

    Args:
        config: sizes of the network.
        stats: of "state" and "actions"; they tell how long the real vectors are.
        dtype: of the weights.
        names: of the actions; empty when unknown.
    """
    size, wide = config.image_size, config.max_action_dim
    dims = {name: wide if stats is None else stats[name].dim for name in FEATURES}
    cameras = {f"observation.images.{key}": {"type": "VISUAL", "shape": [3, size, size]} for key in config.cameras}
    described: dict[str, Any] = {
        "type": config.policy,
        "input_features": {**cameras, FEATURES["state"]: {"type": "STATE", "shape": [dims["state"]]}},
        "output_features": {FEATURES["actions"]: {"type": "ACTION", "shape": [dims["actions"]]}},
        "dtype": "bfloat16" if dtype == torch.bfloat16 else "float32",
        "chunk_size": config.horizon,
        "n_action_steps": config.horizon,
        "max_state_dim": wide,
        "max_action_dim": wide,
        "image_resolution": [size, size],
        "tokenizer_max_length": config.max_prompt_tokens,
        "normalization_mapping": norm_map(stats),
        **_variants(config),
        **_relative(config, dims["actions"], names),
    }
    if config.policy == "pi0_fast":
        described["max_action_tokens"] = config.max_action_tokens
    return described


def _variants(config: ModelConfig) -> dict[str, str]:
    """Return lerobot's names of the Gemma sizes; none for sizes that it has no name for."""
    parts: dict[str, GemmaConfig | None] = {"paligemma_variant": config.vlm, "action_expert_variant": config.expert}
    named = {key: variant_of(part) for key, part in parts.items() if part is not None}
    return {key: name for key, name in named.items() if name is not None}


def _relative(config: ModelConfig, action_dim: int, names: Sequence[str]) -> dict[str, Any]:
    """Say which entries are relative, as lerobot can: it excludes actions by words in their names."""
    if not config.relative_entries:
        return {"use_relative_actions": False}
    known = list(names) if len(names) == action_dim else [f"action_{i}" for i in range(action_dim)]
    marked = [name if i in config.relative_entries else f"{name} {_ABSOLUTE}" for i, name in enumerate(known)]
    return {
        "use_relative_actions": True,
        "relative_exclude_joints": [_ABSOLUTE],
        "action_feature_names": marked,
    }


def norm_map(stats: Stats | None) -> dict[str, str]:
    """Return which of lerobot's normalisation modes each kind of feature has."""
    modes = {KINDS[name]: MODES[stats[name].method] for name in FEATURES} if stats else {}
    return {"VISUAL": "IDENTITY", **modes}


def write_processors(folder: Path, described: Mapping[str, Any], stats: Stats) -> None:
    """Write lerobot's two processors with the statistics as their state, in float64 (lerobot reads float32)."""
    tensors = {}
    for name, feature in FEATURES.items():
        for key, array in lerobot_arrays(stats[name]).items():
            tensors[f"{feature}.{key}"] = torch.from_numpy(array.copy())
        tensors[f"{feature}.count"] = torch.tensor([float(stats[name].count)], dtype=torch.float64)
    for name, steps in ((PREPROCESSOR, _input_steps(described)), (POSTPROCESSOR, _output_steps(described))):
        place = next(i for i, step in enumerate(steps) if step["registry_name"] == NORMALISERS[name])
        steps[place]["state_file"] = f"{name}_step_{place}_{NORMALISERS[name]}.safetensors"
        save_file(tensors, folder / steps[place]["state_file"])
        (folder / f"{name}.json").write_text(json.dumps({"name": name, "steps": steps}, indent=2) + "\n", "utf-8")


def _input_steps(described: Mapping[str, Any]) -> list[Step]:
    """Return the steps of the preprocessor, in the order of the policy: π0 reads its text before it normalises."""
    policy = described["type"]
    begin = [_step("rename_observations_processor", rename_map={}), _step("to_batch_processor")]
    relative = _step(
        "relative_actions_processor",
        enabled=described["use_relative_actions"],
        exclude_joints=described.get("relative_exclude_joints", []),
        action_names=described.get("action_feature_names"),
    )
    normalise = [
        relative,
        _normaliser(described, described["input_features"] | described["output_features"], PREPROCESSOR),
    ]
    tokenize = _step(
        "tokenizer_processor",
        max_length=described["tokenizer_max_length"],
        task_key="task",
        padding_side="right",
        padding="max_length",
        truncation=True,
        tokenizer_name=TOKENIZER_NAME,
    )
    if policy == "pi0":
        return [*begin, _step("pi0_new_line_processor"), tokenize, _device(), *normalise]
    text = [_step(f"{policy}_prepare_state_tokenizer_processor_step"), tokenize]
    if policy == "pi0_fast":
        tokens = {"trust_remote_code": True, "max_action_tokens": described["max_action_tokens"]}
        text.append(_step("action_tokenizer_processor", **tokens, action_tokenizer_name=ACTION_TOKENIZER_NAME))
    return [*begin, *normalise, *text, _device()]


def _output_steps(described: Mapping[str, Any]) -> list[Step]:
    absolute = _step("absolute_actions_processor", enabled=described["use_relative_actions"])
    return [_normaliser(described, described["output_features"], POSTPROCESSOR), absolute, _device()]


def _normaliser(described: Mapping[str, Any], features: Mapping[str, Any], processor: str) -> Step:
    norm_map = described["normalization_mapping"]
    return _step(NORMALISERS[processor], eps=LEROBOT_EPS, features=dict(features), norm_map=norm_map)


def _device() -> Step:
    return _step("device_processor", device="cpu", float_dtype=None)


def _step(registry_name: str, **settings: Any) -> Step:
    return {"registry_name": registry_name, "config": settings}
