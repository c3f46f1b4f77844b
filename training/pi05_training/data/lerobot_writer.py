"""Writing LeRobotDataset v3.0: https://github.com/huggingface/lerobot, src/lerobot/datasets.

An episode is first staged beside the dataset (`.staging/<name>/`: one video per camera and its frames as fixed-size
records, written as they come) and then committed: its videos and rows are joined to the newest files, up to the size
limits. Staging can go on in many processes at once; commits wait for each other. A process that is killed at any time
leaves a dataset that loads, without the episode; its remains are overwritten by the next commit.
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote

import cv2
import numpy as np
from numpy.typing import NDArray

from pi05_model.observation import Image
from pi05_training.data.episode import DatasetError, EpisodeInfo, Frame
from pi05_training.data.lerobot_commit import commit
from pi05_training.data.lerobot_meta import (
    ACTION,
    IMAGES,
    INFO,
    LANGUAGE,
    LANGUAGE_EVENTS,
    PRESENT,
    STATE,
    SUBTASK_INDEX,
    Feature,
    Info,
    load_episodes,
    load_info,
    locked,
)
from pi05_training.data.lerobot_stats import ImageStats
from pi05_training.data.video import VideoSettings, VideoWriter

STAGING = ".staging"


@dataclass(frozen=True)
class LeRobotFormat:
    """What the frames of a dataset hold, and how it is stored.

    Attributes:
        names: entries of state and action.
        cameras: their names; features are called observation.images.<name>.
        image_size: (height, width) [px] of every image.
        fps: frames per second.
        robot_type: for info.json.
        video: codec and quality.
        language_columns: also write lerobot 0.6's language columns, which carry the subtasks to its own training;
            lerobot before 0.6 cannot load a dataset that has them.
        chunks_size: files in a folder.
        data_files_size_in_mb, video_files_size_in_mb: a file that would grow beyond this is not continued.
    """

    names: tuple[str, ...]
    cameras: tuple[str, ...]
    image_size: tuple[int, int]
    fps: int
    robot_type: str | None = None
    video: VideoSettings = field(default_factory=VideoSettings)
    language_columns: bool = False
    chunks_size: int = 1000
    data_files_size_in_mb: float = 100
    video_files_size_in_mb: float = 200

    def info(self) -> Info:
        """Return the info.json of an empty dataset."""
        return Info(
            fps=self.fps,
            features=self._features(),
            robot_type=self.robot_type,
            chunks_size=self.chunks_size,
            data_files_size_in_mb=self.data_files_size_in_mb,
            video_files_size_in_mb=self.video_files_size_in_mb,
        )

    def record(self) -> np.dtype[Any]:
        """Return the layout of a staged frame; `subtask` numbers the episode's own list."""
        dim = len(self.names)
        fields = [
            ("state", "<f4", dim),
            ("action", "<f4", dim),
            ("present", "?", len(self.cameras)),
            ("subtask", "<i4"),
        ]
        return np.dtype(fields)

    def _features(self) -> dict[str, Feature]:
        vector = {"dtype": "float32", "shape": [len(self.names)], "names": list(self.names)}
        image = {"dtype": "video", "shape": [*self.image_size, 3], "names": ["height", "width", "channels"]}
        features: dict[str, Feature] = {STATE: {**vector}, ACTION: {**vector}}
        features |= {IMAGES + name: {**image} for name in self.cameras}
        if self.cameras:
            features[PRESENT] = {"dtype": "bool", "shape": [len(self.cameras)], "names": list(self.cameras)}
        features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
        for name in ("frame_index", "episode_index", "index", "task_index", SUBTASK_INDEX):
            features[name] = {"dtype": "int64", "shape": [1], "names": None}
        if self.language_columns:
            features |= {key: {"dtype": "language", "shape": [1], "names": None} for key in (LANGUAGE, LANGUAGE_EVENTS)}
        return features


class LeRobotWriter:
    """Writes episodes into one dataset, new or already there.

    Args:
        root: folder of the dataset.
        layout: what it holds; an existing dataset must hold the same.

    Raises:
        DatasetError: the dataset that is there differs; the message names the first difference.
    """

    def __init__(self, root: Path | str, layout: LeRobotFormat) -> None:
        self.root = Path(root)
        self.layout = layout
        if (self.root / INFO).exists():
            _check_same(self.root, load_info(self.root), layout.info())
        elif self.root.is_dir() and any(path.name != STAGING for path in self.root.iterdir()):
            raise DatasetError(f"{self.root}: neither empty nor a LeRobot dataset; give another folder")

    def episodes(self) -> list[str]:
        """Return the names of the episodes that are there."""
        if not (self.root / INFO).exists():
            return []
        return [episode.name for episode in load_episodes(self.root, load_info(self.root))]

    def episode(self, info: EpisodeInfo) -> "LeRobotEpisode":
        """Start an episode.

        Raises:
            DatasetError: it is already there, has no name, or its rate is another one.
        """
        if not info.name or info.name in self.episodes():
            why = "is already there" if info.name else "needs a name"
            raise DatasetError(f"{self.root}: episode {info.name!r} {why}; names are unique")
        if info.fps != self.layout.fps:
            raise DatasetError(f"{info.name}: {info.fps:g} frames per second, {self.root} has {self.layout.fps}")
        return LeRobotEpisode(self, info)

    def commit(self, staged: Path) -> None:
        """Add an episode that `LeRobotEpisode.stage` left behind.

        Raises:
            DatasetError: an episode of this name is there, or a file of the dataset is damaged.
        """
        with locked(self.root):
            commit(self.root, self.layout.info(), self.layout.record(), self.layout.video, staged)
            shutil.rmtree(staged)
            self._clear(staged.parent)
            with contextlib.suppress(OSError):  # others may still be staging
                staged.parent.rmdir()

    def _clear(self, staging: Path) -> None:
        """Remove what is staged of episodes that are there: remains of a process that died after its commit."""
        there = set(self.episodes())
        for folder in staging.iterdir():
            if unquote(folder.name) in there and (folder / "episode.json").exists():
                shutil.rmtree(folder)


class LeRobotEpisode:
    """Writes one episode (`EpisodeWriter`); made by `LeRobotWriter.episode`."""

    def __init__(self, writer: LeRobotWriter, info: EpisodeInfo) -> None:
        self._writer, self._info, self._layout = writer, info, writer.layout
        # Without dots: ".." is a name, too, and must not lead anywhere.
        self._folder = writer.root / STAGING / quote(info.name, safe="").replace(".", "%2E")
        shutil.rmtree(self._folder, ignore_errors=True)  # of an attempt that was killed
        with locked(writer.root):  # a commit elsewhere may be about to remove the empty parent
            self._folder.mkdir(parents=True)
        self._records: IO[bytes] = (self._folder / "frames.bin").open("wb")
        self._videos = {name: self._video(name) for name in self._layout.cameras}
        self._images = {name: ImageStats() for name in self._layout.cameras}
        self._black = np.zeros((*self._layout.image_size, 3), np.uint8)
        self._row = np.zeros(1, self._layout.record())
        self._subtasks: dict[str, int] = {}
        self._start_ns = 0
        self._frames = 0

    def add(self, frame: Frame) -> None:
        """Append a frame.

        Raises:
            DatasetError: a value or image does not fit, or the frame is off the grid; the message names it.
        """
        where = f"{self._info.name}: frame {self._frames}"
        self._check(frame, where)
        row = self._row[0]
        row["state"], row["action"] = frame.state, frame.action
        row["present"] = [name in frame.images for name in self._layout.cameras]
        row["subtask"] = self._subtasks.setdefault(frame.subtask, len(self._subtasks))
        images = {name: self._decode(blob, f"{where}: camera {name}") for name, blob in frame.images.items()}
        for name, video in self._videos.items():
            image = images.get(name, self._black)
            video.write(image)
            if name in images:
                self._images[name].add(image)
        self._records.write(self._row.tobytes())
        self._frames += 1

    def stage(self) -> Path:
        """Finish the files and return their folder, for `LeRobotWriter.commit`.

        Raises:
            DatasetError: no frame was added.
        """
        if not self._frames:
            self.discard()
            raise DatasetError(f"{self._info.name}: an episode without frames is not written")
        self._close_files()
        stats = {IMAGES + name: images.stats() for name, images in self._images.items() if images.seen}
        about = {
            "info": dataclasses.asdict(self._info),
            "frames": self._frames,
            "start_stamp_ns": self._start_ns,
            "subtasks": list(self._subtasks),
            "image_stats": stats,
        }
        (self._folder / "episode.json").write_text(json.dumps(about), "utf-8")
        return self._folder

    def close(self) -> None:
        """Finish the episode and add it to the dataset."""
        self._writer.commit(self.stage())

    def discard(self) -> None:
        """Throw away what was written."""
        self._close_files()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _close_files(self) -> None:
        self._records.close()
        for video in self._videos.values():
            video.close()

    def _video(self, name: str) -> VideoWriter:
        path = self._folder / f"{name}.mp4"
        return VideoWriter(path, self._layout.fps, self._layout.image_size, self._layout.video)

    def _check(self, frame: Frame, where: str) -> None:
        if not self._frames:
            self._start_ns = frame.stamp_ns
        late_ns = frame.stamp_ns - self._start_ns - self._frames * 1e9 / self._layout.fps
        if abs(late_ns) > 0.1e9 / self._layout.fps:
            raise DatasetError(f"{where}: {late_ns / 1e6:.1f} ms off the grid of {self._layout.fps} frames per second")
        unknown = frame.images.keys() - set(self._layout.cameras)
        if unknown:
            raise DatasetError(f"{where}: unknown camera {sorted(unknown)}; cameras: {list(self._layout.cameras)}")
        for what, vector in (("state", frame.state), ("action", frame.action)):
            _check_vector(vector, self._layout.names, f"{where}: {what}")

    def _decode(self, blob: bytes, where: str) -> Image:
        image = cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_COLOR) if blob else None
        if image is None:
            raise DatasetError(f"{where}: {len(blob)} bytes that are no image")
        if image.shape[:2] != self._layout.image_size:
            size = tuple(int(edge) for edge in image.shape[:2])
            raise DatasetError(f"{where}: {size} px (height, width), the dataset has {self._layout.image_size}")
        decoded: NDArray[np.uint8] = image.astype(np.uint8, copy=False)
        return decoded


def _check_vector(vector: NDArray[np.float32], names: Sequence[str], where: str) -> None:
    if np.shape(vector) != (len(names),):
        raise DatasetError(f"{where}: shape {np.shape(vector)}, expected {len(names)} entries: {', '.join(names)}")
    bad = [name for name, value in zip(names, vector, strict=True) if not np.isfinite(value)]
    if bad:
        raise DatasetError(f"{where}: not a finite number: {', '.join(bad)}")


def _check_same(root: Path, there: Info, ours: Info) -> None:
    """Refuse to write into a dataset of other contents; codec and quality may differ."""
    if there.fps != ours.fps:
        raise DatasetError(f"{root}: has {there.fps} frames per second, {ours.fps} are to be added")
    for key in sorted(there.features.keys() | ours.features.keys()):
        theirs, mine = (_comparable(info.features.get(key)) for info in (there, ours))
        if theirs != mine:
            raise DatasetError(f"{root}: feature {key} is {theirs or 'absent'}, {mine or 'absent'} is to be added")


def _comparable(feature: Feature | None) -> Feature | None:
    return feature and {name: feature.get(name) for name in ("dtype", "shape", "names")}
