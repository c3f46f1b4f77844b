"""What the mixture has to know of a dataset beyond its samples, whatever its layout: episodes, texts, entries, rate."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from pi05_training.data.episode import Dataset
from pi05_training.data.folder import FolderDataset
from pi05_training.data.lerobot import LeRobotDataset
from pi05_training.data.spread import spread
from pi05_training.samples import EpisodeFiles

# Episodes whose texts are looked at; those of a video dataset have to be read for it.
_LOOKED_AT = 32


@dataclass(frozen=True, slots=True)
class Episode:
    """An episode of a dataset: its samples are [start, stop), and the first one is frame `first_frame`.

    `outcome` is "success", "failure" or "" when nobody said.
    """

    name: str
    start: int
    stop: int
    first_frame: int = 0
    outcome: str = ""


def episodes_of(dataset: Dataset) -> list[Episode]:
    """Return the episodes of a dataset, in order and without gaps; one of unknown kind is a single episode."""
    if isinstance(dataset, LeRobotDataset):
        return [Episode(e.name, e.start, e.start + e.length, 0, e.outcome) for e in dataset.episodes]
    if isinstance(dataset, EpisodeFiles):
        stops = np.cumsum(dataset.lengths).tolist()
        files = zip(dataset.files, dataset.lengths, stops, strict=True)
        return [Episode(path.stem, stop - length, stop) for path, length, stop in files]
    if isinstance(dataset, FolderDataset):
        return list(_of_runs(dataset))
    return [Episode("all", 0, len(dataset))]


def says_subtasks(dataset: Dataset) -> bool:
    """Return whether some sample has a subtask that is more than its task said again."""
    return any(answer and answer != task for task, answer in _texts(dataset))


def answers_of(dataset: Dataset) -> set[str]:
    """Return the different subtasks of all episodes."""
    return {answer for _, answer in _texts(dataset, most=None) if answer}


def entry_names(dataset: Dataset) -> tuple[str, ...]:
    """Return the names of the entries of a state; none where the dataset does not tell."""
    if isinstance(dataset, LeRobotDataset):
        return dataset.names
    if isinstance(dataset, FolderDataset):
        state, _ = dataset.labels(0)
        return dataset.contract.names if len(state) == dataset.contract.dim else ()
    return ()


def frame_rate(dataset: Dataset) -> float | None:
    """Return the frames per second [Hz], where the dataset tells."""
    if isinstance(dataset, LeRobotDataset):
        return dataset.fps
    return dataset.contract.rates.action_hz if isinstance(dataset, FolderDataset) else None


def _of_runs(dataset: FolderDataset) -> Iterator[Episode]:
    start = 0
    for name, group in groupby(dataset.runs, key=lambda run: run.episode):
        runs = list(group)
        stop = start + sum(run.frames for run in runs)
        yield Episode(name, start, stop, runs[0].first_frame, runs[0].outcome)
        start = stop


def _texts(dataset: Dataset, most: int | None = _LOOKED_AT) -> Iterator[tuple[str, str]]:
    """Yield task and subtask of stretches of a dataset (`most`: of so many episodes), without images if possible."""
    if isinstance(dataset, FolderDataset):
        for run in dataset.runs:
            yield run.instruction.task, run.instruction.subtask
    elif isinstance(dataset, EpisodeFiles):
        for number in spread(len(dataset.files), most):
            yield from dataset.texts(number)
    elif isinstance(dataset, LeRobotDataset):
        for number in spread(len(dataset.episodes), most):
            task = " ".join(dataset.episodes[number].tasks)
            for span in dataset.spans(number):
                yield task, span.text
    else:
        for index in spread(len(dataset), most):
            sample = dataset[index]
            yield sample.task, sample.subtask
