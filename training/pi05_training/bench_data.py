"""`pi05 bench data`: recording, how fast bags become datasets, and datasets samples."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import tyro

from pi05_ros.bench.figures import Figure, report
from pi05_ros.bench.record import record_figures
from pi05_ros.contract import Contract, load_contract
from pi05_training.data.bags import find_bags
from pi05_training.data.convert import Settings, convert
from pi05_training.data.engines import LocalEngine
from pi05_training.data.folder import FolderDataset
from pi05_training.data.synthetic import Script, textured_images, write_bag

OUT = Path("out/bench")
SECONDS = 60.0
CAMERA_HZ = 50.0
# Images that differ; drawing every one of them would take longer than the benchmark.
IMAGES = 40
READER_CAMERAS = ("front", "left_wrist", "right_wrist")


@dataclass(frozen=True)
class DataArguments:
    """Measure recording, conversion and the folder reader on this machine.

    Attributes:
        json: file that also receives the figures.
        seconds: length of each recording; 0 leaves recording over the middleware out and converts bags of 60 s.
        bags: number of bags that are converted.
    """

    json: Path | None = None
    seconds: float = SECONDS
    bags: int = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run `pi05 bench data`. Returns 0 when everything was measured, whatever the figures are."""
    arguments = tyro.cli(DataArguments, prog="pi05 bench data", args=None if argv is None else list(argv))
    report("data", measure(arguments), arguments.json)
    return 0


def measure(arguments: DataArguments) -> Iterator[list[Figure]]:
    """Measure the parts one after another on an otherwise idle machine.

    Raises:
        BenchError: the recorder did not start.
    """
    if arguments.seconds > 0:
        print(f"bench: recording, {arguments.seconds:g} s …", flush=True)
        yield record_figures(arguments.seconds)
    print("bench: conversion and reader …", flush=True)
    yield data_figures(arguments.seconds or SECONDS, arguments.bags)


def data_figures(seconds: float = SECONDS, bags: int = 2, samples: int = 1000, out: Path = OUT) -> list[Figure]:
    """Measure conversion into the folder format and the folder reader.

    Args:
        seconds: length of each bag: four 224² JPEG cameras at 50 Hz, state at 200 Hz, chunks at 5 Hz.
        bags: number of bags, which two processes share.
        samples: samples read at random.
        out: folder for what is made; removed afterwards. A folder in which many files were deleted shortly before
            (/tmp) can make creating files ten times as slow on ext4.

    Returns:
        Conversion as a multiple of real time, samples per second, peak memory of a converting process at two lengths.
    """
    contract = load_contract()
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="data_", dir=out))
    try:
        make_bags(folder / "bags", contract, seconds, bags)
        make_bags(folder / "short", contract, seconds / 4, 1)
        return [
            *_conversion(folder, contract, seconds, bags),
            *_memory(folder, seconds),
            _reading(folder / "local2", samples),
        ]
    finally:
        shutil.rmtree(folder)


def make_bags(directory: Path, contract: Contract, seconds: float, count: int) -> None:
    """Write synthetic bags with images as large as those of a real scene."""
    images = textured_images(contract, IMAGES)
    script = Script(seconds=seconds, camera_hz=CAMERA_HZ, subtasks=("pick up the red cube", "put it in the bin") * 3)
    # Neighbouring images differ, so that no writer can take one for the other.
    events = script.events(contract, lambda camera, k: images[(camera * 11 + k) % IMAGES])
    for _ in range(count):
        write_bag(directory, contract, events)


def _conversion(folder: Path, contract: Contract, seconds: float, bags: int) -> list[Figure]:
    paths = find_bags([folder / "bags"])
    figures = []
    for processes, target in ((1, ""), (2, ">= 20")):
        out = folder / f"local{processes}"
        begin, cpu = time.perf_counter(), time.process_time()
        reports = convert(paths, out, Settings(contract), LocalEngine(processes))
        took_s, cpu_s = time.perf_counter() - begin, time.process_time() - cpu
        assert not any(report.get("error") for report in reports)
        how = f"{bags} bags of {seconds:g} s, {processes} processes, 4 cameras 224x224 at {CAMERA_HZ:g} Hz"
        name = f"conversion to folder, {processes} process{'es' * (processes > 1)}"
        figures.append(Figure(name, bags * seconds / took_s, "x real time", target, how))
        if processes == 1:  # also says something on a machine that has other things to do
            share = 1e3 * cpu_s / (bags * seconds)
            figures.append(Figure("conversion to folder, processor time", share, "ms per second", "", how))
    return figures


def _memory(folder: Path, seconds: float) -> list[Figure]:
    lengths = {"short": seconds / 4, "bags": seconds}
    figures = []
    for name, length in lengths.items():
        bag = find_bags([folder / name])[0]
        code = "import sys; from pi05_training.bench_data import peak_memory; peak_memory(sys.argv[1], sys.argv[2])"
        command = [sys.executable, "-c", code, str(bag), str(folder / f"memory_{name}")]
        said = subprocess.run(command, check=True, capture_output=True, text=True)
        peak_mb = json.loads(said.stdout.splitlines()[-1])["peak_mb"]
        figures.append(Figure(f"conversion, peak memory at {length:g} s", peak_mb, "MB", "", "resident, one process"))
    return figures


def peak_memory(bag: str, out: str) -> None:
    """Convert one bag in this process and print its peak resident memory [MB] as JSON."""
    contract = load_contract()
    convert([Path(bag)], Path(out), Settings(contract), LocalEngine(1))
    peak = Path("/proc/self/status")
    if peak.exists():
        kilobytes = next(line.split()[1] for line in peak.read_text().splitlines() if line.startswith("VmHWM"))
        peak_mb = int(kilobytes) / 1e3
    else:
        peak_mb = psutil.Process().memory_info().rss / 1e6
    print(json.dumps({"peak_mb": peak_mb}))


def _reading(root: Path, samples: int) -> Figure:
    dataset = FolderDataset(root, cameras=READER_CAMERAS)
    stride = 7919  # a prime: every sample once, in no order
    begin = time.perf_counter()
    for k in range(samples):
        assert len(dataset[k * stride % len(dataset)].images) == len(READER_CAMERAS)
    rate = samples / (time.perf_counter() - begin)
    return Figure(
        "folder reader", rate, "samples/s", ">= 400", f"3 cameras 224x224, random, one process, n = {samples}"
    )
