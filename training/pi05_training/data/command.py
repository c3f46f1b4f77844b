"""`pi05 convert`: rosbags in, a dataset out."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pi05_ros.contract import Contract
from pi05_ros.ingest import SAMPLE_POLICIES, STATE, IngestConfig, SourceRule
from pi05_training.data import report as reports
from pi05_training.data.bags import find_bags
from pi05_training.data.convert import Engine, Format, Settings, choose_contract, convert
from pi05_training.data.engines import LocalEngine, RayEngine
from pi05_training.data.episode import DatasetError
from pi05_training.data.folder_writer import Layout


@dataclass(frozen=True)
class ConvertArguments:
    """Convert rosbags into a dataset.

    Attributes:
        paths: bags, or folders of bags, and last the folder of the dataset.
        format: what to write.
        layout: of a folder dataset: a is <task>/<subtask>/run_001, b is stage1/run_001.
        jobs: processes; 0 takes one per core.
        engine: where bags are converted.
        ray_address: of a Ray cluster; by default one is started on this machine.
        policy: SOURCE=hold|nearest|drop, any number of times; a source is a camera's name or "state".
        max_age: SOURCE=SECONDS: a sample further away is none.
        threshold: largest share of frames that may be lost before the exit status is not 0.
        mapping: YAML file that says which topics of another robot's bag are what.
        contract: what the robot is; by default what the bags say.
        namespace: namespace of the topics when a bag holds several robots.
        task: for bags that do not say.
        min_frames: a shorter stretch becomes no episode.
    """

    paths: tyro.conf.Positional[tuple[Path, ...]]
    format: Format = "folder"
    layout: Layout = "a"
    jobs: int = 0
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    policy: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    max_age: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    threshold: float = 0.05
    mapping: Path | None = None
    contract: Path | None = None
    namespace: str | None = None
    task: str = ""
    min_frames: int = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Run `pi05 convert`.

    Returns:
        0 when every bag was converted and none lost more than the threshold.

    Raises:
        DatasetError: the arguments make no sense, or the dataset that is there does not fit.
    """
    arguments = tyro.cli(ConvertArguments, prog="pi05 convert", args=None if argv is None else list(argv))
    if len(arguments.paths) < 2:
        raise DatasetError("give the bags and last the folder of the dataset: pi05 convert BAGS… OUT")
    *given, root = arguments.paths
    bags = find_bags(given)
    settings = make_settings(arguments, bags)
    jobs = arguments.jobs or os.cpu_count() or 1
    engine: Engine = LocalEngine(jobs)
    if arguments.engine == "ray":
        engine = RayEngine(arguments.ray_address, arguments.jobs or None)
    found = _convert(bags, root, settings, engine)
    reports.show(found, arguments.threshold)
    if not all(report.get("error") for report in found):
        print(f"dataset: {root}   report: {reports.write_report(root, found, arguments.threshold)}")
    return int(any(reports.over(report, arguments.threshold) for report in found))


def make_settings(arguments: ConvertArguments, bags: Sequence[Path]) -> Settings:
    """Turn arguments into settings.

    Raises:
        DatasetError: a value that is not valid; says which ones are.
    """
    mapping, contract_path = "", arguments.contract
    if arguments.mapping is not None:
        from pi05_training.data.mapping import contract_of, read_mapping

        mapping = read_mapping(arguments.mapping)
        contract_path = contract_path or contract_of(arguments.mapping)
    contract = choose_contract(() if mapping else bags, contract_path)
    return Settings(
        contract=contract,
        format=arguments.format,
        layout=arguments.layout,
        rules=parse_rules(arguments.policy, arguments.max_age, contract),
        mapping=mapping,
        namespace=arguments.namespace,
        task=arguments.task,
        min_frames=arguments.min_frames,
    )


def parse_rules(policies: Sequence[str], ages: Sequence[str], contract: Contract) -> dict[str, SourceRule]:
    """Return rules by source from SOURCE=POLICY and SOURCE=SECONDS.

    Raises:
        DatasetError: an unknown source or policy, or no number; lists the valid ones.
    """
    sources = (STATE, *contract.cameras)
    rules: dict[str, SourceRule] = {}
    for text in policies:
        source, value = _pair("--policy", text, sources)
        policy = next((known for known in SAMPLE_POLICIES if known == value), None)
        if policy is None:
            raise DatasetError(f"--policy {text}: {value!r} is not valid; valid: {', '.join(SAMPLE_POLICIES)}")
        rules[source] = SourceRule(policy, IngestConfig().rule(source).max_age_s)
    for text in ages:
        source, value = _pair("--max-age", text, sources)
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1.0
        if not 0.0 < seconds <= 10.0:
            raise DatasetError(f"--max-age {text}: {value!r} is not valid; valid: seconds, above 0 and up to 10")
        rules[source] = SourceRule((rules.get(source) or IngestConfig().rule(source)).policy, seconds)
    return rules


def _pair(flag: str, text: str, sources: Sequence[str]) -> tuple[str, str]:
    source, equals, value = text.partition("=")
    # A topic's name works as well: cameras/front/image/compressed is the camera front.
    parts = source.strip("/").split("/")
    found = [known for known in sources if known == source or known in parts]
    if not equals or not found:
        raise DatasetError(f"{flag} {text}: expected SOURCE=VALUE with a source of: {', '.join(sources)}")
    return found[0], value


def _convert(bags: Sequence[Path], root: Path, settings: Settings, engine: Engine) -> list[dict[str, Any]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("converting bags", total=len(bags))

        def advance(report: dict[str, Any]) -> None:
            shown.update(task, advance=1, description=f"converted {report['name']}")

        return convert(bags, root, settings, engine, advance)
