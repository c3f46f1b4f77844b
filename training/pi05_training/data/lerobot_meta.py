"""The metadata of a LeRobotDataset v3.0: where files lie, info.json, the tables of episodes, tasks and subtasks.

Format: lerobot.datasets (dataset_metadata.py, utils.py, io_utils.py) of lerobot 0.4 to 0.6. Every file is replaced as
a whole, and `info.json` is written last: an episode exists when `total_episodes` counts it, whatever else lies there.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pi05_training.data.episode import DatasetError

VERSION = "v3.0"
INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
SUBTASKS = "meta/subtasks.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"

STATE = "observation.state"
ACTION = "action"
IMAGES = "observation.images."
SUBTASK_INDEX = "subtask_index"
PRESENT = "camera_present"
LANGUAGE = "language_persistent"
LANGUAGE_EVENTS = "language_events"

Feature = dict[str, Any]


@dataclass(frozen=True)
class Info:
    """Contents of meta/info.json, in lerobot's names."""

    fps: float
    features: dict[str, Feature]
    codebase_version: str = VERSION
    robot_type: str | None = None
    total_episodes: int = 0
    total_frames: int = 0
    total_tasks: int = 0
    chunks_size: int = 1000
    data_files_size_in_mb: float = 100
    video_files_size_in_mb: float = 200
    splits: dict[str, str] = field(default_factory=dict)
    data_path: str = DATA_PATH
    video_path: str | None = VIDEO_PATH

    def keys(self, *dtypes: str) -> list[str]:
        """Return the features of some dtypes ("video", "image", …)."""
        return [key for key, feature in self.features.items() if feature["dtype"] in dtypes]

    def dim(self, key: str) -> int:
        """Return the length of a vector feature."""
        return int(self.features[key]["shape"][0])


@dataclass(frozen=True, slots=True)
class VideoSpan:
    """Where an episode lies in the videos of a camera: file (chunk, number) and start and end in it [s]."""

    chunk: int
    file: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Episode:
    """A row of meta/episodes.

    Attributes:
        index: number of the episode.
        name, outcome: of `EpisodeInfo`; a dataset written elsewhere gets its number as the name.
        tasks: its high-level tasks.
        length: frames.
        start: global index of its first frame.
        data_chunk, data_file: parquet file that holds its frames.
        start_stamp_ns: time of its first frame; 0 when unknown.
        videos: by feature key.
    """

    index: int
    name: str
    outcome: str
    tasks: tuple[str, ...]
    length: int
    start: int
    data_chunk: int
    data_file: int
    start_stamp_ns: int
    videos: dict[str, VideoSpan]


def load_info(root: Path) -> Info:
    """Read and check info.json.

    Raises:
        DatasetError: it is missing, damaged or of another version.
    """
    path = root / INFO
    try:
        raw = json.loads(path.read_text("utf-8"))
        version = str(raw["codebase_version"])
    except FileNotFoundError:
        raise DatasetError(f"{path}: missing; {root} is no LeRobot dataset") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: not an info.json of LeRobot ({error!r})") from error
    if not version.startswith("v3."):
        raise DatasetError(
            f"{path}: codebase_version is {version}, v3.0 is expected; convert v2.1 with lerobot's own "
            f"`python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=NAME --root={root}`"
        )
    known = {f.name for f in dataclasses.fields(Info)}
    try:
        info = Info(**{key: value for key, value in raw.items() if key in known})
        broken = [key for key, feature in info.features.items() if not {"dtype", "shape"} <= feature.keys()]
    except (TypeError, AttributeError) as error:
        raise DatasetError(f"{path}: {error}; fps and features with dtype and shape are needed") from error
    if broken or info.fps <= 0:
        raise DatasetError(f"{path}: fps must be positive (is {info.fps}); features without dtype or shape: {broken}")
    return info


def save_info(root: Path, info: Info) -> None:
    """Write info.json. This is what makes an episode count."""
    with replacing(root / INFO) as path:
        path.write_text(json.dumps(dataclasses.asdict(info), indent=4, ensure_ascii=False) + "\n", "utf-8")


def load_episodes(root: Path, info: Info) -> list[Episode]:
    """Read the episodes that info.json counts, without their statistics.

    Raises:
        DatasetError: a table is damaged, or there are fewer episodes than info.json says.
    """
    rows: list[dict[str, Any]] = []
    for path in sorted(root.glob("meta/episodes/*/*.parquet")):
        file = open_parquet(path)
        columns = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
        rows += read_table(path, columns).to_pylist()
    if len(rows) < info.total_episodes:
        raise DatasetError(f"{root}/meta/episodes: {len(rows)} episodes, {INFO} says {info.total_episodes}")
    return [_episode(root, row, info) for row in rows[: info.total_episodes]]


def read_texts(path: Path) -> list[str]:
    """Read tasks.parquet or subtasks.parquet: the texts in the order of their numbers. A missing file holds none."""
    if not path.exists():
        return []
    table = read_table(path)
    numbers = next((name for name in table.column_names if name.endswith("_index") and name[0] != "_"), None)
    texts = next((name for name in table.column_names if name != numbers), None)
    if numbers is None or texts is None:
        raise DatasetError(f"{path}: expected a column of texts and one of numbers, found {table.column_names}")
    return [str(text) for text in table.sort_by(numbers).column(texts).to_pylist()]


def write_texts(path: Path, column: str, texts: Sequence[str]) -> None:
    """Write tasks.parquet ("task_index") or subtasks.parquet ("subtask_index").

    lerobot reads these with pandas and expects the texts as the index of the frame, which the schema has to tell.
    """
    index = column.removesuffix("_index")
    columns = [_pandas_column(column, "int64", "int64"), _pandas_column(index, "unicode", "object")]
    pandas = {"index_columns": [index], "column_indexes": [], "columns": columns, "pandas_version": "2.2.3"}
    table = pa.table({column: pa.array(range(len(texts)), pa.int64()), index: pa.array(list(texts), pa.string())})
    with replacing(path) as partial:
        pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), partial)


def numbered(texts: Sequence[str], wanted: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return `texts` with those of `wanted` appended that it lacks, and the number of each wanted one."""
    merged = list(dict.fromkeys([*texts, *wanted]))
    position = {text: number for number, text in enumerate(merged)}
    return merged, [position[text] for text in wanted]


def next_file(chunk: int, file: int, info: Info) -> tuple[int, int]:
    """Return (chunk, number) of the file after this one."""
    return (chunk + 1, 0) if file + 1 >= info.chunks_size else (chunk, file + 1)


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a parquet file.

    Raises:
        DatasetError: it is missing or damaged.
    """
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise DatasetError(f"{path}: the file is missing") from None
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: not a readable parquet file ({error}); restore it or convert again") from error


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a parquet file.

    Raises:
        DatasetError: it is missing or damaged.
    """
    try:
        return open_parquet(path).read(columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: damaged ({error}); restore it or convert again") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file that takes the place of `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Keep other processes from changing a dataset meanwhile."""
    root.mkdir(parents=True, exist_ok=True)
    folder = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _episode(root: Path, row: Mapping[str, Any], info: Info) -> Episode:
    try:
        index = int(row["episode_index"])
        videos = {
            key: VideoSpan(
                chunk=int(row[f"videos/{key}/chunk_index"]),
                file=int(row[f"videos/{key}/file_index"]),
                start_s=float(row[f"videos/{key}/from_timestamp"]),
                end_s=float(row[f"videos/{key}/to_timestamp"]),
            )
            for key in info.keys("video")
        }
        return Episode(
            index=index,
            name=row.get("name") or f"episode_{index:06d}",
            outcome=row.get("outcome") or "",
            tasks=tuple(row["tasks"] or ()),
            length=int(row["length"]),
            start=int(row["dataset_from_index"]),
            data_chunk=int(row["data/chunk_index"]),
            data_file=int(row["data/file_index"]),
            start_stamp_ns=int(row.get("start_stamp_ns") or 0),
            videos=videos,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{root}/meta/episodes: a row lacks or breaks {error}") from error


def _pandas_column(name: str, kind: str, numpy: str) -> dict[str, Any]:
    return {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
