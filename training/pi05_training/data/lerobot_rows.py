"""The frame table of a LeRobot dataset: columns of data/chunk-*/file-*.parquet, to and from numpy."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pi05_training.data.episode import DatasetError, SubtaskSpan
from pi05_training.data.lerobot_meta import LANGUAGE, LANGUAGE_EVENTS, Feature, open_parquet

ROWS_PER_GROUP = 10_000
"""Largest row group: an episode of less than 200 s at 50 Hz is one, as lerobot writes them."""

Array = NDArray[Any]


def runs(numbers: Array) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the stretches of equal values."""
    edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    yield from itertools.pairwise(edges) if len(numbers) else ()


def column(feature: Feature, values: Array) -> pa.Array:
    """Return the column of a numeric feature; values are [N], or [N, D] for D > 1."""
    shape, kind = feature["shape"], pa.from_numpy_dtype(feature["dtype"])
    if list(shape) == [1]:
        return pa.array(values.reshape(-1), kind)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), kind), int(shape[0]))


def matrix(values: pa.ChunkedArray, dim: int, where: str) -> Array:
    """Return a numeric column as [N, D], whatever kind of list it is.

    Raises:
        DatasetError: rows are not `dim` long or hold nulls.
    """
    flat = values.combine_chunks()
    rows = len(flat)
    while isinstance(flat, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        flat = flat.flatten()
    if len(flat) != rows * dim or flat.null_count:
        raise DatasetError(f"{where}: {len(flat)} values in {rows} rows, info.json says {dim} in each")
    array: Array = flat.to_numpy(zero_copy_only=False)
    return array.reshape(rows, dim)


def language_columns(spans: Sequence[SubtaskSpan], fps: float, rows: int) -> dict[str, pa.Array]:
    """Return lerobot 0.6's language columns for `rows` frames of an episode.

    Every frame carries the whole list; a row of style "subtask" holds from its timestamp until the next one.
    """
    said = [span for span in spans if span.text]
    fields = {
        "role": pa.array(["assistant"] * len(said), pa.string()),
        "content": pa.array([span.text for span in said], pa.string()),
        "style": pa.array(["subtask"] * len(said), pa.string()),
        "timestamp": pa.array([span.start / fps for span in said], pa.float32()),
        "camera": pa.nulls(len(said), pa.string()),
        "tool_calls": pa.nulls(len(said), pa.list_(pa.string())),
    }
    once = pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
    offsets = pa.array(np.arange(rows + 1) * len(said), pa.int32())
    persistent = pa.ListArray.from_arrays(offsets, once.take(pa.array(np.tile(np.arange(len(said)), rows))))
    event = pa.struct([field for field in once.type if field.name != "timestamp"])
    return {LANGUAGE: persistent, LANGUAGE_EVENTS: pa.array([[]] * rows, pa.list_(event))}


def language_subtasks(rows: Sequence[Mapping[str, Any]], frames: int, fps: float) -> list[SubtaskSpan]:
    """Return the spans that a language column tells."""
    found = sorted((row["timestamp"], row["content"] or "") for row in rows if row["style"] == "subtask")
    starts = [min(frames, max(0, round(at * fps))) for at, _ in found]
    edges = [*starts, frames]
    spans = [SubtaskSpan(0, edges[0], "")] if edges[0] else []
    spans += [SubtaskSpan(a, b, text) for (a, b), (_, text) in zip(itertools.pairwise(edges), found, strict=True)]
    return [span for span in spans if span.start < span.stop]


def write_tables(path: Path, tables: Iterator[pa.Table]) -> None:
    """Write a parquet file, one row group per table, in constant memory."""
    first = next(tables)
    with pq.ParquetWriter(path, first.schema, compression="snappy") as writer:
        writer.write_table(first, row_group_size=ROWS_PER_GROUP)
        for table in tables:
            writer.write_table(table.cast(first.schema), row_group_size=ROWS_PER_GROUP)


def row_groups(path: Path, most: int | None = None) -> Iterator[pa.Table]:
    """Yield the row groups of a parquet file, up to `most` rows in all.

    Raises:
        DatasetError: it is missing or damaged, or holds fewer rows than `most`.
    """
    file, left = open_parquet(path), most
    for number in range(file.num_row_groups):
        if left is not None and left <= 0:
            return
        table = read_group(path, file, number)
        yield table if left is None else table.slice(0, left)
        left = None if left is None else left - len(table)
    if left is not None and left > 0:
        raise DatasetError(f"{path}: {left} rows are missing at its end")


def read_group(path: Path, file: pq.ParquetFile, number: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a row group.

    Raises:
        DatasetError: it is damaged.
    """
    try:
        return file.read_row_group(number, columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: row group {number} is damaged ({error}); restore it or convert again") from error
