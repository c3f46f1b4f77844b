"""report.json: the figures of a run, computed from its log."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pi05_ros.report.log import NS, DemoLog
from pi05_ros.report.machine import machine


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Percentiles of a time [ms]; None where nobody told them."""

    p50: float | None = None
    p99: float | None = None
    max: float | None = None


@dataclass(frozen=True, slots=True)
class Subtask:
    """A subtask of the planner and when it was first said [s, simulated]."""

    t: float
    text: str


@dataclass(frozen=True, slots=True)
class Policy:
    """Folder and SHA-256 of the checkpoint that drove."""

    path: str
    hash: str


@dataclass(frozen=True, slots=True)
class Report:
    """What report.json holds. Times are simulated unless they say wall.

    Attributes:
        task, seed: what was run.
        task_success: the simulator's own check of the task at the end.
        success_detail: the check in words, such as "2 of 3 objects are in the bin".
        duration_s, wall_s: simulated and wall time from just before the first chunk to the end.
        real_time_factor: the one over the other.
        chunks_published: chunks heard on the wire.
        chunks_accepted: chunks that the controller took.
        chunks_refused: chunks that the controller refused, by reason.
        chunk_rate_hz: chunks per simulated second.
        inference_ms: wall time of one chunk's computation.
        control_period_ms: wall time between two ticks of the torque loop.
        tracking_rms: rms of reference minus measured per joint while chunks were played [rad or m].
        subtasks: what the planner said, at each change.
        frames: images heard per camera.
        warnings: what /diagnostics complained about.
        failures: processes that died.
        policy, machine: what drove, on what.
    """

    task: str
    seed: int
    task_success: bool
    success_detail: str
    duration_s: float
    wall_s: float
    real_time_factor: float
    chunks_published: int
    chunks_accepted: int
    chunks_refused: dict[str, int]
    chunk_rate_hz: float
    inference_ms: Percentiles
    control_period_ms: Percentiles
    tracking_rms: dict[str, float]
    subtasks: tuple[Subtask, ...]
    frames: dict[str, int]
    warnings: tuple[Subtask, ...]
    failures: tuple[str, ...]
    policy: Policy
    machine: dict[str, str | int | float]

    def write(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def summarize(log: DemoLog) -> Report:
    """Compute the figures of a run."""
    wall_s = (log.clock[-1][0] - log.clock[0][0]) / NS if log.clock else 0.0
    controller = figures(log, "controller")
    expert = figures(log, "action_expert")
    _, success, detail = log.success[-1] if log.success else (0, False, "")
    return Report(
        task=log.task,
        seed=log.seed,
        task_success=success,
        success_detail=detail,
        duration_s=log.duration_s,
        wall_s=wall_s,
        real_time_factor=log.duration_s / wall_s if wall_s > 0 else 0.0,
        chunks_published=len(log.chunks),
        chunks_accepted=int(controller.get("chunks_accepted", 0)),
        chunks_refused={reason: int(count) for reason, count in below(controller, "chunks_refused").items()},
        chunk_rate_hz=_chunk_rate(log),
        inference_ms=percentiles(expert, "inference_ms"),
        control_period_ms=percentiles(controller, "control_period_ms"),
        tracking_rms=below(controller, "tracking_rms"),
        subtasks=tuple(Subtask(log.seconds(stamp), text) for stamp, text in log.subtasks),
        frames={name: len(log.frames.get(name, [])) for name in log.contract.cameras},
        warnings=tuple(Subtask(log.seconds(stamp), text) for stamp, text in log.warnings),
        failures=tuple(log.failures),
        policy=Policy(log.policy.path, log.policy.hash),
        machine=machine(),
    )


def figures(log: DemoLog, part: str) -> dict[str, float]:
    """Return all numbers that a part tells in /diagnostics (its entries are "node: part")."""
    found: dict[str, float] = {}
    for name, values in log.diagnostics.items():
        if name.rpartition(": ")[2] == part:
            for key, text in values.items():
                try:
                    found[key] = float(text)
                except ValueError:
                    continue
    return found


def below(values: dict[str, float], key: str) -> dict[str, float]:
    """Return the entries "key.name" (or "key_name") as name -> value."""
    found = {name: value for name, value in values.items() if name.startswith((f"{key}.", f"{key}_"))}
    return {name[len(key) + 1 :]: value for name, value in found.items()}


def percentiles(values: dict[str, float], key: str) -> Percentiles:
    """Return the entries below a key that are called p50, p99 and max."""
    told = below(values, key)
    return Percentiles(told.get("p50"), told.get("p99"), told.get("max"))


def _chunk_rate(log: DemoLog) -> float:
    """Chunks per second between the first and the last observation that gave one."""
    if len(log.chunks) < 2:
        return 0.0
    stamps = np.array([chunk.stamp_ns for chunk in log.chunks])
    span_s = float(stamps[-1] - stamps[0]) / NS
    return (len(stamps) - 1) / span_s if span_s > 0 else 0.0
