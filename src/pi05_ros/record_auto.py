"""Collects seeded episodes of the scripted demonstrator, unattended: one graph, a reset between two episodes.

Each seed is one scene and one bag, whose notes say seed, task and outcome (the simulator's own `~/success`). What is
there already is not recorded again, so that a run that was interrupted is simply started again.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pi05_ros import topics
from pi05_ros.graph import GraphArguments, build_graph, recorder_spec
from pi05_ros.processes import Supervisor
from pi05_ros.repair import State, bag_notes, find_bags, read_notes
from pi05_ros.up import StopSignals, environment, program

NS = 1_000_000_000
SOURCE = "scripted demonstrator"  # the note that tells these bags from others
LINGER_S = 1.0  # simulated time that is still recorded after success: the arms come to rest
ANSWER_S = 30.0  # longest wait for an answer [wall s]
STARTUP_S = 120.0  # longest wait for the nodes, and for the first chunk [wall s]
CALLED = ("sim_node", "demonstrator_node", "recorder_node")


class CollectError(RuntimeError):
    """Collecting ended early; the message says why and what to do."""


@dataclass(frozen=True)
class AutoArguments:
    """What is collected.

    Attributes:
        out: folder of the bags.
        episodes: how many seeds.
        seed: the first one.
        task: what is demonstrated.
        limit_s: simulated time after which an episode is a failure [s].
        realtime_factor: simulated seconds per second at most; 0: as fast as possible.
        verbose: print the nodes' output; otherwise it goes to graph.log in `out`.
    """

    out: Path
    episodes: int
    seed: int = 0
    task: str = "clear the table"
    limit_s: float = 120.0
    realtime_factor: float = 1.0
    verbose: bool = False


def collected(out: Path, task: str) -> dict[int, dict[str, str]]:
    """Return the notes of the finished episodes in a folder that count for a task, by seed."""
    found = {}
    for folder, state in find_bags(out) if out.is_dir() else []:
        notes = bag_notes(folder) if state == State.FINISHED else {}
        if notes.get("source") == SOURCE and notes.get("task") == task and notes.get("outcome") != "unknown":
            found[int(notes["seed"])] = notes
    return found


def remove_incomplete(out: Path, task: str, seeds: Collection[int]) -> list[Path]:
    """Remove what an interrupted run left of these seeds: episodes that were cut off, or ended without a verdict."""
    removed = []
    for folder, state in find_bags(out) if out.is_dir() else []:
        if state == State.RECORDING:
            continue
        notes = bag_notes(folder) if state == State.FINISHED else {"outcome": "unknown"} | read_notes(folder)
        ours = notes.get("source") == SOURCE and notes.get("task") == task and notes.get("outcome") == "unknown"
        if ours and notes.get("seed", "").isdigit() and int(notes["seed"]) in seeds:
            shutil.rmtree(folder)
            removed.append(folder)
    return removed


def collect(arguments: AutoArguments) -> int:
    """Record what is missing. Returns 0 when all episodes are there, 130 after Ctrl-C.

    Raises:
        CollectError: a node died, or did not answer.
        GraphError: the graph cannot be started.
    """
    arguments.out.mkdir(parents=True, exist_ok=True)
    seeds = range(arguments.seed, arguments.seed + arguments.episodes)
    there = collected(arguments.out, arguments.task)
    missing = [seed for seed in seeds if seed not in there]
    print(f"record: {len(seeds) - len(missing)} of {len(seeds)} episodes are there, {len(missing)} to record")
    for folder in remove_incomplete(arguments.out, arguments.task, missing):
        print(f"record: {folder.name} was interrupted; removed, its seed is recorded again")
    interrupted = bool(missing) and _run(arguments, missing)
    notes = [told for seed, told in collected(arguments.out, arguments.task).items() if seed in seeds]
    success = sum(told["outcome"] == "success" for told in notes)
    print(f"record: {len(notes)} of {len(seeds)} episodes in {arguments.out}, {success} of them successful")
    if interrupted:
        return 130
    return 0 if len(notes) == len(seeds) else 1


def _run(arguments: AutoArguments, seeds: list[int]) -> bool:
    """Start the graph and record the seeds; return whether a signal ended it."""
    graph = GraphArguments(
        task=arguments.task, seed=seeds[0], driver="demonstrator", realtime_factor=arguments.realtime_factor
    )
    specs = [*build_graph(graph), recorder_spec(graph, arguments.out, on_activate=False)]
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.update(environment(graph))  # this process is a participant too
    from pi05_ros.nodes.record_client import RecordClient

    log = arguments.out / "graph.log"
    with (
        tempfile.TemporaryDirectory(prefix="pi05_record_") as folder,
        StopSignals() as signals,
        log.open("a", encoding="utf-8") as output,
        RecordClient() as client,
        Supervisor(
            [program(spec, Path(folder)) for spec in specs],
            environment(graph),
            sys.stdout if arguments.verbose else output,
        ) as supervisor,
    ):
        collector = _Collector(arguments, client, supervisor, signals, log)
        try:
            for node in CALLED:
                collector.wait(partial(client.reaches, node), STARTUP_S, f"{node} to answer")
            collector.wait(lambda: _hears_chunks(client.status), STARTUP_S, "the recorder to hear an action chunk")
            for index, seed in enumerate(seeds, 1):
                collector.episode(seed, f"{index}/{len(seeds)}")
        except _Interrupted:
            return True
    return False


class _Interrupted(Exception):
    """A signal arrived."""


class _Collector:
    """Walks the graph through one episode after another."""

    def __init__(
        self, arguments: AutoArguments, client: Any, supervisor: Supervisor, signals: StopSignals, log: Path
    ) -> None:
        self._arguments, self._client, self._supervisor = arguments, client, supervisor
        self._signals, self._log = signals, log

    def episode(self, seed: int, which: str) -> None:
        """Record one seed."""
        client, begin = self._client, time.monotonic()
        self._prepare(seed)
        folder = self._start(seed)
        start_ns = client.now_ns
        self._ask(client.transition("demonstrator_node", "activate"))
        success = self._watch(start_ns)
        self._ask(client.set_bool("recorder_node/stop", success))
        played_s, wall_s = (client.now_ns - start_ns) / NS, time.monotonic() - begin
        outcome, size_mb = "success" if success else "failure", _size_mb(folder)
        print(
            f"record: {which}  seed {seed}  {outcome} after {played_s:.1f} s  {size_mb:.1f} MB in {folder.name}"
            f"  ({wall_s:.0f} s wall)",
            flush=True,
        )

    def _prepare(self, seed: int) -> None:
        """A new scene, nobody acting, and no subtask in force that belongs to the old one."""
        client = self._client
        if self._ask(client.state("demonstrator_node")) == "active":
            self._ask(client.transition("demonstrator_node", "deactivate"))
        client.withdraw_subtask()
        self.wait(client.withdrawn, ANSWER_S, "the recorder to hear that no subtask is in force")
        self._ask(client.set_parameters("sim_node", {"seed": seed}))
        self._ask(client.trigger("sim_node/reset"))
        notes = f"seed={seed}; source={SOURCE}"
        self._ask(client.set_parameters("recorder_node", {"task": self._arguments.task, "notes": notes}))

    def _start(self, seed: int) -> Path:
        """Start the recorder as soon as nothing is missing."""
        end = time.monotonic() + ANSWER_S
        while True:
            well, said = self._answer(self._client.trigger("recorder_node/start"))
            if well:
                return Path(said)
            if "missing:" not in said or time.monotonic() > end:
                raise CollectError(f"seed {seed} cannot be recorded: {said}")

    def _watch(self, start_ns: int) -> bool:
        """Wait until the task is done and the arms have come to rest, or the time is over."""
        client, limit_ns = self._client, round(self._arguments.limit_s * NS)
        while client.now_ns - start_ns < limit_ns:
            if self._answer(client.trigger("sim_node/success"))[0]:
                self._play(LINGER_S)
                return self._answer(client.trigger("sim_node/success"))[0]
            self._play(0.5)
        return False

    def _play(self, seconds: float) -> None:
        """Let simulated time pass."""
        until_ns = self._client.now_ns + round(seconds * NS)
        self.wait(lambda: self._client.now_ns >= until_ns, ANSWER_S, "simulated time to go on")

    def _ask(self, pending: Any) -> str:
        """Return what was answered; what went wrong ends the run."""
        well, said = self._answer(pending)
        if not well:
            raise CollectError(f"{pending.what}: {said or 'refused'}; see {self._log}")
        return said

    def _answer(self, pending: Any) -> tuple[bool, str]:
        self.wait(pending.done, ANSWER_S, f"an answer of {pending.what}")
        well, said = pending.result()
        return bool(well), str(said)

    def wait(self, predicate: Callable[[], object], seconds: float, what: str) -> None:
        """Wait, and notice when the graph dies or somebody wants to end it."""
        end = time.monotonic() + seconds
        while not predicate():
            self._supervisor.poll()
            if self._signals.received:
                raise _Interrupted
            if self._supervisor.finished or self._supervisor.failures:
                why = "; ".join(self._supervisor.failures) or "a node ended"
                raise CollectError(f"{why}; see {self._log}")
            if time.monotonic() > end:
                raise CollectError(f"waited {seconds:g} s for {what}; see {self._log}")
            time.sleep(0.02)


def _hears_chunks(status: Mapping[str, tuple[int, str, Mapping[str, str]]]) -> bool:
    """Return whether the recorder has told of an action chunk; it may join the graph after the first ones."""
    _, _, values = status.get(f"recorder_node: {topics.ACTION_CHUNK}", (0, "", {}))
    return values.get("messages", "0") != "0"


def _size_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6
