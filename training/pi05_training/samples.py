"""Labelled observations on disk: what the trainer reads.

One `.npz` file holds the samples of one episode. Images stay in the JPEG bytes that travelled, so that training sees
exactly what the robot's cameras sent; a file appears under its name only when it is complete.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray


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
