"""Subtask labels of a LeRobot dataset: only the columns that carry them are written anew, never a video.

Both conventions are kept where they are: `subtask_index` with meta/subtasks.parquet, and the rows of style "subtask" in
`language_persistent`. A dataset with neither gets `subtask_index`, every frame starting with its task.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pi05_model.observation import Image
from pi05_training.data.episode import SubtaskSpan
from pi05_training.data.label import FileJournal, Spans
from pi05_training.data.lerobot import LeRobotDataset
from pi05_training.data.lerobot_meta import (
    LANGUAGE,
    SUBTASK_INDEX,
    SUBTASKS,
    TASKS,
    Episode,
    Info,
    load_episodes,
    load_info,
    locked,
    numbered,
    open_parquet,
    read_texts,
    replacing,
    save_info,
    write_texts,
)
from pi05_training.data.lerobot_rows import row_groups, write_tables

JOURNAL = "meta/label_journal.jsonl"


class LeRobotLabels:
    """The spans of a LeRobot dataset (`LabelStore`)."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._dataset = LeRobotDataset(root)
        self.journal = FileJournal(root / JOURNAL)

    def episodes(self) -> list[str]:
        """Return the names of the episodes."""
        return [episode.name for episode in self._dataset.episodes]

    def rate(self, episode: str) -> float:
        """Return frames per second."""
        return self._dataset.fps

    def spans(self, episode: str) -> Spans:
        """Return the spans of an episode."""
        return self._dataset.spans(self._number(episode))

    def write(self, episode: str, spans: Spans) -> None:
        """Replace the spans of an episode."""
        with locked(self._root):
            write_spans(self._root, self._number(episode), spans)
        self._dataset = LeRobotDataset(self._root)

    def images(self, episode: str, ticks: Sequence[int]) -> list[dict[str, Image]]:
        """Return the images of some frames."""
        number = self._number(episode)
        return [self._dataset.images(number, tick) for tick in ticks]

    def _number(self, episode: str) -> int:
        return self.episodes().index(episode)


def write_spans(root: Path, episode: int, spans: Sequence[SubtaskSpan]) -> None:
    """Write the subtasks of an episode's frames; the caller holds the dataset's lock.

    Raises:
        DatasetError: a file is damaged.
    """
    info = load_info(root)
    if SUBTASK_INDEX not in info.features and LANGUAGE not in info.features:
        info = _add_column(root, info)
    episodes = load_episodes(root, info)
    texts, numbers = numbered(read_texts(root / SUBTASKS), [span.text for span in spans])
    if SUBTASK_INDEX in info.features:
        write_texts(root / SUBTASKS, SUBTASK_INDEX, texts)
    row = episodes[episode]
    path = root / info.data_path.format(chunk_index=row.data_chunk, file_index=row.data_file)
    frames = np.repeat(numbers, [span.stop - span.start for span in spans])
    begin = row.start - min(e.start for e in episodes if (e.data_chunk, e.data_file) == (row.data_chunk, row.data_file))
    with replacing(path) as partial:
        write_tables(partial, _changed(path, begin, row, frames, spans, info))


def _changed(
    path: Path, begin: int, episode: Episode, numbers: Any, spans: Sequence[SubtaskSpan], info: Info
) -> Iterator[pa.Table]:
    """Yield the row groups of a file with an episode's labels replaced."""
    at = 0
    for table in row_groups(path):
        low, high = max(begin, at), min(begin + episode.length, at + len(table))
        if low < high:
            inside = slice(low - at, high - at)
            if SUBTASK_INDEX in info.features:
                column = table.column(SUBTASK_INDEX).to_numpy().copy()
                column[inside] = numbers[low - begin : high - begin]
                table = _with(table, SUBTASK_INDEX, pa.array(column, pa.int64()))
            if LANGUAGE in info.features:
                table = _with(table, LANGUAGE, _language(table.column(LANGUAGE), inside, spans, info.fps))
        yield table
        at += len(table)


def _language(column: pa.ChunkedArray, inside: slice, spans: Sequence[SubtaskSpan], fps: float) -> pa.ChunkedArray:
    """Replace the subtasks in the language column of some rows; rows of other styles stay."""
    there = column[inside.start].as_py() or []
    empty = {"role": "assistant", "camera": None, "tool_calls": None, "style": "subtask"}
    said = [{**empty, "content": span.text, "timestamp": span.start / fps} for span in spans if span.text]
    rows = sorted(
        [*(row for row in there if row["style"] != "subtask"), *said], key=lambda row: float(row["timestamp"])
    )
    once = pa.array([rows], column.type)
    new = once.take(pa.array(np.zeros(inside.stop - inside.start, np.int64)))
    return pa.chunked_array([*column[: inside.start].chunks, new, *column[inside.stop :].chunks], column.type)


def _add_column(root: Path, info: Info) -> Info:
    """Give every frame a `subtask_index` that says its task."""
    write_texts(root / SUBTASKS, SUBTASK_INDEX, read_texts(root / TASKS))
    for path in sorted(root.glob("data/*/*.parquet")):
        if SUBTASK_INDEX in open_parquet(path).schema_arrow.names:  # an attempt that was killed got here
            continue
        with replacing(path) as partial:
            write_tables(partial, (t.append_column(SUBTASK_INDEX, t.column("task_index")) for t in row_groups(path)))
    features = {**info.features, SUBTASK_INDEX: {"dtype": "int64", "shape": [1], "names": None}}
    info = dataclasses.replace(info, features=features)
    save_info(root, info)
    return info


def _with(table: pa.Table, name: str, column: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), table.schema.field(name), column)
