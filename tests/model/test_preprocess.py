"""What observations, text and actions become together; the parts have tests of their own."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import CONFIG, DIM, MakeObservation

from pi05_model.normalize import NormStats
from pi05_model.preprocess import Preprocessor
from pi05_model.tokenizer import BOS_ID, EOS_ID, PolicyTokenizer


def test_a_missing_camera_is_masked(preprocessor: Preprocessor, observe: MakeObservation) -> None:
    inputs = preprocessor.expert_inputs([observe(cameras=("base_0_rgb", "base_1_rgb"))], ["pick up the red cube"])
    assert inputs.image_mask.tolist() == [[True, False, False]]
    assert inputs.images is not None and (inputs.images[:, 1:] == -1).all()


def test_planner_targets_are_the_answer(preprocessor: Preprocessor, tokenizer: PolicyTokenizer) -> None:
    text = preprocessor.planner_text(np.zeros((2, DIM)), ["clear the table"] * 2, ["open the left gripper", "stop"])
    for row, subtask in enumerate(("open the left gripper", "stop")):
        answer = text.tokens[row][text.targets[row]].tolist()
        assert answer == [*tokenizer.encode([subtask])[0], EOS_ID]
        prompt = text.tokens[row][text.valid[row] & ~text.targets[row]].tolist()
        assert prompt[0] == BOS_ID
        assert tokenizer.decode(prompt).startswith("Task: clear the table, State: 12")
        assert tokenizer.decode(prompt).endswith(";\nSubtask: ")
    assert torch.equal(text.starts, text.targets)


def test_a_long_task_is_cut_but_not_the_state(preprocessor: Preprocessor, tokenizer: PolicyTokenizer) -> None:
    with pytest.warns(UserWarning, match="10000 characters"):
        text = preprocessor.planner_text(np.zeros((1, DIM)), ["ü" * 10_000])
    assert preprocessor.truncated > 0
    assert text.tokens.shape[1] <= CONFIG.max_prompt_tokens
    prompt = tokenizer.decode(text.tokens[0].tolist())
    assert prompt.startswith("Task: üüü") and prompt.endswith(";\nSubtask: ")


def test_actions_are_padded_and_masked(preprocessor: Preprocessor) -> None:
    actions = np.random.default_rng(0).normal(size=(1, 50, DIM))
    is_pad = np.arange(50)[None] >= 40
    images = torch.zeros(1, 4, 3, 224, 224, dtype=torch.uint8)
    batch = preprocessor.train_batch(images, np.ones((1, 4), bool), np.zeros((1, DIM)), None, ["stop"], actions, is_pad)
    assert batch.actions.shape == (1, 50, 32) and (batch.actions[..., DIM:] == 0).all()
    assert batch.action_mask[0, :40, :DIM].all() and batch.action_mask.sum() == 40 * DIM
    np.testing.assert_allclose(preprocessor.physical_actions(batch.actions, np.zeros((1, DIM))), actions, atol=1e-5)
    assert batch.images.dtype == torch.uint8


def test_wrong_shapes_are_named(preprocessor: Preprocessor) -> None:
    images = torch.zeros(1, 4, 224, 224, 3, dtype=torch.uint8)
    mask, state = np.ones((1, 4), bool), np.zeros((1, DIM))
    with pytest.raises(ValueError, match=r"actions are \(1, 49, 18\), expected \[batch, 50, 18\]"):
        preprocessor.train_batch(images, mask, state, None, ["stop"], np.zeros((1, 49, DIM)))
    with pytest.raises(ValueError, match=r"images are \(1, 3, 3, 224, 224\)"):
        preprocessor.train_batch(images[:, :3], mask, state, None, ["stop"], np.zeros((1, 50, DIM)))


def test_statistics_that_do_not_fit_are_refused(tokenizer: PolicyTokenizer, stats: dict[str, NormStats]) -> None:
    wide = NormStats.from_samples(np.random.default_rng(0).normal(size=(10, 33)))
    with pytest.raises(ValueError, match="33 entries of actions exceed max_action_dim 32"):
        Preprocessor(CONFIG, {**stats, "actions": wide}, tokenizer)
    with pytest.raises(ValueError, match="lack"):
        Preprocessor(CONFIG, {"state": wide}, tokenizer)


def test_relative_entries_are_told_from_the_state(tokenizer: PolicyTokenizer, stats: dict[str, NormStats]) -> None:
    entries = (0, 3, 14)
    relative = Preprocessor(dataclasses.replace(CONFIG, relative_entries=entries), stats, tokenizer)
    absolute = Preprocessor(CONFIG, stats, tokenizer)
    rng = np.random.default_rng(0)
    states, actions = rng.normal(size=(2, DIM)), rng.normal(size=(2, 50, DIM))
    images, mask = torch.zeros(2, 4, 3, 224, 224, dtype=torch.uint8), np.ones((2, 4), bool)
    moved = relative.train_batch(images, mask, states, None, ["stop"] * 2, actions).actions
    plain = absolute.train_batch(images, mask, states, None, ["stop"] * 2, actions).actions
    others = [i for i in range(DIM) if i not in entries]
    assert torch.equal(moved[..., others], plain[..., others])
    expected = stats["actions"].normalise(actions - states[:, None])[..., list(entries)]
    np.testing.assert_allclose(moved[..., list(entries)], expected, atol=1e-5)
    np.testing.assert_allclose(relative.physical_actions(moved, states), actions, atol=1e-5)


def test_samples_without_a_robot(preprocessor: Preprocessor, tokenizer: PolicyTokenizer) -> None:
    """Web data beside robot data: its prompt is the bare question, and neither actions nor state count."""
    rng = np.random.default_rng(0)
    images = torch.zeros(3, 4, 224, 224, 3, dtype=torch.uint8)
    state = rng.normal(size=DIM)
    has = np.ones((3, DIM), bool)
    has[1], has[2, 4:] = False, False
    batch = preprocessor.train_batch(
        images,
        np.ones((3, 4), bool),
        [state, None, state],
        ["clear the table", "caption en", "tidy up"],
        ["pick up the red cube", "a red cube on a table", None],
        rng.normal(size=(3, 50, DIM)),
        expert_subtasks=["pick up the red cube", "none", "stop"],
        action_mask=has,
        controls=["joint", None, None],
    )
    assert batch.planner is not None
    texts = [
        tokenizer.decode(row[valid].tolist())
        for row, valid in zip(batch.planner.tokens, batch.planner.valid, strict=True)
    ]
    assert texts[0].startswith("Task: clear the table <control mode> joint <control mode>, State: ")
    assert texts[1] == "caption en\na red cube on a table"
    counts = batch.counts()
    assert counts["text"].tolist()[2] == 0 and counts["text"][1] > 0
    assert counts["flow"].tolist() == [50 * DIM, 0, 50 * 4]
    assert (batch.actions[1] == 0).all() and (batch.actions[2, :, 4:] == 0).all()


def test_the_control_mode_of_a_checkpoint_is_said_in_every_prompt(
    tokenizer: PolicyTokenizer, stats: dict[str, NormStats]
) -> None:
    said = Preprocessor(dataclasses.replace(CONFIG, control_mode="end effector"), stats, tokenizer)
    for text in (said.planner_text([np.zeros(DIM)], ["tidy up"]), said.expert_text([np.zeros(DIM)], ["tidy up"])):
        prompt = tokenizer.decode(text.tokens[0].tolist())
        assert prompt.startswith("Task: tidy up <control mode> end effector <control mode>, State: ")
