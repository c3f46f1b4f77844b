"""π0-FAST, and action tokens as text: what is said, what may be said, and what is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DIM, MakeObservation

from pi05_model.action_text import ActionText
from pi05_model.action_tokens import MalformedActionsError
from pi05_model.action_tokens.fast import FastTokenizer
from pi05_model.batch import ModelInput, Text, TrainBatch
from pi05_model.build import build
from pi05_model.checkpoint import save_checkpoint
from pi05_model.config import PRESETS
from pi05_model.engine import Engine
from pi05_model.normalize import NormStats
from pi05_model.pi0_fast import Pi0Fast
from pi05_model.policy import Pi05Policy
from pi05_model.preprocess import Preprocessor
from pi05_model.tokenizer import BOS_ID, EOS_ID, PolicyTokenizer

HORIZON = 10
CONFIG = dataclasses.replace(PRESETS["pi0_fast_debug"], horizon=HORIZON)


@pytest.fixture(scope="module")
def chunks() -> np.ndarray:
    """Smooth chunks of normalised actions [64, H, D]."""
    rng = np.random.default_rng(0)
    time = np.linspace(0, 1, HORIZON)[None, :, None]
    start, end = rng.uniform(-1, 1, size=(2, 64, 1, DIM))
    return start + (end - start) * time**2


@pytest.fixture(scope="module")
def fast(chunks: np.ndarray) -> FastTokenizer:
    return FastTokenizer.fit(chunks, scale=5, vocab_size=400)


@pytest.fixture
def preprocessor(stats: dict[str, NormStats], tokenizer: PolicyTokenizer, fast: FastTokenizer) -> Preprocessor:
    return Preprocessor(CONFIG, stats, tokenizer, fast)


@pytest.fixture
def words(preprocessor: Preprocessor) -> ActionText:
    assert preprocessor.action_text is not None
    return preprocessor.action_text


@pytest.fixture
def model() -> Pi0Fast:
    torch.manual_seed(0)
    network = build(CONFIG)
    assert isinstance(network, Pi0Fast)
    return network


@pytest.fixture
def batch(preprocessor: Preprocessor, chunks: np.ndarray, stats: dict[str, NormStats]) -> TrainBatch:
    rng = np.random.default_rng(1)
    images = torch.randint(0, 256, (2, 3, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    states, actions = rng.normal(size=(2, DIM)), stats["actions"].unnormalise(chunks[:2])
    return preprocessor.train_batch(images, np.ones((2, 3), bool), states, None, ["tidy up", "open the bin"], actions)


def test_answers_stand_between_their_words(words: ActionText, chunks: np.ndarray, tokenizer: PolicyTokenizer) -> None:
    [ids] = words.answers(chunks[:1])
    start, end = tokenizer.encode(["Action: "])[0], tokenizer.encode(["|"])[0]
    assert ids[: len(start)] == start and ids[-len(end) :] == end
    assert all(3072 <= i < 3072 + 2048 for i in ids[len(start) : -len(end)])
    # 0.5 / scale for every coefficient bounds the error of a chunk in the mean square.
    assert np.sqrt(np.mean((words.read(ids) - chunks[0]) ** 2)) <= 0.5 / 5


def test_targets_are_the_answer_and_its_end(batch: TrainBatch, words: ActionText, chunks: np.ndarray) -> None:
    assert batch.action_tokens and batch.planner is None
    text = batch.expert
    for row, ids in enumerate(words.answers(chunks[:2])):
        assert text.tokens[row][text.targets[row]].tolist() == [*ids, EOS_ID]
        assert torch.equal(text.targets[row], text.starts[row])
        assert text.tokens[row, 0] == BOS_ID and not text.targets[row, 0]


def test_constrained_decoding_always_gives_a_chunk(
    model: Pi0Fast, preprocessor: Preprocessor, words: ActionText, observe: MakeObservation
) -> None:
    """A network that knows nothing, at a temperature that tries everything."""
    inputs = preprocessor.expert_inputs([observe(i, CONFIG.cameras) for i in range(3)], ["tidy up"] * 3)
    generator = torch.Generator().manual_seed(0)
    answers = Engine(model).generate(inputs, CONFIG.max_action_tokens, words.constraint(), 3.0, generator)
    assert len({tuple(answer) for answer in answers}) == 3
    for answer in answers:
        chunk = words.read(answer)
        assert chunk.shape == (HORIZON, DIM) and np.isfinite(chunk).all()


def test_free_decoding_is_refused_when_it_is_no_chunk(
    model: Pi0Fast, preprocessor: Preprocessor, words: ActionText, observe: MakeObservation, chunks: np.ndarray
) -> None:
    inputs = preprocessor.expert_inputs([observe(0, CONFIG.cameras)], ["tidy up"])
    [answer] = Engine(model).generate(inputs, CONFIG.max_action_tokens)
    with pytest.raises(MalformedActionsError, match=r"does not stand between 'Action: ' and '\|'"):
        words.read(answer)
    [good] = words.answers(chunks[:1])
    with pytest.raises(MalformedActionsError, match="too few coefficients"):
        words.read([*good[:-2], good[-1]])
    middle = len(good) // 2
    with pytest.raises(MalformedActionsError, match="no action tokens"):
        words.read([*good[:middle], 300, *good[middle:]])


def test_it_learns_to_say_its_chunks(
    model: Pi0Fast, preprocessor: Preprocessor, batch: TrainBatch, words: ActionText, chunks: np.ndarray
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        losses = model.losses(batch)
        optimizer.zero_grad()
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert losses["fast_accuracy"] == 1
    text = batch.expert
    lengths = (text.valid & ~text.targets).sum(dim=1, keepdim=True)
    is_prompt = torch.arange(int(lengths.max())) < lengths
    prompt = Text(text.tokens[:, : is_prompt.shape[1]] * is_prompt, is_prompt, is_prompt & False, is_prompt & False)
    inputs = ModelInput(batch.images, batch.image_mask, prompt)
    for allowed in (None, words.constraint()):
        answers = Engine(model).generate(inputs, CONFIG.max_action_tokens, allowed)
        assert answers == words.answers(chunks[:2])


def test_the_policy_decodes_whole_chunks_and_has_no_planner(
    model: Pi0Fast, preprocessor: Preprocessor, observe: MakeObservation
) -> None:
    policy = Pi05Policy(model, preprocessor)
    observation = observe(0, CONFIG.cameras)
    assert policy.act(observation, "tidy up").shape == (HORIZON, DIM)
    assert policy.plan(observation, "tidy up") == "tidy up"
    with pytest.raises(ValueError, match="does not start from noise"):
        policy.act(observation, "tidy up", np.zeros((HORIZON, 32), np.float32))


def test_it_has_no_flow(model: Pi0Fast, preprocessor: Preprocessor, observe: MakeObservation) -> None:
    inputs = preprocessor.expert_inputs([observe(0, CONFIG.cameras)], ["tidy up"])
    with pytest.raises(TypeError, match="says actions as tokens"):
        Engine(model).sample_actions(inputs)


def test_an_action_tokenizer_that_does_not_belong_is_refused(
    stats: dict[str, NormStats], tokenizer: PolicyTokenizer, chunks: np.ndarray
) -> None:
    with pytest.raises(ValueError, match="needs an action tokenizer"):
        Preprocessor(CONFIG, stats, tokenizer)
    large = FastTokenizer.fit(np.random.default_rng(0).normal(size=(400, HORIZON, DIM)), vocab_size=2300)
    with pytest.raises(ValueError, match=r"has 2300 tokens, .* ids for 2048"):
        Preprocessor(CONFIG, stats, tokenizer, large)


@pytest.mark.parametrize("name", ["pi05", "pi0", "pi0_fast"])
def test_every_policy_runs_from_its_checkpoint(
    name: str,
    tmp_path: Path,
    stats: dict[str, NormStats],
    tokenizer: PolicyTokenizer,
    fast: FastTokenizer,
    observe: MakeObservation,
) -> None:
    torch.manual_seed(0)
    network = build(dataclasses.replace(PRESETS[f"{name}_debug"], horizon=HORIZON))
    actions = fast if name == "pi0_fast" else None
    save_checkpoint(tmp_path / "ck", network, stats, tokenizer, action_tokenizer=actions)
    policy = Pi05Policy.load(tmp_path / "ck", seed=1)
    again = Pi05Policy(network, Preprocessor(network.config, stats, tokenizer, actions), seed=1)
    observation = observe(0, network.config.cameras)
    chunk = policy.act(observation, "tidy up")
    assert chunk.shape == (HORIZON, DIM)
    np.testing.assert_allclose(chunk, again.act(observation, "tidy up"), atol=1e-4)
    assert policy.plan(observation, "clear the table") == again.plan(observation, "clear the table")
