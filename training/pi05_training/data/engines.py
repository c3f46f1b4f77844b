"""What runs the jobs of a conversion: this process, a pool of processes, or Ray; the same function for every bag."""

import importlib
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import cv2

from pi05_training.data.convert import Converted, Job, convert_bag
from pi05_training.data.episode import DatasetError


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """Runs jobs in a pool of processes.

    Attributes:
        jobs: processes; 1 works in this one.
    """

    jobs: int = 1

    def __call__(self, jobs: Sequence[Job]) -> Iterator[Converted]:
        """Run all jobs; results come in their order.

        Raises:
            DatasetError: a process was killed.
        """
        workers = min(self.jobs, len(jobs))
        if workers <= 1:
            yield from map(convert_bag, jobs)
            return
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(workers, context, initializer=_be_one_of_many) as pool:
                yield from pool.map(convert_bag, jobs)
        except BrokenProcessPool as error:
            raise DatasetError(
                "a converting process was killed (by a person, or for lack of memory: fewer --jobs need less); "
                "the same command goes on where it stopped"
            ) from error


@dataclass(frozen=True, slots=True)
class RayEngine:
    """Runs jobs on a Ray cluster; bags and dataset lie on a file system that all machines share.

    Attributes:
        address: of the cluster; None starts one on this machine.
        jobs: jobs at once; None leaves it to Ray.
    """

    address: str | None = None
    jobs: int | None = None

    def __call__(self, jobs: Sequence[Job]) -> Iterator[Converted]:
        """Run all jobs; results come in their order.

        Raises:
            DatasetError: Ray is not installed.
        """
        ray = import_ray()
        started = not ray.is_initialized()
        if started:
            ray.init(address=self.address, num_cpus=None if self.address else self.jobs, log_to_driver=False)
        try:
            remote = ray.remote(num_cpus=1)(_on_ray)
            # convert_bag explains what is wrong with a bag; what it raises is a defect and ends the conversion.
            for reference in [remote.remote(job) for job in jobs]:
                yield ray.get(reference)
        finally:
            if started:
                ray.shutdown()


def import_ray() -> Any:
    """Return the module `ray`.

    Raises:
        DatasetError: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise DatasetError(
            f"--engine ray needs the package ray ({error}): pip install 'pi05_ros[ray]', or use --engine local"
        ) from error


def _on_ray(job: Job) -> Converted:
    _be_one_of_many()
    return convert_bag(job)


def _be_one_of_many() -> None:
    cv2.setNumThreads(1)  # one process per core already
