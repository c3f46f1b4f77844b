"""What recording costs: a recorder_node beside a robot that speaks faster than ours, messages lost, processor time.

Both are processes of their own over the real middleware. Lost messages are those that were published and are not in the
bag; the recorder's share of a core is its processor time divided by the time during which was published.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
from rosbags.highlevel import AnyReader

from pi05_ros.bench.figures import Figure
from pi05_ros.graph import GraphArguments
from pi05_ros.recording_watch import header_stamp_ns
from pi05_ros.up import environment

STARTUP_S = 60.0
WARM_UP_S = 1.0  # of the source; what it says meanwhile is in the bag and does not count
SETTLE_S = 1.0  # what was published last reaches the recorder


class BenchError(RuntimeError):
    """The measurement could not be made; the message says why."""


@dataclass(frozen=True)
class RecordCost:
    """What was measured.

    Attributes:
        published, recorded: messages, by topic.
        seconds: for which was published.
        cpu_s: processor time of the recorder meanwhile.
        memory_mb: resident memory of the recorder at the end.
        bag_mb: size of the bag.
        image_bytes: mean size of an image.
    """

    published: dict[str, int]
    recorded: dict[str, int]
    seconds: float
    cpu_s: float
    memory_mb: float
    bag_mb: float
    image_bytes: int

    @property
    def lost(self) -> int:
        """Messages that were published and are not in the bag."""
        return sum(count - self.recorded.get(topic, 0) for topic, count in self.published.items())


def record_figures(seconds: float = 60.0, camera_hz: float = 50.0, joints_hz: float = 200.0) -> list[Figure]:
    """Record fast cameras and joints for some time.

    Args:
        seconds: for how long.
        camera_hz: rate of each camera of the contract.
        joints_hz: rate of `joint_states`.

    Raises:
        BenchError: a process did not start or died.
    """
    cost = measure(seconds, camera_hz, joints_hz)
    cameras = len(cost.published) - 1
    how = (
        f"{cameras} cameras at {camera_hz:g} Hz, {cost.image_bytes / 1e3:.0f} kB a JPEG, "
        f"joints at {joints_hz:g} Hz, {cost.seconds:.0f} s"
    )
    return [
        Figure("recorder: messages lost", cost.lost, f"of {sum(cost.published.values())}", "< 1", how),
        Figure("recorder: processor", cost.cpu_s / cost.seconds, "cores", "< 1", how),
        Figure("recorder: memory (RSS)", cost.memory_mb, "MB", "", how),
        Figure(
            "recorder: written",
            cost.bag_mb / (cost.seconds + WARM_UP_S),
            "MB/s",
            "",
            "zstd chunks, synced every second",
        ),
    ]


def measure(seconds: float, camera_hz: float, joints_hz: float) -> RecordCost:
    """Run recorder and source side by side.

    Raises:
        BenchError: a process did not start or died.
    """
    env = {**environment(GraphArguments()), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    env.setdefault("ROS_DOMAIN_ID", str(os.getpid() % 100 + 1))
    rates = [
        "--seconds",
        str(seconds),
        "--warm-up",
        str(WARM_UP_S),
        "--camera-hz",
        str(camera_hz),
        "--joints-hz",
        str(joints_hz),
    ]
    with tempfile.TemporaryDirectory(prefix="pi05_bench_") as folder:
        parameters = ["-p", f"directory:={folder}", "-p", "record_on_activate:=true", "-p", "min_free_mb:=0"]
        recorder = _start("recorder_node", ["--ros-args", "--log-level", "error", *parameters], env)
        source = _start("bench_source", rates, env)
        try:
            _await_bag(Path(folder), recorder)
            cpu_s, memory_mb = _watch(psutil.Process(recorder.pid), source)
            time.sleep(SETTLE_S)
            recorder.send_signal(signal.SIGINT)
            if recorder.wait(timeout=STARTUP_S) != 0:
                raise BenchError(f"recorder_node ended with status {recorder.returncode}")
            told = json.loads(_rest(source))
        finally:
            for process in (recorder, source):
                process.kill()
                process.wait()
        image_bytes, begin_ns = int(told.pop("image_bytes")), int(told.pop("begin_ns"))
        [bag] = Path(folder).iterdir()
        return RecordCost(
            told, _recorded(bag, set(told), begin_ns), seconds, cpu_s, memory_mb, _size_mb(bag), image_bytes
        )


def _start(module: str, arguments: list[str], env: dict[str, str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", f"pi05_ros.nodes.{module}", *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def _await_bag(folder: Path, recorder: "subprocess.Popen[str]") -> None:
    end = time.monotonic() + STARTUP_S
    while next(folder.glob("*/*.mcap"), None) is None:
        if recorder.poll() is not None or time.monotonic() > end:
            raise BenchError("recorder_node did not start to record")
        time.sleep(0.02)


def _watch(recorder: psutil.Process, source: "subprocess.Popen[str]") -> tuple[float, float]:
    """Wait until everything was published; return the recorder's processor time [s] and memory [MB]."""
    _expect(source, "begin")
    before = sum(recorder.cpu_times()[:2])
    _expect(source, "done")
    cpu_s = sum(recorder.cpu_times()[:2]) - before
    return cpu_s, recorder.memory_info().rss / 1e6


def _expect(source: "subprocess.Popen[str]", word: str) -> None:
    line = _output(source).readline().strip()
    if line != word:
        raise BenchError(f"the source of messages ended early: {line or 'no output'}")


def _rest(source: "subprocess.Popen[str]") -> str:
    return _output(source).read()


def _output(process: "subprocess.Popen[str]") -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def _recorded(bag: Path, topics: set[str], begin_ns: int) -> dict[str, int]:
    """Count the messages of a bag that were stamped since a time, by topic."""
    counts = dict.fromkeys(topics, 0)
    with AnyReader([bag]) as reader:
        wanted = [connection for connection in reader.connections if connection.topic.lstrip("/") in topics]
        for connection, _, data in reader.messages(wanted):
            counts[connection.topic.lstrip("/")] += header_stamp_ns(data) >= begin_ns
    return counts


def _size_mb(bag: Path) -> float:
    return sum(path.stat().st_size for path in bag.iterdir()) / 1e6
