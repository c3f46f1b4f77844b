"""The exact text of every prompt.

    planner        Task: clear the table, State: 128 0 255;\\nSubtask:␣
    action expert  Task: pick up the red cube, State: 128 0 255;\\nAction:␣

The state is written as bins of the normalised vector: np.digitize(x, linspace(-1, 1, 257)[:-1]) - 1 (openpi). Values
outside [-1, 1] are clipped to bins 0 and 255; openpi and lerobot let a value below -1 print "-1", selectable with
clip=False for their checkpoints.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

BINS = 256
_EDGES = np.linspace(-1, 1, BINS + 1)[:-1]


def state_bins(normalised: ArrayLike, clip: bool = True) -> NDArray[np.int64]:
    """Return the bin of each normalised entry: 0..255, or -1..255 without clipping."""
    bins = np.digitize(np.asarray(normalised, dtype=np.float64), _EDGES).astype(np.int64) - 1
    return np.maximum(bins, 0) if clip else bins


def clean(text: str) -> str:
    """Return a task as it stands in a prompt: one line, no underscores, no blanks at the ends."""
    return text.strip().replace("_", " ").replace("\n", " ")


def planner_prompt(task: str, bins: ArrayLike | None) -> str:
    """Return the prompt that the subtask follows; `bins` None leaves the state out."""
    return f"Task: {clean(task)}{_state(bins)};\nSubtask: "


def expert_prompt(subtask: str, bins: ArrayLike | None) -> str:
    """Return the prompt that the action chunk follows; `bins` None leaves the state out."""
    return f"Task: {clean(subtask)}{_state(bins)};\nAction: "


def _state(bins: ArrayLike | None) -> str:
    if bins is None:
        return ""
    return ", State: " + " ".join(map(str, np.asarray(bins).tolist()))
