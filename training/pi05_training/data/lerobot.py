"""Reading LeRobotDataset v3.0, ours or lerobot's own, as typed samples; the writer's names are here too.

Frames are found by their place in the files, images by `from_timestamp` + frame / fps in the episode's video.
Row groups and open videos are kept in bounded caches, so memory does not grow with the dataset, and reading in order
decodes every video once. Subtasks come from `subtask_index` (lerobot 0.4, 0.5), else from `language_persistent` (0.6),
else the task stands for them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pi05_model.observation import Image
from pi05_ros.contract import Contract, load_contract
from pi05_training.data.episode import DatasetError, Floats, Sample, SubtaskSpan
from pi05_training.data.lerobot_cache import FrameStore, Rows, VideoStore
from pi05_training.data.lerobot_meta import (
    ACTION,
    IMAGES,
    LANGUAGE,
    PRESENT,
    STATE,
    SUBTASKS,
    TASKS,
    Episode,
    Info,
    load_episodes,
    load_info,
    read_texts,
)
from pi05_training.data.lerobot_rows import language_subtasks, runs
from pi05_training.data.lerobot_writer import LeRobotEpisode, LeRobotFormat, LeRobotWriter

__all__ = ["LeRobotDataset", "LeRobotEpisode", "LeRobotFormat", "LeRobotWriter", "lerobot_format"]


def lerobot_format(contract: Contract, **settings: Any) -> LeRobotFormat:
    """Return the format of datasets of a robot; `settings` are further fields of LeRobotFormat."""
    size = (contract.image.height, contract.image.width)
    hz = contract.rates.action_hz
    return LeRobotFormat(contract.names, tuple(contract.cameras), size, round(hz), contract.robot, **settings)


class LeRobotDataset:
    """Random access to a LeRobot dataset (`Dataset`).

    Args:
        root: its folder.
        horizon: rows of `Sample.actions`.
        cameras: model key of each camera name; the others keep their name. None: as the contract says.
        fps: rate that is expected [Hz]; None takes what is there.

    Attributes:
        root: its folder.
        fps: frames per second.
        names: entries of the state, where the dataset tells them.
        cameras: names of its cameras.
        episodes: its episodes in order.

    Raises:
        DatasetError: it is missing, damaged, of version 2, of another rate, or lacks state or action.
    """

    def __init__(
        self,
        root: Path | str,
        horizon: int = 50,
        cameras: Mapping[str, str] | None = None,
        fps: float | None = None,
    ) -> None:
        self.root = Path(root)
        self._info = info = load_info(self.root)
        _check(self.root, info, fps)
        self.fps = float(info.fps)
        self.names = _names(info)
        self.episodes = load_episodes(self.root, info)
        self._horizon = horizon
        self._starts = np.array([episode.start for episode in self.episodes] + [info.total_frames])
        self._keys = {key.removeprefix(IMAGES): key for key in info.keys("video", "image") if _is_colour(info, key)}
        known = _contract_keys() if cameras is None else cameras
        self._model_keys = {name: known.get(name, name) for name in self._keys}
        self._tasks = read_texts(self.root / TASKS)
        self._subtasks = read_texts(self.root / SUBTASKS)
        self._frames = FrameStore(self.root, info, self.episodes)
        self._videos = VideoStore()

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras."""
        return tuple(self._keys)

    def __len__(self) -> int:
        return int(self._info.total_frames)

    def __getitem__(self, index: int) -> Sample:
        """Return a sample.

        Raises:
            IndexError: there is no such frame.
            DatasetError: a file is missing or damaged.
        """
        index, episode = self._find(index)
        frame = index - episode.start
        stop = min(index + self._horizon, episode.start + episode.length)
        rows = self._frames.rows(index, stop)
        subtask = self._subtask(rows, episode, frame)
        return Sample(
            images={
                self._model_keys[name]: self._image(episode, index, self._keys[name]) for name in self._shown(rows)
            },
            state=rows.state[0].copy(),
            actions=self._pad(rows.action),
            action_is_pad=np.arange(self._horizon) >= stop - index,
            task=self._task(rows),
            subtask=subtask,
            text=subtask,
            episode=episode.name,
            frame=frame,
        )

    def labels(self, index: int) -> tuple[Floats, Floats]:
        """Return state [D] and actions [H, D] of a sample without touching its images."""
        index, episode = self._find(index)
        rows = self._frames.rows(index, min(index + self._horizon, episode.start + episode.length))
        return rows.state[0].copy(), self._pad(rows.action)

    def trajectories(self, first: int = 0, step: int = 1) -> Iterator[tuple[Floats, Floats]]:
        """Yield state [T, D] and action [T, D] of the episodes first, first + step, …"""
        for episode in self.episodes[first::step]:
            rows = self._frames.rows(episode.start, episode.start + episode.length)
            yield rows.state, rows.action

    def spans(self, episode: int) -> list[SubtaskSpan]:
        """Return the subtask spans of an episode, covering it from the first frame to the last."""
        row = self.episodes[episode]
        rows = self._frames.rows(row.start, row.start + row.length)
        if rows.subtask is not None:
            return [SubtaskSpan(a, b, self._text(self._subtasks, rows.subtask[a])) for a, b in runs(rows.subtask)]
        if LANGUAGE in self._info.features:
            return self._language(row)
        return [SubtaskSpan(a, b, self._text(self._tasks, rows.task[a])) for a, b in runs(rows.task)]

    def images(self, episode: int, frame: int) -> dict[str, Image]:
        """Return the RGB images of a frame by camera name; a missing one is left out.

        Raises:
            DatasetError: a file is missing or damaged.
        """
        row = self.episodes[episode]
        index = row.start + frame
        rows = self._frames.rows(index, index + 1)
        return {name: self._image(row, index, self._keys[name]) for name in self._shown(rows)}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_frames": None, "_videos": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._frames = FrameStore(self.root, self._info, self.episodes)
        self._videos = VideoStore()

    def _find(self, index: int) -> tuple[int, Episode]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.root}: frame {index} of {len(self)}")
        index %= len(self)
        return index, self.episodes[int(np.searchsorted(self._starts, index, side="right")) - 1]

    def _pad(self, actions: Floats) -> Floats:
        padding = np.repeat(actions[-1:], self._horizon - len(actions), axis=0)
        return np.concatenate([actions, padding])

    def _shown(self, rows: Rows) -> list[str]:
        """Return the cameras that the first of some rows has an image of."""
        present = dict.fromkeys(self._keys, True)
        if rows.present is not None:
            names = self._info.features[PRESENT]["names"]
            present |= dict(zip(names, rows.present[0].tolist(), strict=True))
        return [name for name in self._keys if present[name]]

    def _image(self, episode: Episode, index: int, key: str) -> Image:
        if key not in episode.videos:
            return self._frames.image(index, key)
        span = episode.videos[key]
        assert self._info.video_path is not None
        path = self.root / self._info.video_path.format(video_key=key, chunk_index=span.chunk, file_index=span.file)
        return self._videos.frame(path, span.start_s + (index - episode.start) / self.fps)

    def _task(self, rows: Rows) -> str:
        return self._text(self._tasks, rows.task[0])

    def _subtask(self, rows: Rows, episode: Episode, frame: int) -> str:
        if rows.subtask is not None:
            return self._text(self._subtasks, rows.subtask[0])
        if LANGUAGE in self._info.features:
            return next((span.text for span in self._language(episode) if span.start <= frame < span.stop), "")
        return self._task(rows)

    def _language(self, episode: Episode) -> list[SubtaskSpan]:
        return language_subtasks(self._frames.language(episode), episode.length, self.fps)

    def _text(self, texts: list[str], number: int) -> str:
        if not 0 <= number < len(texts):
            raise DatasetError(f"{self.root}: text number {number}, the tables of meta/ hold {len(texts)}")
        return texts[number]


def _check(root: Path, info: Info, fps: float | None) -> None:
    if fps is not None and info.fps != fps:
        raise DatasetError(f"{root}: {info.fps:g} frames per second, {fps:g} are expected; convert it at that rate")
    for key in (STATE, ACTION):
        if key not in info.features or len(info.features[key]["shape"]) != 1:
            raise DatasetError(f"{root}: needs a vector feature {key!r}; features: {', '.join(info.features)}")


def _names(info: Info) -> tuple[str, ...]:
    """Return the entries' names; lerobot knows a list, or a list under any one key."""
    names = info.features[STATE].get("names")
    if isinstance(names, dict):
        names = next(iter(names.values()), None)
    return tuple(names) if isinstance(names, list) else ()


def _is_colour(info: Info, key: str) -> bool:
    about = info.features[key].get("info") or {}
    return not (about.get("is_depth_map") or about.get("video.is_depth_map"))


def _contract_keys() -> dict[str, str]:
    return {name: camera.model_key for name, camera in load_contract().cameras.items()}
