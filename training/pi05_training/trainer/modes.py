"""What a training run trains: the modes of `pi05 train`.

| mode          | text | FAST tokens  | flow (alpha) | untouched |
|---------------|------|--------------|--------------|-----------|
| hierarchical  | yes  | when asked   | 10           |           |
| planner       | yes  | when asked   | no           | expert    |
| action-expert | no   | no           | 10           | VLM       |
| pretrain      | yes  | yes          | no           | expert    |
| posttrain     | yes  | when asked   | 10           |           |

Source: seed documents 000 and 002; arXiv 2504.16054, section IV.
"""

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

ModeName = Literal["hierarchical", "planner", "action-expert", "pretrain", "posttrain"]

VLM = ("vision.*", "embed.*", "vlm.*")
EXPERT = ("expert.*", "action_*", "time_*", "state_*", "condition.*")


@dataclass(frozen=True)
class Mode:
    """One mode.

    Attributes:
        text: train the planner's answers.
        fast: train action tokens: always, never, or (None) when asked.
        alpha: weight of the flow loss; 0 leaves the action expert out.
        frozen: patterns of the parameters that stay as they are.
    """

    text: bool
    fast: bool | None
    alpha: float
    frozen: tuple[str, ...] = ()

    @property
    def flow(self) -> bool:
        """Whether the action expert is trained."""
        return self.alpha != 0


MODES: dict[ModeName, Mode] = {
    "hierarchical": Mode(text=True, fast=None, alpha=10.0),
    "planner": Mode(text=True, fast=None, alpha=0.0, frozen=EXPERT),
    "action-expert": Mode(text=False, fast=False, alpha=10.0, frozen=VLM),
    "pretrain": Mode(text=True, fast=True, alpha=0.0, frozen=EXPERT),
    "posttrain": Mode(text=True, fast=None, alpha=10.0),
}


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a parameter's name fits one of the patterns (shell style: "expert.*")."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
