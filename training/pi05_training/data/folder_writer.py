"""Writing a folder dataset, in either layout of instructions.py:

    A   <root>/<task>/<subtask>/run_001/{actions.npy, qpos.npy, <camera>/000000.jpg …}
    B   <root>/stage<N>/run_001/…

A run is a stretch of frames with one subtask. Beside the arrays lie `stamps.npy` (int64 [T], ns) and `frames.json`
(which episode and frame the run begins at, outcome, images that are missing), so that nothing of the recording is lost;
`meta/episodes/<name>.json` lists the runs of an episode in order.

An episode is first staged (`.staging/<name>/`, any number of processes at once) and then committed: its runs are moved
to their places and last of all its file in `meta/episodes` is written. Runs that no such file lists belong to a commit
that was killed; the next commit removes them, and readers do not see them.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from pi05_ros.contract import Contract
from pi05_training.data.episode import DatasetError, EpisodeInfo, Frame
from pi05_training.data.instructions import FILE, Instruction, Instructions, folder_name, read_instructions

Layout = Literal["a", "b"]
STAGING = ".staging"
DATASET = "meta/dataset.json"
EPISODES = "meta/episodes"
PLACING = "meta/placing.json"
RUN = "frames.json"
ACTIONS, STATES, STAMPS = "actions.npy", "qpos.npy", "stamps.npy"
VERSION = 1


class NpyStream:
    """Appends rows to a .npy file; the number of rows is written when it is closed."""

    def __init__(self, path: Path, dtype: str, width: int | None) -> None:
        self._file: BinaryIO = path.open("wb")
        self._dtype, self._width = np.dtype(dtype), width
        self.rows = 0
        self._header()

    def add(self, row: Any) -> None:
        """Append one row."""
        self._file.write(np.asarray(row, self._dtype).tobytes())
        self.rows += 1

    def close(self) -> None:
        """Write the length and close the file."""
        if not self._file.closed:
            self._file.seek(0)
            self._header()
            self._file.close()

    def _header(self) -> None:
        # numpy leaves room in the header for any length, so that it can be written again in its place.
        shape = (self.rows,) if self._width is None else (self.rows, self._width)
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)


class FolderWriter:
    """Writes episodes into one dataset, new or already there.

    Args:
        root: folder of the dataset.
        contract: the robot; an existing dataset must be of the same one.
        layout: "a" or "b"; an existing dataset must have the same.

    Raises:
        DatasetError: what is there is no such dataset; says what differs.
    """

    def __init__(self, root: Path | str, contract: Contract, layout: Layout = "a") -> None:
        self.root, self.contract, self.layout = Path(root), contract, layout
        ours = {"format": "pi05_folder", "version": VERSION, "layout": layout}
        ours |= {"contract": contract.model_dump(mode="json")}
        described = self.root / DATASET
        if described.exists():
            there = read_json(described)
            for key, value in ours.items():
                if there.get(key) != value:
                    raise DatasetError(
                        f"{self.root}: is a folder dataset with another {key} ({_short(there.get(key))}, not "
                        f"{_short(value)}); give another folder"
                    )
        elif self.root.is_dir() and any(path.name != STAGING for path in self.root.iterdir()):
            raise DatasetError(f"{self.root}: neither empty nor a dataset written here; give another folder")
        else:
            (self.root / EPISODES).mkdir(parents=True, exist_ok=True)
            write_json(described, ours)

    def episodes(self) -> list[str]:
        """Return the names of the episodes that are there."""
        return [read_json(path)["name"] for path in episode_files(self.root)]

    def episode(self, info: EpisodeInfo, replace: bool = False) -> "FolderEpisode":
        """Start an episode.

        Args:
            info: what it is.
            replace: one of this name may be there, and is removed or replaced when this one is committed.

        Raises:
            DatasetError: it is already there, or has no name.
        """
        if not info.name or (self._episode_file(info.name).exists() and not replace):
            why = "is already there" if info.name else "needs a name"
            raise DatasetError(f"{self.root}: episode {info.name!r} {why}; names are unique")
        return FolderEpisode(self, info)

    def commit(self, staged: Path, replace: bool = False) -> None:
        """Add an episode that `FolderEpisode.stage` left behind.

        Args:
            staged: its folder.
            replace: it takes the place of the episode of its name.

        Raises:
            DatasetError: an episode of this name is there.
        """
        with self._lock():
            self._undo_killed_commit()
            about = read_json(staged / "episode.json")
            target = self._episode_file(about["name"])
            if target.exists() and not replace:
                raise DatasetError(f"{self.root}: episode {about['name']!r} is already there; names are unique")
            old = [run["path"] for run in read_json(target)["runs"]] if target.exists() else []
            instructions = self._instructions()
            places = self._choose_places(about["runs"], about["task"], instructions)
            write_json(self.root / PLACING, {"runs": [*map(str, places), *old]})
            # Texts come before the folders they belong to: a reader never meets a folder without its text.
            instructions.write(self.root / FILE)
            for run, place in zip(about["runs"], places, strict=True):
                (self.root / place).parent.mkdir(parents=True, exist_ok=True)
                (staged / run["path"]).rename(self.root / place)
                run["path"] = str(place)
            write_json(target, about)
            for run in old:
                self._remove_run(run)
            (self.root / PLACING).unlink()
        shutil.rmtree(staged)
        with contextlib.suppress(OSError):  # others may still be staging
            staged.parent.rmdir()

    def remove(self, name: str) -> None:
        """Remove an episode; its instructions stay."""
        target = self._episode_file(name)
        with self._lock():
            runs = [run["path"] for run in read_json(target)["runs"]]
            target.unlink()
            for run in runs:
                self._remove_run(run)

    def _remove_run(self, run: str) -> None:
        shutil.rmtree(self.root / run, ignore_errors=True)
        for parent in (self.root / run).parents:
            if parent == self.root or any(parent.iterdir()):
                break
            parent.rmdir()

    def _undo_killed_commit(self) -> None:
        placing = self.root / PLACING
        if not placing.exists():
            return
        listed = {run["path"] for path in episode_files(self.root) for run in read_json(path)["runs"]}
        for run in read_json(placing)["runs"]:
            if run not in listed:
                shutil.rmtree(self.root / run, ignore_errors=True)
        placing.unlink()

    def _instructions(self) -> Instructions:
        path = self.root / FILE
        return read_instructions(path) if path.exists() else Instructions()

    def _choose_places(self, runs: list[dict[str, Any]], task: str, instructions: Instructions) -> list[Path]:
        places: list[Path] = []
        for run in runs:
            if self.layout == "a":
                folder = Path(folder_name(task)) / folder_name(run["subtask"])
                instructions.tasks.setdefault(folder.parent.name, (task, {}))[1][folder.name] = run["subtask"]
            else:
                folder = Path(f"stage{_stage(instructions, task, run['subtask'])}")
            taken = [path.name for path in (self.root / folder).glob("run_*")]
            taken += [place.name for place in places if place.parent == folder]
            numbers = {int(name[4:]) for name in taken if name[4:].isdigit()}
            number = next(free for free in count(1) if free not in numbers)
            places.append(folder / f"run_{number:03d}")
        return places

    def _episode_file(self, name: str) -> Path:
        return self.root / EPISODES / f"{quote(name, safe='')}.json"

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.root / DATASET).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@dataclass
class _Run:
    folder: Path
    subtask: str
    first_frame: int
    states: NpyStream
    actions: NpyStream
    stamps: NpyStream
    missing: dict[str, list[list[int]]]

    def close(self) -> None:
        for stream in (self.states, self.actions, self.stamps):
            stream.close()


class FolderEpisode:
    """Writes one episode (`EpisodeWriter`); made by `FolderWriter.episode`."""

    def __init__(self, writer: FolderWriter, info: EpisodeInfo) -> None:
        self._writer, self._info = writer, info
        self._folder = writer.root / STAGING / quote(info.name, safe="").replace(".", "%2E")  # ".." is a name, too
        shutil.rmtree(self._folder, ignore_errors=True)  # of an attempt that was killed
        self._folder.mkdir(parents=True)
        self._run: _Run | None = None
        self._runs: list[dict[str, Any]] = []
        self._frames = 0
        self._before: dict[str, tuple[bytes, Path]] = {}

    def add(self, frame: Frame) -> None:
        """Append a frame; a new subtask begins a new run.

        Raises:
            DatasetError: state or action has the wrong length, or a camera is unknown; names it.
        """
        contract = self._writer.contract
        unknown = [camera for camera in frame.images if camera not in contract.cameras]
        if unknown:
            raise DatasetError(f"{self._info.name}: unknown camera {unknown}; cameras: {', '.join(contract.cameras)}")
        for what, vector in (("state", frame.state), ("action", frame.action)):
            if np.shape(vector) != (contract.dim,) or not np.isfinite(vector).all():
                raise DatasetError(f"{self._info.name}: frame {self._frames}: {what} is not {contract.dim} numbers")
        run = self._run
        if run is None or run.subtask != frame.subtask:
            self._end_run()
            run = self._run = self._begin_run(frame.subtask)
        index = run.stamps.rows
        run.states.add(frame.state)
        run.actions.add(frame.action)
        run.stamps.add(frame.stamp_ns)
        for camera in contract.cameras:
            blob = frame.images.get(camera)
            if blob is None:
                _note_missing(run.missing[camera], index)
            else:
                self._write_image(run.folder / camera / f"{index:06d}.jpg", camera, blob)
        self._frames += 1

    def stage(self) -> Path:
        """Finish the files and return their folder, for `FolderWriter.commit`.

        Raises:
            DatasetError: no frame was added.
        """
        self._end_run()
        if not self._runs:
            self.discard()
            raise DatasetError(f"{self._info.name}: an episode without frames is not written")
        about = {**dataclasses.asdict(self._info), "frames": self._frames, "runs": self._runs}
        write_json(self._folder / "episode.json", about)
        return self._folder

    def close(self) -> None:
        """Finish the episode and add it to the dataset."""
        self._writer.commit(self.stage())

    def discard(self) -> None:
        """Throw away what was written."""
        if self._run is not None:
            self._run.close()
            self._run = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _begin_run(self, subtask: str) -> _Run:
        folder = self._folder / f"{len(self._runs):04d}"
        folder.mkdir()
        for camera in self._writer.contract.cameras:
            (folder / camera).mkdir()
        dim = self._writer.contract.dim
        self._before = {}
        return _Run(
            folder=folder,
            subtask=subtask,
            first_frame=self._frames,
            states=NpyStream(folder / STATES, "<f4", dim),
            actions=NpyStream(folder / ACTIONS, "<f4", dim),
            stamps=NpyStream(folder / STAMPS, "<i8", None),
            missing={camera: [] for camera in self._writer.contract.cameras},
        )

    def _end_run(self) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        run.close()
        for camera in self._writer.contract.cameras:
            with contextlib.suppress(OSError):  # not empty: the camera was there
                (run.folder / camera).rmdir()
        about = {
            **dataclasses.asdict(self._info),
            "episode": self._info.name,
            "first_frame": run.first_frame,
            "frames": run.stamps.rows,
            "subtask": run.subtask,
            "missing_images": {camera: spans for camera, spans in run.missing.items() if spans},
        }
        del about["name"]
        write_json(run.folder / RUN, about)
        self._runs.append({"path": run.folder.name, "subtask": run.subtask, "frames": run.stamps.rows})

    def _write_image(self, path: Path, camera: str, blob: bytes) -> None:
        before = self._before.get(camera)
        if before is not None and before[0] is blob:
            try:  # a held image: one file under two names
                path.hardlink_to(before[1])
                return
            except OSError:  # a file system without links, or too many of them
                pass
        path.write_bytes(blob)
        self._before[camera] = (blob, path)


def episode_files(root: Path) -> list[Path]:
    """Return the files that describe the episodes of a dataset written here, in order of name."""
    return sorted((root / EPISODES).glob("*.json"))


def read_json(path: Path) -> dict[str, Any]:
    """Read an object.

    Raises:
        DatasetError: not readable.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise DatasetError(f"{path}: expected an object")
    return data


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write an object, all or nothing."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def stack_missing(spans: list[list[int]], frames: int) -> NDArray[np.bool_]:
    """Return which of `frames` images are missing, from [first, end) spans."""
    missing = np.zeros(frames, bool)
    for first, end in spans:
        missing[first:end] = True
    return missing


def _note_missing(spans: list[list[int]], index: int) -> None:
    if spans and spans[-1][1] == index:
        spans[-1][1] = index + 1
    else:
        spans.append([index, index + 1])


def _stage(instructions: Instructions, task: str, subtask: str) -> int:
    for number, entry in instructions.stages.items():
        if (entry.task, entry.subtask) == (task, subtask):
            return number
    number = max(instructions.stages, default=0) + 1
    instructions.stages[number] = Instruction(task, subtask, subtask)
    return number


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 60 else f"{text[:57]}..."
