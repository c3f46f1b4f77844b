"""What the reader of a LeRobot dataset keeps open: row groups of the frame table, and videos. Both are bounded."""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pi05_model.observation import Image
from pi05_training.data.episode import DatasetError, Floats
from pi05_training.data.lerobot_meta import (
    ACTION,
    LANGUAGE,
    PRESENT,
    STATE,
    SUBTASK_INDEX,
    Episode,
    Info,
    open_parquet,
)
from pi05_training.data.lerobot_rows import Array, matrix, read_group
from pi05_training.data.video import VideoReader

CACHE_BYTES = 256 * 2**20
"""Row groups kept, in bytes of their arrays: an hour and a half of an 18-dimensional robot at 50 Hz."""
OPEN_VIDEOS = 32
"""Videos kept open by each thread of each process."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive frames: state [N, D], action [N, D], present bool [N, cameras], task [N] and subtask [N] numbers."""

    state: Floats
    action: Floats
    present: Array | None
    task: Array
    subtask: Array | None

    def slice(self, start: int, stop: int) -> "Rows":
        """Return some of them, as views."""
        return Rows(*(None if a is None else a[start:stop] for a in self.arrays()))  # type: ignore[arg-type]

    def arrays(self) -> tuple[Array | None, ...]:
        """Return the columns in the order of the fields."""
        return self.state, self.action, self.present, self.task, self.subtask

    @property
    def nbytes(self) -> int:
        """Size of the arrays."""
        return sum(0 if array is None else int(array.nbytes) for array in self.arrays())


@dataclass(frozen=True, slots=True)
class _Group:
    path: Path
    number: int
    start: int
    stop: int


class FrameStore:
    """The frame table, read row group by row group.

    Args:
        root, info, episodes: the dataset.

    Raises:
        DatasetError: a file is missing or damaged, or the table ends too early.
    """

    def __init__(self, root: Path, info: Info, episodes: Sequence[Episode]) -> None:
        self._info = info
        self._groups = _groups(root, info, episodes)
        self._starts = np.array([group.start for group in self._groups])
        self._cache: OrderedDict[int, Rows] = OrderedDict()
        self._cached = 0
        self._images: tuple[int, str, Any] | None = None
        self._lock = threading.Lock()

    def rows(self, start: int, stop: int) -> Rows:
        """Return the frames [start, stop) by global index."""
        first, last = (int(n) for n in np.searchsorted(self._starts, [start, stop - 1], side="right") - 1)
        parts = []
        for number in range(first, last + 1):
            group = self._groups[number]
            parts.append(self._rows(number).slice(max(start - group.start, 0), stop - group.start))
        if len(parts) == 1:
            return parts[0]
        columns = zip(*(part.arrays() for part in parts), strict=True)
        return Rows(*(None if c[0] is None else np.concatenate(c) for c in columns))  # type: ignore[arg-type]

    def image(self, index: int, key: str) -> Image:
        """Return an RGB image that is kept in the table itself (lerobot's dtype "image")."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        group = self._groups[number]
        if self._images is None or self._images[:2] != (number, key):
            table = read_group(group.path, open_parquet(group.path), group.number, [key])
            self._images = (number, key, table.column(key))
        cell = self._images[2][index - group.start].as_py() or {}
        blob = cell.get("bytes") or b""
        image = cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_COLOR_RGB) if blob else None
        if image is None:
            raise DatasetError(f"{group.path}: frame {index}: {key} holds no image")
        decoded: NDArray[np.uint8] = image.astype(np.uint8, copy=False)
        return decoded

    def language(self, episode: Episode) -> list[dict[str, Any]]:
        """Return the rows of an episode's language column, which every frame repeats."""
        number = int(np.searchsorted(self._starts, episode.start, side="right")) - 1
        group = self._groups[number]
        table = read_group(group.path, open_parquet(group.path), group.number, [LANGUAGE])
        return list(table.column(LANGUAGE)[episode.start - group.start].as_py() or [])

    def _rows(self, number: int) -> Rows:
        with self._lock:
            if number in self._cache:
                self._cache.move_to_end(number)
                return self._cache[number]
            rows = _read(self._groups[number], self._info)
            self._cache[number] = rows
            self._cached += rows.nbytes
            while self._cached > CACHE_BYTES and len(self._cache) > 1:
                self._cached -= self._cache.popitem(last=False)[1].nbytes
            return rows


class VideoStore(threading.local):
    """Open videos of one thread; a child process starts with none."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._open: OrderedDict[Path, VideoReader] = OrderedDict()

    def frame(self, path: Path, time_s: float) -> Image:
        """Return the RGB image of a video at a time."""
        if self._owner != os.getpid():
            self.__init__()  # type: ignore[misc]
        reader = self._open.pop(path, None) or VideoReader(path)
        self._open[path] = reader
        if len(self._open) > OPEN_VIDEOS:
            self._open.popitem(last=False)[1].close()
        return reader.frame(time_s)


def _groups(root: Path, info: Info, episodes: Sequence[Episode]) -> list[_Group]:
    """List the row groups in order, up to the last frame that counts."""
    groups: list[_Group] = []
    at = 0
    for chunk, file in dict.fromkeys((episode.data_chunk, episode.data_file) for episode in episodes):
        path = root / info.data_path.format(chunk_index=chunk, file_index=file)
        metadata = open_parquet(path).metadata
        for number in range(metadata.num_row_groups):
            rows = metadata.row_group(number).num_rows
            groups.append(_Group(path, number, at, at + rows))
            at += rows
    if at < info.total_frames:
        raise DatasetError(f"{root}/data: {at} frames, meta/info.json says {info.total_frames}; a file has been cut")
    return groups


def _read(group: _Group, info: Info) -> Rows:
    file = open_parquet(group.path)
    names = [key for key in (STATE, ACTION, PRESENT, "task_index", SUBTASK_INDEX) if key in info.features]
    absent = [key for key in [*names, "index"] if key not in file.schema_arrow.names]
    if absent:
        raise DatasetError(f"{group.path}: lacks the columns {', '.join(absent)} that meta/info.json names")
    table = read_group(group.path, file, group.number, [*names, "index"])
    columns = {key: matrix(table.column(key), info.dim(key), f"{group.path}: {key}") for key in names}
    index = matrix(table.column("index"), 1, f"{group.path}: index")
    if len(index) and index[0, 0] != group.start:
        raise DatasetError(f"{group.path}: starts at frame {index[0, 0]}, {group.start} is expected; files are missing")
    return Rows(
        state=columns[STATE].astype(np.float32),
        action=columns[ACTION].astype(np.float32),
        present=columns.get(PRESENT),
        task=columns["task_index"][:, 0],
        subtask=columns[SUBTASK_INDEX][:, 0] if SUBTASK_INDEX in columns else None,
    )
