"""What a policy sees at one time, before any preprocessing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

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


def check_state(state: ArrayLike, dim: int, width: int = 32) -> NDArray[np.float64]:
    """Return a state [..., D] as float64.

    Args:
        state: in physical units, contract order.
        dim: D of the statistics that will normalise it.
        width: the network's state width.

    Raises:
        ValueError: it is too long, has another length, or holds values that are not finite; the message names them.
    """
    values = np.asarray(state, dtype=np.float64)
    entries = values.shape[-1] if values.ndim else 0
    if entries > width:
        raise ValueError(f"a state of {entries} entries exceeds the network's {width}")
    if entries != dim:
        raise ValueError(f"a state of {entries} entries, but the statistics are of {dim}, in the order of the contract")
    if not np.isfinite(values).all():
        where = [tuple(place) for place in np.argwhere(~np.isfinite(values)).tolist()]
        raise ValueError(f"state holds values that are not finite at {where[:8]}: {values[where[0]]}")
    return values


def check_cameras(observation: Observation, cameras: Sequence[str]) -> None:
    """Refuse images of cameras that the policy does not have; missing ones are allowed and become masks.

    Raises:
        ValueError: a key is unknown; the message lists the valid ones.
    """
    unknown = sorted(observation.images.keys() - set(cameras))
    if unknown:
        raise ValueError(f"unknown cameras {unknown}; this policy has {list(cameras)}")


class Policy(Protocol):
    """Planner and action expert in one. Implemented by `pi05_model.policy.Pi05Policy`."""

    @property
    def action_shape(self) -> tuple[int, int]:
        """(H, D): steps in a chunk and entries of an action."""

    def plan(self, observation: Observation, task: str) -> str:
        """Return the next subtask for a task, such as "pick up the red cube with the left arm"."""

    def act(self, observation: Observation, subtask: str) -> NDArray[np.float32]:
        """Return a chunk of actions [H, D] in physical units; row k is due k+1 steps after the observation."""
