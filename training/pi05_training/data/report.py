"""What came of converting bags: one entry per bag, as JSON and as a table."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pi05_ros.ingest import STATE
from pi05_training.data.frames import FrameStats
from pi05_training.data.journal import Journal

FILE = "report.json"


def describe(stats: FrameStats) -> dict[str, Any]:
    """Return what was seen of a bag, ready for JSON.

    `loss` is the worst of: share of grid points that were dropped, share of frames that lack a camera, by camera.
    """
    frames = max(stats.frames, 1)
    dropped = sum(stats.dropped.values())
    shares = {"dropped": dropped / (frames + dropped)}
    sources: dict[str, Any] = {}
    for name, source in stats.sources.items():
        # asdict cannot copy a Counter.
        plain = {f.name: getattr(source, f.name) for f in fields(source)}
        counts = {key: dict(value) for key, value in plain.items() if isinstance(value, Counter)}
        sources[name] = {**plain, **counts, "rate_hz": source.rate_hz}
        if name != STATE:
            shares[name] = sum(source.missing.values()) / frames
    return {
        "frames": stats.frames,
        "dropped": dict(stats.dropped),
        "before_first_command": stats.before_first_command,
        "without_task": stats.without_task,
        "worst_skew_s": stats.worst_skew_s,
        "clock_jumps": stats.clock_jumps,
        "loss": max(shares.values()),
        "sources": sources,
    }


def over(report: Mapping[str, Any], threshold: float) -> bool:
    """Tell whether a bag lost more than a share of its frames, or could not be converted at all."""
    return bool(report.get("error")) or report.get("loss", 0.0) > threshold


def write_report(root: Path, reports: Sequence[Mapping[str, Any]], threshold: float) -> Path:
    """Write report.json into a dataset: every bag that it was made of, now or before, and those that failed now."""
    path = root / FILE
    new = {report["name"] for report in reports}
    reports = [*(old for old in Journal(root).reports() if old["name"] not in new), *reports]
    summary = {
        "bags": len(reports),
        "failed": sum(bool(report.get("error")) for report in reports),
        "over_threshold": [report["bag"] for report in reports if over(report, threshold)],
        "threshold": threshold,
        "frames": sum(report.get("frames", 0) for report in reports),
    }
    partial = path.with_name(f".{FILE}.{os.getpid()}")
    text = json.dumps({**summary, "episodes": list(reports)}, indent=1, ensure_ascii=False)
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def show(reports: Sequence[Mapping[str, Any]], threshold: float, console: Console | None = None) -> None:
    """Print one line per bag, and what is wrong below it."""
    columns = ("bag", "episodes", "frames", "images Hz", "longest gap", "skew", "held", "missing", "dropped", "")
    table = Table(*columns, title="conversion", title_justify="left")
    for report in reports:
        table.add_row(*_row(report, threshold))
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, 120)
    console.print(table)
    for report in reports:
        for note in notes(report):
            console.print(f"{report['name']}: {note}", highlight=False, soft_wrap=True, markup=False)


def notes(report: Mapping[str, Any]) -> list[str]:
    """Return what a person should know about a bag, one sentence each."""
    found = [f"error: {report['error']}"] if report.get("error") else []
    if report.get("damage"):
        found.append(f"cut off or damaged: {report['damage']}; everything else was read")
    if report.get("clock_jumps"):
        found.append(f"the clock was set {report['clock_jumps']} times; a new episode begins there")
    if report.get("short_parts"):
        found.append(f"{report['short_parts']} stretches were too short for an episode")
    if report.get("clock_shift_s"):
        found.append(f"times of receipt are {report['clock_shift_s']:.1f} s ahead of the stamps; taken back")
    if report.get("without_task"):
        found.append(f"{report['without_task']} frames left out that had no task")
    found += [f"{count} messages refused: {reason}" for reason, count in report.get("refused", {}).items()]
    found += [f"{count} frames dropped: {reason}" for reason, count in report.get("dropped", {}).items()]
    for name, source in report.get("sources", {}).items():
        found += [f"{name}: {count} frames without it: {reason}" for reason, count in source["missing"].items()]
        for key, text in (("late", "samples came too late"), ("encoded_again", "images were fitted and encoded again")):
            found += [f"{name}: {source[key]} {text}"] * bool(source[key])
    refused = report.get("chunks_refused", {})
    found += [f"{count} chunks refused by the controller's rules: {reason}" for reason, count in refused.items()]
    return found


def _row(report: Mapping[str, Any], threshold: float) -> list[str]:
    bad = over(report, threshold)
    verdict = "[red]failed[/]" if report.get("error") else "[red]over threshold[/]" if bad else report["status"]
    sources: Mapping[str, Any] = report.get("sources", {})
    cameras = [source for name, source in sources.items() if name != STATE]
    if not sources:
        return [report["name"], *["-"] * 8, verdict]
    rates = [source["rate_hz"] for source in cameras]
    return [
        report["name"],
        str(len(report.get("episodes", ()))),
        str(report["frames"]),
        f"{min(rates):.1f}" if rates else "-",
        f"{max(source['longest_gap_s'] for source in sources.values()) * 1e3:.0f} ms",
        f"{report['worst_skew_s'] * 1e3:.0f} ms",
        str(sum(source["held"] for source in cameras)),
        str(sum(sum(source["missing"].values()) for source in cameras)),
        str(sum(report["dropped"].values())),
        verdict,
    ]
