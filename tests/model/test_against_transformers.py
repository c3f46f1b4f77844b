"""Our Gemma stack and vision encoder against transformers' own modules with the same weights."""

import pytest
import torch
from transformers import GemmaConfig as TheirGemmaConfig
from transformers import GemmaModel, SiglipVisionConfig, SiglipVisionModel

from pi05_model.config import GemmaConfig, VisionConfig
from pi05_model.gemma import GemmaStack, Rope
from pi05_model.siglip import VisionEncoder

TOLERANCE = 1e-5
TOKENS, BATCH = 11, 3

# Neither head_dim is width / heads.
GEMMAS = [
    GemmaConfig(width=24, depth=3, mlp_dim=56, heads=4, kv_heads=1, head_dim=10),
    GemmaConfig(width=40, depth=2, mlp_dim=32, heads=4, kv_heads=2, head_dim=16),
    GemmaConfig(width=32, depth=2, mlp_dim=48, heads=2, kv_heads=2, head_dim=6),
]
VISIONS = [
    VisionConfig(width=24, depth=3, mlp_dim=50, heads=4, patch=7, image_size=28),
    VisionConfig(width=32, depth=2, mlp_dim=64, heads=2, patch=14, image_size=70),
]


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Draw every weight, also those that a new module sets to zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + ("layer_norm" in name))


def their_gemma(config: GemmaConfig) -> GemmaModel:
    model = GemmaModel(
        TheirGemmaConfig(
            vocab_size=8,
            hidden_size=config.width,
            intermediate_size=config.mlp_dim,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            attn_implementation="eager",
        )
    )
    randomise(model, seed=1)
    return model.eval()


def our_gemma(config: GemmaConfig, theirs: GemmaModel) -> GemmaStack:
    stack = GemmaStack(config)
    with torch.no_grad():
        for ours, layer in zip(stack.layers, theirs.layers, strict=True):
            attention, mlp = layer.self_attn, layer.mlp
            qkv = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
            ours.attention.qkv.weight.copy_(qkv)
            ours.attention.out.weight.copy_(attention.o_proj.weight)
            ours.mlp.gate_up.weight.copy_(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
            ours.mlp.down.weight.copy_(mlp.down_proj.weight)
            ours.attention_norm.weight.copy_(layer.input_layernorm.weight)
            ours.mlp_norm.weight.copy_(layer.post_attention_layernorm.weight)
        stack.norm.weight.copy_(theirs.norm.weight)
    return stack


def valid_tokens(side: str) -> torch.Tensor:
    """Return bool [BATCH, TOKENS] with 0, 3 and 7 padding tokens at one side."""
    places = torch.arange(TOKENS).expand(BATCH, -1)
    padding = torch.tensor([[0], [3], [7]])
    return places < TOKENS - padding if side == "right" else places >= padding


@pytest.mark.parametrize("config", GEMMAS, ids=lambda c: f"head_dim{c.head_dim}-kv{c.kv_heads}")
@pytest.mark.parametrize("block", ["bidirectional", "causal", "prefix"])
@pytest.mark.parametrize("side", ["right", "left"])
@torch.no_grad()
def test_gemma(config: GemmaConfig, block: str, side: str) -> None:
    theirs = their_gemma(config)
    x_BTW = torch.randn(BATCH, TOKENS, config.width, generator=torch.Generator().manual_seed(2)) * 3
    valid_BT = valid_tokens(side)
    positions_BT = (valid_BT.cumsum(dim=1) - 1).clamp(min=0)
    causal_TT = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    sees_TT = {"bidirectional": torch.ones_like(causal_TT), "causal": causal_TT}.get(block, causal_TT.clone())
    if block == "prefix":
        sees_TT[:, :5] = True
    mask_BTT = valid_BT[:, None, :] & sees_TT & valid_BT[:, :, None]
    # A token that sees nothing has no defined output; its row is not compared.
    mask_BTT = mask_BTT | (~valid_BT[:, :, None] & torch.eye(TOKENS, dtype=torch.bool))
    additive = torch.zeros(mask_BTT.shape).masked_fill(~mask_BTT, torch.finfo(torch.float32).min)[:, None]
    expected = theirs(inputs_embeds=x_BTW, attention_mask=additive, position_ids=positions_BT).last_hidden_state

    got, _ = our_gemma(config, theirs)(x_BTW, Rope.at(positions_BT, config.head_dim), mask_BTT)
    assert expected[valid_BT].std() > 0.1
    torch.testing.assert_close(got[valid_BT], expected[valid_BT], atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("config", GEMMAS, ids=lambda c: f"head_dim{c.head_dim}-kv{c.kv_heads}")
@torch.no_grad()
def test_gemma_with_a_cache(config: GemmaConfig) -> None:
    """Decoding token by token: their cache against ours."""
    theirs = their_gemma(config)
    ours = our_gemma(config, theirs)
    x_BTW = torch.randn(1, TOKENS, config.width, generator=torch.Generator().manual_seed(3))
    prefix = TOKENS - 4
    positions = torch.arange(TOKENS)[None]
    causal = torch.ones(1, TOKENS, TOKENS, dtype=torch.bool).tril()
    said = theirs(inputs_embeds=x_BTW[:, :prefix], use_cache=True)
    rope = Rope.at(positions[:, :prefix], config.head_dim)
    got, cache = ours(x_BTW[:, :prefix], rope, causal[:, :prefix, :prefix])
    torch.testing.assert_close(got, said.last_hidden_state, atol=TOLERANCE, rtol=TOLERANCE)
    for place in range(prefix, TOKENS):
        now = slice(place, place + 1)
        said = theirs(inputs_embeds=x_BTW[:, now], past_key_values=said.past_key_values, use_cache=True)
        got, new = ours(x_BTW[:, now], Rope.at(positions[:, now], config.head_dim), None, cache)
        cache = [old.append(one) for old, one in zip(cache, new, strict=True)]
        torch.testing.assert_close(got, said.last_hidden_state, atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
def test_the_copied_norms_matter() -> None:
    """The comparison would see a norm weight that is not carried over."""
    config = GEMMAS[0]
    theirs = their_gemma(config)
    ours = our_gemma(config, theirs)
    x_BTW, rope = torch.randn(1, TOKENS, config.width), Rope.at(torch.arange(TOKENS)[None], config.head_dim)
    right, _ = ours(x_BTW, rope, None)
    ours.layers[1].mlp_norm.weight[0] += 0.01
    wrong, _ = ours(x_BTW, rope, None)
    assert (right - wrong).abs().max() > 10 * TOLERANCE


def their_siglip(config: VisionConfig) -> SiglipVisionModel:
    model = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=config.width,
            intermediate_size=config.mlp_dim,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            image_size=config.image_size,
            patch_size=config.patch,
            vision_use_head=False,
            attn_implementation="eager",
        )
    )
    randomise(model, seed=4)
    return model.eval()


def our_siglip(config: VisionConfig, theirs: SiglipVisionModel) -> VisionEncoder:
    """Return an encoder whose projector changes nothing, so that patch features can be compared."""
    encoder = VisionEncoder(config, config.width)
    weights = {name.removeprefix("vision_model."): tensor for name, tensor in theirs.state_dict().items()}

    def copy(target: torch.nn.Module, *names: str) -> None:
        for part in ("weight", "bias"):
            source = torch.cat([weights[f"{name}.{part}"] for name in names])
            getattr(target, part).copy_(source.reshape(getattr(target, part).shape))

    with torch.no_grad():
        copy(encoder.embed.proj, "embeddings.patch_embedding")
        encoder.position.copy_(weights["embeddings.position_embedding.weight"])
        for i, block in enumerate(encoder.blocks):
            layer = f"encoder.layers.{i}."
            copy(block.norm1, layer + "layer_norm1")
            copy(block.qkv, *(f"{layer}self_attn.{part}_proj" for part in "qkv"))
            copy(block.out, layer + "self_attn.out_proj")
            copy(block.norm2, layer + "layer_norm2")
            copy(block.fc1, layer + "mlp.fc1")
            copy(block.fc2, layer + "mlp.fc2")
        copy(encoder.norm, "post_layernorm")
        encoder.projector.weight.copy_(torch.eye(config.width))
        encoder.projector.bias.zero_()
    return encoder


@pytest.mark.parametrize("config", VISIONS, ids=lambda c: f"patch{c.patch}")
@torch.no_grad()
def test_siglip(config: VisionConfig) -> None:
    theirs = their_siglip(config)
    size = config.image_size
    images = torch.rand(BATCH, 3, size, size, generator=torch.Generator().manual_seed(5)) * 2 - 1
    expected = theirs(pixel_values=images).last_hidden_state
    got = our_siglip(config, theirs)(images)
    assert got.shape == (BATCH, config.tokens, config.width) and expected.std() > 0.1
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=TOLERANCE)
