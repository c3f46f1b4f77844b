"""Saving and loading a checkpoint folder: all or nothing, self-contained, in the dtype that is asked for."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONFIG, random_model
from foreign_rig import POLICIES, random_network, small_config, some_stats
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pi05_model.action_tokens.fast import FastTokenizer
from pi05_model.build import build
from pi05_model.checkpoint import (
    CheckpointError,
    fingerprint,
    load_checkpoint,
    load_network,
    load_weights,
    save_checkpoint,
)
from pi05_model.normalize import NormStats
from pi05_model.prompts import PolicyName
from pi05_model.tokenizer import PolicyTokenizer
from pi05_model.weights import TensorSpec, WeightFiles, is_finite, spec_of, write_weights

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "pi05_tiny"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_policy_comes_back(
    policy: PolicyName, dtype: torch.dtype, tmp_path: Path, tokenizer: PolicyTokenizer
) -> None:
    model = random_network(small_config(policy, conditions=3 if policy != "pi0_fast" else 0), dtype)
    save_checkpoint(tmp_path, model, some_stats("mean_std"), tokenizer, dtype=None, extra={"names": ["a"]})
    loaded = load_checkpoint(tmp_path, dtype=dtype)
    assert type(loaded.model) is type(model)
    assert loaded.config == model.config and loaded.extra == {"names": ["a"]}
    ours, theirs = model.state_dict(), loaded.model.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]), name
    np.testing.assert_array_equal(loaded.stats["state"].mean, some_stats("mean_std")["state"].mean)
    assert loaded.stats["state"].method == "mean_std"


def test_bfloat16_holds_matrices_and_keeps_norms_and_heads(tmp_path: Path, tokenizer: PolicyTokenizer) -> None:
    save_checkpoint(tmp_path, random_network(small_config("pi05")), some_stats("quantile"), tokenizer)
    held = load_network(tmp_path, torch.bfloat16, torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in held.named_parameters()}
    narrow = {name for name, dtype in dtypes.items() if dtype == torch.bfloat16}
    assert {"embed.weight", "vlm.layers.0.attention.qkv.weight", "vision.blocks.0.fc1.bias"} <= narrow
    assert {
        "vision.position",
        "vlm.norm.weight",
        "expert.norm.dense.weight",
        "action_in.weight",
    } <= dtypes.keys() - narrow
    for parameter in held.parameters():
        parameter.requires_grad_(True)
        assert parameter.is_leaf


def test_the_shipped_checkpoint_of_the_first_format_loads() -> None:
    description = json.loads((SHIPPED / "config.json").read_text())
    assert "policy" not in description["config"] and "tokenizer" not in description
    checkpoint = load_checkpoint(SHIPPED)
    assert checkpoint.config.policy == "pi05" and checkpoint.stats["actions"].family == "project"
    weights = load_file(SHIPPED / "model.safetensors")
    for name, tensor in checkpoint.model.state_dict().items():
        assert torch.equal(tensor, weights[name].float())


def test_a_loaded_network_does_not_hang_on_its_file(tmp_path: Path, tokenizer: PolicyTokenizer) -> None:
    save_checkpoint(tmp_path, random_network(small_config("pi0")), some_stats("mean_std"), tokenizer)
    model = load_network(tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.seek(2000)
        file.write(b"\xff" * 4000)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_tokenizer_of_another_checkpoint_is_refused(tmp_path: Path, stats: dict[str, NormStats]) -> None:
    own, other = PolicyTokenizer.from_words(["cube"]), PolicyTokenizer.from_words(["cube", "bin"])
    save_checkpoint(tmp_path, random_model(), stats, own)
    load_checkpoint(tmp_path)
    (tmp_path / "tokenizer.json").write_text(other.to_json())
    with pytest.raises(CheckpointError, match=r"is not the tokenizer that this checkpoint was saved with"):
        load_checkpoint(tmp_path)


def test_a_tokenizer_larger_than_the_embedding_is_refused(
    tmp_path: Path, stats: dict[str, NormStats], tokenizer: PolicyTokenizer
) -> None:
    config = small_config("pi05")
    small = build(type(config).from_dict({**config.to_dict(), "vocab_size": 300}))
    with pytest.raises(CheckpointError, match=r"the tokenizer has 5120 ids, the network 300"):
        save_checkpoint(tmp_path / "new", small, stats, tokenizer)
    assert not (tmp_path / "new").exists()


def test_a_failed_save_changes_nothing(tmp_path: Path, stats: dict[str, NormStats], tokenizer: PolicyTokenizer) -> None:
    save_checkpoint(tmp_path, random_model(), stats, tokenizer)
    (tmp_path / "README.md").write_text("kept")
    before = contents(tmp_path)
    broken = random_model(1)
    with torch.no_grad():
        broken.time_in.bias[3] = torch.inf
    with pytest.raises(CheckpointError, match=r"time_in\.bias holds values that are not finite"):
        save_checkpoint(tmp_path, broken, stats, tokenizer)
    small = build(type(CONFIG).from_dict({**CONFIG.to_dict(), "vocab_size": 300}))
    with pytest.raises(CheckpointError, match="do not belong together"):
        save_checkpoint(tmp_path, small, stats, tokenizer)
    assert contents(tmp_path) == before
    save_checkpoint(tmp_path, random_model(1), stats, tokenizer)
    after = contents(tmp_path)
    assert after.keys() == before.keys() and after["model.safetensors"] != before["model.safetensors"]


def test_an_action_tokenizer_comes_back_and_counts(tmp_path: Path, tokenizer: PolicyTokenizer) -> None:
    rng = np.random.default_rng(0)
    chunks = np.cumsum(rng.normal(0, 0.05, (64, 6, 7)), axis=1)
    fast = FastTokenizer.fit(chunks, vocab_size=300)
    model, stats = random_network(small_config("pi0_fast")), some_stats("quantile")
    save_checkpoint(tmp_path, model, stats, tokenizer, action_tokenizer=fast)
    before = fingerprint(tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert loaded.action_tokenizer is not None
    assert loaded.action_tokenizer.encode(chunks[:4]) == fast.encode(chunks[:4])
    other = FastTokenizer.fit(chunks[::-1] * 3, vocab_size=280)
    save_checkpoint(tmp_path, model, stats, tokenizer, action_tokenizer=other)
    assert fingerprint(tmp_path) != before
    again = load_checkpoint(tmp_path).action_tokenizer
    assert again is not None and again.vocab_size == other.vocab_size
    (tmp_path / "action_tokenizer" / "processor_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"processor_config\.json"):
        load_checkpoint(tmp_path)


def test_weights_given_in_memory_are_checked_as_files_are() -> None:
    model = random_network(small_config("pi0"))
    weights = {
        name: tensor.clone()
        for name, tensor in random_network(small_config("pi0"), torch.bfloat16).state_dict().items()
    }
    load_weights(model, weights, "memory")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    del weights["state_in.bias"]
    weights["surprise"] = torch.zeros(2)
    weights["action_in.bias"] = torch.full((16,), torch.nan)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, weights, "memory")
    for problem in ("missing state_in.bias (16,)", "unexpected surprise (2,)", "action_in.bias holds values"):
        assert problem in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_bad_value_is_found_wherever_it_is(dtype: torch.dtype, bad: float) -> None:
    for length in (1, 7, 33, 130):
        for place in range(length):
            tensor = torch.linspace(-3, 3, length).to(dtype)
            assert is_finite(tensor)
            tensor[place] = bad
            assert not is_finite(tensor)
    assert is_finite(torch.zeros(0)) and is_finite(torch.arange(3))


def test_written_files_are_safetensors(tmp_path: Path) -> None:
    tensors = {
        "wide": torch.randn(3, 5, dtype=torch.float64),
        "half": torch.randn(7).bfloat16(),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False, True]),
        "turned": torch.randn(4, 6).T,
        "ids": torch.arange(5),
    }
    write_weights(tmp_path / "ours", {name: spec_of(tensor) for name, tensor in tensors.items()}, tensors.__getitem__)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs", {"format": "pt"})
    for file in ("ours", "theirs"):
        read = load_file(tmp_path / file)
        assert read.keys() == tensors.keys()
        assert all(read[name].dtype == tensors[name].dtype and torch.equal(read[name], tensors[name]) for name in read)
        with safe_open(tmp_path / file, "pt") as handle:
            assert handle.metadata() == {"format": "pt"}
    ours = WeightFiles([tmp_path / "ours"])
    assert dict(ours.specs) == {name: spec_of(tensor) for name, tensor in tensors.items()}
    with pytest.raises(ValueError, match="announced as"):
        write_weights(tmp_path / "wrong", {"x": TensorSpec(torch.float32, (2,))}, lambda _: torch.zeros(3))


def test_a_cut_file_is_damaged(tmp_path: Path, tokenizer: PolicyTokenizer) -> None:
    save_checkpoint(tmp_path, random_network(small_config("pi05")), some_stats("quantile"), tokenizer)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_network(tmp_path)
    with pytest.raises(CheckpointError, match=r"repeats tensors of another file"):
        file.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
        save_file({"x": torch.zeros(1)}, file)
        WeightFiles([file, file])
