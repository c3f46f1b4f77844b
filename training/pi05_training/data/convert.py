"""Bags into a dataset: one bag at a time per process, in constant memory, all or nothing per episode.

What always holds: a bag is staged by any process and committed by this one, in the order given, so that the dataset
does not depend on the number of processes or on the engine. `meta/conversion/<bag>.json` remembers what a bag was when
it was converted and how; a bag that is unchanged is left alone.
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pi05_ros.contract import Contract, load_contract
from pi05_ros.ingest import SourceRule
from pi05_training.data import report as reports
from pi05_training.data.bag_labels import read_labels_sidecar
from pi05_training.data.bags import Bag, open_bag
from pi05_training.data.commands import ChunkCommands
from pi05_training.data.episode import DatasetError, EpisodeInfo, EpisodeWriter
from pi05_training.data.folder_writer import STAGING, FolderWriter, Layout
from pi05_training.data.frames import FrameMaker, PartFrame
from pi05_training.data.journal import Journal, bag_digest
from pi05_training.data.sources import RobotSource, Source

Format = Literal["folder", "lerobot"]
# Part of every fingerprint: raised when the same bag would give another dataset.
VERSION = 1


class StagedEpisode(EpisodeWriter, Protocol):
    """A writer whose episode can be finished here and added to the dataset elsewhere."""

    def stage(self) -> Path:
        """Finish the files and return their folder."""


class DatasetWriter(Protocol):
    """A dataset that grows by episodes."""

    def episodes(self) -> list[str]:
        """Return the names of the episodes that are there."""

    def episode(self, info: EpisodeInfo) -> StagedEpisode:
        """Start an episode."""

    def commit(self, staged: Path) -> None:
        """Add a staged episode."""


@dataclass(frozen=True)
class Settings:
    """How bags are converted; the same for all of a dataset.

    Attributes:
        contract: the robot.
        format, layout: of the dataset.
        rules: how samples are taken, by camera name or "state".
        mapping: contents of a mapping file, for bags of another robot; "" for this robot's.
        namespace: of the topics; None finds it out.
        task: for bags that do not say.
        min_frames: a shorter stretch becomes no episode.
    """

    contract: Contract
    format: Format = "folder"
    layout: Layout = "a"
    rules: dict[str, SourceRule] = field(default_factory=dict)
    mapping: str = ""
    namespace: str | None = None
    task: str = ""
    min_frames: int = 10

    def fingerprint(self) -> str:
        """Return what identifies these settings."""
        data = {**dataclasses.asdict(self), "contract": self.contract.model_dump(mode="json"), "version": VERSION}
        return json.dumps(data, sort_keys=True)


@dataclass(frozen=True)
class Job:
    """One bag to convert.

    Attributes:
        bag: where it is.
        name: of its first episode.
        root: folder of the dataset.
        settings: how.
        fingerprint: what bag and settings are.
        replaces: episodes that it gave before it changed.
    """

    bag: Path
    name: str
    root: Path
    settings: Settings
    fingerprint: str
    replaces: tuple[str, ...] = ()


@dataclass(frozen=True)
class Converted:
    """A staged bag: its job, its report, and the folders of its episodes by name."""

    job: Job
    report: dict[str, Any]
    staged: dict[str, Path]


class Engine(Protocol):
    """Runs jobs and gives their results in the order of the jobs."""

    def __call__(self, jobs: Sequence[Job]) -> Iterator[Converted]:
        """Run all jobs."""


def convert_bag(job: Job) -> Converted:
    """Convert one bag into staged episodes. Never raises for what is wrong with the bag: the report says it."""
    about: dict[str, Any] = {"name": job.name, "bag": str(job.bag), "status": "converted"}
    parts: _Parts | None = None
    try:
        bag = open_bag(job.bag)
        source = make_source(bag, job.settings)
        task = bag.custom.get("task", "") or bag.custom.get("prompt", "") or job.settings.task
        maker = FrameMaker(job.settings.contract, source.cameras, source.commands, task, job.settings.rules)
        parts = _Parts(job, outcome_of(bag))
        for message in bag.messages(source.topics, by_log_time=source.by_log_time):
            for made in source.feed(message, maker):
                parts.add(made)
        for made in maker.finish():
            parts.add(made)
        parts.end()
        about |= {**reports.describe(maker.stats), "episodes": list(parts.staged), "short_parts": parts.short}
        about |= {"damage": bag.damage.describe(), "refused": dict(source.refused), "outcome": outcome_of(bag)}
        about["clock_shift_s"] = source.shift_ns / 1e9
        if isinstance(source.commands, ChunkCommands):
            commands = source.commands
            about |= {"chunks": commands.accepted, "chunks_refused": dict(commands.refused), "holds": commands.held}
        if not parts.staged:
            about["error"] = f"{job.bag}: no episode in it: {_why_nothing(about, source)}"
        return Converted(job, about, parts.staged)
    except (DatasetError, OSError) as error:
        if parts is not None:
            parts.abandon()
        return Converted(job, {**about, "error": str(error)}, {})


class _Parts:
    """Gives every part of a bag its episode."""

    def __init__(self, job: Job, outcome: str) -> None:
        self._job, self._outcome = job, outcome
        self._writer = make_writer(job.root, job.settings)
        self._labels = read_labels_sidecar(job.bag)
        self._episode: StagedEpisode | None = None
        self._part, self._frames, self._name = -1, 0, ""
        self.staged: dict[str, Path] = {}
        self.short = 0

    def add(self, made: PartFrame) -> None:
        if made.part != self._part:
            self.end()
            self._begin(made)
        assert self._episode is not None
        frame = made.frame
        if self._labels is not None:
            frame = dataclasses.replace(frame, subtask=self._labels.at(frame.stamp_ns))
        self._episode.add(frame)
        self._frames += 1

    def _begin(self, made: PartFrame) -> None:
        number = len(self.staged) + 1
        self._name = self._job.name if number == 1 else f"{self._job.name}_part{number}"
        fps = self._job.settings.contract.rates.action_hz
        info = EpisodeInfo(self._name, made.task, self._outcome, fps)
        if isinstance(self._writer, FolderWriter):
            self._episode = self._writer.episode(info, replace=self._name in self._job.replaces)
        else:
            self._episode = self._writer.episode(info)
        self._part, self._frames = made.part, 0

    def end(self) -> None:
        episode, self._episode = self._episode, None
        if episode is None:
            return
        if self._frames < self._job.settings.min_frames:
            self.short += 1
            episode.discard()
        else:
            self.staged[self._name] = episode.stage()

    def abandon(self) -> None:
        """Throw away everything that was staged."""
        if self._episode is not None:
            self._episode.discard()
        for folder in self.staged.values():
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # other bags may be staged beside it
            (self._job.root / STAGING).rmdir()


def convert(
    bags: Sequence[Path], root: Path, settings: Settings, engine: Engine, progress: "Progress | None" = None
) -> list[dict[str, Any]]:
    """Convert bags into the dataset at `root`, new or already there.

    Args:
        bags: recordings, as `find_bags` gives them.
        root: folder of the dataset.
        settings: how.
        engine: what runs the jobs.
        progress: told about every bag that is done.

    Returns:
        One report per bag, in order; `error` says why a bag was not converted.

    Raises:
        DatasetError: the dataset that is there does not fit.
    """
    writer = make_writer(root, settings)
    found = {path: _plan(path, root, settings) for path in bags}
    journal = Journal(root)
    done: dict[Path, dict[str, Any]] = {}
    jobs: list[Job] = []
    there = set(writer.episodes())
    taken = {*there, *journal.names()}
    for path, fingerprint in found.items():
        entry = journal.of(path, fingerprint)
        if entry and entry["fingerprint"] == fingerprint and there >= set(entry["report"]["episodes"]):
            journal.settle(entry)
            done[path] = {**entry["report"], "status": "unchanged"}
            continue
        name = entry["report"]["name"] if entry else _free_name(path, taken)
        taken.add(name)
        jobs.append(Job(path, name, root, settings, fingerprint, _replaced(writer, root, entry, there)))
    for converted in engine(jobs) if jobs else ():
        done[converted.job.bag] = _commit(writer, journal, converted)
        if progress is not None:
            progress(converted.report)
    return [done[path] for path in bags]


class Progress(Protocol):
    """Hears of every bag that is done."""

    def __call__(self, report: dict[str, Any]) -> None:
        """Take the report of a bag."""


def _commit(writer: DatasetWriter, journal: "Journal", converted: Converted) -> dict[str, Any]:
    report = converted.report
    if report.get("error"):
        return report
    entry = {"fingerprint": converted.job.fingerprint, "bag": str(converted.job.bag.resolve()), "report": report}
    if isinstance(writer, FolderWriter):
        for name in converted.job.replaces:  # only now: a bag that can no longer be converted keeps what it gave
            writer.remove(name)
    journal.forget(entry)
    # The journal comes first: when this process is killed in between, the next one knows whose these episodes are.
    journal.announce(entry)
    for folder in converted.staged.values():
        writer.commit(folder)
    journal.settle(entry)
    return report


def _replaced(writer: DatasetWriter, root: Path, entry: dict[str, Any] | None, there: set[str]) -> tuple[str, ...]:
    """Return the episodes that a bag gave before it or the settings changed.

    Raises:
        DatasetError: they cannot be replaced.
    """
    old = tuple(name for name in entry["report"]["episodes"] if name in there) if entry else ()
    if old and entry and not isinstance(writer, FolderWriter):
        raise DatasetError(
            f"{root}: {entry['bag']} or the settings changed since it was converted, and episodes of this format "
            "cannot be replaced; give another folder"
        )
    return old


def make_writer(root: Path, settings: Settings) -> DatasetWriter:
    """Open the dataset for writing.

    Raises:
        DatasetError: what is there does not fit.
    """
    contract = settings.contract
    if settings.format == "folder":
        return FolderWriter(root, contract, settings.layout)
    from pi05_training.data.lerobot import LeRobotWriter, lerobot_format

    fps = contract.rates.action_hz
    if fps != int(fps):
        raise DatasetError(f"a LeRobot dataset needs a whole number of frames per second, the contract has {fps:g}")
    return LeRobotWriter(root, lerobot_format(contract))


def make_source(bag: Bag, settings: Settings) -> Source:
    """Choose how a bag is read.

    Raises:
        DatasetError: the bag is of another robot, or topics are missing.
    """
    if settings.mapping:
        from pi05_training.data.mapping import MappedSource, parse_mapping

        return MappedSource(bag, settings.contract, parse_mapping(settings.mapping, settings.contract))
    recorded = bag.contract()
    if recorded is not None:
        check_same_robot(bag.path, recorded, settings.contract)
    return RobotSource(bag, settings.contract, settings.namespace)


def choose_contract(bags: Iterable[Path], given: Path | None) -> Contract:
    """Return the contract given, else that of the first bag that has one, else the package's own."""
    if given is not None:
        return load_contract(given)
    for path in bags:
        try:
            found = open_bag(path).contract()
        except DatasetError:
            continue  # its own conversion will say so
        if found is not None:
            return found
    return load_contract()


def check_same_robot(path: Path, recorded: Contract, wanted: Contract) -> None:
    """Check that a bag fits the dataset.

    Raises:
        DatasetError: names what differs.
    """
    pairs = {
        "robot": (recorded.robot, wanted.robot),
        "vector": (recorded.names, wanted.names),
        "units": (recorded.units, wanted.units),
        "cameras": (tuple(recorded.cameras), tuple(wanted.cameras)),
        "image size": ((recorded.image.width, recorded.image.height), (wanted.image.width, wanted.image.height)),
        "rates": (
            (recorded.rates.action_hz, recorded.rates.chunk_steps),
            (wanted.rates.action_hz, wanted.rates.chunk_steps),
        ),
    }
    for what, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise DatasetError(
                f"{path}: was recorded with another contract: {what} is {theirs}, the dataset has {ours}; "
                "convert it into a dataset of its own"
            )


def outcome_of(bag: Bag) -> str:
    """Return "success", "failure" or "" from the bag's metadata."""
    said = bag.custom.get("outcome", "").strip().lower()
    known = {"success": ("success", "true", "1"), "failure": ("failure", "false", "0")}
    return next((outcome for outcome, words in known.items() if said in words), "")


def _plan(path: Path, root: Path, settings: Settings) -> str:
    text = f"{bag_digest(path)}\0{settings.fingerprint()}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _free_name(path: Path, taken: set[str]) -> str:
    stem = path.stem if path.is_file() else path.name
    names = [stem, f"{path.resolve().parent.name}_{stem}"]
    free = [name for name in names if name not in taken]
    number = 2
    while not free:
        candidate = f"{names[1]}_{number}"
        free = [candidate] if candidate not in taken else []
        number += 1
    return free[0]


def _why_nothing(about: dict[str, Any], source: Source) -> str:
    silent = [name for name, source in about["sources"].items() if not source["messages"]]
    reasons = [f"nothing from {', '.join(silent)}"] if silent else []
    if not about["frames"] and about["before_first_command"]:
        reasons.append("nothing was ever commanded (no action_chunk in force)")
    if about["without_task"]:
        reasons.append("it does not say its task; give it with --task")
    reasons += filter(None, [source.explain()])
    return "; ".join([*reasons, *reports.notes({**about, "error": ""})]) or "it is empty"
