"""The whole line as processes: rendered images over Fast DDS into the embedded policy, its chunks into the controller.

The robot moves because of them; everything here was heard from outside.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pi05_ros.demo import DemoArguments, run, write_report
from pi05_ros.nodes.action_expert_node import ExpertConfig
from pi05_ros.report.log import NS, DemoLog
from pi05_ros.report.summary import summarize
from pi05_ros.sim.tasks import Subtask

ARGUMENTS = DemoArguments(seed=2, duration=10.0, patience=180.0)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoLog]:
    out = tmp_path_factory.mktemp("demo")
    heard, outcome = run(replace(ARGUMENTS, out=out))
    assert not outcome.failures, (out / "graph.log").read_text()
    yield heard


@pytest.mark.ros
def test_chunks_are_finite_and_come_at_the_declared_rate(log: DemoLog) -> None:
    assert len(log.chunks) >= 20
    assert all(chunk.actions.shape == (50, 18) and np.isfinite(chunk.actions).all() for chunk in log.chunks)
    gaps_s = np.diff([chunk.stamp_ns for chunk in log.chunks]) / NS
    period_s, frame_s = ExpertConfig().inference_period_s, 1.0 / log.contract.rates.camera_hz
    assert np.median(gaps_s) == pytest.approx(period_s, abs=frame_s)


@pytest.mark.ros
def test_the_joints_follow(log: DemoLog) -> None:
    arms = [i for i, name in enumerate(log.contract.joint_names) if "_joint" in name]
    stamps = np.array([stamp for stamp, _ in log.joints])
    measured, asked = np.stack([position for _, position in log.joints])[:, arms], log.targets(stamps)[:, arms]
    assert np.ptp(measured, axis=0).max() > 0.2, "an arm moves"
    # The controller blends from chunk to chunk, so it is near what was asked, not on it; it is on its own reference.
    assert np.nanmedian(np.abs(measured - asked)) < 0.05
    rms = summarize(log).tracking_rms
    assert max(rms[log.contract.joint_names[i]] for i in arms) < 0.02


@pytest.mark.ros
def test_the_planner_speaks_of_its_task(log: DemoLog) -> None:
    assert log.subtasks
    assert Subtask.parse(log.subtasks[0][1]) == Subtask("drive")
    for _, text in log.subtasks:
        Subtask.parse(text)


@pytest.mark.ros
def test_the_policy_drives_up_to_the_table(log: DemoLog) -> None:
    _, x, y, _ = log.base[0]
    distances = [np.hypot(bx - x, by - y) for _, bx, by, _ in log.base]
    assert max(distances) > 0.3


@pytest.mark.ros
def test_what_happened_is_written_down(log: DemoLog, tmp_path: Path) -> None:
    write_report(log, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    wanted = (
        "chunks_published chunks_refused chunk_rate_hz inference_ms control_period_ms tracking_rms subtasks task "
        "task_success real_time_factor policy machine"
    )
    assert set(wanted.split()) <= set(report)
    assert report["chunks_published"] == len(log.chunks)
    assert set(report["tracking_rms"]) == set(log.contract.joint_names)
    assert len(report["policy"]["hash"]) == 64
    assert (tmp_path / "demo.mp4").stat().st_size > 10_000 and (tmp_path / "report.html").stat().st_size > 10_000
