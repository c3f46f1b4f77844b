"""`pi05 demo`: the whole graph on a seeded scene, watched from outside, and a report of what really happened.

The demo hears what anybody on the network could hear; nothing in the report comes from inside a node except through
/diagnostics and the simulator's success service.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pi05_ros.contract import load_contract
from pi05_ros.graph import EMBEDDED_POLICY, GraphArguments
from pi05_ros.paths import share_dir
from pi05_ros.report.log import NS, DemoLog, PolicyIdentity
from pi05_ros.report.page import write_page
from pi05_ros.report.summary import Report, summarize
from pi05_ros.report.video import write_video
from pi05_ros.up import GraphOutcome, environment, run_graph

LEAD_IN_S = 0.5  # shown before the first chunk
LINGER_S = 1.0  # simulated time that is still shown after success
FINAL_FIGURES_S = 2.5  # longest wait for the controller's last /diagnostics, which come once a second [wall s]


class DemoError(RuntimeError):
    """The demo did not run; the message says how far it got."""


@dataclass(frozen=True)
class DemoArguments:
    """Run the embedded policy on a seeded scene and write report.json, report.html and demo.mp4.

    Attributes:
        task: what the robot is asked to do.
        seed: layout of the scene; from 1,000,000 on the embedded policy has not seen it in training.
        duration: simulated seconds from the first action chunk; the demo ends earlier when the task is done.
        out: folder of the report.
        policy: checkpoint folder; empty: the one that the package ships.
        driver: who makes action chunks: the policy, or the scripted expert for comparison.
        patience: wall seconds to wait for the first action chunk.
        verbose: print the nodes' output; otherwise it goes to graph.log beside the report.
    """

    task: str = "clear the table"
    seed: int = 1_000_000
    duration: float = 60.0
    out: Path = Path("out/demo")
    policy: str = ""
    driver: Literal["policy", "demonstrator"] = "policy"
    patience: float = 120.0
    verbose: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run `pi05 demo`. Returns 0 when the graph ran as asked; the task's success is reported, not required."""
    flat = Annotated[DemoArguments, tyro.conf.OmitArgPrefixes]
    arguments = tyro.cli(flat, prog="pi05 demo", args=None if argv is None else list(argv))
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f'demo: "{arguments.task}", seed {arguments.seed}, up to {arguments.duration:g} s of simulated time')
    log, outcome = run(arguments)
    if outcome.interrupted:
        print("demo: interrupted", file=sys.stderr)
    report = write_report(log, arguments.out)
    _tell(report, arguments.out)
    return 130 if outcome.interrupted else outcome.exit_status


def run(arguments: DemoArguments) -> tuple[DemoLog, GraphOutcome]:
    """Start the graph, listen until the task is done or the time is over, and end it.

    Raises:
        GraphError: the arguments describe no graph that can be started.
        DemoError: no action chunk was heard in time, or a process died before one was.
    """
    graph = GraphArguments(
        task=arguments.task, seed=arguments.seed, policy=arguments.policy, driver=arguments.driver, sim="mujoco"
    )
    log = DemoLog(load_contract(), arguments.task, arguments.seed, identify(arguments))
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.update(environment(graph))  # the listener is a participant too, and reads it when it starts
    from pi05_ros.nodes.demo_listener import DemoListener

    nodes_log = arguments.out / "graph.log"
    with DemoListener(log) as listener, nodes_log.open("w", encoding="utf-8") as output:
        watch = _Watch(arguments, listener.log)
        outcome = run_graph(graph, until=watch.over, output=None if arguments.verbose else output)
    log.failures += outcome.failures
    if not log.chunks:
        reason = "; ".join(outcome.failures) or f"none came within {arguments.patience:g} s"
        where = "above" if arguments.verbose else f"in {nodes_log}"
        raise DemoError(f"no action chunk was heard: {reason}; the nodes' output is {where}")
    log.trim(log.chunks[0].stamp_ns - int(LEAD_IN_S * NS))
    return log, outcome


class _Watch:
    """Decides when the demo is over, and shows how far it is."""

    def __init__(self, arguments: DemoArguments, log: DemoLog) -> None:
        self._arguments, self._log = arguments, log
        self._begin = time.monotonic()
        self._told_s = -10.0
        self._final: int | None = None

    def over(self) -> bool:
        """Return whether the graph can end: it is finished, and the controller has told its final counts."""
        log = self._log
        if not log.chunks:
            return time.monotonic() - self._begin > self._arguments.patience
        self._tell()
        rounds = sum(count for name, count in log.rounds.items() if name.endswith(": controller"))
        if self._final is None:
            if self._finished():
                self._final, self._begin = rounds, time.monotonic()
            return False
        return rounds > self._final or time.monotonic() - self._begin > FINAL_FIGURES_S

    def _finished(self) -> bool:
        log = self._log
        done_ns = next((stamp for stamp, answer, _ in log.success if answer), None)
        if done_ns is not None and log.now_ns - done_ns > LINGER_S * NS:
            return True
        return (log.now_ns - log.chunks[0].stamp_ns) / NS >= self._arguments.duration

    def _tell(self) -> None:
        log = self._log
        played_s = (log.now_ns - log.chunks[0].stamp_ns) / NS
        if played_s - self._told_s >= 5.0:
            self._told_s = played_s
            said = log.subtasks[-1][1] if log.subtasks else "no subtask yet"
            print(f"demo: {max(played_s, 0.0):5.1f} s  {len(log.chunks):4d} chunks  {said}", flush=True)


def identify(arguments: DemoArguments) -> PolicyIdentity:
    """Name what drives: a checkpoint's folder and the SHA-256 of its files, or the scripted expert.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    if arguments.driver == "demonstrator":
        return PolicyIdentity("scripted expert", "")
    from pi05_model.checkpoint import fingerprint  # torch takes seconds to import

    folder = Path(arguments.policy) if arguments.policy else share_dir() / EMBEDDED_POLICY
    return PolicyIdentity(arguments.policy or EMBEDDED_POLICY, fingerprint(folder))


def write_report(log: DemoLog, out: Path) -> Report:
    """Write report.json, demo.mp4 and report.html into a folder and return the figures."""
    report = summarize(log)
    report.write(out / "report.json")
    video = out / "demo.mp4"
    frames = write_video(log, video)
    write_page(report, log, out / "report.html", video.name if frames else None)
    return report


def _tell(report: Report, out: Path) -> None:
    verdict = "done" if report.task_success else "NOT done"
    print(
        f'demo: task "{report.task}" {verdict} after {report.duration_s:.1f} s ({report.success_detail or "unchecked"})'
    )
    refused = ", ".join(f"{count} {reason}" for reason, count in report.chunks_refused.items()) or "none"
    print(
        f"demo: {report.chunks_published} chunks at {report.chunk_rate_hz:.2f} Hz, refused: {refused}; "
        f"real-time factor {report.real_time_factor:.2f}"
    )
    print(f"demo: report in {out}/report.html (report.json, demo.mp4)")
