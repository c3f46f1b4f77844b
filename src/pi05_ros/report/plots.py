"""The report's figures, each as an inline SVG string. Every figure states its units and survives an empty log."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pi05_ros.report.log import NS, DemoLog

Array = NDArray[np.float64]

BLUE, ORANGE, GREEN, GREY, INK = "#2563a8", "#e07b28", "#3f8f5b", "#b8bec6", "#30363d"
SUBTASK_COLOURS = ("#8fb8de", "#f3c08f", "#a8d5b5", "#d9b3dc", "#efd98a", "#b9c4cf")
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e8ebee",
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.hashsalt": "pi05_ros",  # the same log gives the same bytes
}
MIN_SPAN = {"rad": 0.2, "m": 0.02}  # of a joint's axis: noise must not look like motion
MAX_POINTS = 600  # per line; more cannot be seen and only makes the page heavy


def all_plots(log: DemoLog) -> dict[str, str]:
    """Draw every figure: name -> SVG."""
    return {
        "subtasks": subtask_timeline(log),
        "joints": joint_tracking(log),
        "chunks": chunk_timeline(log),
        "latency": latency_histogram(log),
        "base": base_path(log),
    }


def joint_tracking(log: DemoLog) -> str:
    """Small multiples, one per joint: what the chunks asked for and what was measured."""
    names = log.contract.joint_names
    stamps, positions = _thin(log.joints, len(names))
    targets = log.targets(stamps)
    columns = 3
    rows = -(-len(names) // columns)
    with _figure(9.0, 1.35 * rows) as (figure, out):
        axes = figure.subplots(rows, columns, sharex=True, squeeze=False)
        seconds = (stamps - log.start_ns) / NS
        units = _joint_units(log)
        for axis, name, unit, column in zip(axes.T.flat, names, units, range(len(names)), strict=False):
            axis.plot(
                seconds, targets[:, column], color=ORANGE, linewidth=2.2, alpha=0.6, label="asked for by the chunk"
            )
            axis.plot(seconds, positions[:, column], color=BLUE, linewidth=0.9, label="measured")
            axis.set_title(f"{name} [{unit}]", loc="left", pad=2)
            _widen(axis, MIN_SPAN[unit])
        for axis in axes.T.flat[len(names) :]:
            axis.set_visible(False)
        for axis in axes[-1]:
            axis.set_xlabel("simulated time [s]")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return out[0]


def chunk_timeline(log: DemoLog) -> str:
    """Age of every chunk at arrival, and how many arrived per second."""
    with _figure(9.0, 2.9) as (figure, out):
        age, rate = figure.subplots(2, 1, sharex=True)
        heard = np.array([log.seconds(chunk.heard_ns) for chunk in log.chunks])
        age.scatter(heard, _ages_ms(log), s=10, color=BLUE)
        age.set_ylabel("age at arrival\n[ms, simulated]")
        age.set_ylim(bottom=0)
        edges = np.arange(0.0, max(log.duration_s, 1.0) + 1.0, 1.0)
        rate.stairs(np.histogram(heard, edges)[0], edges, color=BLUE, fill=True, alpha=0.35)
        rate.set_ylabel("chunks\nper second")
        rate.set_xlabel("simulated time [s]")
    return out[0]


def latency_histogram(log: DemoLog) -> str:
    """How old the observation behind a chunk is when the chunk arrives: inference, transport and waiting together."""
    with _figure(4.3, 2.6) as (figure, out):
        axis = figure.subplots()
        ages = _ages_ms(log)
        axis.hist(ages, bins=30, color=BLUE, alpha=0.75)
        for percent, style in ((50, "-"), (99, "--")) if len(ages) else ():
            value = float(np.percentile(ages, percent))
            axis.axvline(value, color=ORANGE, linestyle=style, label=f"p{percent} {value:.0f} ms")
        if len(ages):
            axis.legend()
        axis.set_xlabel("observation to arrival of its chunk [ms, simulated]")
        axis.set_ylabel("chunks")
    return out[0]


def subtask_timeline(log: DemoLog) -> str:
    """What the planner said, over time: one row per distinct subtask."""
    texts = list(dict.fromkeys(text for _, text in log.subtasks))
    with _figure(9.0, 0.6 + 0.28 * max(len(texts), 1)) as (figure, out):
        axis = figure.subplots()
        ends = [stamp for stamp, _ in log.subtasks[1:]] + [log.now_ns]
        for (stamp, text), end in zip(log.subtasks, ends, strict=True):
            row = texts.index(text)
            start = log.seconds(stamp)
            colour = SUBTASK_COLOURS[row % len(SUBTASK_COLOURS)]
            axis.broken_barh([(start, max(log.seconds(end) - start, 0.02))], (row - 0.38, 0.76), color=colour)
        axis.set_yticks(range(len(texts)), [_shorten(text) for text in texts])
        axis.invert_yaxis()
        axis.set_xlim(0, max(log.duration_s, 1.0))
        axis.grid(axis="y", visible=False)
        axis.set_xlabel("simulated time [s]")
    return out[0]


def base_path(log: DemoLog) -> str:
    """Where the base drove, from odometry."""
    with _figure(4.3, 2.6) as (figure, out):
        axis = figure.subplots()
        if log.base:
            path = np.array([(x, y, yaw) for _, x, y, yaw in log.base])
            axis.plot(path[:, 0], path[:, 1], color=BLUE, linewidth=1.2)
            axis.plot(*path[0, :2], "o", color=GREEN, label="start")
            axis.plot(*path[-1, :2], "s", color=ORANGE, label="end")
            axis.legend()
        axis.set_aspect("equal", adjustable="datalim")
        axis.set_xlabel("x [m]")
        axis.set_ylabel("y [m]")
    return out[0]


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, list[str]]]:
    """Yield a figure [inch] and a list that holds its SVG afterwards."""
    out: list[str] = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, out
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})  # type: ignore[no-untyped-call]
    svg = buffer.getvalue()
    out.append(svg[svg.index("<svg") :])


def _widen(axis: Any, span: float) -> None:
    """Make a y axis at least so wide, about its middle."""
    low, high = axis.get_ylim()
    if high - low < span:
        axis.set_ylim((low + high - span) / 2, (low + high + span) / 2)


def _thin(samples: list[tuple[int, Array]], width: int) -> tuple[NDArray[np.int64], Array]:
    """Return stamps [T] and values [T, width] of at most MAX_POINTS evenly chosen samples."""
    chosen = samples[:: max(1, len(samples) // MAX_POINTS)]
    stamps = np.array([stamp for stamp, _ in chosen], dtype=np.int64)
    return stamps, np.array([value for _, value in chosen]).reshape(len(chosen), width)


def _ages_ms(log: DemoLog) -> Array:
    return np.array([(chunk.heard_ns - chunk.stamp_ns) * 1e-6 for chunk in log.chunks])


def _joint_units(log: DemoLog) -> list[str]:
    """Units of the J joints; a gripper's finger is in metres although the contract counts fractions."""
    units = [log.contract.units[i] for i in log.contract.joint_index]
    return ["m" if unit == "fraction" else unit for unit in units]


def _shorten(text: str, width: int = 48) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
