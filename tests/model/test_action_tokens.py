"""Action tokenizers: chunks come back within their bounds, nonsense is told, grammars allow what decodes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pi05_model.action_tokens import (
    ActionSpace,
    ActionTokenizer,
    ActionTokenizerError,
    Grammar,
    MalformedActionsError,
    check_space,
    load_action_tokenizer,
)
from pi05_model.action_tokens.fast import FastTokenizer, dct, inverse_dct
from pi05_model.action_tokens.fsq import FiniteScalarQuantiser, FsqConfig, FsqTokenizer
from pi05_model.action_tokens.latent import FitConfig, LatentTokenizer
from pi05_model.action_tokens.report import measure
from pi05_model.action_tokens.vq import VectorQuantiser, VqConfig, VqTokenizer
from pi05_model.normalize import NormStats

Floats = NDArray[np.float64]
H, D = 20, 4
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "fast"


def smooth(count: int, seed: int = 0) -> Floats:
    """Return chunks [count, H, D] of slow sines."""
    rng = np.random.default_rng(seed)
    amplitude, frequency, phase = (rng.uniform(low, high, (count, 1, D)) for low, high in ((-1, 1), (0.2, 1.5), (0, 6)))
    t = np.linspace(0, 1, H)[None, :, None]
    return np.asarray(amplitude * np.sin(2 * np.pi * frequency * t + phase))


def rough(count: int, seed: int = 0) -> Floats:
    """Return chunks [count, H, D] of noise."""
    return np.random.default_rng(seed).uniform(-1, 1, (count, H, D))


def waves(count: int, seed: int = 0) -> Floats:
    """Return chunks [count, H, D] of three unknowns each, which a few tokens can say."""
    rng = np.random.default_rng(seed)
    amplitude, frequency, phase = (rng.uniform(*r, (count, 1, 1)) for r in ((0.3, 1.0), (0.3, 1.0), (0.0, 6.0)))
    t = np.linspace(0, 1, H)[None, :, None]
    return np.asarray(amplitude * np.sin(2 * np.pi * frequency * t + phase + np.arange(D)))


def walk(grammar: Grammar, rng: np.random.Generator) -> list[int]:
    """Return a sequence that takes any allowed token until the chunk is whole."""
    state, tokens = grammar.start, []
    while not grammar.complete(state):
        token = int(rng.choice(np.flatnonzero(grammar.allowed(state))))
        state = grammar.advance(state, token)
        tokens.append(token)
    assert not grammar.allowed(state).any()
    return tokens


def follow(grammar: Grammar, tokens: list[int]) -> None:
    """Check that a grammar allows a sequence and then calls it complete."""
    state = grammar.start
    for token in tokens:
        assert not grammar.complete(state)
        assert grammar.allowed(state)[token]
        state = grammar.advance(state, token)
        hash(state)
    assert grammar.complete(state)


def byte_tokenizer(*texts: str, min_token: int = 0, max_token: int | None = None) -> FastTokenizer:
    """Return a FAST tokenizer whose tokens are all bytes, and merges that build `texts` from left to right."""
    symbols = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    vocab = {symbol: i for i, symbol in enumerate(sorted(symbols))}
    merges = []
    split = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in texts:
        ((written, _),) = split.pre_tokenize_str(text)
        for end in range(1, len(written)):
            merges.append((written[:end], written[end]))
            vocab.setdefault(written[: end + 1], len(vocab))
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=list(dict.fromkeys(merges))))
    backend.pre_tokenizer = split
    backend.decoder = tokenizers.decoders.ByteLevel()
    return FastTokenizer(backend, 10.0, min_token, max_token)


@pytest.fixture(scope="module")
def fast() -> FastTokenizer:
    return FastTokenizer.fit(np.concatenate([smooth(300), rough(40)]), vocab_size=400)


@pytest.fixture(scope="module")
def fine() -> FastTokenizer:
    """A range of more than 128 coefficients, so that characters take two bytes."""
    return FastTokenizer.fit(np.concatenate([smooth(300), rough(40)]), scale=40.0, vocab_size=400)


@pytest.fixture(scope="module")
def fsq() -> FsqTokenizer:
    config = FsqConfig(H, D, tokens=4, width=32, layers=1, levels=(5, 4, 3))
    return FsqTokenizer.fit(waves(400), config, FitConfig(steps=300, batch_size=32, learning_rate=3e-3))


@pytest.fixture(scope="module")
def vq() -> VqTokenizer:
    config = VqConfig(H, D, tokens=4, patch=6, width=32, layers=1, codes=64)
    return VqTokenizer.fit(waves(400), config, FitConfig(steps=300, batch_size=32, learning_rate=3e-3))


# FAST


def test_the_transform_is_orthonormal() -> None:
    x = rough(3)
    np.testing.assert_allclose(inverse_dct(dct(x)), x, atol=1e-12)
    np.testing.assert_allclose(np.square(dct(x)).sum(axis=1), np.square(x).sum(axis=1))
    constant = dct(np.ones((1, H, 1)))[0, :, 0]
    np.testing.assert_allclose(constant, [np.sqrt(H)] + [0.0] * (H - 1), atol=1e-12)


@pytest.mark.parametrize("make", [smooth, rough])
@pytest.mark.parametrize("scale", [3.0, 10.0, 40.0])
def test_round_trip_within_the_bound_of_its_rounding(make: Callable[[int, int], Floats], scale: float) -> None:
    """Each of H coefficients of an entry is at most 0.5 / scale off, and the transform keeps lengths."""
    tokenizer = FastTokenizer.fit(make(200, 0), scale=scale, vocab_size=400)
    chunks = make(50, 1)
    assert tokenizer.count_clipped(chunks).sum() == 0
    error = tokenizer.decode(tokenizer.encode(chunks), H, D) - chunks
    length = np.sqrt(np.square(error).sum(axis=1))
    assert length.max() <= np.sqrt(H) * 0.5 / scale + 1e-6
    assert length.max() > 0.1 / scale  # the bound is not a hundred times too wide


def test_ids_come_back_as_they_were(fast: FastTokenizer, fine: FastTokenizer) -> None:
    for tokenizer in (fast, fine):
        ids = tokenizer.encode(np.concatenate([smooth(30, 2), rough(10, 2)]))
        assert tokenizer.encode(tokenizer.decode(ids, H, D)) == ids


def test_smooth_chunks_take_fewer_tokens_than_rough_ones(fast: FastTokenizer) -> None:
    short, long = (np.mean([len(ids) for ids in fast.encode(make(50, 3))]) for make in (smooth, rough))
    assert short < long < H * D


@settings(max_examples=50, deadline=None)
@given(
    chunk=st.lists(st.floats(-1e4, 1e4), min_size=H * D, max_size=H * D),
    power=st.integers(-3, 3),
)
def test_any_finite_chunk_has_tokens_that_the_grammar_allows_and_that_decode(chunk: list[float], power: int) -> None:
    tokenizer = _SHARED
    chunks = np.reshape(chunk, (1, H, D)) * 10.0**power
    ids = tokenizer.encode(chunks)
    follow(tokenizer.grammar(H, D), ids[0])
    decoded = tokenizer.decode(ids, H, D)
    if not tokenizer.count_clipped(chunks)[0]:
        assert np.sqrt(np.square(decoded - chunks).sum(axis=1)).max() <= np.sqrt(H) * 0.5 / tokenizer.scale + 1e-5
    assert tokenizer.encode(decoded) == ids


_SHARED = FastTokenizer.fit(np.concatenate([smooth(200), rough(40)]), scale=40.0, vocab_size=400)


def test_out_of_range_is_clipped_and_counted(fast: FastTokenizer) -> None:
    chunks = smooth(3)
    chunks[1, :, 2] = 50.0
    chunks[2, :, 0] = -50.0
    assert fast.count_clipped(chunks).tolist() == [0, 1, 1]
    constant = np.sqrt(H) * fast.scale
    decoded = fast.decode(fast.encode(chunks), H, D)
    np.testing.assert_allclose(decoded[1, :, 2], fast.max_token / constant, rtol=1e-5)
    np.testing.assert_allclose(decoded[2, :, 0], fast.min_token / constant, rtol=1e-5)
    np.testing.assert_allclose(decoded[1, :, :2], chunks[1, :, :2], atol=0.2)


def test_fitted_range_holds_every_coefficient_even_unseen_ones(fine: FastTokenizer) -> None:
    for coefficient in (fine.min_token, -1, 1, fine.max_token):
        quantised = np.zeros((1, H, D))
        quantised[0, 5, 1] = coefficient
        chunk = inverse_dct(quantised / fine.scale)
        assert fine.count_clipped(chunk).sum() == 0
        np.testing.assert_allclose(fine.decode(fine.encode(chunk), H, D), chunk, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a" * 7, "row 0: too few coefficients, 7 instead of 8"),
        ("a" * 9, "row 0: too many coefficients, 9 instead of 8"),
        ("", "row 0: too few coefficients, 0 instead of 8"),
    ],
)
def test_wrong_number_of_coefficients(text: str, message: str) -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(MalformedActionsError, match=message):
        tokenizer.decode([[tokenizer.encode(np.zeros((1, 1, 1)))[0][0]] * len(text)], 4, 2)


def test_malformed_sequences_are_named(fine: FastTokenizer) -> None:
    good = fine.encode(smooth(2))
    with pytest.raises(MalformedActionsError, match=r"row 1: too few coefficients"):
        fine.decode([good[0], good[1][:-1]], H, D)
    with pytest.raises(MalformedActionsError, match=rf"row 0: {fine.vocab_size} is no action token \(0 … "):
        fine.decode([[*good[0][:-1], fine.vocab_size]], H, D)
    with pytest.raises(MalformedActionsError, match="row 0: -1 is no action token"):
        fine.decode([[-1]], H, D)
    with pytest.raises(ValueError, match="horizon and dim must be positive"):
        fine.decode(good, 0, D)


def test_half_a_character_is_invalid_utf8() -> None:
    tokenizer = byte_tokenizer(min_token=-300)  # coefficient 0 is character 300: two bytes
    (ids,) = tokenizer.encode(np.zeros((1, 2, 1)))
    assert len(ids) == 4
    with pytest.raises(MalformedActionsError, match="row 0: invalid UTF-8 at byte 2 of 3"):
        tokenizer.decode([ids[:3]], 2, 1)
    with pytest.raises(MalformedActionsError, match="row 0: invalid UTF-8 at byte 0 of 4"):
        tokenizer.decode([ids[1:] + ids[:1]], 2, 1)


def test_coefficient_past_the_range_is_malformed() -> None:
    wide, narrow = byte_tokenizer(), byte_tokenizer(max_token=100)
    quantised = np.full((1, 2, 1), 50.0)
    quantised[0, 1, 0] = 2000
    (ids,) = wide.encode(inverse_dct(quantised / 10.0))
    np.testing.assert_allclose(wide.decode([ids], 2, 1), inverse_dct(quantised / 10.0), rtol=1e-6)
    with pytest.raises(MalformedActionsError, match=r"row 0: coefficient 2000 is out of range \(at most 100\)"):
        narrow.decode([ids], 2, 1)
    grammar = narrow.grammar(2, 1)
    state = grammar.advance(grammar.start, ids[0])
    assert not grammar.allowed(state)[ids[1]] and wide.grammar(2, 1).allowed(state)[ids[1]]
    assert int(grammar.allowed(state).sum()) == 101


# Files


def test_files_are_those_of_the_published_tokenizer(fast: FastTokenizer, tmp_path: Path) -> None:
    fast.save(tmp_path / "new" / "fast")
    folder = tmp_path / "new" / "fast"
    names = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "processor_config.json"}
    assert names <= {path.name for path in folder.iterdir()}
    config = json.loads((folder / "processor_config.json").read_text())
    assert set(config) == {
        *("action_dim", "auto_map", "min_token", "processor_class", "scale", "time_horizon", "vocab_size")
    }
    assert (config["scale"], config["min_token"], config["vocab_size"]) == (10, fast.min_token, fast.vocab_size)
    assert config["processor_class"] == "UniversalActionProcessor"


def test_ids_equal_those_of_the_published_code() -> None:
    """tests/golden/fast/README.md says where they are from."""
    tokenizer = load_action_tokenizer(GOLDEN)
    chunks = np.load(GOLDEN / "chunks.npy")
    ids = json.loads((GOLDEN / "ids.json").read_text())["ids"]
    assert tokenizer.encode(chunks) == ids
    decoded = tokenizer.decode(ids, *chunks.shape[1:])
    np.testing.assert_allclose(decoded, np.load(GOLDEN / "decoded.npy"), atol=1e-6)
    for row in ids:
        follow(tokenizer.grammar(*chunks.shape[1:]), row)


def test_published_vocabularies_have_holes_that_lose_nothing_here() -> None:
    """Its trainer leaves bytes out that its data did not have; its encoder then drops the character."""
    tokenizer = FastTokenizer.load(GOLDEN)
    assert (tokenizer.min_token, tokenizer.max_token) == (-122, 116)
    lost = []
    for coefficient in range(tokenizer.min_token, tokenizer.max_token + 1):
        quantised = np.zeros((1, H, D))
        quantised[0, 3, 1] = coefficient
        chunk = inverse_dct(quantised / tokenizer.scale)
        decoded = tokenizer.decode(tokenizer.encode(chunk), H, D)
        lost += [coefficient] * int(tokenizer.count_clipped(chunk).sum())
        assert np.abs(dct(decoded - chunk)).max() * tokenizer.scale < 20
    assert 0 < len(lost) < 40


@pytest.mark.parametrize("inner", ["tokenizer.json", "bpe_tokenizer/tokenizer.json"])
def test_published_files_load_in_both_layouts(tmp_path: Path, inner: str) -> None:
    (tmp_path / inner).parent.mkdir(exist_ok=True)
    shutil.copy(GOLDEN / "tokenizer.json", tmp_path / inner)
    shutil.copy(GOLDEN / "processor_config.json", tmp_path)
    tokenizer = load_action_tokenizer(tmp_path)
    assert tokenizer.kind == "fast" and tokenizer.space is None and tokenizer.vocab_size == 400
    assert tokenizer.encode(smooth(5)) == FastTokenizer.load(GOLDEN).encode(smooth(5))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "tokenizer.json is missing"),
        ("tokenizer.json", "{", "is not JSON"),
        ("tokenizer.json", '{"model": {"type": "WordPiece"}}', "is not a byte-level BPE"),
        (
            "tokenizer.json",
            '{"model": {"type": "BPE", "vocab": 3}, "decoder": {"type": "ByteLevel"}}',
            "tokenizer.json",
        ),
        ("processor_config.json", '{"scale": 10}', "min_token missing"),
        ("processor_config.json", '{"scale": 0, "min_token": 1}', "scale must be above 0"),
        ("processor_config.json", "[]", "does not hold an object"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    for file in ("tokenizer.json", "processor_config.json"):
        shutil.copy(GOLDEN / file, tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ActionTokenizerError, match=message):
        load_action_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ActionTokenizerError, match=r"holds no action tokenizer: .*config\.json is missing"):
        load_action_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"format": "pi05_ros/action_tokenizer/1", "kind": "zip", "config": {}}')
    with pytest.raises(ActionTokenizerError, match=r"kind 'zip'.* is unknown; known are fast, fsq, vq"):
        load_action_tokenizer(tmp_path)


# Adapting


def test_adapted_ids_keep_their_meaning(fast: FastTokenizer) -> None:
    chunks = np.concatenate([rough(60, 5)[:, :1].repeat(H, axis=1), smooth(100, 5) * 0.3])
    adapted = fast.adapt(chunks, vocab_size=600)
    assert fast.vocab_size < adapted.vocab_size <= 600
    old = fast.encode(smooth(20, 6))
    np.testing.assert_array_equal(adapted.decode(old, H, D), fast.decode(old, H, D))
    before, after = measure(fast, chunks), measure(adapted, chunks)
    assert after.tokens_mean < before.tokens_mean
    assert after.rms == pytest.approx(before.rms)
    follow(adapted.grammar(H, D), adapted.encode(chunks)[0])


def test_adapting_widens_the_range_upwards() -> None:
    tokenizer = FastTokenizer.fit(smooth(50), vocab_size=300)
    chunks = smooth(50) + 20.0
    assert tokenizer.count_clipped(chunks).sum() > 0
    adapted = tokenizer.adapt(chunks, vocab_size=500)
    assert adapted.count_clipped(chunks).sum() == 0
    assert measure(adapted, chunks).rms < 0.1


def test_adapting_published_files_that_split_words() -> None:
    tokenizer = FastTokenizer.load(GOLDEN)
    adapted = tokenizer.adapt(smooth(100, 8), vocab_size=500)
    assert adapted.vocab_size == 500
    new = {i for ids in adapted.encode(smooth(100, 8)) for i in ids if i >= tokenizer.vocab_size}
    assert len(new) > 60  # few are learned across a split, where they could never apply
    ids = adapted.encode(smooth(10, 9))
    np.testing.assert_array_equal(adapted.decode(ids, H, D), tokenizer.decode(tokenizer.encode(smooth(10, 9)), H, D))


def test_adapting_needs_room(fast: FastTokenizer) -> None:
    with pytest.raises(ActionTokenizerError, match=f"has {fast.vocab_size} tokens already, vocab_size is 400"):
        fast.adapt(smooth(5), vocab_size=400)


# Grammar


@pytest.mark.parametrize("name", ["fast", "fine", "fsq", "vq"])
def test_random_walks_decode(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: ActionTokenizer = request.getfixturevalue(name)
    grammar, rng = tokenizer.grammar(H, D), np.random.default_rng(0)
    walks = [walk(grammar, rng) for _ in range(40)]
    assert tokenizer.decode(walks, H, D).shape == (40, H, D)
    assert len({tuple(tokens) for tokens in walks}) > 1


@pytest.mark.parametrize("name", ["fast", "fine", "fsq", "vq"])
def test_real_encodings_are_allowed(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: ActionTokenizer = request.getfixturevalue(name)
    grammar = tokenizer.grammar(H, D)
    for tokens in tokenizer.encode(np.concatenate([smooth(10, 4), rough(10, 4)])):
        follow(grammar, tokens)


def test_walks_through_characters_of_one_to_three_bytes() -> None:
    """Zero is character 2000 (two bytes); from 2048 on they take three. Some tokens end within a character."""
    tokenizer = byte_tokenizer("ab", "\u07d0\u07d0", "x\u0800", min_token=-2000, max_token=3000)
    grammar, rng = tokenizer.grammar(3, 2), np.random.default_rng(1)
    walks = [walk(grammar, rng) for _ in range(300)]
    decoded = dct(tokenizer.decode(walks, 3, 2).astype(np.float64)) * tokenizer.scale
    characters = np.rint(decoded).astype(int) + 2000
    np.testing.assert_allclose(decoded + 2000, characters, atol=1e-2)
    for low, high in ((0, 128), (128, 2048), (2048, 5001)):
        assert ((low <= characters) & (characters < high)).any()
    assert characters.min() >= 0 and characters.max() <= 5000
    within = {i for tokens in walks for i in tokens if i >= 256}  # merged tokens
    assert len(within) >= 4


def test_grammar_follows_bytes_within_a_character() -> None:
    tokenizer = byte_tokenizer(min_token=-300)  # character 300 is the bytes C4 AC
    (ids,) = tokenizer.encode(np.zeros((1, 1, 1)))
    grammar = tokenizer.grammar(1, 1)
    middle = grammar.advance(grammar.start, ids[0])
    assert not grammar.complete(middle)
    assert int(grammar.allowed(middle).sum()) == 64  # continuation bytes, and no others
    assert grammar.complete(grammar.advance(middle, ids[1]))
    with pytest.raises(MalformedActionsError, match=f"token {ids[0]} cannot follow after 0 of 1 coefficients"):
        grammar.advance(middle, ids[0])


@pytest.mark.parametrize("name", ["fast", "fine"])
def test_a_budget_of_tokens_is_always_enough(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: FastTokenizer = request.getfixturevalue(name)
    shortest = int(tokenizer.grammar(H, D).needed(b"")[H * D])
    rng = np.random.default_rng(2)
    for budget in (shortest, shortest + 1, 2 * shortest):
        grammar = tokenizer.grammar(H, D, max_tokens=budget)
        lengths = [len(tokens) for tokens in (walk(grammar, rng) for _ in range(20))]
        assert max(lengths) <= budget
    with pytest.raises(ValueError, match=f"needs {shortest} tokens, allowed are {shortest - 1}"):
        tokenizer.grammar(H, D, max_tokens=shortest - 1)


@pytest.mark.parametrize("max_token", [127, 200])
def test_needed_is_the_fewest_of_all_sequences(max_token: int) -> None:
    """Against a search through all sequences, breadth first."""
    length = 7
    grammar = byte_tokenizer("aaa", "aaaa", "bbbbbb", max_token=max_token).grammar(length, 1)
    seen, wave = {grammar.start: 0}, [grammar.start]
    while wave:
        after = [grammar.advance(state, int(i)) for state in wave for i in np.flatnonzero(grammar.allowed(state))]
        fewest = 1 + seen[wave[0]]
        wave = [state for state in dict.fromkeys(after) if state not in seen]
        seen |= dict.fromkeys(wave, fewest)
    reached = {state.characters: count for state, count in seen.items() if not state.pending}
    assert [reached[i] for i in range(length + 1)] == grammar.needed(b"").tolist()
    assert grammar.needed(b"").tolist() == [0, 1, 1, 1, 1, 1, 1, 2]


def test_fixed_grammars_refuse(fsq: FsqTokenizer) -> None:
    grammar = fsq.grammar(H, D)
    state = grammar.start
    with pytest.raises(MalformedActionsError, match="token 60 cannot follow after 0 tokens"):
        grammar.advance(state, fsq.vocab_size)
    for _ in range(4):
        state = grammar.advance(state, 0)
    with pytest.raises(MalformedActionsError, match="cannot follow after 4 tokens"):
        grammar.advance(state, 0)
    with pytest.raises(ValueError, match="needs 4 tokens, allowed are 3"):
        fsq.grammar(H, D, max_tokens=3)


# FSQ and VQ


@pytest.mark.parametrize("name", ["fsq", "vq"])
def test_fitting_reduces_the_error(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: LatentTokenizer = request.getfixturevalue(name)
    chunks = waves(200, 1)
    untrained = type(tokenizer).fit_network(waves(10), tokenizer.config, FitConfig(steps=1, batch_size=8), None, None)
    before, after = measure(untrained, chunks), measure(tokenizer, chunks)
    spread = float(np.sqrt(np.square(chunks).mean()))
    assert after.rms < 0.5 * spread and after.rms < 0.6 * before.rms
    assert after.codes_used + after.dead_codes == tokenizer.vocab_size
    assert after.codes_used > 8
    assert (after.tokens_mean, after.values_per_token) == (4.0, H * D / 4)


@pytest.mark.parametrize("name", ["fsq", "vq"])
def test_saved_and_loaded_is_the_same(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    tokenizer: LatentTokenizer = request.getfixturevalue(name)
    tokenizer.save(tmp_path)
    again = load_action_tokenizer(tmp_path)
    assert isinstance(again, type(tokenizer)) and again.config == tokenizer.config
    ids = tokenizer.encode(smooth(20, 2))
    assert again.encode(smooth(20, 2)) == ids
    np.testing.assert_array_equal(again.decode(ids, H, D), tokenizer.decode(ids, H, D))
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ActionTokenizerError, match="is damaged"):
        load_action_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["fsq", "vq"])
def test_batched_equals_single(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: LatentTokenizer = request.getfixturevalue(name)
    ids = tokenizer.encode(smooth(8, 3))
    np.testing.assert_allclose(
        tokenizer.decode(ids, H, D), np.concatenate([tokenizer.decode([row], H, D) for row in ids]), atol=1e-5
    )


@pytest.mark.parametrize("name", ["fsq", "vq"])
def test_malformed_latent_sequences(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: LatentTokenizer = request.getfixturevalue(name)
    with pytest.raises(MalformedActionsError, match="row 1: too few tokens, 3 instead of 4"):
        tokenizer.decode([[0] * 4, [0] * 3], H, D)
    with pytest.raises(MalformedActionsError, match="row 0: too many tokens, 5 instead of 4"):
        tokenizer.decode([[0] * 5], H, D)
    with pytest.raises(MalformedActionsError, match=f"row 0: {tokenizer.vocab_size} is no action token"):
        tokenizer.decode([[0, 0, tokenizer.vocab_size, 0]], H, D)
    with pytest.raises(ActionTokenizerError, match="is for chunks of 20x4, not 50x4"):
        tokenizer.decode([[0] * 4], 50, D)
    with pytest.raises(ActionTokenizerError, match="is for chunks of 20x4, not 20x7"):
        tokenizer.grammar(H, 7)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=4))
def test_every_fsq_code_has_its_own_id(levels: list[int]) -> None:
    quantiser = FiniteScalarQuantiser(tuple(levels))
    ids = torch.arange(quantiser.vocab_size)[:, None]
    codes = quantiser.codes(ids)
    assert len(torch.unique(codes[:, 0], dim=0)) == quantiser.vocab_size == int(np.prod(levels))
    assert codes.abs().max() <= 1
    # Latents far out reach the outermost levels, so none is out of reach.
    for sign, digit in ((-50.0, 0), (50.0, -1)):
        (extreme,) = quantiser.codes(quantiser.indices(torch.full((1, 1, len(levels)), sign)))[0]
        for i, level in enumerate(levels):
            values = sorted(set(codes[:, 0, i].tolist()))
            assert len(values) == level and extreme[i].item() == pytest.approx(values[digit])


def test_fsq_gradient_passes_straight_through() -> None:
    quantiser = FiniteScalarQuantiser((5, 4))
    z = torch.tensor([[[0.3, -0.2]]], requires_grad=True)
    codes, loss = quantiser(z)
    assert torch.equal(codes.detach(), quantiser.codes(quantiser.indices(z.detach())))
    codes.sum().backward()
    # d/dz of tanh(z + shift) · half / (levels // 2): as if nothing had been rounded.
    half = torch.tensor([4.0, 3.0]) * 1.001 / 2
    shift = torch.atanh(torch.tensor([0.0, 0.5]) / half)
    expected = (1 - torch.tanh(z.detach() + shift) ** 2) * half / torch.tensor([2.0, 2.0])
    assert z.grad is not None
    torch.testing.assert_close(z.grad, expected)
    assert loss.item() == 0


def test_vq_gradient_passes_straight_through_and_commits() -> None:
    torch.manual_seed(0)
    quantiser = VectorQuantiser(VqConfig(H, D, codes=8, code_width=3)).train()
    quantiser(torch.randn(4, 5, 3))
    quantiser.eval()
    z = torch.randn(2, 5, 3, requires_grad=True)
    codes, loss = quantiser(z)
    torch.testing.assert_close(codes.detach(), quantiser.codes(quantiser.indices(z.detach())))
    weights = torch.randn_like(codes)
    (gradient,) = torch.autograd.grad((codes * weights).sum(), z, retain_graph=True)
    torch.testing.assert_close(gradient, weights)
    (pull,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(pull, 0.25 * 2 * (z - codes).detach() / z.numel())


def test_vq_codes_follow_their_latents_and_dead_ones_are_revived() -> None:
    torch.manual_seed(0)
    quantiser = VectorQuantiser(VqConfig(H, D, codes=16, code_width=2)).train()
    start = torch.tensor([5.0, 5.0]) + 0.01 * torch.randn(64, 1, 2)
    quantiser(start)
    corners = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    for _ in range(300):
        latents = corners.repeat(16, 1)[:, None] + 0.01 * torch.randn(64, 1, 2)
        quantiser(latents)
    quantiser.eval()
    chosen = quantiser.codes(quantiser.indices(corners[:, None]))[:, 0]
    torch.testing.assert_close(chosen, corners, atol=0.05, rtol=0)
    every = quantiser.codes(torch.arange(16)[:, None])[:, 0]
    assert every.abs().max() < 1.5  # none is left behind at (5, 5)


def test_fitting_is_repeatable_and_leaves_the_random_state_alone() -> None:
    config, fit = FsqConfig(H, D, tokens=2, width=16, layers=1), FitConfig(steps=5, batch_size=8)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    ids = [FsqTokenizer.fit(smooth(50), config, fit).encode(smooth(10, 1)) for _ in range(2)]
    assert ids[0] == ids[1]
    assert torch.equal(torch.get_rng_state(), before)


def test_adapting_a_network_goes_on_from_it(fsq: FsqTokenizer) -> None:
    chunks = waves(200, 7) * 0.5 + 0.4
    original = fsq.encode(chunks)
    adapted = fsq.adapt(chunks, FitConfig(steps=60, batch_size=32))
    assert measure(adapted, chunks).rms < measure(fsq, chunks).rms
    assert fsq.encode(chunks) == original


# What chunks mean


def test_a_tokenizer_knows_its_statistics(tmp_path: Path) -> None:
    actions = smooth(100) * np.array([1.0, 2.0, 0.1, 5.0]) + 3.0
    states = np.random.default_rng(0).normal(size=(100, D))
    space = ActionSpace.measure(actions, states, relative_entries=(0, 2))
    chunks = space.normalise(actions, states)
    tokenizer = FastTokenizer.fit(chunks, vocab_size=300, space=space)
    tokenizer.save(tmp_path)
    again = load_action_tokenizer(tmp_path)
    assert again.space is not None and again.space.fingerprint == space.fingerprint
    check_space(again, space.stats, (0, 2))
    other = NormStats.from_samples(actions * 1.1)
    with pytest.raises(ActionTokenizerError, match=r"relative entries \[0, 2\], the data has \[\]"):
        check_space(again, space.stats)
    with pytest.raises(ActionTokenizerError, match="normalised differently: entry 0 spans"):
        check_space(again, other, (0, 2))
    with pytest.raises(ActionTokenizerError, match="has 4 entries, the data 3"):
        check_space(again, NormStats.from_samples(actions[..., :3]), (0, 2))
    check_space(FastTokenizer.load(GOLDEN), other)


def test_space_needs_what_it_was_made_with() -> None:
    actions = smooth(10)
    space = ActionSpace.measure(actions, np.zeros((10, D)), relative_entries=(1,))
    with pytest.raises(ActionTokenizerError, match="relative entries need the state"):
        space.normalise(actions)
    plain = ActionSpace.measure(actions, None)
    with pytest.raises(ActionTokenizerError, match="actions have 3 entries, the statistics 4"):
        plain.normalise(actions[..., :3])
    np.testing.assert_allclose(plain.stats.unnormalise(plain.normalise(actions)), actions, atol=1e-6)


def test_report_in_both_units() -> None:
    actions = smooth(100) * np.array([1.0, 2.0, 0.1, 5.0])
    space = ActionSpace.measure(actions, None)
    chunks = space.normalise(actions)
    tokenizer = FastTokenizer.fit(chunks, vocab_size=300, space=space)
    report = measure(tokenizer, chunks)
    decoded = tokenizer.decode(tokenizer.encode(chunks), H, D)
    error = space.stats.unnormalise(decoded) - actions
    assert report.physical is not None
    np.testing.assert_allclose(report.physical.rms, np.sqrt(np.square(error).mean(axis=(0, 1))), rtol=1e-3)
    np.testing.assert_allclose(report.physical.max, np.abs(error).max(axis=(0, 1)), rtol=1e-3)
    np.testing.assert_allclose(report.normalised.rms, np.sqrt(np.square(decoded - chunks).mean(axis=(0, 1))), rtol=1e-3)
    lengths = [len(ids) for ids in tokenizer.encode(chunks)]
    assert report.tokens == {
        "p0": min(lengths),
        "p50": int(np.percentile(lengths, 50, method="nearest")),
        "p99": int(np.percentile(lengths, 99, method="nearest")),
        "p100": max(lengths),
    }
    assert report.bits_per_chunk == pytest.approx(np.mean(lengths) * np.log2(tokenizer.vocab_size))
    used = {i for ids in tokenizer.encode(chunks) for i in ids}
    assert (report.codes_used, report.dead_codes) == (len(used), tokenizer.vocab_size - len(used))
    assert 1 <= report.perplexity <= len(used)
    json.dumps(report.as_dict())


# Bad input


@pytest.mark.parametrize("kind", [FastTokenizer, FsqTokenizer, VqTokenizer])
@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        (np.zeros((3, H)), r"chunks must have the shape \[batch, horizon, dim\], got \[3, 20\]"),
        (np.zeros((3, 0, D)), r"got \[3, 0, 4\]"),
        (np.zeros((0, H, D)), "there are no chunks to learn from"),
        (np.full((2, H, D), np.nan), "chunk 0, step 0, entry 0 is nan"),
    ],
)
def test_bad_chunks(kind: type, chunks: Floats, message: str) -> None:
    with pytest.raises(ActionTokenizerError, match=message):
        kind.fit(chunks)  # type: ignore[attr-defined]


def test_encoding_bad_chunks(fast: FastTokenizer, fsq: FsqTokenizer) -> None:
    chunk = smooth(2)
    chunk[1, 3, 2] = np.inf
    for tokenizer in (fast, fsq):
        with pytest.raises(ActionTokenizerError, match="chunk 1, step 3, entry 2 is inf"):
            tokenizer.encode(chunk)
    with pytest.raises(ActionTokenizerError, match=r"chunks must have the shape \[batch, 20, 4\], got \[2, 10, 4\]"):
        fsq.encode(chunk[:, :10])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 40}, "a vocabulary of 40 tokens is too small: .* bytes are needed"),
        ({"scale": 1e7}, "coefficients span .*, at most 55295 can be told apart"),
        ({"scale": 0.0}, "scale must be above 0, got 0.0"),
        ({"scale": -1.0}, "scale must be above 0"),
    ],
)
def test_bad_fast_settings(options: dict[str, float], message: str) -> None:
    with pytest.raises(ActionTokenizerError, match=message):
        FastTokenizer.fit(smooth(20), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FsqConfig(H, D, levels=(1, 5)), "levels must be at least 2"),
        (lambda: FsqConfig(H, D, tokens=0), "tokens must be at least 1, got 0"),
        (lambda: FsqConfig(H, D, width=30), "width 30 is not a multiple of 4 heads"),
        (lambda: VqConfig(H, D, codes=1), "at least 2 codes"),
        (lambda: VqConfig(H, D, decay=1.0), "decay must be in"),
    ],
)
def test_bad_network_settings(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ActionTokenizerError, match=message):
        make()


def test_no_chunks_encode_to_nothing(fast: FastTokenizer, fsq: FsqTokenizer) -> None:
    for tokenizer in (fast, fsq):
        assert tokenizer.encode(np.zeros((0, H, D))) == []
        assert tokenizer.decode([], H, D).shape == (0, H, D)
