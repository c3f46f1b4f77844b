"""Subtask labels of a folder dataset that was written here: an episode's runs are cut anew along other spans.

Images are hard links to the files that are there (copies where the file system knows no links); none is opened.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from pi05_model.observation import Image
from pi05_training.data.episode import DatasetError, SubtaskSpan
from pi05_training.data.folder import FolderDataset, Run
from pi05_training.data.folder_writer import (
    ACTIONS,
    DATASET,
    RUN,
    STAGING,
    STAMPS,
    STATES,
    FolderWriter,
    episode_files,
    read_json,
    write_json,
)
from pi05_training.data.label import FileJournal, Spans

JOURNAL = "meta/label_journal.jsonl"


class FolderLabels:
    """The spans of a folder dataset (`LabelStore`).

    Raises:
        DatasetError: the dataset was not written here; its folders are its labels.
    """

    def __init__(self, root: Path) -> None:
        if not (root / DATASET).exists():
            raise DatasetError(
                f"{root}: no {DATASET}, so it was not written by `pi05 convert`; the labels of such a dataset are the "
                "names of its folders and its instruction JSON: change those"
            )
        self._root = root
        self._dataset = FolderDataset(root)
        self.journal = FileJournal(root / JOURNAL)

    def episodes(self) -> list[str]:
        """Return the names of the episodes."""
        return [read_json(path)["name"] for path in episode_files(self._root)]

    def rate(self, episode: str) -> float:
        """Return frames per second."""
        return float(self._dataset.contract.rates.action_hz)

    def spans(self, episode: str) -> Spans:
        """Return the spans of an episode."""
        runs = self._runs(episode)
        return [SubtaskSpan(r.first_frame, r.first_frame + r.frames, r.instruction.subtask) for r in runs]

    def write(self, episode: str, spans: Spans) -> None:
        """Replace the spans of an episode."""
        about = next(a for path in episode_files(self._root) if (a := read_json(path))["name"] == episode)
        staged = self._root / STAGING / quote(f"{episode}.labels", safe="")
        shutil.rmtree(staged, ignore_errors=True)
        runs = self._runs(episode)
        about["runs"] = [_cut(staged / f"{number:04d}", runs, span) for number, span in enumerate(spans)]
        write_json(staged / "episode.json", about)
        FolderWriter(self._root, self._dataset.contract, self._dataset.layout).commit(staged, replace=True)
        self._dataset = FolderDataset(self._root)

    def images(self, episode: str, ticks: Sequence[int]) -> list[dict[str, Image]]:
        """Return the images of some frames."""
        names = {camera.model_key: name for name, camera in self._dataset.contract.cameras.items()}
        start = sum(run.frames for run in self._dataset.runs[: self._dataset.runs.index(self._runs(episode)[0])])
        samples = [self._dataset[start + tick] for tick in ticks]
        return [{names.get(key, key): image for key, image in sample.images.items()} for sample in samples]

    def _runs(self, episode: str) -> list[Run]:
        return [run for run in self._dataset.runs if run.episode == episode]


def _cut(folder: Path, runs: Sequence[Run], span: SubtaskSpan) -> dict[str, Any]:
    """Make the run of a span from the runs that are there; return its line in the episode's file."""
    folder.mkdir(parents=True)
    parts = [(run, max(span.start - run.first_frame, 0), min(span.stop - run.first_frame, run.frames)) for run in runs]
    parts = [(run, begin, end) for run, begin, end in parts if begin < end]
    for name in (STATES, ACTIONS, STAMPS):
        arrays = [np.load(run.folder / name, mmap_mode="r")[begin:end] for run, begin, end in parts]
        np.save(folder / name, np.concatenate(arrays))
    missing: dict[str, list[list[int]]] = {}
    for camera in dict.fromkeys(name for run, _, _ in parts for name in _cameras(run)):
        gone = _link(folder / camera, parts, camera)
        if gone:
            missing[camera] = gone
    about = {**read_json(parts[0][0].folder / RUN), "first_frame": span.start, "frames": span.stop - span.start}
    write_json(folder / RUN, {**about, "subtask": span.text, "missing_images": missing})
    return {"path": folder.name, "subtask": span.text, "frames": span.stop - span.start}


def _cameras(run: Run) -> list[str]:
    """Return the cameras of a run, those without any image as well."""
    return [*run.images, *read_json(run.folder / RUN).get("missing_images", {})]


def _link(target: Path, parts: Sequence[tuple[Run, int, int]], camera: str) -> list[list[int]]:
    """Link the images of a camera under their new numbers; return the [first, end) spans that have none."""
    files = [
        run.folder / camera / name if (name := (run.images.get(camera) or [None] * run.frames)[k]) else None
        for run, begin, end in parts
        for k in range(begin, end)
    ]
    missing: list[list[int]] = []
    for number, source in enumerate(files):
        if source is not None:
            target.mkdir(exist_ok=True)
            _same(source, target / f"{number:06d}.jpg")
        elif missing and missing[-1][1] == number:
            missing[-1][1] = number + 1
        else:
            missing.append([number, number + 1])
    return missing


def _same(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
