"""What a mixture hands out: one example of any source, robot or not."""

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pi05_model.observation import Image
from pi05_model.prompts import Box, ControlMode
from pi05_training.data.episode import Floats

Loss = Literal["text", "fast", "flow"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Example:
    """One example to learn from.

    Shapes: H steps of a chunk, D entries of the contract's vector.

    Attributes:
        images: uint8 RGB [H, W, 3] by model key, already fitted to the network's square and augmented.
        state: float32 [D] physical units; None without a robot (web data).
        actions: float32 [H, D] physical units; None where the source has none.
        action_is_pad: bool [H], True for steps after the end of the episode; None without actions.
        prompt: the task, or the question of a web sample.
        answer: what the planner shall say: a subtask, boxes and a subtask, a caption; None where nobody said.
        subtask: the action expert's prompt; None without actions.
        control: what the actions are targets of; None leaves it out of the prompt.
        source: index in `Mixture.sources`.
        losses: what this example can be learned with: those of its source that it has the labels for.
        action_mask: bool [D], entries of the action that this robot has (None: all); the rest is zero.
        state_mask: the same of the state.
    """

    images: dict[str, Image]
    state: Floats | None
    actions: Floats | None
    action_is_pad: Mask | None
    prompt: str
    answer: str | None
    subtask: str | None
    control: ControlMode | None
    source: int
    losses: frozenset[str]
    action_mask: Mask | None
    state_mask: Mask | None


@dataclass(frozen=True, slots=True)
class Reading:
    """What a source reads, before images are fitted and augmented.

    Attributes:
        images: uint8 RGB [H, W, 3] of any size, by model key.
        boxes: what the answer begins with, as fractions of the image `box_camera`.
        Others: as in `Example`; `answer` is without the boxes.
    """

    prompt: str
    images: dict[str, Image] = field(default_factory=dict)
    state: Floats | None = None
    actions: Floats | None = None
    action_is_pad: Mask | None = None
    answer: str | None = None
    subtask: str | None = None
    control: ControlMode | None = None
    boxes: tuple[Box, ...] = ()
    box_camera: str = ""
    action_mask: Mask | None = None
    state_mask: Mask | None = None

    def losses(self, wanted: frozenset[str]) -> frozenset[str]:
        """Return those of some losses that the labels allow."""
        without = set() if self.answer or self.boxes else {"text"}
        return wanted - without - (set() if self.actions is not None else {"fast", "flow"})
