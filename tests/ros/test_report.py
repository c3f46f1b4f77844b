"""The demo's report is computed from what was heard; these tests feed it a log whose figures are known beforehand."""

import json
from pathlib import Path

import av
import numpy as np
import pytest

from pi05_ros.contract import Contract, load_contract
from pi05_ros.messages import encode_jpeg
from pi05_ros.report.log import ChunkSeen, DemoLog, PolicyIdentity
from pi05_ros.report.page import write_page
from pi05_ros.report.summary import summarize
from pi05_ros.report.video import compose, write_video

MS = 1_000_000
START_NS = 5_000 * MS


def ramp(contract: Contract, stamp_ns: int) -> np.ndarray:
    """Rows in which every entry is the time at which it is due, in seconds since START_NS, over 10."""
    due_ns = stamp_ns + 20 * MS * np.arange(1, contract.rates.chunk_steps + 1)
    return np.repeat((due_ns - START_NS)[:, None] * 1e-10, contract.dim, axis=1)


@pytest.fixture
def log() -> DemoLog:
    """Four simulated seconds at half real time: a chunk every 0.5 s that arrives 100 ms after its observation."""
    contract = load_contract()
    log = DemoLog(contract, "clear the <table>", 7, PolicyIdentity("checkpoints/x", "ab" * 32))
    for k in range(401):
        log.clock.append((2 * k * 10 * MS, START_NS + k * 10 * MS))
        log.joints.append((START_NS + k * 10 * MS, np.full(len(contract.joint_names), k * 0.001)))
        log.base.append((START_NS + k * 10 * MS, k * 0.01, 0.0, 0.0))
    for k in range(8):
        stamp_ns = START_NS + k * 500 * MS
        log.chunks.append(ChunkSeen(stamp_ns, stamp_ns + 100 * MS, ramp(contract, stamp_ns)))
    log.subtasks += [(START_NS + 200 * MS, "pick up the red cube"), (START_NS + 2200 * MS, "put it into the bin")]
    log.diagnostics["pd_controller_node: controller"] = {
        "chunks_accepted": "7",
        "chunks_refused.stale": "1",
        "control_period_ms.p50": "2.01",
        "control_period_ms.p99": "3.5",
        "control_period_ms.max": "9",
        "tracking_rms.left_joint1": "0.0125",
        "state": "tracking",
    }
    log.diagnostics["policy_node: action_expert"] = {"inference_ms_p50": "41", "inference_ms_p99": "55"}
    log.success += [(START_NS + 1000 * MS, False, "0 of 2"), (START_NS + 4000 * MS, True, "2 of 2 in the bin")]
    return log


def test_figures_are_those_of_the_log(log: DemoLog) -> None:
    report = summarize(log)
    assert report.duration_s == pytest.approx(4.0)
    assert report.real_time_factor == pytest.approx(0.5)
    assert (report.chunks_published, report.chunks_accepted, report.chunks_refused) == (8, 7, {"stale": 1})
    assert report.chunk_rate_hz == pytest.approx(2.0)
    assert (report.inference_ms.p50, report.inference_ms.p99) == (41, 55)
    assert (report.control_period_ms.p50, report.control_period_ms.max) == (2.01, 9)
    assert report.tracking_rms == {"left_joint1": 0.0125}
    assert [(s.t, s.text) for s in report.subtasks] == [(0.2, "pick up the red cube"), (2.2, "put it into the bin")]
    assert report.task_success
    assert report.success_detail == "2 of 2 in the bin"


def test_last_answer_of_the_success_check_counts(log: DemoLog) -> None:
    log.success.append((START_NS + 4000 * MS, False, "one fell out"))
    assert not summarize(log).task_success


def test_empty_log_claims_nothing() -> None:
    report = summarize(DemoLog(load_contract(), "task", 0, PolicyIdentity("", "")))
    assert not report.task_success
    assert (report.chunks_published, report.chunk_rate_hz, report.real_time_factor) == (0, 0.0, 0.0)
    assert report.inference_ms.p50 is None


def test_targets_follow_the_newest_chunk_that_had_arrived(log: DemoLog) -> None:
    contract = log.contract
    at = START_NS + np.array([50, 300, 1234]) * MS
    targets = log.targets(at.astype(np.int64))
    assert np.isnan(targets[0]).all()  # nothing had arrived yet
    vector = np.repeat(np.array([[0.03], [0.1234]]), contract.dim, axis=1)
    np.testing.assert_allclose(targets[1:], contract.to_joint_units(vector), atol=1e-9)
    late = np.array([log.chunks[-1].stamp_ns + 1_500 * MS])
    assert np.isnan(log.targets(late)).all()  # the last chunk had run out


def test_trim_moves_the_beginning(log: DemoLog) -> None:
    log.trim(START_NS + 1000 * MS)
    assert log.duration_s == pytest.approx(3.0)
    assert log.joints[0][0] == START_NS + 1000 * MS
    assert log.subtasks[0] == (START_NS + 1000 * MS, "pick up the red cube")  # still in force
    assert log.subtasks[1:] == [(START_NS + 2200 * MS, "put it into the bin")]


def test_files_are_written_and_say_the_same(log: DemoLog, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (224, 224, 3)).astype(np.uint8)
    for camera in ("front", "left_wrist"):
        log.frames[camera] = [(START_NS + k * 200 * MS, encode_jpeg(noise, 80)) for k in range(20)]
    report = summarize(log)
    report.write(tmp_path / "report.json")
    assert write_video(log, tmp_path / "demo.mp4") == 100
    write_page(report, log, tmp_path / "report.html", "demo.mp4")
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["policy"] == {"path": "checkpoints/x", "hash": "ab" * 32}
    assert told["frames"] == {"front": 20, "left_wrist": 20, "right_wrist": 0, "back": 0}
    page = (tmp_path / "report.html").read_text()
    assert "clear the &lt;table&gt;" in page
    assert page.count("<svg") == 5
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")
    with av.open(str(tmp_path / "demo.mp4")) as film:
        stream = film.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert sum(1 for _ in film.decode(stream)) == 100


def test_film_needs_pictures(log: DemoLog, tmp_path: Path) -> None:
    assert write_video(log, tmp_path / "demo.mp4") == 0
    assert not (tmp_path / "demo.mp4").exists()


def test_grid_has_a_place_for_a_missing_camera() -> None:
    white = np.full((224, 224, 3), 255, np.uint8)
    grid = compose({"front": white, "left_wrist": None, "right_wrist": white})
    height, width = grid.shape[0] // 2, grid.shape[1] // 2
    assert grid[height // 2, width // 2].tolist() == [255] * 3
    assert grid[height // 2, width + width // 2].tolist() == [0] * 3
