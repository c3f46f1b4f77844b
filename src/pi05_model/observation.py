"""What a policy sees at one time, before any preprocessing."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Observation:
    """One synchronised look at the robot.

    Attributes:
        stamp_ns: capture time.
        images: RGB images uint8 [H, W, 3] by model key ("base_0_rgb", …); a camera that is absent or stale is
            left out and becomes a masked image.
        state: float [D] in physical units, contract order.
    """

    stamp_ns: int
    images: dict[str, Image]
    state: NDArray[np.float64]


class Policy(Protocol):
    """Planner and action expert in one. Implemented by `pi05_model.policy.Pi05Policy`."""

    @property
    def action_shape(self) -> tuple[int, int]:
        """(H, D): steps in a chunk and entries of an action."""

    def plan(self, observation: Observation, task: str) -> str:
        """Return the next subtask for a task, such as "pick up the red cube with the left arm"."""

    def act(self, observation: Observation, subtask: str) -> NDArray[np.float32]:
        """Return a chunk of actions [H, D] in physical units; row k is due k+1 steps after the observation."""
