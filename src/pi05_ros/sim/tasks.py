"""What the robot can be asked to do in simulation: tasks, their subtasks, and when a task has succeeded.

The wording of every task and subtask is here and nowhere else.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from pi05_ros.sim.world import ObjectState, WorldState

Verb = Literal["drive", "pick", "put", "wait"]
SIDES = ("left", "right")
COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("cube", "cylinder", "block")
CLEAR_TABLE = "clear the table"

_PICK = re.compile(r"pick up the (?P<name>\w+ \w+) with the (?P<side>left|right) arm")
_PUT = re.compile(r"put the (?P<name>\w+ \w+) in the bin")
_FIXED: dict[Verb, str] = {"drive": "drive to the table", "wait": "wait"}


@dataclass(frozen=True, slots=True)
class Subtask:
    """One step of a task.

    Attributes:
        verb: what is done.
        object_name: with what, such as "red cube" (pick and put only).
        side: with which arm (pick only).
    """

    verb: Verb
    object_name: str = ""
    side: str = ""

    def __post_init__(self) -> None:
        if self.verb not in get_args(Verb):
            raise ValueError(f"verb {self.verb!r} is unknown; valid: {', '.join(get_args(Verb))}")
        if bool(self.object_name) != (self.verb in ("pick", "put")):
            raise ValueError(f"{self.verb!r} with object {self.object_name!r}: pick and put need one, others have none")
        if (self.verb == "pick") != (self.side in SIDES) or (self.verb != "pick" and self.side):
            raise ValueError(
                f"{self.verb!r} with side {self.side!r}: pick needs one of {', '.join(SIDES)}, others none"
            )

    @property
    def text(self) -> str:
        """The subtask in words, as planner and action expert exchange it."""
        if self.verb == "pick":
            return f"pick up the {self.object_name} with the {self.side} arm"
        if self.verb == "put":
            return put_text(self.object_name)
        return _FIXED[self.verb]

    @classmethod
    def parse(cls, text: str) -> "Subtask":
        """Read a subtask from its words.

        Raises:
            ValueError: not a subtask; lists the forms that are.
        """
        for verb, words in _FIXED.items():
            if text == words:
                return cls(verb)
        if match := _PICK.fullmatch(text):
            return cls("pick", match["name"], match["side"])
        if match := _PUT.fullmatch(text):
            return cls("put", match["name"])
        raise ValueError(
            f"{text[:80]!r} is no subtask; valid: {', '.join(map(repr, _FIXED.values()))}, "
            "'pick up the <colour> <shape> with the left|right arm', 'put the <colour> <shape> in the bin'"
        )


@dataclass(frozen=True, slots=True)
class Task:
    """Something to ask for.

    Attributes:
        text: the task in words.
        wanted: whether an object has to end up in the bin.
    """

    text: str
    wanted: Callable[[ObjectState], bool]

    def remaining(self, world: WorldState) -> tuple[ObjectState, ...]:
        """Return the wanted objects that are not yet in the bin, or still in a hand."""
        return tuple(o for o in world.objects if self.wanted(o) and not (o.in_bin and o.held_by is None))

    def success(self, world: WorldState) -> bool:
        """Return whether every wanted object lies in the bin and both hands are empty."""
        return not self.remaining(world) and all(o.held_by is None for o in world.objects)


def put_text(object_name: str) -> str:
    """Return the words for putting one object into the bin; as a task they ask for that object alone."""
    return f"put the {object_name} in the bin"


def parse_task(text: str) -> Task:
    """Return the task that a text asks for: "clear the table" or "put the <colour> <shape> in the bin".

    Raises:
        ValueError: not a task; lists the forms that are.
    """
    if text == CLEAR_TABLE:
        return Task(text, lambda _: True)
    if match := _PUT.fullmatch(text):
        name = match["name"]
        return Task(text, lambda item: item.name == name)
    raise ValueError(f"{text[:80]!r} is no task; valid: {CLEAR_TABLE!r}, 'put the <colour> <shape> in the bin'")


def tasks_for(object_names: Sequence[str]) -> tuple[str, ...]:
    """List the tasks that make sense with these objects."""
    return (CLEAR_TABLE, *(put_text(name) for name in object_names))


def subtasks_for(object_names: Sequence[str]) -> tuple[Subtask, ...]:
    """List every subtask that may occur with these objects."""
    picks = [Subtask("pick", name, side) for name in object_names for side in SIDES]
    puts = [Subtask("put", name) for name in object_names]
    return (Subtask("drive"), *picks, *puts, Subtask("wait"))


def remaining_objects(world: WorldState, task: str) -> tuple[ObjectState, ...]:
    """Return the objects that a task still wants in the bin.

    Raises:
        ValueError: not a task.
        KeyError: the task names an object that is not in the scene.
    """
    return _task_in(world, task).remaining(world)


def task_success(world: WorldState, task: str) -> bool:
    """Return whether a task is done: its objects in the bin, both hands empty.

    Raises:
        ValueError: not a task.
        KeyError: the task names an object that is not in the scene.
    """
    return _task_in(world, task).success(world)


def _task_in(world: WorldState, text: str) -> Task:
    if match := _PUT.fullmatch(text):
        world.object(cast(str, match["name"]))
    return parse_task(text)
