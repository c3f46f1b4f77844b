"""High-level labels (HL): frames of robot episodes with the boxes of what matters, which the planner names first.

    boxes.jsonl    {"episode": "run_7", "frame": 120, "subtask": "pick up the cup",
                    "boxes": [{"label": "cup", "box": [0.1, 0.2, 0.5, 0.6]}]}

`episode` and `frame` are those of the dataset's samples; without a subtask the dataset's own is meant.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, Field

from pi05_ros.contract import Contract
from pi05_training.data.episode import DatasetError
from pi05_training.mixture.episodes import episodes_of
from pi05_training.mixture.example import Reading
from pi05_training.mixture.lines import BoxEntry, JsonLines
from pi05_training.mixture.sources import Part, RobotOptions, RobotSource

BOXES = "boxes.jsonl"


class HighLevelLine(BaseModel):
    """The label of a frame."""

    episode: str
    frame: int = Field(ge=0)
    boxes: list[BoxEntry] = []
    subtask: str | None = None


class HighLevelSource(RobotSource):
    """Labelled frames of robot datasets; only these are drawn.

    Args:
        name, weight, losses, folders, contract, horizon, options: of `RobotSource`.
        boxes: file of the labels; None takes boxes.jsonl in the folder, of which there is then one.
        camera: model key of the image that the boxes are in.

    Raises:
        DatasetError: see `RobotSource`; a label is not valid, or of a frame that is not there.
    """

    def __init__(
        self,
        name: str,
        weight: float,
        losses: frozenset[str],
        folders: Sequence[Path],
        contract: Contract,
        horizon: int,
        options: RobotOptions | None = None,
        boxes: Path | None = None,
        camera: str = "base_0_rgb",
    ) -> None:
        self._camera = camera
        self._labelled: dict[int, HighLevelLine] = {}
        self._file = boxes
        super().__init__(name, weight, losses, folders, contract, horizon, options)

    def _check(self) -> None:
        for number, part in enumerate(self._parts):
            if self._file is None or number == 0:
                self._add(JsonLines(self._file or part.path / BOXES, HighLevelLine))
        self._keep_labelled()
        super()._check()

    def _add(self, lines: JsonLines[HighLevelLine]) -> None:
        episodes = {
            episode.name: (part.start, episode) for part in self._parts for episode in episodes_of(part.dataset)
        }
        for index in range(len(lines)):
            line = lines[index]
            if line.episode not in episodes:
                known = ", ".join(list(episodes)[:8])
                raise DatasetError(f"{lines.where(index)}: no episode {line.episode!r}; there are: {known}")
            start, episode = episodes[line.episode]
            frame = line.frame - episode.first_frame
            if not 0 <= frame < episode.stop - episode.start:
                last = episode.first_frame + episode.stop - episode.start - 1
                raise DatasetError(
                    f"{lines.where(index)}: episode {line.episode} has frames {episode.first_frame} to {last}, "
                    f"not {line.frame}"
                )
            self._labelled[start + episode.start + frame] = line

    def _keep_labelled(self) -> None:
        """Narrow every episode to its labelled frames; places count these, and an episode stays one group."""
        self._frames = np.array(sorted(self._labelled), np.int64)
        self._keep(self.members.narrowed(self._frames))

    def answers(self) -> set[str]:
        """Return what the planner is taught to say after the boxes."""
        said = {line.subtask for line in self._labelled.values() if line.subtask}
        return said if all(line.subtask for line in self._labelled.values()) else said | super().answers()

    def _says_subtasks(self) -> bool:
        return all(line.subtask for line in self._labelled.values()) or super()._says_subtasks()

    def _part(self, place: int) -> tuple[Part, int]:
        return super()._part(int(self._frames[place]))

    def _read(self, place: int) -> Reading:
        reading, line = super()._read(place), self._labelled[int(self._frames[place])]
        return dataclasses.replace(
            reading,
            answer=line.subtask or reading.answer,
            subtask=line.subtask or reading.subtask,
            boxes=tuple(entry.to_box() for entry in line.boxes),
            box_camera=self._camera,
        )
