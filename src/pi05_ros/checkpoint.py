"""`pi05 checkpoint`: what a checkpoint folder holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from pi05_ros.graph import EMBEDDED_POLICY
from pi05_ros.paths import share_dir


@dataclass(frozen=True)
class CheckpointArguments:
    """Show what a checkpoint holds, after checking that it can be loaded.

    Attributes:
        action: what to do with it.
        path: checkpoint folder; without one, the checkpoint that the package ships.
    """

    action: tyro.conf.Positional[Literal["inspect"]]
    path: tyro.conf.Positional[Path | None] = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run `pi05 checkpoint`. Raises CheckpointError when the checkpoint is missing or damaged."""
    arguments = tyro.cli(CheckpointArguments, prog="pi05 checkpoint", args=None if argv is None else list(argv))
    path = arguments.path or share_dir() / EMBEDDED_POLICY
    table = Table("what", "value", title=str(path), title_justify="left", show_header=False)
    for row in describe(path):
        table.add_row(*row)
    Console().print(table)
    return 0


def describe(path: Path) -> list[tuple[str, str]]:
    """Return (what, value) rows about a checkpoint.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
    """
    from pi05_model.checkpoint import fingerprint, load_checkpoint  # torch takes seconds to import

    checkpoint = load_checkpoint(path)
    config, model = checkpoint.config, checkpoint.model
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    rows = [
        ("sha256", fingerprint(path)),
        (
            "files",
            ", ".join(f"{p.name} {p.stat().st_size / 1e6:.1f} MB" for p in sorted(path.iterdir()) if p.is_file()),
        ),
        ("parameters", f"{sum(p.numel() for p in model.parameters()):,}"),
        ("  of these", ", ".join(f"{name} {count:,}" for name, count in sizes.items() if count)),
        ("chunk", f"{config.horizon} steps, {config.max_action_dim} entries in the network"),
        ("cameras", ", ".join(config.cameras)),
        ("  of the expert", ", ".join(config.expert_cameras)),
        ("vocabulary", f"{config.vocab_size} tokens, prompts up to {config.max_prompt_tokens}"),
        ("statistics", ", ".join(f"{name} [{len(stats.mean)}]" for name, stats in checkpoint.stats.items())),
    ]
    return rows + [(key, _shorten(value)) for key, value in checkpoint.extra.items()]


def _shorten(value: object, width: int = 300) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= width else f"{text[:width]}… ({len(text)} characters)"
