"""Checkpoints, and the policy at its public boundary."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONFIG, DIM, SUBTASKS, MakeObservation, random_model
from safetensors.torch import load_file, save_file

from pi05_model.checkpoint import CheckpointError, fingerprint, load_checkpoint, save_checkpoint
from pi05_model.normalize import NormStats
from pi05_model.observation import Policy
from pi05_model.policy import ObservationError, Pi05Policy
from pi05_model.tokenizer import PolicyTokenizer


@pytest.fixture
def folder(tmp_path: Path, stats: dict[str, NormStats], tokenizer: PolicyTokenizer) -> Path:
    path = tmp_path / "checkpoint"
    save_checkpoint(path, random_model(), stats, tokenizer, extra={"subtasks": list(SUBTASKS)})
    return path


@pytest.fixture
def policy(folder: Path) -> Pi05Policy:
    return Pi05Policy.load(folder, threads=1)


def test_round_trip(folder: Path) -> None:
    original, loaded = random_model().state_dict(), load_checkpoint(folder)
    assert loaded.config == CONFIG and loaded.extra == {"subtasks": list(SUBTASKS)}
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, original[name]), name


def test_bfloat16_round_trip(tmp_path: Path, stats: dict[str, NormStats], tokenizer: PolicyTokenizer) -> None:
    save_checkpoint(tmp_path, random_model(), stats, tokenizer, dtype=torch.bfloat16)
    original = random_model().state_dict()
    for name, tensor in load_checkpoint(tmp_path).model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, original[name].bfloat16().float()), name


def test_every_misfit_tensor_is_listed(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["time_in.bias"]
    weights["surprise"] = torch.zeros(3)
    weights["action_in.bias"] = torch.zeros(7)
    weights["vision.position"] = torch.full_like(weights["vision.position"], torch.nan)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert "missing time_in.bias (32,)" in message and "unexpected surprise (3,)" in message
    assert "action_in.bias is (7,), expected (32,)" in message and "vision.position holds values" in message


def test_a_missing_checkpoint_names_its_path(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere; train one with `pi05 train`"):
        Pi05Policy.load(tmp_path / "nowhere")
    (folder / "norm_stats.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks norm_stats\.json"):
        Pi05Policy.load(folder)
    with pytest.raises(CheckpointError, match=r"lacks norm_stats\.json"):
        fingerprint(folder)


def test_damaged_files_are_told(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{broken")
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(folder)
    description = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**description, "format": "other"}))
    with pytest.raises(CheckpointError, match="'other'"):
        load_checkpoint(folder)


def test_fingerprint_follows_the_content(folder: Path) -> None:
    before = fingerprint(folder)
    assert before == fingerprint(folder) and len(before) == 64
    path = folder / "norm_stats.json"
    path.write_text(path.read_text() + "\n")
    assert fingerprint(folder) != before


def test_it_is_a_policy(policy: Pi05Policy, observe: MakeObservation) -> None:
    as_protocol: Policy = policy
    assert as_protocol.action_shape == (50, DIM)
    policy.warm_up()
    assert as_protocol.plan(observe(0), "clear the table") in SUBTASKS
    chunk = as_protocol.act(observe(0), SUBTASKS[0])
    assert chunk.shape == (50, DIM) and chunk.dtype == np.float32 and np.isfinite(chunk).all()


def test_seeds_repeat_and_warming_up_does_not_shift_them(folder: Path, observe: MakeObservation) -> None:
    chunks = []
    for warm in (False, True):
        policy = Pi05Policy.load(folder, threads=1, seed=3)
        if warm:
            policy.warm_up()
        chunks.append([policy.act(observe(0), SUBTASKS[0]) for _ in range(2)])
    np.testing.assert_array_equal(chunks[0], chunks[1])
    assert not np.array_equal(chunks[0][0], chunks[0][1])


def test_shared_vision_features_change_nothing(folder: Path, observe: MakeObservation) -> None:
    noise = np.random.default_rng(0).normal(size=(50, 32)).astype(np.float32)
    after_plan, alone = Pi05Policy.load(folder, threads=1), Pi05Policy.load(folder, threads=1)
    after_plan.plan(observe(0), "clear the table")
    np.testing.assert_allclose(
        after_plan.act(observe(0), SUBTASKS[0], noise), alone.act(observe(0), SUBTASKS[0], noise), atol=1e-5
    )


def test_a_new_stamp_means_new_images(policy: Pi05Policy, observe: MakeObservation) -> None:
    noise = np.zeros((50, 32), dtype=np.float32)
    first = policy.act(observe(0, stamp_ns=1), SUBTASKS[0], noise)
    other = dataclasses.replace(observe(1, stamp_ns=2), state=observe(0).state)
    assert not np.array_equal(first, policy.act(other, SUBTASKS[0], noise))
    # Many stamps later the features of the first are long gone, and are computed again.
    for stamp_ns in range(3, 20):
        policy.act(observe(2, stamp_ns=stamp_ns), SUBTASKS[0], noise)
    np.testing.assert_allclose(policy.act(observe(0, stamp_ns=1), SUBTASKS[0], noise), first, atol=1e-5)


def test_a_missing_camera_is_no_crash(policy: Pi05Policy, observe: MakeObservation) -> None:
    assert np.isfinite(policy.act(observe(0, ("left_wrist_0_rgb",)), SUBTASKS[0])).all()
    assert policy.plan(observe(0, ("base_1_rgb",)), "clear the table") in SUBTASKS


def test_no_camera_at_all_is_refused(policy: Pi05Policy, observe: MakeObservation) -> None:
    with pytest.raises(ObservationError, match="none of the cameras"):
        policy.act(observe(0, ("base_1_rgb",)), SUBTASKS[0])


def test_malformed_observations_are_named(policy: Pi05Policy, observe: MakeObservation) -> None:
    good = observe(0)
    bad_state = good.state.copy()
    bad_state[4] = np.nan
    image = good.images["base_0_rgb"]
    cases = [
        ({"state": bad_state}, r"not finite at \[\(4,\)\]: nan"),
        ({"state": good.state[:7]}, r"a state of 7 entries, but the statistics are of 18"),
        ({"images": {"head": image}}, r"unknown cameras \['head'\]; this policy has \['base_0_rgb'"),
        ({"images": {"base_0_rgb": image / 255}}, r"'base_0_rgb' is float64"),
        ({"images": {"base_0_rgb": image[..., 0]}}, r"\(224, 224\), expected \[H, W, 3\]"),
    ]
    for change, message in cases:
        observation = dataclasses.replace(good, **change)
        with pytest.raises(ObservationError, match=message):
            policy.act(observation, SUBTASKS[0])
        with pytest.raises(ObservationError, match=message):
            policy.plan(observation, "clear the table")


def test_noise_of_the_wrong_shape_is_refused(policy: Pi05Policy, observe: MakeObservation) -> None:
    with pytest.raises(ValueError, match=r"expected \(50, 32\)"):
        policy.act(observe(0), SUBTASKS[0], np.zeros((50, 18), dtype=np.float32))


def test_a_task_of_ten_thousand_characters_is_cut_and_counted(policy: Pi05Policy, observe: MakeObservation) -> None:
    with pytest.warns(UserWarning, match="10000 characters"):
        assert policy.plan(observe(0), "clear the table " * 625) in SUBTASKS
    counted = policy.truncated_prompts
    assert counted > 0
    policy.plan(observe(0), "clear the table " * 625)
    assert policy.truncated_prompts > counted


def test_a_subtask_longer_than_an_answer_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="takes 20 tokens, the network answers with 15"):
        Pi05Policy.load(folder, subtasks=["the " * 19 + "the"])


def test_temperature_scales_the_noise_that_a_chunk_starts_from(folder: Path, observe: MakeObservation) -> None:
    cold = Pi05Policy.load(folder, threads=1, temperature=0.0)
    first, second = cold.act(observe(0), SUBTASKS[0]), cold.act(observe(0), SUBTASKS[0])
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, cold.act(observe(0), SUBTASKS[0], noise=np.zeros((50, 32), np.float32)))
    assert Pi05Policy.load(folder, threads=1).temperature == 1.0
    with pytest.raises(ValueError, match="temperature is 2"):
        Pi05Policy.load(folder, threads=1, temperature=2)


def test_a_checkpoint_recommends_its_temperature(
    tmp_path: Path, stats: dict[str, NormStats], tokenizer: PolicyTokenizer
) -> None:
    save_checkpoint(tmp_path, random_model(), stats, tokenizer, extra={"temperature": 0.25})
    assert Pi05Policy.load(tmp_path, threads=1).temperature == 0.25
