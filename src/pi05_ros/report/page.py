"""report.html: one self-contained page (the film lies beside it)."""

from dataclasses import asdict
from importlib import resources
from pathlib import Path

import jinja2

from pi05_ros.report import plots
from pi05_ros.report.log import DemoLog
from pi05_ros.report.machine import one_line
from pi05_ros.report.summary import Report


def write_page(report: Report, log: DemoLog, path: Path, video: str | None) -> None:
    """Write the page.

    Args:
        report: the figures.
        log: what they were computed from, for the plots.
        path: the .html file.
        video: file name of the film beside it; None when there is none.
    """
    source = resources.files("pi05_ros.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    text = template.render(
        report=report, plots=plots.all_plots(log), video=video, tiles=_tiles(report), rows=_rows(report)
    )
    path.write_text(text, encoding="utf-8")


def _tiles(report: Report) -> list[tuple[str, str]]:
    refused = sum(report.chunks_refused.values())
    worst = max(report.tracking_rms.values(), default=None)
    return [
        (str(report.chunks_published), f"chunks, {refused} refused"),
        (_number(report.chunk_rate_hz, "Hz"), "chunk rate, simulated time"),
        (_number(report.inference_ms.p50, "ms"), f"inference p50 (p99 {_number(report.inference_ms.p99, 'ms')})"),
        (
            _number(report.control_period_ms.p50, "ms"),
            f"torque loop period p50, wall (max {_number(report.control_period_ms.max, 'ms')})",
        ),
        (_number(worst, "", 4), "worst joint's tracking rms [rad or m]"),
        (_number(report.real_time_factor, "×", 2), "real-time factor"),
    ]


def _rows(report: Report) -> list[tuple[str, str]]:
    refused = ", ".join(f"{reason} {count}" for reason, count in sorted(report.chunks_refused.items())) or "none"
    tracking = ", ".join(f"{name} {rms:.4f}" for name, rms in report.tracking_rms.items()) or "not told"
    period = asdict(report.control_period_ms)
    return [
        ("Policy", f"{report.policy.path} (sha256 {report.policy.hash[:16]}…)"),
        ("Chunks refused, by reason", refused),
        (
            "Torque loop period [ms, wall; in the simulator it is a part of the physics step, exact in simulated time]",
            ", ".join(f"{key} {_number(value)}" for key, value in period.items()),
        ),
        ("Tracking rms [rad or m]", tracking),
        ("Camera images heard", ", ".join(f"{name} {count}" for name, count in report.frames.items())),
        ("Wall time", f"{report.wall_s:.1f} s"),
        ("Machine", one_line(report.machine)),
    ]


def _number(value: float | None, unit: str = "", digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f} {unit}".rstrip()
