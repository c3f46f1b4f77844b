"""An action chunk: what a policy says, in contract units."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Chunk:
    """H actions in contract order; row k is due at `stamp_ns` + (k+1)·step (row 0 one step after the observation).

    Attributes:
        stamp_ns: time of the observation the chunk was computed from.
        names: the D entry names the chunk claims to be in.
        actions: [H, D] targets in contract units.
    """

    stamp_ns: int
    names: tuple[str, ...]
    actions: NDArray[np.float64]
