"""The exact text of every prompt and answer.

    planner        Task: clear the table, State: 128 0 255;\\nSubtask:␣
    action expert  Task: pick up the red cube, State: 128 0 255;\\nAction:␣
    π0             pick up the red cube\\n                               (the state is a token of its own)
    π0-FAST        Task: pick up the red cube, State: 128 0 255;\\n      read in both directions
                   Action:␣ <action tokens> | <eos>                     causal, what is learned
    web data       caption en\\n
    boxes          <loc0102><loc0204><loc0306><loc0408> red cube ; pick up the red cube
    control mode   Task: pick up the red cube <control mode> joint <control mode>, State: …

The state is written as bins of the normalised vector: np.digitize(x, linspace(-1, 1, 257)[:-1]) - 1 (openpi). Values
outside [-1, 1] are clipped to bins 0 and 255; openpi and lerobot let a value below -1 print "-1", selectable with
clip=False for their checkpoints.

What `clean` does to a task depends on where a checkpoint comes from (openpi: models/tokenizer.py; lerobot: the
policies' processors): openpi lowers the case for π0-FAST and keeps newlines there, lerobot leaves π0's text alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pi05_model.normalize import Family

PolicyName = Literal["pi05", "pi0", "pi0_fast"]
ControlMode = Literal["joint", "end effector"]

BINS = 256
LOC_BINS = 1024
FAST_START, FAST_END = "Action: ", "|"
MARK = "<control mode>"
_EDGES = np.linspace(-1, 1, BINS + 1)[:-1]
_BOX = re.compile(r"\s*" + r"<loc(\d{4})>" * 4 + r" ?([^;<>]*?)\s*(?:;\s*|$)")


def state_bins(normalised: ArrayLike, clip: bool = True) -> NDArray[np.int64]:
    """Return the bin of each normalised entry: 0..255, or -1..255 without clipping.

    Raises:
        ValueError: an entry is not a number, which would read as bin 255.
    """
    values = np.asarray(normalised, dtype=np.float64)
    if np.isnan(values).any():
        raise ValueError(f"the normalised state holds NaN at {np.argwhere(np.isnan(values))[0].tolist()}: {values}")
    bins = np.digitize(values, _EDGES).astype(np.int64) - 1
    return np.maximum(bins, 0) if clip else bins


def bin_centres(bins: ArrayLike) -> NDArray[np.float64]:
    """Return the middle of each bin in [-1, 1], at most 1/256 from what `state_bins` was given."""
    return (np.asarray(bins, dtype=np.float64) + 0.5) * (2 / BINS) - 1


def clean(text: str, policy: PolicyName = "pi05", family: Family = "project") -> str:
    """Return a task as it stands in a prompt.

    By default that is one line without underscores and without blanks at the ends.

    Args:
        text: what the user or the planner said.
        policy: which prompt it goes into.
        family: where the checkpoint comes from.
    """
    if policy == "pi0" and family == "lerobot":
        return text.removesuffix("\n")
    if policy == "pi0_fast" and family == "openpi":
        return text.lower().strip().replace("_", " ")
    return text.strip().replace("_", " ").replace("\n", " ")


def planner_prompt(task: str, bins: ArrayLike | None, control: ControlMode | None = None) -> str:
    """Return the prompt that the subtask follows; `bins` None leaves the state out."""
    return f"{_task(clean(task), bins, control)}Subtask: "


def expert_prompt(subtask: str, bins: ArrayLike | None, control: ControlMode | None = None) -> str:
    """Return the prompt that the action chunk follows; `bins` None leaves the state out."""
    return f"{_task(clean(subtask), bins, control)}Action: "


def web_prompt(question: str) -> str:
    """Return the prompt of a sample without a robot (caption, question, detection): PaliGemma's text and newline."""
    return clean(question) + "\n"


def pi0_prompt(task: str, family: Family = "project") -> str:
    """Return π0's prompt: the task and a newline, which starts the answer."""
    return clean(task, "pi0", family) + "\n"


def fast_prompt(
    task: str, bins: ArrayLike | None, family: Family = "project", control: ControlMode | None = None
) -> str:
    """Return π0-FAST's prompt; the answer is `FAST_START`, action tokens, `FAST_END` and end of sequence."""
    return _task(clean(task, "pi0_fast", family), bins, control)


def fast_answer_has_bos(family: Family) -> bool:
    """Return whether a begin of sequence stands before π0-FAST's `FAST_START`: in lerobot it does, in openpi not."""
    return family == "lerobot"


def require_text(text: str, what: str) -> str:
    """Return `text`.

    Raises:
        ValueError: nothing of it is left in a prompt; `what` says what it should have been.
    """
    if not clean(text).strip():
        raise ValueError(f"{what} is empty ({text!r}); say what to do, such as 'clear the table'")
    return text


@dataclass(frozen=True)
class Box:
    """A labelled rectangle: edges as fractions of the image, 0 = top or left, 1 = bottom or right.

    Raises:
        ValueError: an edge is outside [0, 1], edges are in the wrong order, or the label holds ; < or >.
    """

    y_min: float
    x_min: float
    y_max: float
    x_max: float
    label: str = ""

    def __post_init__(self) -> None:
        edges = (self.y_min, self.x_min, self.y_max, self.x_max)
        if not (0 <= self.y_min <= self.y_max <= 1 and 0 <= self.x_min <= self.x_max <= 1):
            raise ValueError(f"box {edges} is not 0 <= min <= max <= 1: divide pixels by the height and the width")
        if re.search(r"[;<>]", self.label) or self.label != clean(self.label):
            raise ValueError(f"label {self.label!r} must be one line without ; < > or _ and blanks at its ends")


def box_text(box: Box) -> str:
    """Return <locYYYY><locXXXX><locYYYY><locXXXX> label, PaliGemma's text of a detection (1024 bins)."""
    edges = (box.y_min, box.x_min, box.y_max, box.x_max)
    locations = "".join(f"<loc{min(round(edge * LOC_BINS), LOC_BINS - 1):04d}>" for edge in edges)
    return f"{locations} {box.label}".rstrip()


def answer_text(subtask: str, boxes: Sequence[Box] = ()) -> str:
    """Return what the planner shall say: the boxes, then the subtask, joined by " ; " as PaliGemma joins detections."""
    return " ; ".join([*map(box_text, boxes), clean(subtask)])


def parse_boxes(text: str) -> tuple[list[Box], str]:
    """Return the boxes that `text` begins with, and the text after them: the inverse of `answer_text`.

    Edges come back within 1/1024. A beginning that is no whole and valid box (a network said it) is left in the text.
    """
    boxes: list[Box] = []
    while match := _BOX.match(text):
        y_min, x_min, y_max, x_max = (int(digits) / LOC_BINS for digits in match.groups()[:4])
        try:
            boxes.append(Box(y_min, x_min, y_max, x_max, match[5]))
        except ValueError:
            break
        text = text[match.end() :]
    return boxes, text.strip()


def _task(cleaned: str, bins: ArrayLike | None, control: ControlMode | None) -> str:
    mode = "" if control is None else f" {MARK} {control} {MARK}"
    state = "" if bins is None else ", State: " + " ".join(map(str, np.asarray(bins).tolist()))
    return f"Task: {cleaned}{mode}{state};\n"
