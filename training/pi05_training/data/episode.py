"""What a dataset is made of, whatever its layout on disk: frames going in, samples coming out.

Frames stand on a regular grid (`Contract.rates.action_hz`). Images stay the JPEG bytes that the robot's cameras sent;
only a video layout encodes them again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pi05_model.observation import Image

Floats = NDArray[np.float32]


class DatasetError(ValueError):
    """A dataset cannot be read or written; the message names the file, what is wrong and what is expected."""


@dataclass(frozen=True, slots=True)
class EpisodeInfo:
    """What holds for a whole episode.

    Attributes:
        name: of the bag it came from; unique within a dataset.
        task: what the operator asked for, such as "clear the table".
        outcome: "success", "failure" or "" when nobody said.
        fps: frames per second.
    """

    name: str
    task: str
    outcome: str
    fps: float


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame on the grid.

    Attributes:
        stamp_ns: time of the frame.
        images: JPEG bytes by the contract's camera name; a camera without a fresh image is left out.
        state: [D] physical units, contract order.
        action: [D] what was commanded for one step after `stamp_ns`.
        subtask: what is being carried out; "" when nobody said.
    """

    stamp_ns: int
    images: Mapping[str, bytes]
    state: Floats
    action: Floats
    subtask: str


@dataclass(frozen=True, slots=True)
class SubtaskSpan:
    """A stretch of an episode with one subtask.

    Attributes:
        start, stop: frames [start, stop) of a dataset's episode, or stamps [ns] of a recording.
        text: what is carried out; "" when nobody said.
    """

    start: int
    stop: int
    text: str


class EpisodeWriter(Protocol):
    """Writes one episode of a dataset, frame by frame, in constant memory. It appears when `close` returns, whole."""

    def add(self, frame: Frame) -> None:
        """Append a frame."""

    def close(self) -> None:
        """Finish the episode and give it its place."""

    def discard(self) -> None:
        """Throw away what was written."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One training sample.

    Attributes:
        images: decoded RGB images uint8 [H, W, 3] by model key; a missing camera is left out.
        state: float32 [D] physical units, contract order.
        actions: float32 [H, D]; row k is due k + 1 steps after the frame. Rows after the end repeat the last one.
        action_is_pad: bool [H], True for those.
        task: high-level task.
        subtask: what the actions carry out.
        text: the original low-level instruction where there is one, else the subtask.
        episode, frame: where it came from.
    """

    images: dict[str, Image]
    state: Floats
    actions: Floats
    action_is_pad: NDArray[np.bool_]
    task: str
    subtask: str
    text: str
    episode: str
    frame: int


class Dataset(Protocol):
    """Random access to the samples of a dataset. Safe to use from several processes after a fork or a pickle."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, index: int) -> Sample:
        """Return one sample."""

    def labels(self, index: int) -> tuple[Floats, Floats]:
        """Return state [D] and actions [H, D] of a sample without touching its images."""


class Trajectories(Protocol):
    """A dataset whose episodes can be read as a whole, without images, for statistics."""

    def trajectories(self, first: int = 0, step: int = 1) -> Iterator[tuple[Floats, Floats]]:
        """Yield state [T, D] and action [T, D] of the episodes first, first + step, …

        Row t + k of the action is row k of the chunk of frame t.
        """
