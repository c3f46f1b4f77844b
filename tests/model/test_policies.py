"""What holds for every policy with a flow, π0.5 and π0: nothing that is kept or left out changes a number."""

import dataclasses

import pytest
import torch
from torch import Tensor

from pi05_model.batch import ModelInput, Text, TrainBatch
from pi05_model.build import build
from pi05_model.config import PRESETS, ModelConfig
from pi05_model.engine import Engine
from pi05_model.flow import Solver, integrate
from pi05_model.flow_policy import FlowPolicy
from pi05_model.gemma import Rope
from pi05_model.masks import block_mask, positions

POLICIES = ("pi05", "pi0")
B, H, A = 2, 50, 32


def network(policy: str, **changes: object) -> FlowPolicy:
    """Return a debug-size network whose modulations, conditions and biases are not zero, unlike those of a new one."""
    torch.manual_seed(0)
    model = build(dataclasses.replace(PRESETS[f"{policy}_debug"], **changes))
    assert isinstance(model, FlowPolicy)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".dense." in name or name.endswith(("bias", "norm.weight")):
                parameter.normal_(std=0.3)
        if model.config.conditions:
            model.condition.weight[1:].normal_()
    return model


def text(seed: int, lengths: tuple[int, ...], longest: int = 12, answer: int = 0) -> Text:
    """Return random texts; the last `answer` tokens of each are causal targets."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(longest)
    ends = torch.tensor(lengths)[:, None]
    valid, targets = index < ends, (index < ends) & (index >= ends - answer)
    tokens = torch.randint(10, 5000, (len(lengths), longest), generator=generator) * valid
    return Text(tokens, valid, targets, targets)


def inputs(config: ModelConfig, seed: int = 0) -> ModelInput:
    """Return two samples: one lacks a camera, the other has a shorter prompt."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(B, 3, 3, config.image_size, config.image_size, generator=generator) * 2 - 1
    mask = torch.tensor([[True, True, False], [True, True, True]])
    state = torch.randn(B, A, generator=generator) if config.policy == "pi0" else None
    condition = torch.tensor([1, 1]) if config.conditions else None
    return ModelInput(images, mask, text(seed, (12, 9)), state=state, condition=condition)


def noise(seed: int = 1) -> Tensor:
    return torch.randn(B, H, A, generator=torch.Generator().manual_seed(seed))


def train_batch(config: ModelConfig, **changes: object) -> TrainBatch:
    given = inputs(config)
    images = torch.zeros(B, len(config.cameras), *given.images.shape[2:])  # type: ignore[union-attr]
    image_mask = torch.zeros(images.shape[:2], dtype=torch.bool)
    images[:, config.expert_camera_indices] = given.images
    image_mask[:, config.expert_camera_indices] = given.image_mask
    mask = torch.zeros(B, H, A, dtype=torch.bool)
    mask[0, :30, :7] = mask[1, :, :7] = True
    batch = TrainBatch(images, image_mask, None, given.text, noise(5), mask, state=given.state)
    return dataclasses.replace(batch, **changes)


def jointly(model: FlowPolicy, given: ModelInput, x: Tensor, time: float) -> Tensor:
    """Return the velocity by one joint pass over the whole sequence, layer by layer, as the papers draw it."""
    assert given.images is not None
    prefix = model.embed_prefix(model.encode_images(given.images), given.image_mask, given.text)
    step = model.step(torch.full((B, 1), time), given.condition)
    tokens, starts = [model.embed_actions(x, step)], [torch.tensor([1] + [0] * (H - 1))]
    if given.state is not None:
        tokens, starts = [model.state_in(given.state)[:, None], *tokens], [torch.tensor([1]), *starts]
    suffix = torch.cat(tokens, dim=1)
    begins = torch.cat([prefix.starts, torch.cat(starts).bool().expand(B, -1)], dim=1)
    valid = torch.cat([prefix.valid, torch.ones(suffix.shape[:2], dtype=torch.bool)], dim=1)
    mask, rope = block_mask(begins, valid), Rope.at(positions(valid), model.config.vlm.head_dim)
    split = prefix.valid.shape[1]
    streams = [prefix.embeddings, suffix]
    for i in range(model.config.vlm.depth):
        layers = (model.vlm.layers[i], model.expert.layers[i])
        marks = ((None, None), step.modulations[2 * i : 2 * i + 2])
        config = model.config.vlm
        qkv = torch.cat(
            [
                layer.attention.qkv(layer.attention_norm(s, m[0]))
                for layer, s, m in zip(layers, streams, marks, strict=True)
            ],
            dim=1,
        )
        heads = qkv.unflatten(2, (-1, config.head_dim)).transpose(1, 2)
        query, key, value = heads.split([config.heads, config.kv_heads, config.kv_heads], dim=1)
        query, key = rope.rotate(query), rope.rotate(key)
        group = config.heads // config.kv_heads
        scores = query @ key.repeat_interleave(group, dim=1).transpose(2, 3) * config.head_dim**-0.5
        weights = scores.masked_fill(~mask[:, None], -torch.inf).softmax(dim=-1)
        attended = (weights @ value.repeat_interleave(group, dim=1)).transpose(1, 2).flatten(2)
        parts = (attended[:, :split], attended[:, split:])
        for j, (layer, (before, after)) in enumerate(zip(layers, marks, strict=True)):
            out = layer.attention.out(parts[j])
            streams[j] = streams[j] + (out if before is None else out * before.gate)
            out = layer.mlp(layer.mlp_norm(streams[j], after))
            streams[j] = streams[j] + (out if after is None else out * after.gate)
    hidden = model.expert.norm(streams[1], step.modulations[-1])
    return model.action_out(hidden[:, -H:])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("solver", ["euler", "heun", "rk4"])
def test_cached_sampling_equals_one_joint_pass(policy: str, solver: Solver) -> None:
    model = network(policy)
    given = inputs(model.config)
    chunk = Engine(model).sample_actions(given, noise(), steps=4, solver=solver)
    with torch.no_grad():
        expected = integrate(lambda x, t: jointly(model, given, x, t), noise(), 4, solver)
    torch.testing.assert_close(chunk, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
def test_batch_equals_single(policy: str) -> None:
    model = network(policy)
    given, engine = inputs(model.config), Engine(model)
    together = engine.sample_actions(given, noise())
    for i in range(B):
        row = slice(i, i + 1)
        words = Text(*(getattr(given.text, f.name)[row] for f in dataclasses.fields(Text)))
        state = None if given.state is None else given.state[row]
        one = ModelInput(given.images[row], given.image_mask[row], words, state=state)  # type: ignore[index]
        torch.testing.assert_close(together[row], engine.sample_actions(one, noise()[row]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_time_for_every_step_may_be_the_same_for_all(policy: str) -> None:
    model, time = network(policy), torch.tensor([[0.3], [0.9]])
    given = inputs(model.config)
    with torch.no_grad():
        prefix = model.embed_prefix(model.encode_images(given.images), given.image_mask, given.text)
        past, place = model.context(model.prefix_keys_values(prefix), prefix.prompt, given.state)
        one, each = (model.velocity(noise(), model.step(t), past, place) for t in (time, time.expand(-1, H)))
        other = model.velocity(
            noise(), model.step(torch.cat([time, time.flip(0).expand(-1, H - 1)], dim=1)), past, place
        )
    torch.testing.assert_close(one, each, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("policy", POLICIES)
def test_given_actions_stay_and_are_heard(policy: str) -> None:
    model = network(policy)
    given, begin = inputs(model.config), noise(2)[:, :6]
    chunk = Engine(model).sample_actions(given, noise(), steps=3, given=begin)
    assert torch.equal(chunk[:, :6], begin)
    other = Engine(model).sample_actions(given, noise(), steps=3, given=begin + 1)
    assert not torch.allclose(chunk[:, 6:], other[:, 6:], atol=1e-3)
    # The given steps stand at flow time 0, whatever the time of the others.
    with torch.no_grad():
        prefix = model.embed_prefix(model.encode_images(given.images), given.image_mask, given.text)
        past, place = model.context(model.prefix_keys_values(prefix), prefix.prompt, given.state)
        x = noise()
        for i in range(3):
            time = torch.full((1, H), 1 - i / 3)
            time[:, :6] = 0
            x = torch.cat([begin, x[:, 6:]], dim=1)
            x = x - model.velocity(x, model.step(time), past, place) / 3
    torch.testing.assert_close(chunk[:, 6:], x[:, 6:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
def test_guidance(policy: str) -> None:
    model = network(policy, conditions=3)
    given, engine = inputs(model.config), Engine(model)
    plain = dataclasses.replace(given, condition=None)
    zero = dataclasses.replace(given, condition=torch.zeros(B, dtype=torch.int64))
    sample = {s: engine.sample_actions(given, noise(), steps=1, guidance=s) for s in (0.0, 1.0, 2.5)}
    without = engine.sample_actions(plain, noise(), steps=1)
    torch.testing.assert_close(sample[0.0], without, atol=1e-5, rtol=0)
    torch.testing.assert_close(engine.sample_actions(zero, noise(), steps=1), without, atol=1e-5, rtol=0)
    assert not torch.allclose(sample[1.0], without, atol=1e-2)
    expected = without + 2.5 * (sample[1.0] - without)  # one Euler step is linear in the velocity
    torch.testing.assert_close(sample[2.5], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_new_condition_changes_nothing_and_row_zero_never_learns(policy: str) -> None:
    torch.manual_seed(0)
    model = build(dataclasses.replace(PRESETS[f"{policy}_debug"], conditions=3))
    batch = train_batch(model.config)
    kwargs = {"noise": noise(), "time": torch.tensor([0.2, 0.7])}
    with torch.no_grad():
        losses = [
            model.losses(dataclasses.replace(batch, condition=c), **kwargs)["flow"]
            for c in (None, torch.tensor([1, 2]))
        ]
    assert losses[0] == losses[1]
    if policy == "pi05":  # a new network's norms are still deaf to what modulates them
        for layer in model.expert.layers:
            torch.nn.init.normal_(layer.attention_norm.dense.weight, std=0.1)
    model.losses(dataclasses.replace(batch, condition=torch.tensor([0, 2])), **kwargs)["flow"].backward()
    gradient = model.condition.weight.grad
    assert gradient[0].abs().max() == 0 and gradient[1].abs().max() == 0 and gradient[2].abs().max() > 0


@pytest.mark.parametrize("policy", POLICIES)
def test_action_tokens_do_not_reach_the_flow(policy: str) -> None:
    """FAST targets stand between prompt and chunk; the chunk neither sees them nor moves because of them."""
    model = network(policy)
    batch = train_batch(model.config)
    longer = text(0, (17, 14), longest=17, answer=5)
    for field in ("tokens", "valid"):
        getattr(longer, field)[:, :12][batch.expert.valid] = getattr(batch.expert, field)[batch.expert.valid]
    both = dataclasses.replace(batch, expert=longer, action_tokens=True)
    kwargs = {"noise": noise(), "time": torch.tensor([0.2, 0.7])}
    with torch.no_grad():
        alone, together = model.losses(batch, **kwargs), model.losses(both, **kwargs)
    torch.testing.assert_close(alone["flow"], together["flow"], atol=1e-6, rtol=1e-5)
    assert alone["fast"] == 0 and together["fast"] > 0
    torch.testing.assert_close(together["total"], together["fast"] + 10 * together["flow"])


@pytest.mark.parametrize("policy", POLICIES)
def test_given_steps_are_not_learned(policy: str) -> None:
    model = network(policy)
    batch, given = train_batch(model.config), torch.tensor([0, 8, 3, 0])
    fixed = {"noise": torch.cat([noise(), noise(3)]), "time": torch.rand(4), "draws": 2, "given": given}
    moved = dataclasses.replace(batch, actions=batch.actions.clone())
    moved.actions[1, 45:] += 1  # real, free steps
    with torch.no_grad():
        loss, other = model.losses(batch, **fixed)["flow"], model.losses(moved, **fixed)["flow"]
        rows = model.row_losses(batch, **fixed)["flow"]
    # Sample 0 counts 30 steps of its first draw and 27 of its second, sample 1 42 and 50, 7 entries each.
    torch.testing.assert_close(loss, rows.sum() / (7 * (30 + 27 + 42 + 50)))
    assert loss != other


@pytest.mark.parametrize("policy", POLICIES)
def test_a_batch_in_pieces_adds_up(policy: str) -> None:
    model = network(policy)
    batch, fixed = train_batch(model.config), {"noise": noise(), "time": torch.rand(2)}
    with torch.no_grad():
        whole = model.losses(batch, **fixed)["flow"]
        counts = batch.counts()["flow"].sum()
        parts = []
        for i in range(B):
            row = slice(i, i + 1)
            words = Text(*(getattr(batch.expert, f.name)[row] for f in dataclasses.fields(Text)))
            state = None if batch.state is None else batch.state[row]
            piece = TrainBatch(
                batch.images[row],
                batch.image_mask[row],
                None,
                words,
                batch.actions[row],
                batch.action_mask[row],
                state=state,
            )
            parts.append(model.row_losses(piece, noise=fixed["noise"][row], time=fixed["time"][row])["flow"])
    torch.testing.assert_close(sum(part.sum() for part in parts) / counts, whole)


@pytest.mark.parametrize("policy", POLICIES)
def test_insulation_is_exact(policy: str) -> None:
    model = network(policy)
    batch = train_batch(model.config)
    longer = text(0, (17, 14), longest=17, answer=5)
    for tokens in (False, True):
        sample = dataclasses.replace(batch, expert=longer, action_tokens=True) if tokens else batch
        for insulate in (True, False):
            model.zero_grad(set_to_none=True)
            model.losses(sample, insulate=insulate)["flow"].backward()
            touched = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
            vlm = {name for name in touched if name.startswith(("vision.", "embed.", "vlm."))}
            assert bool(vlm) != insulate
            assert {"action_in.weight", "action_out.weight", "expert.layers.0.attention.qkv.weight"} <= touched


@pytest.mark.parametrize("policy", POLICIES)
def test_more_padding_changes_nothing(policy: str) -> None:
    model = network(policy)
    given, engine = inputs(model.config), Engine(model)
    wider = Text(*(torch.nn.functional.pad(getattr(given.text, f.name), (0, 9)) for f in dataclasses.fields(Text)))
    chunk, other = (engine.sample_actions(dataclasses.replace(given, text=t), noise()) for t in (given.text, wider))
    torch.testing.assert_close(chunk, other, atol=1e-6, rtol=1e-5)
    batch = train_batch(model.config)
    kwargs = {"noise": noise(), "time": torch.tensor([0.2, 0.7])}
    with torch.no_grad():
        losses = [model.losses(dataclasses.replace(batch, expert=t), **kwargs) for t in (given.text, wider)]
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
def test_it_overfits_one_batch(policy: str) -> None:
    torch.manual_seed(0)
    model = build(PRESETS[f"{policy}_debug"])
    batch, given = train_batch(model.config), {"noise": noise(), "time": torch.tensor([0.4, 0.8])}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = model.losses(batch, insulate=False, **given)["flow"].item()
    for _ in range(60):
        loss = model.losses(batch, insulate=False, **given)["flow"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * first


def test_pi0_hears_its_state() -> None:
    model = network("pi0")
    given = inputs(model.config)
    assert given.state is not None
    moved = dataclasses.replace(given, state=given.state + 1)
    chunk, other = (Engine(model).sample_actions(x, noise(), steps=2) for x in (given, moved))
    assert not torch.allclose(chunk, other, atol=1e-3)


def test_pi0_without_a_state_is_refused() -> None:
    model = network("pi0")
    with pytest.raises(ValueError, match="give state, normalised and padded"):
        Engine(model).sample_actions(dataclasses.replace(inputs(model.config), state=None), noise())


def test_bad_arguments_are_refused() -> None:
    model = network("pi05")
    engine, given = Engine(model), inputs(model.config)
    with pytest.raises(ValueError, match=r"noise is \(1, 50, 32\), expected \(2, 50, 32\)"):
        engine.sample_actions(given, noise()[:1])
    with pytest.raises(ValueError, match="given holds 51 steps; valid: 1 to 50"):
        engine.sample_actions(given, noise(), given=torch.zeros(B, 51, A))
    with pytest.raises(ValueError, match="no condition embedding"):
        engine.sample_actions(dataclasses.replace(given, condition=torch.tensor([1, 1])), noise())
    with pytest.raises(ValueError, match=r"one length, got .*'text': 1"):
        dataclasses.replace(given, text=text(0, (5,)))
    with pytest.raises(ValueError, match=r"images are torch\.int64"):
        dataclasses.replace(given, images=torch.zeros(2, 3, 3, 8, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"expected \[B, N, 3, S, S\]"):
        dataclasses.replace(given, images=torch.zeros(2, 3, 8, 8, 3))


@pytest.mark.parametrize(
    ("name", "millions"),
    # lerobot's 4,143 M for π0.5 without its two unused text heads (790 M), which here are tied or absent. π0 has plain
    # norms instead of modulations; π0-FAST no expert at all.
    [
        ("pi05_base", 4143 - 790),
        ("pi0_base", 3238),
        ("pi0_fast_base", 2923),
        ("pi05_small", 104.1),
        ("pi05_tiny", 4.815),
    ],
)
def test_published_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = build(PRESETS[name])
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=1e-3)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_configurations_survive_json(name: str) -> None:
    assert ModelConfig.from_dict(PRESETS[name].to_dict()) == PRESETS[name]
