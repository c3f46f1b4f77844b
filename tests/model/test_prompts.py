"""The exact text of prompts and answers, by policy and by where a checkpoint comes from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pi05_model.prompts import (
    BINS,
    FAST_END,
    FAST_START,
    Box,
    answer_text,
    bin_centres,
    box_text,
    clean,
    expert_prompt,
    fast_answer_has_bos,
    fast_prompt,
    parse_boxes,
    pi0_prompt,
    planner_prompt,
    require_text,
    state_bins,
)
from pi05_model.tokenizer import PolicyTokenizer

STATE = np.array([0, 128, 255])
MESSY = " Pick_up the\nRed cube "


def test_planner_and_expert() -> None:
    assert planner_prompt(MESSY, STATE) == "Task: Pick up the Red cube, State: 0 128 255;\nSubtask: "
    assert expert_prompt("open the gripper", STATE) == "Task: open the gripper, State: 0 128 255;\nAction: "
    assert expert_prompt("open the gripper", None) == "Task: open the gripper;\nAction: "


@pytest.mark.parametrize(
    ("family", "pi0", "fast"),
    [
        ("project", "Pick up the Red cube\n", "Pick up the Red cube"),
        ("openpi", "Pick up the Red cube\n", "pick up the\nred cube"),
        ("lerobot", " Pick_up the\nRed cube \n", "Pick up the Red cube"),
    ],
)
def test_other_policies(family: str, pi0: str, fast: str) -> None:
    assert pi0_prompt(MESSY, family) == pi0
    assert pi0_prompt(MESSY.strip() + "\n", family).count("\n") == (2 if family == "lerobot" else 1)
    assert fast_prompt(MESSY, STATE, family) == f"Task: {fast}, State: 0 128 255;\n"
    assert fast_answer_has_bos(family) == (family == "lerobot")
    assert clean(MESSY, "pi05", family) == "Pick up the Red cube"


def test_prefix_and_start_of_fast_are_the_experts_prompt() -> None:
    """π0.5 is trained on FAST tokens behind the same words."""
    assert fast_prompt("stop", STATE) + FAST_START == expert_prompt("stop", STATE)
    assert FAST_END == "|"


def test_control_mode_stands_before_the_state() -> None:
    prompt = expert_prompt("stop", STATE, "joint")
    assert prompt == "Task: stop <control mode> joint <control mode>, State: 0 128 255;\nAction: "
    assert "<control mode> end effector <control mode>" in planner_prompt("stop", None, "end effector")
    tokenizer = PolicyTokenizer.default()
    assert tokenizer.decode(tokenizer.encode([prompt])[0]) == prompt


def test_state_bins() -> None:
    values = [-7.0, -1.0001, -1.0, 0.0, 0.9999, 1.0, 7.0]
    assert state_bins(values).tolist() == [0, 0, 0, 128, 255, 255, 255]
    assert state_bins(values, clip=False).tolist() == [-1, -1, 0, 128, 255, 255, 255]
    assert expert_prompt("stop", state_bins([-7.0], clip=False)) == "Task: stop, State: -1;\nAction: "
    with pytest.raises(ValueError, match=r"NaN at \[1\]"):
        state_bins([0.0, np.nan])


@given(hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1, 1)))
def test_bins_are_openpis_and_centres_are_near(values: np.ndarray) -> None:
    bins = state_bins(values)
    assert bins.tolist() == (np.digitize(values, np.linspace(-1, 1, 257)[:-1]) - 1).tolist()
    assert bins.min() >= 0 and bins.max() < BINS
    assert np.abs(bin_centres(bins) - values).max() <= 1 / BINS + 1e-12
    assert state_bins(bin_centres(bins)).tolist() == bins.tolist()


@pytest.mark.parametrize("text", ["", "  ", "\n", "__"])
def test_an_empty_task_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="the task is empty"):
        require_text(text, "the task")
    assert require_text(" stop", "the task") == " stop"


fractions = st.floats(0, 1)
labels = st.text(st.characters(categories=["Ll", "Lu", "Nd"]), max_size=12)
boxes = st.builds(
    lambda y, x, label: Box(min(y), min(x), max(y), max(x), label),
    st.tuples(fractions, fractions),
    st.tuples(fractions, fractions),
    labels,
)


def test_box_text() -> None:
    assert box_text(Box(0, 0.25, 0.5, 1, "red cube")) == "<loc0000><loc0256><loc0512><loc1023> red cube"
    assert box_text(Box(0, 0, 0, 0)) == "<loc0000><loc0000><loc0000><loc0000>"


@given(st.lists(boxes, max_size=4), st.sampled_from(["pick up the red cube", "stop", ""]))
def test_boxes_come_back(given_boxes: list[Box], subtask: str) -> None:
    text = answer_text(subtask, given_boxes)
    found, rest = parse_boxes(text)
    assert rest == subtask and len(found) == len(given_boxes)
    for box, again in zip(given_boxes, found, strict=True):
        edges = np.array([[b.y_min, b.x_min, b.y_max, b.x_max] for b in (box, again)])
        assert np.abs(edges[0] - edges[1]).max() <= 1 / 1024
        assert again.label == box.label
    # A second way through changes nothing.
    assert answer_text(rest, found) == text


@pytest.mark.parametrize(
    "text",
    [
        "pick up the red cube",
        "<loc0001><loc0002><loc0003> three edges",
        "<loc0900><loc0002><loc0003><loc0004> top below bottom ; stop",
        "<loc1024><loc1024><loc1030><loc1031> outside ; stop",
    ],
)
def test_what_is_no_box_stays_text(text: str) -> None:
    assert parse_boxes(text) == ([], text)


@pytest.mark.parametrize(
    "edges", [(-0.1, 0, 1, 1), (0, 0, 1, 1.1), (0.5, 0, 0.4, 1), (0, 0, np.nan, 1), (10, 20, 90, 80)]
)
def test_a_box_in_pixels_is_refused(edges: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="divide pixels"):
        Box(*edges)


@pytest.mark.parametrize("label", ["a;b", "<loc0001>", " cube", "red_cube", "two\nlines"])
def test_a_label_that_would_not_come_back_is_refused(label: str) -> None:
    with pytest.raises(ValueError, match="label"):
        Box(0, 0, 1, 1, label)
