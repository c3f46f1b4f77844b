"""Checkpoints written for lerobot and openpi: everything comes back, and their own readers get the same policy."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_rig import (
    CAMERAS,
    DIM,
    GOLDEN,
    POLICIES,
    change_json,
    choices,
    random_network,
    same_weights,
    small_config,
    some_stats,
)
from safetensors.torch import load_file

from pi05_model.action_tokens.fast import FastTokenizer
from pi05_model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from pi05_model.config import PRESETS, ModelConfig
from pi05_model.interchange.exporter import Target, export_checkpoint
from pi05_model.interchange.foreign import OWN_CONFIG, Choices, read_foreign
from pi05_model.interchange.importer import import_checkpoint
from pi05_model.interchange.lerobot import config_json
from pi05_model.interchange.names import EMBEDDING, EXPERT_HEAD, LEROBOT_PREFIX, TEXT_HEAD
from pi05_model.interchange.sizes import VARIANTS
from pi05_model.normalize import Family, Method
from pi05_model.prompts import PolicyName
from pi05_model.tokenizer import PolicyTokenizer

ROUTES: list[tuple[PolicyName, Target]] = [
    (policy, target)
    for policy in POLICIES
    for target in ("lerobot", "openpi")
    if (policy, target) != ("pi0_fast", "openpi")
]
HEADS = {"vision": {"num_attention_heads": 2}}
METHODS: dict[PolicyName, Method] = {"pi05": "quantile", "pi0": "mean_std", "pi0_fast": "quantile"}


@pytest.fixture
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path, tokenizer: PolicyTokenizer) -> Path:
    policy, dtype = request.param if isinstance(request.param, tuple) else (request.param, torch.float32)
    path = tmp_path / "own"
    model = random_network(small_config(policy, relative_entries=(0, 2)), dtype)
    extra = {"names": [f"joint{i}" for i in range(DIM)], "subtasks": ["pick up the red cube"]}
    fast = FastTokenizer.fit(np.random.default_rng(0).normal(size=(32, 6, DIM)), vocab_size=400)
    actions = fast if policy == "pi0_fast" else None
    stats = some_stats(METHODS[policy])
    save_checkpoint(path, model, stats, tokenizer, dtype=None, extra=extra, action_tokenizer=actions)
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("checkpoint", "target"),
    [((p, d), t) for p, t in ROUTES for d in (torch.float32, torch.bfloat16)],
    indirect=["checkpoint"],
)
def test_export_and_import_give_back_every_byte(checkpoint: Path, target: Target, tmp_path: Path) -> None:
    export_checkpoint(checkpoint, tmp_path / "out", target)
    import_checkpoint(tmp_path / "out", tmp_path / "back")
    assert files(tmp_path / "back") == files(checkpoint)


@pytest.mark.parametrize(("checkpoint", "target"), ROUTES, indirect=["checkpoint"])
def test_what_the_other_side_writes_itself_is_enough(checkpoint: Path, target: Target, tmp_path: Path) -> None:
    """Without this project's own files beside it, an export has the same network and the same arithmetic."""
    out, own = tmp_path / "out", load_checkpoint(checkpoint)
    export_checkpoint(checkpoint, out, target)
    for name in (OWN_CONFIG, "norm_stats.json", "tokenizer.json"):
        (out / name).unlink()
    change_json(out / "config.json", paligemma_variant=None, action_expert_variant=None)
    given = {"relative_entries": (0, 2)} if target == "openpi" else {}
    source = import_checkpoint(out, tmp_path / "back", Choices(sizes=HEADS, settings=given)).source
    assert same_weights(tmp_path / "back", checkpoint)
    assert source.family == target and source.config.family == target
    for field in ("vision", "vlm", "expert", "vocab_size", "policy", "horizon", "max_action_dim", "relative_entries"):
        assert getattr(source.config, field) == getattr(own.config, field), field
    assert source.config.cameras == CAMERAS and not source.config.clip_state
    values = np.random.default_rng(0).normal(size=(20, DIM))
    assert source.stats is not None
    for name, stats in own.stats.items():
        theirs = source.stats[name]
        assert (theirs.family, theirs.method) == (target, stats.method)
        np.testing.assert_allclose(theirs.normalise(values), stats.normalise(values), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(theirs.unnormalise(values), stats.unnormalise(values), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
def test_an_export_has_the_names_and_shapes_that_lerobot_wrote(policy: str, tmp_path: Path) -> None:
    import_checkpoint(GOLDEN / policy, tmp_path / "own", choices())
    export_checkpoint(tmp_path / "own", tmp_path / "out", "lerobot")
    theirs, ours = load_file(GOLDEN / policy / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    embedding = theirs.pop(LEROBOT_PREFIX + EMBEDDING)  # lerobot's loader makes it from the head
    assert torch.equal(ours[LEROBOT_PREFIX + TEXT_HEAD], embedding)
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in theirs.items()
    }
    heads = {LEROBOT_PREFIX + TEXT_HEAD, LEROBOT_PREFIX + EXPERT_HEAD}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() - heads)
    said, told = (json.loads((folder / "config.json").read_text()) for folder in (GOLDEN / policy, tmp_path / "out"))
    for key in told.keys() - {"paligemma_variant", "action_expert_variant"}:
        assert told[key] == said[key], key
    for name in ("policy_preprocessor", "policy_postprocessor"):
        theirs_steps, our_steps = (
            json.loads((folder / f"{name}.json").read_text())["steps"] for folder in (GOLDEN / policy, tmp_path / "out")
        )
        assert [step["registry_name"] for step in our_steps] == [step["registry_name"] for step in theirs_steps]
        assert [step.get("state_file") for step in our_steps] == [step.get("state_file") for step in theirs_steps]


def test_full_sizes_have_names() -> None:
    assert VARIANTS["gemma_2b"] == PRESETS["pi05_base"].vlm and VARIANTS["gemma_300m"] == PRESETS["pi05_base"].expert
    described = config_json(PRESETS["pi0_base"], None, torch.bfloat16, ())
    assert (described["paligemma_variant"], described["action_expert_variant"]) == ("gemma_2b", "gemma_300m")
    assert described["dtype"] == "bfloat16" and described["output_features"]["action"]["shape"] == [32]


@pytest.mark.parametrize(
    ("config", "target", "reason"),
    [
        (PRESETS["pi05_debug"], "lerobot", "convolutional stem"),
        (small_config("pi0", conditions=2), "openpi", "condition embedding"),
        (small_config("pi0_fast"), "openpi", "JAX alone"),
    ],
)
def test_what_has_no_counterpart_is_not_exported(
    config: ModelConfig, target: Target, reason: str, tmp_path: Path, tokenizer: PolicyTokenizer
) -> None:
    save_checkpoint(tmp_path / "own", random_network(config), some_stats("quantile"), tokenizer)
    with pytest.raises(CheckpointError, match=reason):
        export_checkpoint(tmp_path / "own", tmp_path / "out", target)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["project", "openpi", "lerobot"])
@pytest.mark.parametrize("method", ["quantile", "mean_std"])
@pytest.mark.parametrize("target", ["lerobot", "openpi"])
def test_exported_statistics_are_the_same_map(
    family: Family, method: Method, target: Target, tmp_path: Path, tokenizer: PolicyTokenizer
) -> None:
    policy: PolicyName = "pi05" if method == "quantile" else "pi0"
    stats = some_stats(method, family)
    save_checkpoint(tmp_path / "own", random_network(small_config(policy)), stats, tokenizer)
    export_checkpoint(tmp_path / "own", tmp_path / "out", target)
    for name in (OWN_CONFIG, "norm_stats.json"):
        (tmp_path / "out" / name).unlink()
    change_json(tmp_path / "out" / "config.json", paligemma_variant=None, action_expert_variant=None)
    theirs = read_foreign(tmp_path / "out", Choices(sizes=HEADS)).stats
    assert theirs is not None
    x = np.random.default_rng(0).normal(size=(20, DIM))
    for name in stats:
        np.testing.assert_allclose(theirs[name].normalise(x), stats[name].normalise(x), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(theirs[name].unnormalise(x), stats[name].unnormalise(x), rtol=1e-6, atol=1e-6)
