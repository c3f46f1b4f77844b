"""The network reproduces a reduced lerobot π0.5: same weights in, same numbers out.

The fixture (22 MB) lies beside the repository, not in it; without it these tests are skipped and say so.
"""

import json
from pathlib import Path

import pytest
import torch

from pi05_model.batch import ModelInput, Text, TrainBatch
from pi05_model.checkpoint import CheckpointError, load_weights
from pi05_model.config import GemmaConfig, Pi05Config, VisionConfig
from pi05_model.engine import Engine
from pi05_model.flow_policy import time_embedding
from pi05_model.images import resize_with_pad
from pi05_model.lerobot import from_lerobot, rows
from pi05_model.pi05 import Pi05

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"no reference fixture at {REFERENCE}")


def read(name: str) -> dict:
    return torch.load(REFERENCE / f"tiny_{name}.pt", weights_only=True)


def reference_config() -> Pi05Config:
    dims = json.loads((REFERENCE / "tiny_dims.json").read_text())

    def gemma(part: str) -> GemmaConfig:
        d = dims[part]
        return GemmaConfig(d["width"], d["depth"], d["mlp_dim"], d["num_heads"], d["num_kv_heads"], d["head_dim"])

    v = dims["vision"]
    vision = VisionConfig(
        v["hidden_size"], v["num_hidden_layers"], v["intermediate_size"], v["num_attention_heads"], 14, dims["image"]
    )
    cameras = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
    return Pi05Config(vision, gemma("vlm"), gemma("expert"), dims["vocab"], dims["chunk"], cameras=cameras)


@pytest.fixture(scope="module")
def model() -> Pi05:
    config = reference_config()
    network = Pi05(config)
    load_weights(network, from_lerobot(read("state_dict"), config), "reference")
    return network


@pytest.fixture(scope="module")
def given() -> dict:
    return read("inputs")


@pytest.fixture(scope="module")
def expected() -> dict:
    return read("outputs")


@pytest.fixture(scope="module")
def inputs(given: dict) -> ModelInput:
    starts = torch.zeros_like(given["token_mask"])
    text = Text(given["tokens"], given["token_mask"], starts, starts)
    return ModelInput(torch.stack(given["images"], 1), torch.stack(given["img_masks"], 1), text)


def test_embeddings_and_prefix(model: Pi05, inputs: ModelInput, expected: dict) -> None:
    with torch.no_grad():
        features = model.encode_images(inputs.images)
        prefix = model.embed_prefix(features, inputs.image_mask, inputs.text)
        hidden, cache = model.run_prefix(prefix)
    torch.testing.assert_close(features[:, 0], expected["img_emb_cam0"], atol=1e-5, rtol=0)
    torch.testing.assert_close(prefix.embeddings, expected["prefix_embs"], atol=1e-5, rtol=0)
    assert torch.equal(prefix.valid, expected["prefix_pad"])
    valid = prefix.valid
    torch.testing.assert_close(hidden[valid], expected["prefix_out_last_hidden"][valid], atol=1e-5, rtol=0)
    for ours, name in ((cache[0].key, "kv_layer0_k"), (cache[0].value, "kv_layer0_v")):
        torch.testing.assert_close(ours[:, 0][valid], expected[name][:, 0][valid], atol=1e-5, rtol=0)


def test_time_embedding(given: dict, expected: dict) -> None:
    torch.testing.assert_close(time_embedding(given["time"], 64), expected["time_emb"], atol=1e-5, rtol=0)


def test_velocity(model: Pi05, inputs: ModelInput, given: dict, expected: dict) -> None:
    with torch.no_grad():
        prefix = model.embed_prefix(model.encode_images(inputs.images), inputs.image_mask, inputs.text)
        past, place = model.context(model.prefix_keys_values(prefix), prefix.prompt)
        v_t = model.velocity(given["x_t"], model.step(given["time"][:, None]), past, place)
    torch.testing.assert_close(v_t, expected["v_t"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("steps", [10, 3])
def test_samples(model: Pi05, inputs: ModelInput, given: dict, expected: dict, steps: int) -> None:
    chunk = Engine(model).sample_actions(inputs, given["noise"], steps=steps)
    torch.testing.assert_close(chunk, expected[f"sample_{steps}"], atol=5e-5, rtol=0)


def test_losses_and_gradients(model: Pi05, inputs: ModelInput, given: dict, expected: dict) -> None:
    mask = torch.zeros(given["actions"].shape, dtype=torch.bool)
    mask[..., :7] = True
    batch = TrainBatch(inputs.images, inputs.image_mask, None, inputs.text, given["actions"], mask)
    model.zero_grad()
    losses = model.losses(batch, alpha=1.0, insulate=False, noise=given["noise"], time=given["time"])
    torch.testing.assert_close(losses["flow"], expected["loss_first7"], atol=1e-4, rtol=0)
    losses["total"].backward()
    parameters = dict(model.named_parameters())
    for ours, theirs in rows(model.config):
        norms = [expected["grad_norms"].get(name) for name in theirs]
        if any(norm is None for norm in norms):
            continue
        gradient = parameters[ours].grad
        assert gradient is not None, ours
        assert gradient.norm().item() == pytest.approx(sum(n * n for n in norms) ** 0.5, abs=1e-4, rel=1e-4), ours


def test_all_32_dimensions(model: Pi05, inputs: ModelInput, given: dict, expected: dict) -> None:
    everything = torch.ones(given["actions"].shape, dtype=torch.bool)
    batch = TrainBatch(inputs.images, inputs.image_mask, None, inputs.text, given["actions"], everything)
    with torch.no_grad():
        losses = model.losses(batch, alpha=1.0, noise=given["noise"], time=given["time"])
    torch.testing.assert_close(losses["flow"], expected["loss_all32"], atol=1e-4, rtol=0)


def test_images_of_odd_sizes_and_a_missing_camera(model: Pi05) -> None:
    level = read("policy_level")
    images = []
    for i, key in enumerate(("base_0_rgb", "left_wrist_0_rgb")):
        images.append(resize_with_pad(level["batch"][f"observation.images.{key}"] * 2 - 1, 224))
        torch.testing.assert_close(images[i], level["pre_images"][i], atol=1e-5, rtol=0)
    images.append(torch.full_like(images[0], -1))
    mask = torch.stack(level["pre_masks"], 1)
    valid = level["batch"]["observation.language.attention_mask"]
    tokens = level["batch"]["observation.language.tokens"]
    text = Text(tokens, valid, torch.zeros_like(valid), torch.zeros_like(valid))
    chunk = Engine(model).sample_actions(ModelInput(torch.stack(images, 1), mask, text), level["noise"])
    torch.testing.assert_close(chunk[..., :7], level["chunk"], atol=5e-5, rtol=0)


def test_uint8_images_round() -> None:
    level = read("policy_level")
    resized = resize_with_pad(level["u8"].permute(0, 3, 1, 2), 224).permute(0, 2, 3, 1)
    assert torch.equal(resized, level["u8_resized"])


def test_importer_lists_what_does_not_fit() -> None:
    config = reference_config()
    weights = read("state_dict")
    weights["model.surprise"] = torch.zeros(1)
    del weights["model.time_mlp_in.bias"]
    with pytest.raises(CheckpointError, match=r"missing time_in\.bias(.|\n)*unexpected model\.surprise"):
        load_weights(Pi05(config), from_lerobot(weights, config), "reference")
