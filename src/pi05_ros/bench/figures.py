"""A measured figure, and how figures are shown and stored."""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from pi05_ros.report.machine import machine, one_line


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number.

    Attributes:
        name: what was measured.
        value: the number.
        unit: its unit.
        target: what the design asks for, such as "< 60"; empty when it asks for nothing.
        how: how it was measured, in a few words.
    """

    name: str
    value: float
    unit: str
    target: str = ""
    how: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if not self.target:
            return None
        relation, number = self.target.split()
        return self.value < float(number) if relation == "<" else self.value >= float(number)


def durations_ms(call: Callable[[], object], count: int, warm_up: int = 2) -> list[float]:
    """Return wall times [ms] of repeated calls, the first few left out."""
    times = []
    for index in range(count + warm_up):
        begin = time.perf_counter()
        call()
        if index >= warm_up:
            times.append((time.perf_counter() - begin) * 1e3)
    return times


def percentile_figures(name: str, values: Sequence[float], unit: str, target: str = "", how: str = "") -> list[Figure]:
    """Return p50 (which has the target) and p99 of a sample."""
    p50, p99 = np.percentile(values, (50, 99))
    how = f"{how}, n = {len(values)}" if how else f"n = {len(values)}"
    return [Figure(f"{name} p50", float(p50), unit, target, how), Figure(f"{name} p99", float(p99), unit, "", how)]


def show(title: str, figures: Sequence[Figure]) -> None:
    """Print figures as a table, with the machine they hold for."""
    table = Table("figure", "value", "target", "how", title=title, title_justify="left")
    for figure in figures:
        mark = {None: "", True: " [green]met[/]", False: " [red]missed[/]"}[figure.met]
        table.add_row(figure.name, f"{figure.value:.4g} {figure.unit}", figure.target + mark, figure.how)
    console = Console()
    console.print(table)
    console.print(f"machine: {one_line(machine())}", highlight=False)


def save(path: Path, name: str, figures: Sequence[Figure]) -> None:
    """Write figures and machine as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(figure), "met": figure.met} for figure in figures]
    path.write_text(json.dumps({"name": name, "machine": machine(), "figures": rows}, indent=2) + "\n", "utf-8")


def report(name: str, parts: Iterable[Sequence[Figure]], path: Path | None) -> None:
    """Collect the figures of a benchmark while it runs, show them, and store them if there is a path.

    What was measured before a failure is shown too, but not stored; the failure goes on to the caller.
    """
    figures: list[Figure] = []
    try:
        for part in parts:
            figures += part
    finally:
        show(f"pi05 bench {name}", figures)
    if path is not None:
        save(path, name, figures)
        print(f"figures in {path}")
