"""The network and its losses: what may influence what, and that it learns."""

import dataclasses

import pytest
import torch
from conftest import CONFIG, random_model

from pi05_model.batch import Text, TrainBatch
from pi05_model.config import PRESETS, ModelConfig
from pi05_model.pi05 import Pi05


def fixed(batch: TrainBatch) -> dict[str, torch.Tensor]:
    """Return noise and time for `losses`."""
    generator = torch.Generator().manual_seed(2)
    return {
        "noise": torch.randn(batch.actions.shape, generator=generator),
        "time": torch.rand(len(batch.actions), generator=generator),
    }


def longer(text: Text, more: int) -> Text:
    """Return the same text with more padding."""
    pad = (0, more)
    return Text(*(torch.nn.functional.pad(x, pad) for x in (text.tokens, text.valid, text.starts, text.targets)))


def is_vlm(name: str) -> bool:
    return name.startswith(("vision.", "embed.", "vlm."))


def test_insulation_is_exact(model: Pi05, batch: TrainBatch) -> None:
    model.losses(batch, insulate=True, **fixed(batch))["flow"].backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert not [name for name in touched if is_vlm(name)]
    assert all(name in touched for name, _ in model.named_parameters() if name.startswith("expert."))


def test_without_insulation_the_flow_loss_reaches_the_vision_encoder(model: Pi05, batch: TrainBatch) -> None:
    model.losses(batch, insulate=False, **fixed(batch))["flow"].backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name in ("vision.position", "vision.projector.weight", "embed.weight", "vlm.layers.0.attention.qkv.weight"):
        gradient = gradients[name]
        assert gradient is not None and gradient.abs().max() > 0, name


def test_the_text_loss_never_reaches_the_expert(model: Pi05, batch: TrainBatch) -> None:
    model.losses(batch, **fixed(batch))["text"].backward()
    for name, parameter in model.named_parameters():
        if not is_vlm(name):
            assert parameter.grad is None or parameter.grad.abs().max() == 0, name


def test_insulation_changes_no_loss(model: Pi05, batch: TrainBatch) -> None:
    with torch.no_grad():
        a, b = (model.losses(batch, insulate=insulate, **fixed(batch)) for insulate in (True, False))
    torch.testing.assert_close(a, b)


def test_a_new_network_ignores_time_and_keeps_its_residual_stream(batch: TrainBatch) -> None:
    torch.manual_seed(0)
    model = Pi05(CONFIG)
    for modulation in model.step(torch.tensor([[0.1], [0.9]])).modulations:
        assert modulation is not None
        assert (modulation.scale == 1).all() and (modulation.shift == 0).all() and (modulation.gate == 0).all()


def test_more_padding_changes_nothing(model: Pi05, batch: TrainBatch) -> None:
    assert batch.planner is not None
    padded = dataclasses.replace(batch, planner=longer(batch.planner, 7), expert=longer(batch.expert, 5))
    with torch.no_grad():
        a, b = (model.losses(x, **fixed(batch)) for x in (batch, padded))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_flow_loss_counts_real_steps_and_dimensions_alone(model: Pi05, batch: TrainBatch) -> None:
    given = fixed(batch)
    with torch.no_grad():
        features = model.encode_images(batch.images)
        prefix = model.embed_prefix(features[:, :3], batch.image_mask[:, :3], batch.expert)
        cache = model.prefix_keys_values(prefix)
        errors = model.flow_errors(batch.actions, given["noise"], given["time"][:, None], prefix.prompt, cache)
        torch.testing.assert_close(model.losses(batch, **given)["flow"], errors[batch.action_mask].mean())
    assert not torch.isclose(errors.mean(), errors[batch.action_mask].mean())


def test_text_loss_is_the_mean_over_real_target_tokens(model: Pi05, batch: TrainBatch) -> None:
    planner = batch.planner
    assert planner is not None
    with torch.no_grad():
        features = model.encode_images(batch.images)
        prefix = model.embed_prefix(features, batch.image_mask, planner)
        hidden, _ = model.run_prefix(prefix)
        text_hidden = hidden[:, features.shape[1] * features.shape[2] :]
        log_probabilities = model.logits(text_hidden).log_softmax(dim=-1)
        picked = log_probabilities[:, :-1].gather(2, planner.tokens[:, 1:, None])[..., 0]
        expected = -picked[planner.targets[:, 1:]].mean()
        torch.testing.assert_close(model.losses(batch, **fixed(batch))["text"], expected)


def test_later_targets_do_not_leak_into_earlier_ones(model: Pi05, batch: TrainBatch) -> None:
    planner = batch.planner
    assert planner is not None
    changed = planner.tokens.clone()
    last = [int(row.nonzero()[-1]) for row in planner.targets]
    changed[torch.arange(4), torch.tensor(last)] = 300
    with torch.no_grad():
        features = model.encode_images(batch.images)
        hidden = []
        for tokens in (planner.tokens, changed):
            text = Text(tokens, planner.valid, planner.starts, planner.targets)
            hidden.append(model.run_prefix(model.embed_prefix(features, batch.image_mask, text))[0])
    images = features.shape[1] * features.shape[2]
    for row, index in enumerate(last):
        assert torch.equal(hidden[0][row, : images + index], hidden[1][row, : images + index])
        assert not torch.equal(hidden[0][row, images + index], hidden[1][row, images + index])


def test_a_masked_camera_has_no_influence(model: Pi05, batch: TrainBatch) -> None:
    images = batch.images.clone()
    images[2, 3] = 255 - images[2, 3]
    with torch.no_grad():
        a, b = (model.losses(dataclasses.replace(batch, images=x), **fixed(batch)) for x in (batch.images, images))
    torch.testing.assert_close(a, b)


def test_it_overfits_one_batch(batch: TrainBatch) -> None:
    torch.manual_seed(0)
    model = Pi05(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    given = fixed(batch)
    first = model.losses(batch, insulate=False, **given)
    for _ in range(50):
        losses = model.losses(batch, insulate=False, **given)
        optimizer.zero_grad()
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert losses["text"] < 0.05 * first["text"] and losses["token_accuracy"] == 1
    assert losses["flow"] < 0.1 * first["flow"]


def test_bfloat16_is_near_float32_and_keeps_heads_and_gradients_in_float32(batch: TrainBatch) -> None:
    model, half = random_model(), Pi05(CONFIG, compute_dtype=torch.bfloat16)
    half.load_state_dict(model.state_dict())
    a, b = (m.losses(batch, **fixed(batch)) for m in (model, half))
    assert b["flow"].item() == pytest.approx(a["flow"].item(), rel=0.05)
    assert b["text"].item() == pytest.approx(a["text"].item(), rel=0.05)
    b["total"].backward()
    assert {p.grad.dtype for p in half.parameters() if p.grad is not None} == {torch.float32}


def test_losses_trace_as_one_graph(model: Pi05, batch: TrainBatch) -> None:
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(batch, **fixed(batch)), model.row_losses(batch, **fixed(batch)))


def test_alpha_zero_leaves_the_expert_out(model: Pi05, batch: TrainBatch) -> None:
    losses = model.losses(batch, alpha=0)
    assert losses["flow"] == 0 and losses["total"] == losses["text"]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_configurations_survive_json(name: str) -> None:
    assert ModelConfig.from_dict(PRESETS[name].to_dict()) == PRESETS[name]


def test_configurations_that_cannot_be_are_refused() -> None:
    values = CONFIG.to_dict()
    with pytest.raises(ValueError, match="agree in head_dim"):
        ModelConfig.from_dict({**values, "expert": {**values["expert"], "head_dim": 8}})
    with pytest.raises(ValueError, match="surprise"):
        ModelConfig.from_dict({**values, "surprise": 1})
    with pytest.raises(ValueError, match="vocab_size"):
        ModelConfig.from_dict({name: value for name, value in values.items() if name != "vocab_size"})


def test_published_size() -> None:
    with torch.device("meta"):
        model = Pi05(PRESETS["pi05_base"])
    # lerobot's 4,143 M with its two unused text heads (790 M) left out, which here are tied or absent.
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(4143 - 790, abs=2)


def test_draws_share_a_prefix_and_average(model: Pi05, batch: TrainBatch) -> None:
    size = len(batch.actions)
    noise, time = torch.randn(2 * size, 50, 32), torch.rand(2 * size)
    pairs = zip(noise.split(size), time.split(size), strict=True)
    with torch.no_grad():
        both = model.losses(batch, noise=noise, time=time, draws=2)["flow"]
        halves = [model.losses(batch, noise=n, time=t)["flow"] for n, t in pairs]
    torch.testing.assert_close(both, torch.stack(halves).mean())


def test_without_planner_text_the_planners_own_camera_is_not_needed(model: Pi05, batch: TrainBatch) -> None:
    alone = dataclasses.replace(batch, planner=None)
    blind = dataclasses.replace(alone, images=batch.images.clone())
    blind.images[:, CONFIG.cameras.index("base_1_rgb")] = 0
    with torch.no_grad():
        first, second = (model.losses(x, **fixed(batch)) for x in (alone, blind))
        torch.testing.assert_close(first["flow"], model.losses(batch, **fixed(batch))["flow"], atol=1e-5, rtol=1e-5)
    assert first["text"] == 0 and torch.equal(first["flow"], second["flow"])
