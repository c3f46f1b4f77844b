"""`pi05 stats`: normalisation statistics of datasets, in openpi's norm_stats.json."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pi05_model.normalize import NormStats, save_norm_stats
from pi05_ros.contract import Contract, load_contract
from pi05_training.data.episode import DatasetError
from pi05_training.data.open import open_dataset
from pi05_training.data.stats import QUANTILE_ERROR, DatasetStats, dataset_stats

FILE = "norm_stats.json"


@dataclass(frozen=True)
class StatsArguments:
    """Compute the statistics that normalise states and actions.

    Attributes:
        datasets: folders of datasets; several are taken as one.
        out: file to write; by default norm_stats.json in the first dataset.
        relative: joint targets relative to the state of the observation, for a policy that is trained so.
        horizon: rows of a chunk; 0 takes the contract's.
        jobs: processes; more than one pays off from an hour of recordings on. 0 takes one per core.
        contract: what the robot is; by default what the first dataset says, else the package's own.
    """

    datasets: tyro.conf.Positional[tuple[Path, ...]]
    out: Path | None = None
    relative: bool = False
    horizon: int = 0
    jobs: int = 1
    contract: Path | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run `pi05 stats`. Returns 0 when the file is written.

    Raises:
        DatasetError: a dataset is missing, damaged, empty or of another robot.
    """
    arguments = tyro.cli(StatsArguments, prog="pi05 stats", args=None if argv is None else list(argv))
    if not arguments.datasets:
        raise DatasetError("give at least one dataset: pi05 stats DATASET…")
    contract = load_contract(arguments.contract) if arguments.contract else contract_of(arguments.datasets[0])
    horizon = arguments.horizon or contract.rates.chunk_steps
    if horizon < 1:
        raise DatasetError(f"--horizon {horizon}: a chunk has at least one row")
    relative = tuple(int(entry) for entry in contract.position_index) if arguments.relative else ()
    total = compute(arguments.datasets, contract, horizon, relative, arguments.jobs or os.cpu_count() or 1)
    stats = total.result()
    out = arguments.out or arguments.datasets[0] / FILE
    save_norm_stats(stats, out)
    show(stats, contract)
    print(f"{total.state.count} frames; quantiles to {QUANTILE_ERROR:.1g} of their value\nstatistics in {out}")
    return 0


def compute(
    datasets: Sequence[Path], contract: Contract, horizon: int, relative: tuple[int, ...], jobs: int
) -> DatasetStats:
    """Compute the statistics of datasets taken together, each shared among `jobs` processes.

    Raises:
        DatasetError: a dataset is missing, damaged or of another robot, or there is no frame at all.
    """
    for path in datasets:
        check_robot(path, contract)
    work = [(path, horizon, relative, job, jobs) for path in datasets for job in range(jobs)]
    total = DatasetStats.empty(horizon, relative)
    for part in track(_parts(work, jobs), "statistics", len(work), console=Console(stderr=True), transient=True):
        total.merge(part)
    if not total.state.count:
        raise DatasetError(f"{', '.join(map(str, datasets))}: no frames")
    return total


def contract_of(path: Path) -> Contract:
    """Return the contract that a dataset carries; the package's own for one that carries none."""
    told: Contract | None = getattr(open_dataset(path), "contract", None)
    return told or load_contract()


def check_robot(path: Path, contract: Contract) -> None:
    """Check that a dataset has the contract's entries.

    Raises:
        DatasetError: names what differs.
    """
    dataset: Any = open_dataset(path)
    if not len(dataset):
        raise DatasetError(f"{path}: no frames")
    state, actions = dataset.labels(0)
    for what, found in (("state", state.shape[-1]), ("action", actions.shape[-1])):
        if found != contract.dim:
            fix = "give its --contract"
            raise DatasetError(f"{path}: {what} of {found} entries, {contract.robot} has {contract.dim}; {fix}")


def show(stats: dict[str, NormStats], contract: Contract) -> None:
    """Print a table, and name the dimensions that hardly move."""
    columns = ("mean", "std", "q01", "q99", "min", "max")
    for group, values in stats.items():
        table = Table(group, *columns, box=None)
        for i, name in enumerate(contract.names):
            table.add_row(name, *(f"{getattr(values, column)[i]:.4f}" for column in columns))
        Console().print(table)
    for group, values in stats.items():
        if values.narrow:
            names = ", ".join(contract.names[i] for i in values.narrow)
            print(f"{group}: q99 - q01 is below {values.min_range:g} for {names}: normalised as if it were that wide")


def _parts(work: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[DatasetStats]:
    if jobs == 1:
        yield from map(_part, work)
        return
    # Started afresh: a fork would copy the threads' locks of pyarrow and torch, but not the threads.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_part, work)


def _part(work: tuple[Path, int, tuple[int, ...], int, int]) -> DatasetStats:
    path, horizon, relative, first, step = work
    dataset: Any = open_dataset(path)
    try:
        return dataset_stats(dataset.trajectories(first, step), horizon, relative)
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from error
