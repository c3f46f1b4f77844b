"""The words of tasks and subtasks, and when a task has succeeded."""

from dataclasses import replace

import numpy as np
import pytest

from pi05_ros.sim.tasks import Subtask, remaining_objects, subtasks_for, task_success, tasks_for
from pi05_ros.sim.world import ObjectState, WorldState

NAMES = ("red cube", "blue block")


def item(name: str, in_bin: bool = False, held_by: str | None = None) -> ObjectState:
    colour, shape = name.split()
    return ObjectState(name, colour, shape, np.zeros(3), 0.0, np.full(3, 0.02), in_bin, held_by)


def world(*objects: ObjectState) -> WorldState:
    return WorldState(
        0, np.zeros(3), np.zeros(3), np.zeros(15), np.zeros(15), objects, np.zeros(3), np.zeros(2), 0.75, np.zeros(3)
    )


def test_every_subtask_is_read_back_from_its_words() -> None:
    subtasks = subtasks_for(NAMES)
    assert len({s.text for s in subtasks}) == len(subtasks) == 1 + 2 * 2 + 2 + 1
    assert [Subtask.parse(s.text) for s in subtasks] == list(subtasks)
    assert Subtask("pick", "red cube", "left").text == "pick up the red cube with the left arm"


@pytest.mark.parametrize(
    "text", ["", "pick up the red cube", "put the cube in the bin", "Wait", "wait\n", "x" * 10_000]
)
def test_other_words_are_refused_with_the_valid_forms(text: str) -> None:
    with pytest.raises(
        ValueError, match="is no subtask; valid: 'drive to the table', 'wait', 'pick up the <colour>"
    ) as told:
        Subtask.parse(text)
    assert len(str(told.value)) < 500


@pytest.mark.parametrize(
    "wrong", [("pick", "red cube"), ("pick", "", "left"), ("put",), ("drive", "red cube"), ("fly",)]
)
def test_a_subtask_has_what_its_verb_needs(wrong: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"pick and put need|pick needs|is unknown; valid: drive"):
        Subtask(*wrong)  # type: ignore[arg-type]


def test_clearing_the_table_takes_every_object_and_empty_hands() -> None:
    table, binned = item("red cube"), item("red cube", in_bin=True)
    other = item("blue block", in_bin=True)
    assert not task_success(world(table, other), "clear the table")
    assert not task_success(world(replace(binned, held_by="left"), other), "clear the table")
    assert task_success(world(binned, other), "clear the table")
    assert remaining_objects(world(table, other), "clear the table") == (table,)


def test_a_task_about_one_object_takes_that_object_alone() -> None:
    red, blue = item("red cube", in_bin=True), item("blue block")
    _, put_red, put_blue = tasks_for(NAMES)
    assert task_success(world(red, blue), put_red)
    assert not task_success(world(red, blue), put_blue)
    with pytest.raises(KeyError, match="no object 'green cube' in the scene; there are: red cube, blue block"):
        task_success(world(red, blue), "put the green cube in the bin")
    with pytest.raises(ValueError, match="'make coffee' is no task; valid: 'clear the table'"):
        task_success(world(red, blue), "make coffee")
