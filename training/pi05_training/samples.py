"""Labelled observations on disk, from simulation: a folder of `episode_*.npz` files, read as a dataset.

One file holds the samples of one episode. Images stay in the JPEG bytes that travelled, so that training sees exactly
what the robot's cameras sent; a file appears under its name only when it is complete. The arrays in it are not
compressed, so that a reader maps them into memory and one sample costs no more than its own bytes.
"""

import os
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pi05_ros.messages import MessageError, decode_jpeg
from pi05_training.data import episode
from pi05_training.data.episode import DatasetError, Floats

EPISODES = "episode_*.npz"
_COLUMNS = ("cameras", "jpeg", "jpeg_end", "state", "actions", "task", "subtask", "planner_target")
_OPEN_FILES = 64
_MOST_BAD = 0.01


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled observation.

    Attributes:
        images: JPEG bytes by model key; a camera that was missing is left out.
        state: [D] physical units, contract order.
        actions: [H, D] physical units; row k is due k+1 steps after the observation.
        task: what the operator asked for.
        subtask: what the actions carry out.
        planner_target: what the planner should say for the task.
    """

    images: dict[str, bytes]
    state: NDArray[np.float64]
    actions: NDArray[np.float64]
    task: str
    subtask: str
    planner_target: str


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """N samples as arrays: images uint8 [N, C, H, W, 3] in the order of `cameras`, state [N, D], actions [N, H, D]."""

    cameras: tuple[str, ...]
    images: NDArray[np.uint8]
    image_mask: NDArray[np.bool_]
    state: NDArray[np.float32]
    actions: NDArray[np.float32]
    task: list[str]
    subtask: list[str]
    planner_target: list[str]


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write the samples of an episode to `path` (a `.npz` file), all or nothing.

    Raises:
        ValueError: there are no samples.
    """
    if not samples:
        raise ValueError(f"{path}: an episode without samples is not written")
    cameras = sorted({camera for sample in samples for camera in sample.images})
    blobs = [sample.images.get(camera, b"") for sample in samples for camera in cameras]
    arrays = {
        "cameras": np.array(cameras),
        "jpeg": np.frombuffer(b"".join(blobs), np.uint8),
        "jpeg_end": np.cumsum([len(blob) for blob in blobs]).reshape(len(samples), len(cameras)),
        "state": np.array([sample.state for sample in samples], np.float32),
        "actions": np.array([sample.actions for sample in samples], np.float32),
        "task": np.array([sample.task for sample in samples]),
        "subtask": np.array([sample.subtask for sample in samples]),
        "planner_target": np.array([sample.planner_target for sample in samples]),
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    partial.rename(path)


def read_labels(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Read states [N, D] and actions [N, H, D] of an episode without touching its images."""
    with np.load(path) as data:
        return data["state"], data["actions"]


def read_samples(path: Path, cameras: Sequence[str], size: tuple[int, int]) -> SampleBatch:
    """Read an episode and decode its images.

    Args:
        path: file written by `write_samples`.
        cameras: model keys in the order wanted; those the file lacks are masked.
        size: (height, width) [px] of every image.

    Raises:
        ValueError: an image cannot be decoded or has another size.
    """
    with np.load(path) as data:
        arrays = {name: data[name] for name in data.files}
    stored, ends = list(arrays["cameras"]), arrays["jpeg_end"]
    starts = np.concatenate([[0], ends.ravel()[:-1]]).reshape(ends.shape)
    count = len(arrays["state"])
    images = np.zeros((count, len(cameras), *size, 3), np.uint8)
    mask = np.zeros((count, len(cameras)), bool)
    for column, camera in enumerate(cameras):
        if camera not in stored:
            continue
        source = stored.index(camera)
        for row in range(count):
            start, end = int(starts[row, source]), int(ends[row, source])
            if start == end:
                continue
            images[row, column] = _decode(arrays["jpeg"][start:end], size, f"{path}: sample {row}, camera {camera}")
            mask[row, column] = True
    return SampleBatch(
        cameras=tuple(cameras),
        images=images,
        image_mask=mask,
        state=arrays["state"],
        actions=arrays["actions"],
        task=arrays["task"].tolist(),
        subtask=arrays["subtask"].tolist(),
        planner_target=arrays["planner_target"].tolist(),
    )


def _decode(blob: NDArray[np.uint8], size: tuple[int, int], where: str) -> NDArray[np.uint8]:
    image = cv2.imdecode(blob, cv2.IMREAD_COLOR)
    if image is None or image.shape[:2] != size:
        found = "not a JPEG" if image is None else f"{image.shape[1]}x{image.shape[0]} px"
        raise ValueError(f"{where}: expected {size[1]}x{size[0]} px, found {found}")
    rgb: NDArray[np.uint8] = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return rgb


@dataclass(frozen=True, slots=True)
class LabelledSample(episode.Sample):
    """A sample whose planner should answer something else than the subtask that the actions carry out.

    Attributes:
        answer: what the planner should say for the task.
    """

    answer: str


class EpisodeFiles:
    """Random access to the samples of a folder of episode files (`Dataset`). Can be pickled.

    Args:
        root: the folder.
        horizon: H; None takes what the files hold.

    Attributes:
        root: the folder.
        files: its episodes in order of name, without those that cannot be read.
        lengths: samples of each file.
        unreadable: what is wrong with those left out.

    Raises:
        DatasetError: there are none, they do not fit each other, or more than 1 % of them cannot be read.
    """

    def __init__(self, root: Path | str, horizon: int | None = None) -> None:
        self.root = Path(root)
        self._open: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self.unreadable: list[str] = []
        shapes = self._measure()
        self.files, self.lengths = list(shapes), [shape[0] for shape in shapes.values()]
        self._ends = list(accumulate(self.lengths))
        self._horizon = horizon or next(iter(shapes.values()))[1]
        first = next(iter(shapes.values()))[1:]
        for path, shape in shapes.items():
            if shape[1:] != first or shape[1] < self._horizon:
                raise DatasetError(
                    f"{path}: actions are {list(shape)}, expected [samples, {max(first[0], self._horizon)}, {first[1]}]"
                )

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> LabelledSample:
        """Return one sample.

        Raises:
            IndexError: no such sample.
            DatasetError: an image cannot be decoded; names the file.
        """
        number, row = self._locate(index)
        arrays, path = self._arrays(number), self.files[number]
        subtask, task = str(arrays["subtask"][row]), str(arrays["task"][row])
        actions = np.array(arrays["actions"][row, : self._horizon], np.float32)
        return LabelledSample(
            images=_images(arrays, row, f"{path}: sample {row}"),
            state=np.array(arrays["state"][row], np.float32),
            actions=actions,
            action_is_pad=np.zeros(len(actions), bool),
            task=task,
            subtask=subtask,
            text=subtask,
            episode=path.stem,
            frame=row,
            answer=str(arrays["planner_target"][row]),
        )

    def labels(self, index: int) -> tuple[Floats, Floats]:
        """Return state [D] and actions [H, D] of a sample without touching its images."""
        number, row = self._locate(index)
        arrays = self._arrays(number)
        actions = arrays["actions"][row, : self._horizon]
        return np.array(arrays["state"][row], np.float32), np.array(actions, np.float32)

    def texts(self, number: int) -> list[tuple[str, str]]:
        """Return task and answer of every sample of a file."""
        arrays = self._arrays(number)
        return list(zip(arrays["task"].tolist(), arrays["planner_target"].tolist(), strict=True))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open files behind."""
        return {**self.__dict__, "_open": OrderedDict()}

    def _measure(self) -> dict[Path, tuple[int, ...]]:
        """Return the shape of the actions [N, H, D] of every readable file."""
        paths = sorted(self.root.glob(EPISODES))
        if not paths:
            raise DatasetError(f"{self.root}: no {EPISODES} in it; collect episodes first")
        shapes: dict[Path, tuple[int, ...]] = {}
        for path in paths:
            try:
                shapes[path] = map_arrays(path)["actions"].shape
            except DatasetError as error:
                self.unreadable.append(str(error))
        if len(self.unreadable) > _MOST_BAD * len(paths):
            raise DatasetError(f"{len(self.unreadable)} of {len(paths)} episodes are damaged: {self.unreadable[0]}")
        if self.unreadable:
            warnings.warn(f"{len(self.unreadable)} damaged episodes are left out: {self.unreadable[0]}", stacklevel=3)
        return shapes

    def _locate(self, index: int) -> tuple[int, int]:
        wanted = index + len(self) if index < 0 else index
        if not 0 <= wanted < len(self):
            raise IndexError(f"{self.root}: no sample {index}; it has {len(self)}")
        number = int(np.searchsorted(self._ends, wanted, side="right"))
        return number, wanted - self._ends[number] + self.lengths[number]

    def _arrays(self, number: int) -> dict[str, Any]:
        found = self._open.pop(number, None)
        self._open[number] = found = map_arrays(self.files[number]) if found is None else found
        if len(self._open) > _OPEN_FILES:
            self._open.popitem(last=False)
        return found


def map_arrays(path: Path) -> dict[str, Any]:
    """Map the arrays of an episode file into memory.

    Raises:
        DatasetError: it is damaged, compressed, or none of `write_samples`.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            arrays = {info.filename.removesuffix(".npy"): _map(path, file, info) for info in archive.infolist()}
    except (OSError, ValueError, EOFError, struct.error, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from error
    missing = [name for name in _COLUMNS if name not in arrays]
    lengths = {len(arrays[name]) for name in _COLUMNS[2:] if name in arrays}
    if missing or len(lengths) != 1 or arrays["state"].ndim != 2 or arrays["actions"].ndim != 3:
        found = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise DatasetError(f"{path}: expected {', '.join(_COLUMNS)} with one row per sample, found {found}")
    return arrays


def _map(path: Path, file: Any, info: zipfile.ZipInfo) -> Any:
    """Map a member that is stored as it is (numpy's savez); the array begins after the zip's and its own header."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is compressed; write it with np.savez")
    file.seek(info.header_offset)
    name_bytes, extra_bytes = struct.unpack("<26xHH", file.read(30))
    file.seek(name_bytes + extra_bytes, os.SEEK_CUR)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", file.tell(), shape)


def _images(arrays: dict[str, Any], row: int, where: str) -> dict[str, NDArray[np.uint8]]:
    ends = arrays["jpeg_end"]
    images = {}
    for column, camera in enumerate(arrays["cameras"].tolist()):
        before = row * ends.shape[1] + column
        start, end = int(ends.flat[before - 1]) if before else 0, int(ends[row, column])
        if start == end:
            continue
        try:
            images[str(camera)] = decode_jpeg(arrays["jpeg"][start:end])
        except MessageError as error:
            raise DatasetError(f"{where}, camera {camera}: {error}") from error
    return images
