"""`pi05 tokenizer`: fit, adapt and inspect action tokenizers."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tyro.extras import SubcommandApp

from pi05_model.action_tokens import ActionSpace, ActionTokenizer, ActionTokenizerError, load_action_tokenizer
from pi05_model.action_tokens.fast import SCALE, VOCAB_SIZE, FastTokenizer
from pi05_model.action_tokens.protocol import STATS_FILE, Chunks, load_action_stats
from pi05_model.action_tokens.report import Report, measure
from pi05_ros.contract import Contract, load_contract
from pi05_training.chunks import ChunkSet, read_chunks

Kind = Literal["fast", "fsq", "vq"]
REPORT_FILE = "report.json"
ADAPTED_VOCAB_SIZE = 2048

_ONLY: dict[str, tuple[Kind, ...]] = {
    "scale": ("fast",),
    "vocab_size": ("fast", "vq"),
    "levels": ("fsq",),
    **dict.fromkeys(
        ("tokens", "patch", "width", "layers", "steps", "batch_size", "learning_rate", "seed"), ("fsq", "vq")
    ),
}
"""Kinds that an option is for."""


@dataclass(frozen=True)
class DataOptions:
    """Which chunks, and how they are normalised."""

    stats: Path | None = None
    """norm_stats.json (or a folder with one) to normalise with: that of the policy; else computed from the data."""
    relative: bool = False
    """Joint targets relative to the state, for a policy that is trained so."""
    normalised: bool = False
    """The data is normalised already; the tokenizer then keeps no statistics."""
    holdout: float = 0.1
    """Part of the data, at its end, that is not learned from but measured."""
    max_chunks: int = 20_000
    """Chunks to read, evenly spread; 0 reads all."""
    contract: Path | None = None
    """What the robot is; by default the package's own."""


@dataclass(frozen=True)
class NetworkOptions:
    """For fsq and vq only."""

    tokens: int | None = None
    """Tokens per chunk (8)."""
    levels: tuple[int, ...] | None = None
    """fsq only: levels by latent entry; their product is the vocabulary (8 5 5 5)."""
    patch: int | None = None
    """Steps that one position of the transformers reads or writes (5)."""
    width: int | None = None
    """Width of the transformers (96)."""
    layers: int | None = None
    """Layers of the encoder and of the decoder, each (2)."""


@dataclass(frozen=True)
class TrainingOptions:
    """For fsq and vq only."""

    steps: int | None = None
    """Optimizer steps (3000)."""
    batch_size: int | None = None
    """Chunks per step (64)."""
    learning_rate: float | None = None
    """Peak learning rate (1e-3)."""
    seed: int | None = None
    """Of weights and batches (0)."""


@dataclass(frozen=True)
class Fit:
    """Fit a tokenizer to chunks.

    Attributes:
        kind: fast (any number of tokens, bounded error), fsq or vq (a fixed number of tokens, learned).
        data: .npy file [chunks, steps, entries], folder of samples, or dataset.
        out: folder that receives the tokenizer and report.json.
        vocab_size: tokens (fast: 1024; vq: 512).
        scale: fast only: coefficients are multiplied by it and rounded; more is finer and longer (10).
    """

    kind: tyro.conf.Positional[Kind]
    data: tyro.conf.Positional[Path]
    out: Path
    options: Annotated[DataOptions, tyro.conf.OmitArgPrefixes] = DataOptions()
    vocab_size: int | None = None
    scale: float | None = None
    network: Annotated[NetworkOptions, tyro.conf.OmitArgPrefixes] = NetworkOptions()
    training: Annotated[TrainingOptions, tyro.conf.OmitArgPrefixes] = TrainingOptions()


@dataclass(frozen=True)
class Adapt:
    """Adapt a tokenizer to the chunks of another domain.

    A FAST tokenizer learns further tokens and every id keeps its meaning; the network of an FSQ or VQ tokenizer goes on
    learning.

    Attributes:
        source: folder of the tokenizer; the files of `physical-intelligence/fast` do.
        data: .npy file [chunks, steps, entries], folder of samples, or dataset.
        out: folder that receives the new tokenizer and report.json.
        vocab_size: fast only: tokens of the new one (2048).
    """

    source: tyro.conf.Positional[Path]
    data: tyro.conf.Positional[Path]
    out: Path
    options: Annotated[DataOptions, tyro.conf.OmitArgPrefixes] = DataOptions()
    vocab_size: int | None = None
    training: Annotated[TrainingOptions, tyro.conf.OmitArgPrefixes] = TrainingOptions()


@dataclass(frozen=True)
class Inspect:
    """Show what a tokenizer is and, with data, how well it says it.

    Attributes:
        folder: the tokenizer.
        data: .npy file [chunks, steps, entries], folder of samples, or dataset.
        json: file that also receives the figures.
        normalised: the data is normalised already.
        max_chunks: chunks to read, evenly spread; 0 reads all.
        contract: what the robot is; by default the package's own.
    """

    folder: tyro.conf.Positional[Path]
    data: tyro.conf.Positional[Path | None] = None
    json: Path | None = None
    normalised: bool = False
    max_chunks: int = 20_000
    contract: Path | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run `pi05 tokenizer`. Returns 0 when the tokenizer is written, or shown.

    Raises:
        ActionTokenizerError: tokenizer, data and options do not go together.
        FileNotFoundError: the data does not exist.
        DatasetError: a dataset is damaged.
    """
    app = SubcommandApp()
    app.command(fit)
    app.command(adapt)
    app.command(inspect)
    app.cli(prog="pi05 tokenizer", args=None if argv is None else list(argv), config=(tyro.conf.OmitArgPrefixes,))
    return 0


def fit(arguments: Fit) -> None:
    """Fit a tokenizer to chunks."""
    _check_out(arguments.out)
    kind, network, training = arguments.kind, _given(arguments.network), _given(arguments.training)
    sizes = {key: getattr(arguments, key) for key in ("vocab_size", "scale") if getattr(arguments, key) is not None}
    _check_options(kind, {**sizes, **network, **training})
    data = _read(arguments.data, arguments.options)
    if kind == "fast":
        with Console().status("learning the vocabulary"):
            tokenizer: ActionTokenizer = FastTokenizer.fit(
                data.learn, sizes.get("scale", SCALE), sizes.get("vocab_size", VOCAB_SIZE), data.space
            )
    else:
        tokenizer = _fit_latent(kind, data, network, sizes, training)
    _finish(tokenizer, data, arguments, arguments.out)


def adapt(arguments: Adapt) -> None:
    """Adapt a tokenizer to the chunks of another domain."""
    _check_out(arguments.out)
    source = load_action_tokenizer(arguments.source)
    training = _given(arguments.training)
    sizes = {} if arguments.vocab_size is None else {"vocab_size": arguments.vocab_size}
    _check_options(source.kind, {**sizes, **training})
    data = _read(arguments.data, arguments.options)
    Console().print("before:", _summary(measure(source, data.measure)), highlight=False)
    if isinstance(source, FastTokenizer):
        with Console().status("learning further tokens"):
            tokenizer: ActionTokenizer = source.adapt(
                data.learn, sizes.get("vocab_size", ADAPTED_VOCAB_SIZE), data.space
            )
    else:
        from pi05_model.action_tokens.latent import FitConfig, LatentTokenizer  # torch takes seconds to import

        if sizes:
            raise ActionTokenizerError(
                f"the vocabulary of a {source.kind} tokenizer cannot grow: leave --vocab-size out"
            )
        assert isinstance(source, LatentTokenizer)
        config = FitConfig(**training)
        with _progress(config.steps) as step:
            tokenizer = source.adapt(data.learn, config, data.space, step)
    _finish(tokenizer, data, arguments, arguments.out)


def inspect(arguments: Inspect) -> None:
    """Show what a tokenizer is and, with data, how well it says it."""
    tokenizer = load_action_tokenizer(arguments.folder)
    content: dict[str, Any] = {"tokenizer": describe(tokenizer)}
    table = Table("what", "value", title=str(arguments.folder), title_justify="left", show_header=False)
    for name, value in content["tokenizer"].items():
        table.add_row(name, str(value))
    Console().print(table)
    if arguments.data is not None:
        chunks = read_chunks(arguments.data, arguments.max_chunks)
        report = measure(tokenizer, _normalise(chunks, tokenizer.space, arguments.normalised))
        content["report"] = report.as_dict()
        show(report, load_contract(arguments.contract), str(arguments.data))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def describe(tokenizer: ActionTokenizer) -> dict[str, Any]:
    """Return what a tokenizer is, by name."""
    rows: dict[str, Any] = {"kind": tokenizer.kind, "vocabulary": tokenizer.vocab_size}
    if isinstance(tokenizer, FastTokenizer):
        rows |= {"scale": tokenizer.scale, "coefficients": f"{tokenizer.min_token} … {tokenizer.max_token}"}
    else:
        rows |= dataclasses.asdict(tokenizer.config)  # type: ignore[attr-defined]
    space = tokenizer.space
    rows["statistics"] = "none: chunks must come normalised" if space is None else f"{space.stats.dim} entries"
    if space is not None:
        rows |= {"relative entries": list(space.relative_entries), "fingerprint": space.fingerprint}
    return rows


def show(report: Report, contract: Contract, title: str) -> None:
    """Print the figures of a report, then the errors by entry."""
    console = Console()
    console.print(f"[bold]{title}[/bold]: {_summary(report)}", highlight=False)
    table = Table("entry", "rms", "max", title="error, normalised", title_justify="left")
    if report.physical is not None:
        table = Table("entry", "rms", "max", "rms, physical", "max, physical", title="error", title_justify="left")
    names = contract.names if contract.dim == report.dim else [str(i) for i in range(report.dim)]
    for i, name in enumerate(names):
        columns = [report.normalised, *([report.physical] if report.physical else [])]
        table.add_row(name, *(f"{value:.4f}" for column in columns for value in (column.rms[i], column.max[i])))
    console.print(table)


@dataclass(frozen=True)
class _Data:
    """Normalised chunks to learn from and to measure, and what they mean."""

    learn: Chunks
    measure: Chunks
    held_out: bool
    space: ActionSpace | None


def _read(path: Path, options: DataOptions) -> _Data:
    if not 0 <= options.holdout < 1:
        raise ActionTokenizerError(f"--holdout must be in [0, 1), got {options.holdout}")
    chunks = read_chunks(path, options.max_chunks)
    count = len(chunks) - round(options.holdout * len(chunks))
    space = None if options.normalised else _space(chunks[:count], options)
    learn = _normalise(chunks[:count], space, options.normalised)
    held_out = count < len(chunks)
    measured = _normalise(chunks[count:], space, options.normalised) if held_out else learn
    return _Data(learn, measured, held_out, space)


def _space(chunks: ChunkSet, options: DataOptions) -> ActionSpace:
    relative: tuple[int, ...] = ()
    if options.relative:
        contract = load_contract(options.contract)
        relative = tuple(int(i) for i in contract.position_index)
        if chunks.actions.shape[-1] != contract.dim:
            raise ActionTokenizerError(
                f"--relative: the data has {chunks.actions.shape[-1]} entries, {contract.robot} has {contract.dim}: "
                "give its --contract"
            )
    if options.stats is None:
        return ActionSpace.measure(chunks.actions, chunks.states, relative)
    path = options.stats / STATS_FILE if options.stats.is_dir() else options.stats
    return ActionSpace(load_action_stats(path), relative)


def _normalise(chunks: ChunkSet, space: ActionSpace | None, normalised: bool) -> Chunks:
    if normalised:
        return chunks.actions
    if space is None:
        raise ActionTokenizerError("the tokenizer keeps no statistics: give normalised data and --normalised")
    return space.normalise(chunks.actions, chunks.states)


def _fit_latent(
    kind: Kind, data: _Data, network: dict[str, Any], sizes: dict[str, Any], training: dict[str, Any]
) -> ActionTokenizer:
    from pi05_model.action_tokens.fsq import FsqConfig, FsqTokenizer
    from pi05_model.action_tokens.latent import FitConfig
    from pi05_model.action_tokens.vq import VqConfig, VqTokenizer

    _, horizon, dim = data.learn.shape
    config = FitConfig(**training)
    with _progress(config.steps) as step:
        if kind == "fsq":
            return FsqTokenizer.fit(data.learn, FsqConfig(horizon, dim, **network), config, data.space, step)
        if "vocab_size" in sizes:
            network = {**network, "codes": sizes["vocab_size"]}
        return VqTokenizer.fit(data.learn, VqConfig(horizon, dim, **network), config, data.space, step)


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[int, float], None]]:
    with Progress(transient=True) as progress:
        task = progress.add_task("fitting", total=steps)

        def step(done: int, loss: float) -> None:
            progress.update(task, completed=done, description=f"fitting, loss {loss:.4f}")

        yield step


def _finish(tokenizer: ActionTokenizer, data: _Data, arguments: Fit | Adapt, out: Path) -> None:
    """Measure, show and write a tokenizer; the folder appears when everything is in it."""
    report = measure(tokenizer, data.measure)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as name:
        partial = Path(name) / "tokenizer"
        tokenizer.save(partial)
        content = {
            "arguments": dataclasses.asdict(arguments),
            "learned_from": len(data.learn),
            "held_out": data.held_out,
        }
        content |= report.as_dict()
        (partial / REPORT_FILE).write_text(json.dumps(content, indent=1, default=str) + "\n", "utf-8")
        if out.exists():
            out.rmdir()
        partial.rename(out)
    show(report, load_contract(arguments.options.contract), "held out" if data.held_out else "learned from")
    print(f"tokenizer in {out}")


def _summary(report: Report) -> str:
    """Return the figures of a report in a line."""
    tokens = " / ".join(str(n) for n in report.tokens.values())
    return (
        f"{report.chunks} chunks of {report.horizon}x{report.dim}; tokens {report.tokens_mean:.1f} a chunk "
        f"(min / median / p99 / max {tokens}), {report.values_per_token:.1f} values a token, {report.compression:.0f} "
        f"times smaller than float32; rms error {report.rms:.4f}; {report.codes_used} codes used, {report.dead_codes} "
        f"dead, perplexity {report.perplexity:.0f}; {report.clipped} coefficients clipped"
    )


def _check_out(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ActionTokenizerError(f"{out} exists already: give --out a new folder")


def _check_options(kind: str, given: dict[str, Any]) -> None:
    wrong = [key for key in given if kind not in _ONLY[key]]
    if wrong:
        flag = "--" + wrong[0].replace("_", "-")
        raise ActionTokenizerError(f"{flag} is for {' and '.join(_ONLY[wrong[0]])}, not for {kind}")


def _given(options: NetworkOptions | TrainingOptions) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(options).items() if value is not None}
