"""`pi05 checkpoint`: look into checkpoints, take those of lerobot and openpi, and write such ones."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from pi05_ros.graph import EMBEDDED_POLICY
from pi05_ros.paths import share_dir

if TYPE_CHECKING:  # torch takes seconds to import
    from pi05_model.backbone import Backbone
    from pi05_model.interchange.foreign import Choices, Foreign
    from pi05_model.normalize import NormStats

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Inspect:
    """Show what a checkpoint holds, after checking that it can be loaded.

    Attributes:
        path: checkpoint folder, also of lerobot or openpi; without one, the checkpoint that the package ships.
        sizes: JSON with the sizes of a reduced network of lerobot or openpi, where its tensors do not tell them.
    """

    path: tyro.conf.Positional[Path | None] = None
    sizes: Path | None = None


@dataclass(frozen=True)
class Import:
    """Write a checkpoint of this project from one of lerobot or openpi (PyTorch).

    Attributes:
        path: folder of lerobot or openpi.
        out: folder to write, new or empty.
        tokenizer: PaliGemma's tokenizer.model or tokenizer.json, a folder of one, or a hub id.
        action_tokenizer: folder of FAST's files, for π0-FAST.
        stats: norm_stats.json to use instead of the folder's own statistics.
        asset_id: which robot's statistics, where an openpi folder holds several.
        action_dim: real entries of state and action, where openpi padded the statistics.
        horizon: steps of a chunk, where the folder does not say (openpi).
        cameras: other names for the cameras, in the order in which the network knows them; the robot's contract says
            which it has (model_key).
        relative_entries: entries of the action that are relative to the state, where the folder does not say (openpi).
        state_in_prompt: whether the network was trained with the state in its prompt (openpi's pi05_libero was not).
        sizes: JSON with the sizes of a reduced network, where its tensors do not tell them.
    """

    path: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PATH")]
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    tokenizer: str | None = None
    action_tokenizer: Path | None = None
    stats: Path | None = None
    asset_id: str | None = None
    action_dim: int | None = None
    horizon: int | None = None
    cameras: tuple[str, ...] | None = None
    relative_entries: tuple[int, ...] | None = None
    state_in_prompt: bool = True
    sizes: Path | None = None

    def choices(self) -> "Choices":
        """Return what the user says about the folder."""
        from pi05_model.interchange.foreign import Choices

        given = {"horizon": self.horizon, "relative_entries": self.relative_entries, "cameras": self.cameras}
        settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if not self.state_in_prompt:
            settings["state_in_prompt"] = False
        return Choices(
            sizes=_read_sizes(self.sizes),
            settings=settings,
            tokenizer=self.tokenizer,
            action_tokenizer=self.action_tokenizer,
            stats=self.stats,
            asset_id=self.asset_id,
            action_dim=self.action_dim,
        )


@dataclass(frozen=True)
class Export:
    """Write a folder that lerobot or openpi (PyTorch) reads.

    Attributes:
        path: checkpoint folder of this project.
        out: folder to write, new or empty.
        to: whose layout.
    """

    path: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PATH")]
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    to: Literal["lerobot", "openpi"] = "lerobot"


Arguments = (
    Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Import, tyro.conf.subcommand("import")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `pi05 checkpoint`. Raises CheckpointError when a checkpoint is missing, damaged or does not fit."""
    arguments: Inspect | Import | Export = tyro.cli(
        Arguments,
        prog="pi05 checkpoint",
        args=None if argv is None else list(argv),
    )
    console = Console()
    if isinstance(arguments, Inspect):
        return _inspect(arguments, console)
    return _import(arguments, console) if isinstance(arguments, Import) else _export(arguments, console)


def describe(path: Path) -> Rows:
    """Return (what, value) rows about a checkpoint of this project.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
    """
    from pi05_model.checkpoint import FILES, fingerprint, load_checkpoint, load_network, read_description

    if (path / "config.json").is_file() and (missing := [name for name in FILES if not (path / name).is_file()]):
        rows = _describe_network(load_network(path))  # such as an import that lacked something
        rows.append(("to run it", f"it lacks {', '.join(missing)}; import it again with what they come from"))
        return rows + _say_extra(read_description(path / "config.json").extra)
    checkpoint = load_checkpoint(path)
    files = [p for p in sorted(path.iterdir()) if p.is_file()]
    rows = [
        ("sha256", fingerprint(path)),
        ("files", ", ".join(f"{p.name} {p.stat().st_size / 1e6:.1f} MB" for p in files)),
        *_describe_network(checkpoint.model),
        ("statistics", _say_stats(checkpoint.stats)),
    ]
    if checkpoint.action_tokenizer is not None:
        rows.append(("action tokens", f"{checkpoint.action_tokenizer.kind}, {checkpoint.action_tokenizer.vocab_size}"))
    return rows + _say_extra(checkpoint.extra)


def _describe_network(model: "Backbone") -> Rows:
    config = model.config
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    return [
        ("policy", config.policy),
        ("parameters", f"{sum(p.numel() for p in model.parameters()):,}"),
        ("  of these", ", ".join(f"{name} {count:,}" for name, count in sizes.items() if count)),
        ("chunk", f"{config.horizon} steps, {config.max_action_dim} entries in the network"),
        ("cameras", ", ".join(config.cameras)),
        ("  of the expert", ", ".join(config.expert_cameras)),
        ("vocabulary", f"{config.vocab_size} tokens, prompts up to {config.max_prompt_tokens}"),
    ]


def _say_extra(extra: Mapping[str, Any]) -> Rows:
    return [(key, _shorten(value)) for key, value in extra.items()]


def describe_foreign(source: "Foreign") -> Rows:
    """Return (what, value) rows about a folder of lerobot or openpi.

    Raises:
        CheckpointError: its tensors do not fit the network.
    """
    from pi05_model.interchange.importer import convert, still_missing

    specs, _ = convert(source)
    config = source.config
    stacks = [("vision", config.vision.width, config.vision.depth), ("vlm", config.vlm.width, config.vlm.depth)]
    if config.expert is not None:
        stacks.append(("expert", config.expert.width, config.expert.depth))
    dtypes = sorted({str(spec.dtype).removeprefix("torch.") for spec in specs.values()})
    files = [(source.path / name).exists() for name in ("tokenizer.json", "action_tokenizer")]
    missing = still_missing(source, *files)
    return [
        ("written by", source.family),
        ("policy", config.policy),
        ("files", ", ".join(f"{p.name} {p.stat().st_size / 1e6:.1f} MB" for p in source.weights.files)),
        ("parameters", f"{sum(spec.numel for spec in specs.values()):,} in {', '.join(dtypes)}"),
        *((f"  {name}", f"{width} wide, {depth} layers") for name, width, depth in stacks),
        ("chunk", f"{config.horizon} steps, {config.max_action_dim} entries in the network"),
        ("cameras", ", ".join(config.cameras)),
        ("vocabulary", f"{config.vocab_size} tokens, prompts up to {config.max_prompt_tokens}"),
        ("statistics", _say_stats(source.stats or {}) or "none"),
        *(("note", note) for note in source.notes),
        ("to run it", f"it lacks {'; '.join(missing)}" if missing else "nothing is missing"),
        ("to import it", f"pi05 checkpoint import {source.path} OUT"),
    ]


def _inspect(arguments: Inspect, console: Console) -> int:
    from pi05_model.interchange.foreign import Choices, is_foreign, read_foreign

    path = arguments.path or share_dir() / EMBEDDED_POLICY
    if path.is_dir() and is_foreign(path):
        rows = describe_foreign(read_foreign(path, Choices(sizes=_read_sizes(arguments.sizes))))
    else:
        rows = describe(path)
    table = Table("what", "value", title=str(path), title_justify="left", show_header=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    return 0


def _import(arguments: Import, console: Console) -> int:
    from pi05_model.interchange.importer import import_checkpoint

    imported = import_checkpoint(arguments.path, arguments.out, arguments.choices())
    source = imported.source
    console.print(f"{source.config.policy} of {source.family}: {len(source.stored)} tensors read")
    for note in source.notes:
        console.print(f"note: {note}")
    if imported.missing:
        console.print(f"{arguments.out} does not run yet; import it again into a new folder with what it lacks:")
        for file in imported.missing:
            console.print(f"  {file}")
    console.print(f"wrote {arguments.out}")
    return 0


def _export(arguments: Export, console: Console) -> int:
    from pi05_model.interchange.exporter import export_checkpoint

    exported = export_checkpoint(arguments.path, arguments.out, arguments.to)
    for note in exported.notes:
        console.print(f"note: {note}")
    console.print(f"wrote {arguments.out}: {exported.tensors} tensors under {arguments.to}'s names")
    return 0


def _read_sizes(path: Path | None) -> dict[str, Any]:
    """Read a sizes file.

    Raises:
        CheckpointError: it is no JSON object.
    """
    from pi05_model.weights import CheckpointError

    if path is None:
        return {}
    try:
        sizes = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(sizes, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return sizes


def _say_stats(stats: "Mapping[str, NormStats]") -> str:
    return ", ".join(
        f"{name} [{value.dim}] {value.method}" + (f" (hardly moving: entries {value.narrow})" if value.narrow else "")
        for name, value in stats.items()
    )


def _shorten(value: object, width: int = 300) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= width else f"{text[:width]}… ({len(text)} characters)"
