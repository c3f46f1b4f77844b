"""Adding a staged episode to a LeRobot dataset: videos and rows first, info.json last.

Whatever stands in the files beyond what info.json counts is the remains of a commit that was killed, and is cut off.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pi05_training.data.episode import DatasetError, SubtaskSpan
from pi05_training.data.lerobot_meta import (
    ACTION,
    EPISODES_PATH,
    IMAGES,
    INFO,
    LANGUAGE,
    PRESENT,
    STATE,
    STATS,
    SUBTASK_INDEX,
    SUBTASKS,
    TASKS,
    Episode,
    Info,
    VideoSpan,
    load_episodes,
    load_info,
    next_file,
    numbered,
    open_parquet,
    read_table,
    read_texts,
    replacing,
    save_info,
    write_texts,
)
from pi05_training.data.lerobot_rows import (
    ROWS_PER_GROUP,
    Array,
    column,
    language_columns,
    row_groups,
    runs,
    write_tables,
)
from pi05_training.data.lerobot_stats import FeatureStats, merge_stats, vector_stats
from pi05_training.data.video import VideoSettings, feature_info, join, probe

EPISODES_PER_FILE = 500
"""Rows of a file of meta/episodes, which is written anew for every episode."""


def commit(root: Path, empty: Info, record: np.dtype[Any], video: VideoSettings, staged: Path) -> None:
    """Add an episode; the caller holds the dataset's lock.

    Args:
        root: folder of the dataset.
        empty: info.json of a new dataset.
        record: layout of a staged frame.
        video: how the staged videos were encoded.
        staged: folder made by `LeRobotEpisode.stage`.

    Raises:
        DatasetError: an episode of this name is there, or a file is damaged.
    """
    about = json.loads((staged / "episode.json").read_text("utf-8"))
    info = load_info(root) if (root / INFO).exists() else empty
    episodes = load_episodes(root, info)
    name = about["info"]["name"]
    if any(episode.name == name for episode in episodes):
        raise DatasetError(f"{root}: episode {name!r} is already there; names are unique")
    last = episodes[-1] if episodes else None
    frames: Array = np.memmap(staged / "frames.bin", record, "r", shape=(about["frames"],))
    videos = {key: _add_video(root, info, last, key, staged, len(frames)) for key in info.keys("video")}
    tasks, (task,) = numbered(read_texts(root / TASKS), [about["info"]["task"]])
    subtasks, local = numbered(read_texts(root / SUBTASKS), about["subtasks"])
    write_texts(root / TASKS, "task_index", tasks)
    write_texts(root / SUBTASKS, SUBTASK_INDEX, subtasks)
    rows = _Rows(info, frames, info.total_episodes, info.total_frames, task, np.array(local), subtasks)
    chunk, file = _add_rows(root, info, episodes, rows)
    row = Episode(
        index=info.total_episodes,
        name=name,
        outcome=about["info"]["outcome"],
        tasks=(about["info"]["task"],),
        length=len(frames),
        start=info.total_frames,
        data_chunk=chunk,
        data_file=file,
        start_stamp_ns=about["start_stamp_ns"],
        videos=videos,
    )
    _count(root, info, row, {**rows.stats(), **about["image_stats"]}, len(tasks), video)


def _count(
    root: Path, info: Info, row: Episode, stats: dict[str, FeatureStats], tasks: int, video: VideoSettings
) -> None:
    """Write what makes an episode count: its row, the statistics, and last of all info.json."""
    merged = merge_stats([*_stats_so_far(root, info), stats])
    _add_episode(root, row, stats)
    with replacing(root / STATS) as path:
        path.write_text(json.dumps(merged, indent=1) + "\n", "utf-8")
    save_info(root, _grown(root, info, row, tasks, video))


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The columns of a staged episode, made block by block."""

    info: Info
    frames: Array
    episode: int
    start: int
    task: int
    subtask: Array
    subtasks: list[str]

    def numeric(self) -> list[str]:
        return [key for key, feature in self.info.features.items() if feature["dtype"] in ("float32", "int64", "bool")]

    def values(self, key: str, begin: int, end: int) -> Array:
        number = np.arange(begin, end)
        block = self.frames[begin:end]
        makers: dict[str, Any] = {
            STATE: lambda: block["state"],
            ACTION: lambda: block["action"],
            PRESENT: lambda: block["present"],
            SUBTASK_INDEX: lambda: self.subtask[block["subtask"]],
            "timestamp": lambda: (number / self.info.fps).astype(np.float32),
            "frame_index": lambda: number,
            "episode_index": lambda: np.full(len(number), self.episode),
            "index": lambda: self.start + number,
            "task_index": lambda: np.full(len(number), self.task),
        }
        made: Array = np.asarray(makers[key]())
        return made

    def stats(self) -> dict[str, FeatureStats]:
        # Not of the numbers of subtasks, which `pi05 label` changes.
        keys = [key for key in self.numeric() if key != SUBTASK_INDEX]
        return {key: vector_stats(self.values(key, 0, len(self.frames))) for key in keys}

    def tables(self) -> Iterator[pa.Table]:
        local = np.asarray(self.frames["subtask"])
        spans = [SubtaskSpan(a, b, self.subtasks[self.subtask[local[a]]]) for a, b in runs(local)]
        for begin in range(0, len(self.frames), ROWS_PER_GROUP):
            end = min(begin + ROWS_PER_GROUP, len(self.frames))
            columns = {key: column(self.info.features[key], self.values(key, begin, end)) for key in self.numeric()}
            if LANGUAGE in self.info.features:
                columns |= language_columns(spans, self.info.fps, end - begin)
            yield pa.table(columns)


def _add_video(root: Path, info: Info, last: Episode | None, key: str, staged: Path, frames: int) -> VideoSpan:
    """Join a staged video to the newest file, or make it the next one."""
    source = staged / f"{key.removeprefix(IMAGES)}.mp4"
    chunk, file = (last.videos[key].chunk, last.videos[key].file) if last else (0, 0)
    keep = round(last.videos[key].end_s * info.fps) if last else 0
    path = _video_path(root, info, key, chunk, file)
    if last and not _can_join(path, source, info):
        chunk, file, keep = *next_file(chunk, file, info), 0
        path = _video_path(root, info, key, chunk, file)
    with replacing(path) as partial:
        if keep:
            join(path, keep, source, partial, int(info.fps))
        else:
            shutil.copyfile(source, partial)
    return VideoSpan(chunk, file, keep / info.fps, (keep + frames) / info.fps)


def _can_join(path: Path, source: Path, info: Info) -> bool:
    size = path.stat().st_size + source.stat().st_size if path.exists() else 0
    return size < info.video_files_size_in_mb * 2**20 and probe(path).setup == probe(source).setup


def _video_path(root: Path, info: Info, key: str, chunk: int, file: int) -> Path:
    if info.video_path is None:
        raise DatasetError(f"{root}/{INFO}: has video features and no video_path")
    return root / info.video_path.format(video_key=key, chunk_index=chunk, file_index=file)


def _add_rows(root: Path, info: Info, episodes: list[Episode], rows: _Rows) -> tuple[int, int]:
    """Append to the newest data file, or start the next one; return its (chunk, number)."""
    last = episodes[-1] if episodes else None
    chunk, file = (last.data_chunk, last.data_file) if last else (0, 0)
    here = [episode for episode in episodes if (episode.data_chunk, episode.data_file) == (chunk, file)]
    keep = info.total_frames - here[0].start if here else 0
    path = root / info.data_path.format(chunk_index=chunk, file_index=file)
    if keep and not _has_room(path, keep, len(rows.frames), rows, info):
        _cut(path, keep)
        chunk, file = next_file(chunk, file, info)
        keep, path = 0, root / info.data_path.format(chunk_index=chunk, file_index=file)

    def tables() -> Iterator[pa.Table]:
        if keep:
            yield from row_groups(path, keep)
        yield from rows.tables()

    with replacing(path) as partial:
        write_tables(partial, tables())
    return chunk, file


def _cut(path: Path, keep: int) -> None:
    """Take the remains of a killed commit off a data file that will not be written again."""
    if open_parquet(path).metadata.num_rows > keep:
        with replacing(path) as partial:
            write_tables(partial, row_groups(path, keep))


def _has_room(path: Path, keep: int, more: int, rows: _Rows, info: Info) -> bool:
    """Tell whether a data file can take more rows: it has the same columns and stays below the size limit."""
    schema = open_parquet(path).schema_arrow
    if set(schema.names) != set(next(rows.tables()).column_names):
        return False
    return path.stat().st_size * (keep + more) / keep < info.data_files_size_in_mb * 2**20


def _add_episode(root: Path, episode: Episode, stats: dict[str, FeatureStats]) -> None:
    """Write the row of an episode into its file of meta/episodes."""
    chunk, file, before = _episodes_file(root, episode.index)
    path = root / EPISODES_PATH.format(chunk_index=chunk, file_index=file)
    row: dict[str, Any] = {
        "episode_index": episode.index,
        "tasks": list(episode.tasks),
        "length": episode.length,
        "data/chunk_index": episode.data_chunk,
        "data/file_index": episode.data_file,
        "dataset_from_index": episode.start,
        "dataset_to_index": episode.start + episode.length,
        "meta/episodes/chunk_index": chunk,
        "meta/episodes/file_index": file,
        "name": episode.name,
        "outcome": episode.outcome,
        "start_stamp_ns": episode.start_stamp_ns,
    }
    for key, video in episode.videos.items():
        row[f"videos/{key}/chunk_index"], row[f"videos/{key}/file_index"] = video.chunk, video.file
        row[f"videos/{key}/from_timestamp"], row[f"videos/{key}/to_timestamp"] = video.start_s, video.end_s
    row |= {f"stats/{key}/{name}": value for key, values in stats.items() for name, value in values.items()}
    tables = [read_table(path).slice(0, before)] if before else []
    table = pa.concat_tables([*tables, pa.Table.from_pylist([row])], promote_options="permissive")
    with replacing(path) as partial:
        pq.write_table(table, partial, compression="snappy")


def _episodes_file(root: Path, index: int) -> tuple[int, int, int]:
    """Return (chunk, number) of the file that takes the row of an episode, and how many of its rows are kept."""
    chunk = file = before = 0
    for path in sorted(root.glob("meta/episodes/*/*.parquet")):
        chunk, file = (int(part.rpartition("-")[2]) for part in (path.parent.name, path.stem))
        before, index = min(index, rows := open_parquet(path).metadata.num_rows), index - rows
        if index <= 0:
            break
    return (chunk, file, before) if before < EPISODES_PER_FILE else (chunk, file + 1, 0)


def _stats_so_far(root: Path, info: Info) -> list[dict[str, FeatureStats]]:
    """Return the statistics of the episodes that are there, as one entry, or one for each where stats.json is off."""
    if not info.total_episodes:
        return []
    path = root / STATS
    stats = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if stats.get("index", {}).get("count") == [info.total_frames]:
        return [stats]
    rows = [row for path in sorted(root.glob("meta/episodes/*/*.parquet")) for row in read_table(path).to_pylist()]
    return [_stats_of(row) for row in rows[: info.total_episodes]]


def _stats_of(row: dict[str, Any]) -> dict[str, FeatureStats]:
    found: dict[str, FeatureStats] = {}
    for name, value in row.items():
        if name.startswith("stats/") and value is not None:
            key, _, statistic = name.removeprefix("stats/").rpartition("/")
            found.setdefault(key, {})[statistic] = value
    return found


def _grown(root: Path, info: Info, row: Episode, tasks: int, video: VideoSettings) -> Info:
    features = {key: dict(feature) for key, feature in info.features.items()}
    for key, span in row.videos.items():
        if "info" not in features[key]:
            path = _video_path(root, info, key, span.chunk, span.file)
            features[key]["info"] = dict(feature_info(probe(path), int(info.fps), video))
    return dataclasses.replace(
        info,
        features=features,
        total_episodes=row.index + 1,
        total_frames=row.start + row.length,
        total_tasks=tasks,
        splits={"train": f"0:{row.index + 1}"},
    )
