"""What the running graph costs: memory of all its processes, period of the torque loop beside a bare timer loop."""

import multiprocessing
import threading
import time
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import numpy as np
import psutil

from pi05_ros.bench.figures import Figure
from pi05_ros.demo import DemoArguments, run
from pi05_ros.report.summary import summarize

MB = 1e6


class MemoryWatch:
    """Sums the memory of all descendants of this process once a second. A context manager.

    PSS counts a shared page once, split among its users: the sum is what the graph really takes. RSS counts it for
    each.

    Args:
        besides: process ids that do not belong to what is measured.
    """

    def __init__(self, besides: frozenset[int] = frozenset()) -> None:
        self._besides = besides
        self.pss_mb: list[float] = []
        self.rss_mb: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            pss = rss = 0
            for process in psutil.Process().children(recursive=True):
                if process.pid in self._besides:
                    continue
                try:
                    info = process.memory_full_info()
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
                pss, rss = pss + info.pss, rss + info.rss
            self.pss_mb.append(pss / MB)
            self.rss_mb.append(rss / MB)


def bare_loop(rate_hz: float, stop: "Synchronized[bool]", result: "multiprocessing.SimpleQueue[list[float]]") -> None:
    """Do nothing at a rate until told to stop; put the periods [ms] into a queue. The yardstick for the torque loop."""
    period_s = 1.0 / rate_hz
    due = time.monotonic()
    times = []
    while not stop.value:
        due += period_s
        time.sleep(max(0.0, due - time.monotonic()))
        times.append(time.monotonic())
    result.put((np.diff(times) * 1e3).tolist())


def stack_figures(seconds: float, policy: str, rate_hz: float, out: Path) -> list[Figure]:
    """Run the whole graph for some simulated seconds and tell what it took.

    Args:
        seconds: simulated length.
        policy: checkpoint folder; empty: the embedded one.
        rate_hz: of the bare timer loop, the torque loop's nominal rate.
        out: folder for the nodes' output (graph.log).
    """
    context = multiprocessing.get_context("spawn")
    stop, result = context.Value("b", False), context.SimpleQueue()
    bare = context.Process(target=bare_loop, args=(rate_hz, stop, result), daemon=True)
    bare.start()
    besides = frozenset({bare.pid} if bare.pid is not None else ())
    out.mkdir(parents=True, exist_ok=True)
    with MemoryWatch(besides) as memory:
        log, _ = run(DemoArguments(duration=seconds, policy=policy, out=out))
    stop.value = True
    periods = result.get()
    bare.join()
    report = summarize(log)
    how = f"whole graph, {report.duration_s:.0f} s simulated"
    figures = [
        Figure("memory (PSS)", max(memory.pss_mb), "MB", "< 3000", f"all processes, {how}"),
        Figure("memory (RSS)", max(memory.rss_mb), "MB", "", "shared pages counted for each process"),
        Figure("real-time factor", report.real_time_factor, "x", "", how),
        Figure("chunks", report.chunk_rate_hz, "Hz", "", how),
        Figure("chunks refused", sum(report.chunks_refused.values()), "", "", how),
    ]
    for name, told in (("chunk in the graph", report.inference_ms), ("torque loop period", report.control_period_ms)):
        for label, value in (("p50", told.p50), ("p99", told.p99), ("max", told.max)):
            if value is not None:
                figures.append(Figure(f"{name} {label}", value, "ms", "", how))
    p50, p99, longest = np.percentile(periods, (50, 99, 100))
    for label, value in (("p50", p50), ("p99", p99), ("max", longest)):
        figures.append(Figure(f"bare timer loop {label}", float(value), "ms", "", f"{rate_hz:g} Hz, beside the graph"))
    return figures
