"""Reading a folder dataset, whoever wrote it, in either layout (see folder_writer.py and instructions.py).

Arrays are memory-mapped and images decoded on access. In a dataset written here the runs of one episode follow each
other: a chunk of actions goes on into the next run, as it did on the robot, and ends with the episode. In a dataset
without `frames.json` every run stands alone. What is missing is an error that names the folder and the key.
"""

import bisect
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pi05_model.observation import Image
from pi05_ros.contract import Contract, load_contract
from pi05_ros.messages import MessageError, decode_jpeg
from pi05_training.data.episode import DatasetError, Floats, Sample
from pi05_training.data.folder_writer import (
    ACTIONS,
    DATASET,
    RUN,
    STATES,
    Layout,
    episode_files,
    read_json,
    stack_missing,
)
from pi05_training.data.instructions import Instruction, Instructions, find_instructions

_STAGE = re.compile(r"stage_?(\d+)", re.IGNORECASE)
_OPEN_RUNS = 64


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        folder: where it lies.
        instruction: what it carries out.
        episode, first_frame: which episode it belongs to, and the number of its first frame there.
        frames: T.
        dims: columns of qpos.npy and actions.npy.
        images: files by camera, one per frame; None where the image is missing.
        outcome: "success", "failure" or "".
    """

    folder: Path
    instruction: Instruction
    episode: str
    first_frame: int
    frames: int
    dims: tuple[int, int]
    images: dict[str, Sequence[str | None]] = field(repr=False)
    outcome: str = ""


class FolderDataset:
    """Random access to the samples of a folder dataset (`Dataset`). Can be pickled.

    Args:
        root: folder of the dataset.
        instructions: instruction JSON; None looks in the root.
        cameras: cameras to decode; None takes all.
        chunk_steps: H; None takes the contract's.
        skip_damaged: share of the runs that may be damaged: they are left out and named in `damaged`.

    Attributes:
        damaged: what is wrong with the runs that were left out.

    Raises:
        DatasetError: something is missing or does not fit; names the folder and the key.
    """

    def __init__(
        self,
        root: Path | str,
        instructions: Path | None = None,
        cameras: Sequence[str] | None = None,
        chunk_steps: int | None = None,
        skip_damaged: float = 0.0,
    ) -> None:
        self.root = Path(root)
        described = self.root / DATASET
        about = read_json(described) if described.exists() else {}
        self.contract = _contract(described, about)
        self.layout = about.get("layout") or layout_of(self.root)
        self._steps = chunk_steps or self.contract.rates.chunk_steps
        self._keys = {name: camera.model_key for name, camera in self.contract.cameras.items()}
        told = find_instructions(self.root, instructions)
        folders = _listed_runs(self.root) if about else _found_runs(self.root, self.layout)
        self.runs: list[Run] = []
        self.damaged: list[str] = []
        for folder in folders:
            try:
                self.runs.append(_read_run(self.root, folder, self.layout, told))
            except DatasetError as error:
                self.damaged.append(str(error))
        if len(self.damaged) > skip_damaged * len(folders):
            more = f" (and {len(self.damaged) - 1} more of {len(folders)} runs)" if len(self.damaged) > 1 else ""
            raise DatasetError(self.damaged[0] + more)
        if not self.runs:
            raise DatasetError(f"{self.root}: no run_* folder in it")
        self.cameras = self._choose(cameras)
        self._ends = list(accumulate(run.frames for run in self.runs))
        self._open: OrderedDict[int, tuple[Any, Any]] = OrderedDict()
        _check_dims(self.runs)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        """Return one sample.

        Raises:
            IndexError: no such sample.
            DatasetError: an image cannot be decoded; names the file.
        """
        number, frame = self._locate(index)
        run = self.runs[number]
        state, actions, is_pad = self._arrays(number, frame)
        return Sample(
            images=self._images(run, frame),
            state=state,
            actions=actions,
            action_is_pad=is_pad,
            task=run.instruction.task,
            subtask=run.instruction.subtask,
            text=run.instruction.text,
            episode=run.episode,
            frame=run.first_frame + frame,
        )

    def labels(self, index: int) -> tuple[Floats, Floats]:
        """Return state [D] and actions [H, D] of a sample without touching its images."""
        state, actions, _ = self._arrays(*self._locate(index))
        return state, actions

    def trajectories(self, first: int = 0, step: int = 1) -> Iterator[tuple[Floats, Floats]]:
        """Yield state [T, D] and action [T, D] of the episodes first, first + step, …"""
        starts = [number for number in range(len(self.runs)) if number == 0 or not self._goes_on(number - 1)]
        for begin, end in list(pairwise([*starts, len(self.runs)]))[first::step]:
            files = [self._files(number) for number in range(begin, end)]
            states, actions = ([np.asarray(pair[k], np.float32) for pair in files] for k in (0, 1))
            yield np.concatenate(states), np.concatenate(actions)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open files behind."""
        return {**self.__dict__, "_open": OrderedDict()}

    def _choose(self, wanted: Sequence[str] | None) -> tuple[str, ...]:
        there = list(dict.fromkeys(camera for run in self.runs for camera in run.images))
        unknown = [camera for camera in wanted or () if camera not in there]
        if unknown:
            raise DatasetError(f"{self.root}: no camera {', '.join(unknown)}; it has: {', '.join(there)}")
        return tuple(there if wanted is None else wanted)

    def _locate(self, index: int) -> tuple[int, int]:
        wanted = index + len(self) if index < 0 else index
        if not 0 <= wanted < len(self):
            raise IndexError(f"{self.root}: no sample {index}; it has {len(self)}")
        number = bisect.bisect_right(self._ends, wanted)
        return number, wanted - self._ends[number] + self.runs[number].frames

    def _files(self, number: int) -> tuple[Any, Any]:
        found = self._open.pop(number, None)
        if found is None:
            folder = self.runs[number].folder
            found = tuple(np.load(folder / name, mmap_mode="r") for name in (STATES, ACTIONS))
        self._open[number] = found
        if len(self._open) > _OPEN_RUNS:
            self._open.popitem(last=False)
        return found

    def _arrays(self, number: int, frame: int) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        states, actions = self._files(number)
        state = np.array(states[frame], np.float32)
        rows = [np.asarray(actions[frame : frame + self._steps], np.float32)]
        have, following = len(rows[0]), number
        while have < self._steps and self._goes_on(following):
            following += 1
            rows.append(np.asarray(self._files(following)[1][: self._steps - have], np.float32))
            have += len(rows[-1])
        if have < self._steps:
            rows.append(np.repeat(rows[-1][-1:], self._steps - have, axis=0))
        return state, np.concatenate(rows), np.arange(self._steps) >= have

    def _goes_on(self, number: int) -> bool:
        if number + 1 >= len(self.runs):
            return False
        run, following = self.runs[number], self.runs[number + 1]
        return run.episode == following.episode and run.first_frame + run.frames == following.first_frame

    def _images(self, run: Run, frame: int) -> dict[str, Image]:
        images: dict[str, Image] = {}
        for camera in self.cameras:
            files = run.images.get(camera)
            name = None if files is None else files[frame]
            if name is None:
                continue
            path = run.folder / camera / name
            try:
                images[self._keys.get(camera, camera)] = decode_jpeg(path.read_bytes())
            except (OSError, MessageError) as error:
                raise DatasetError(f"{path}: {error}") from error
        return images


@dataclass(frozen=True)
class _Numbered(Sequence[str | None]):
    """Names of the images of a run written here: they follow from their numbers, and nothing has to be listed."""

    frames: int
    missing: NDArray[np.bool_] | None

    def __len__(self) -> int:
        return self.frames

    def __getitem__(self, index: Any) -> Any:
        return None if self.missing is not None and self.missing[index] else f"{index:06d}.jpg"


def layout_of(root: Path) -> Layout:
    """Tell the layout from the folders: stage<N>/run_* is B, <task>/<subtask>/run_* is A.

    Raises:
        DatasetError: neither.
    """
    for folder in _folders(root):
        if _STAGE.fullmatch(folder.name) and any(folder.glob("run_*")):
            return "b"
    for task in _folders(root):
        if any(task.glob("*/run_*")):
            return "a"
    raise DatasetError(f"{root}: neither <task>/<subtask>/run_001 nor stage1/run_001 in it")


def _contract(described: Path, about: dict[str, Any]) -> Contract:
    if not about:
        return load_contract()
    try:
        return Contract.model_validate(about.get("contract"))
    except ValueError as error:
        raise DatasetError(f"{described}: contract: {error}") from error


def _check_dims(runs: Sequence[Run]) -> None:
    for name, column in ((STATES, 0), (ACTIONS, 1)):
        for run in runs:
            if run.dims[column] != runs[0].dims[column]:
                have, before = run.dims[column], runs[0].dims[column]
                raise DatasetError(f"{run.folder}: {name} has {have} columns, the runs before {before}")


def _folders(parent: Path) -> list[Path]:
    if not parent.is_dir():
        raise DatasetError(f"{parent}: no such folder")
    return sorted((path for path in parent.iterdir() if path.is_dir() and path.name[0] != "."), key=_natural)


def _listed_runs(root: Path) -> list[Path]:
    episodes = sorted(episode_files(root), key=_natural)
    return [root / run["path"] for path in episodes for run in read_json(path)["runs"]]


def _found_runs(root: Path, layout: Layout) -> list[Path]:
    if layout == "b":
        parents = [folder for folder in _folders(root) if _STAGE.fullmatch(folder.name)]
    else:
        parents = [folder for task in _folders(root) for folder in _folders(task)]
    return [run for parent in parents for run in _folders(parent) if run.name.startswith("run_")]


def _read_run(root: Path, folder: Path, layout: Layout, told: Instructions) -> Run:
    if not folder.is_dir():
        raise DatasetError(f"{folder}: the run is listed but not there")
    if layout == "b":
        stage = _STAGE.fullmatch(folder.parent.name)
        assert stage is not None
        instruction = told.of_stage(folder.parent, int(stage[1]))
    else:
        instruction = told.of_folders(folder.parent)
    (frames, state_dim), (others, action_dim) = _shape(folder, STATES), _shape(folder, ACTIONS)
    if others != frames:
        raise DatasetError(f"{folder}: {STATES} has {frames} rows, {ACTIONS} has {others}")
    about = read_json(folder / RUN) if (folder / RUN).exists() else {}
    if about.get("frames", frames) != frames:
        raise DatasetError(f"{folder}: {RUN} says {about['frames']} frames, {STATES} has {frames}")
    return Run(
        folder=folder,
        instruction=instruction,
        episode=about.get("episode", str(folder.relative_to(root))),
        first_frame=about.get("first_frame", 0),
        frames=frames,
        dims=(state_dim, action_dim),
        images=_image_files(folder, frames, about),
        outcome=about.get("outcome", ""),
    )


def _shape(folder: Path, name: str) -> tuple[int, int]:
    try:
        array = np.load(folder / name, mmap_mode="r")
    except FileNotFoundError:
        raise DatasetError(f"{folder}: {name} is missing") from None
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(f"{folder}: {name} cannot be read: {error}") from error
    if array.ndim != 2 or not len(array) or array.dtype.kind not in "fiu":
        raise DatasetError(f"{folder}: {name} has shape {list(array.shape)} of {array.dtype}, expected numbers [T, D]")
    return int(array.shape[0]), int(array.shape[1])


def _image_files(folder: Path, frames: int, about: dict[str, Any]) -> dict[str, Sequence[str | None]]:
    found: dict[str, Sequence[str | None]] = {}
    if about:
        spans = about.get("missing_images", {})
        for camera in sorted(path.name for path in folder.iterdir() if path.is_dir()):
            gone = spans.get(camera, [])
            found[camera] = _Numbered(frames, stack_missing(gone, frames) if gone else None)
        return found
    for inner in _folders(folder):
        files = sorted((path for path in inner.iterdir() if path.suffix.lower() in (".jpg", ".jpeg")), key=_natural)
        if len(files) != frames:
            raise DatasetError(f"{inner}: {len(files)} images for {frames} rows in {STATES}; expected one per row")
        found[inner.name] = [path.name for path in files]
    if not found:
        raise DatasetError(f"{folder}: no camera folder with .jpg images in it")
    return found


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key that puts 10 after 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]
