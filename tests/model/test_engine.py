"""Sampling and decoding: caches and batches change nothing."""

import pytest
import torch
from conftest import CONFIG, MakeObservation

from pi05_model.batch import Text
from pi05_model.decoding import TokenTrie
from pi05_model.engine import Engine
from pi05_model.gemma import KeyValues, StaticCache
from pi05_model.layers import pack_for_cpu
from pi05_model.masks import block_mask, positions, suffix_mask
from pi05_model.pi05 import Pi05
from pi05_model.preprocess import Preprocessor
from pi05_model.tokenizer import EOS_ID

LONG, SHORT = "pick up the red cube with the left arm", "stop"


def test_batch_equals_single(model: Pi05, preprocessor: Preprocessor, observe: MakeObservation) -> None:
    observations, subtasks = [observe(0), observe(1, CONFIG.cameras[1:3])], [LONG, SHORT]
    noise = torch.randn(2, 50, 32)
    engine = Engine(model)
    together = engine.sample_actions(preprocessor.expert_inputs(observations, subtasks), noise)
    answers = engine.generate(preprocessor.planner_inputs(observations, ["clear the table", "tidy up"]))
    for i in range(2):
        alone = engine.sample_actions(preprocessor.expert_inputs([observations[i]], [subtasks[i]]), noise[i : i + 1])
        torch.testing.assert_close(together[i], alone[0], atol=1e-5, rtol=1e-5)
        task = ["clear the table", "tidy up"][i]
        assert engine.generate(preprocessor.planner_inputs([observations[i]], [task])) == [answers[i]]


def test_cached_decoding_equals_uncached(model: Pi05, preprocessor: Preprocessor, observe: MakeObservation) -> None:
    inputs = preprocessor.planner_inputs([observe(0)], ["clear the table"])
    [answer] = Engine(model).generate(inputs, max_tokens=6)
    assert inputs.images is not None
    with torch.no_grad():
        features = model.encode_images(inputs.images)
        tokens, said = inputs.text.tokens, []
        for _ in range(6):
            causal = torch.arange(tokens.shape[1])[None] >= inputs.text.tokens.shape[1]
            text = Text(tokens, torch.ones_like(causal), causal, causal)
            hidden, _ = model.run_prefix(model.embed_prefix(features, inputs.image_mask, text))
            said.append(int(model.logits(hidden[:, -1]).argmax()))
            tokens = torch.cat([tokens, torch.tensor([said[-1:]])], dim=1)
    end = said.index(EOS_ID) if EOS_ID in said else len(said)
    assert answer == said[:end]


def test_decoding_ends_at_end_of_sequence(model: Pi05, preprocessor: Preprocessor, observe: MakeObservation) -> None:
    inputs = preprocessor.planner_inputs([observe(0)], ["clear the table"])
    with torch.no_grad():
        # The embedding is the text head too: a long end-of-sequence row along the first hidden state wins at once.
        assert inputs.images is not None
        prefix = model.embed_prefix(model.encode_images(inputs.images), inputs.image_mask, inputs.text)
        model.embed.weight[EOS_ID] = 100 * model.run_prefix(prefix)[0][0, -1]
    assert Engine(model).generate(inputs) == [[]]


def test_answers_can_be_restricted(model: Pi05, preprocessor: Preprocessor, observe: MakeObservation) -> None:
    options = preprocessor.tokenizer.encode(["open the left gripper", "open the right gripper", "stop"])
    engine = Engine(model)
    for seed in range(5):
        inputs = preprocessor.planner_inputs([observe(seed)], ["clear the table"])
        assert engine.generate(inputs, allowed=TokenTrie(options))[0] in options


def test_noise_decides_and_seeds_repeat(model: Pi05, preprocessor: Preprocessor, observe: MakeObservation) -> None:
    inputs = preprocessor.expert_inputs([observe(0)], [LONG])
    engine = Engine(model)
    a, b, c = (
        engine.sample_actions(inputs, generator=torch.Generator().manual_seed(seed), steps=2) for seed in (0, 0, 1)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_packed_weights_compute_the_same(model: Pi05, preprocessor: Preprocessor, observe: MakeObservation) -> None:
    inputs = preprocessor.expert_inputs([observe(0)], [LONG])
    noise = torch.randn(1, 50, 32)
    expected = Engine(model).sample_actions(inputs, noise)
    if not pack_for_cpu(model):
        pytest.skip("this torch has no packed linears for the CPU")
    torch.testing.assert_close(Engine(model).sample_actions(inputs, noise), expected, atol=1e-5, rtol=1e-5)


def test_the_prefix_never_sees_the_actions(model: Pi05) -> None:
    """One joint pass over prefix and suffix has the block structure that the two-pass form relies on."""
    valid, starts = torch.ones(1, 6, dtype=torch.bool), torch.tensor([[False] * 4 + [True, False]])
    joint = block_mask(starts, valid)
    assert not joint[0, :4, 4:].any()
    assert torch.equal(joint[:, 4:], suffix_mask(valid[:, :4], starts[:, 5:].expand(1, 2), valid[:, 4:]))
    assert positions(valid)[0, 4] == valid[0, :4].sum()


def test_sampled_text_follows_the_distribution(
    model: Pi05, preprocessor: Preprocessor, observe: MakeObservation
) -> None:
    inputs = preprocessor.planner_inputs([observe(0)], ["clear the table"])
    assert inputs.images is not None
    with torch.no_grad():
        prefix = model.embed_prefix(model.encode_images(inputs.images), inputs.image_mask, inputs.text)
        logits = model.logits(model.run_prefix(prefix)[0][0, -1])
    pair = logits.topk(2).indices.tolist()
    engine, generator, draws = Engine(model), torch.Generator().manual_seed(0), 400
    trie = TokenTrie([[pair[0]], [pair[1]]])
    for temperature in (1.0, 0.25):
        said = [engine.generate(inputs, 2, trie, temperature, generator)[0] for _ in range(draws)]
        expected = (logits[pair] / temperature).softmax(dim=0)[0].item()
        assert sum(answer == [pair[0]] for answer in said) / draws == pytest.approx(expected, abs=4 * 0.5 / draws**0.5)
    assert engine.generate(inputs, 2, trie)[0] == [pair[0]]
    with pytest.raises(ValueError, match="temperature is -1"):
        engine.generate(inputs, temperature=-1)


def test_stop_tokens_end_an_answer(model: Pi05, preprocessor: Preprocessor, observe: MakeObservation) -> None:
    inputs, engine = preprocessor.planner_inputs([observe(0)], ["clear the table"]), Engine(model)
    [free] = engine.generate(inputs, max_tokens=6)
    [stopped] = engine.generate(inputs, max_tokens=6, stop=(EOS_ID, free[3]))
    assert stopped == free[: free.index(free[3])]


def test_what_is_forced_is_said_without_the_network(
    model: Pi05, preprocessor: Preprocessor, observe: MakeObservation
) -> None:
    inputs = preprocessor.planner_inputs([observe(0)], ["clear the table"])
    only = [400, 401, 402, 403]
    assert Engine(model).generate(inputs, max_tokens=8, allowed=TokenTrie([only])) == [only]


def test_static_cache_is_the_cache_that_grows() -> None:
    past, new = (KeyValues(torch.randn(2, 1, n, 4), torch.randn(2, 1, n, 4)) for n in (5, 2))
    cache = StaticCache(past, room=4)
    for kept in (False, False, True):
        seen, expected = cache.append(new), past.append(new)
        assert torch.equal(seen.key, expected.key) and torch.equal(seen.value, expected.value)
        if kept:
            cache.keep(2)
    assert torch.equal(cache.append(new).key, past.append(new).append(new).key)
