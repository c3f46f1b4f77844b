"""The state of a training run: what is needed to go on as if nothing had happened, on any number of processes.

    OUT/step_500/            appears whole, under this name, when everything in it is written
        state/meta.json         format, step, configuration, fingerprints of the data
        state/.metadata, *.distcp   weights, averages and optimizer in float32 (torch.distributed.checkpoint)
        …                       what the trainer writes beside it, such as the policy's checkpoint
    OUT/latest -> step_500   changed last

A run that is killed while it writes leaves `.step_…` folders, which nobody reads and the next save removes. Tensors are
stored by the network's names, whole tensors and parts alike, so a state that two FSDP processes wrote loads in one
process, and the other way round. No state of random numbers is kept: noise, sampling and augmentation are functions
of seed, step and row. Several machines need a folder that all of them see.
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from pi05_training.optim import Ema
from pi05_training.parallel.process import Parallel
from pi05_training.parallel.sharding import named_parameters

FORMAT = "pi05_state/1"
STATE, META, LATEST = "state", "meta.json", "latest"
_STEP = re.compile(r"step_(\d+)")


class StateError(ValueError):
    """A training state cannot be read, or belongs to another run."""


@dataclass(frozen=True)
class Meta:
    """What a state says about itself.

    Attributes:
        step: optimizer steps that were made.
        config: resolved settings of the run.
        fingerprints: of the data, by source.
        extra: anything else the trainer keeps; JSON values.
    """

    step: int
    config: Mapping[str, Any] = field(default_factory=dict)
    fingerprints: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Retention:
    """Which steps stay: the newest `last`, and every step that is a multiple of `every` (0: none)."""

    last: int = 3
    every: int = 0

    def __post_init__(self) -> None:
        if self.last < 1 or self.every < 0:
            raise ValueError(f"keep the last {self.last} and every {self.every}; valid: last >= 1, every >= 0")

    def kept(self, steps: Sequence[int]) -> set[int]:
        """Return the steps that stay."""
        return {*sorted(steps)[-self.last :], *(step for step in steps if self.every and step % self.every == 0)}


@dataclass(frozen=True)
class Difference:
    """A setting that differs; None where one side lacks it."""

    name: str
    saved: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name}: saved {json.dumps(self.saved)}, now {json.dumps(self.now)}"


def compare_config(saved: Mapping[str, Any], now: Mapping[str, Any], ignore: Sequence[str] = ()) -> list[Difference]:
    """Return what differs between two configurations, by dotted name.

    Args:
        saved, now: nested mappings of JSON values, or of what `json.dumps(..., default=str)` takes.
        ignore: dotted names, with all below them, that may differ.
    """
    before, after = _flat(_plain(saved)), _flat(_plain(now))
    names = [name for name in sorted({*before, *after}) if not any(_below(name, one) for one in ignore)]
    pairs = [Difference(name, before.get(name), after.get(name)) for name in names]
    return [pair for pair in pairs if pair.saved != pair.now or (pair.name in before) != (pair.name in after)]


def steps_of(out: Path | str) -> dict[int, Path]:
    """Return the complete step folders, by step."""
    out = Path(out)
    found = [(match, path) for path in (out.iterdir() if out.is_dir() else ()) if (match := _STEP.fullmatch(path.name))]
    return {int(match[1]): path for match, path in sorted(found, key=lambda pair: int(pair[0][1])) if path.is_dir()}


def latest_step(out: Path | str) -> Path | None:
    """Return the newest complete step folder that holds a state, or None."""
    having = [path for path in steps_of(out).values() if (path / STATE / META).is_file()]
    return having[-1] if having else None


@contextmanager
def writing_step(out: Path | str, step: int, parallel: Parallel, keep: Retention = Retention()) -> Iterator[Path]:
    """Give all processes a folder to write a step into, which then takes its name; old steps are removed.

    An exception, or the death of a process, leaves the steps before untouched.

    Args:
        out: folder of the run, made when missing.
        step: steps that were made.
        parallel: the processes; all of them must come here.
        keep: which steps stay.
    """
    out = Path(out)
    part, final = out / f".step_{step}.part", out / f"step_{step}"
    if parallel.main:
        _clean(out)
        part.mkdir(parents=True)
    parallel.barrier()
    yield part
    parallel.barrier()
    if parallel.main:
        _publish(part, final)
        _prune(out, keep)
    parallel.barrier()


def save_state(
    folder: Path | str,
    parallel: Parallel,
    meta: Meta,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: Ema | None = None,
) -> None:
    """Write the files of a state into `folder`/state, which must be new; `writing_step` gives such a folder.

    Args:
        folder: of the step.
        parallel: the processes; all of them must come here.
        meta: what the state says about itself.
        module: what `Parallel.wrap` returned.
        optimizer: over its parameters.
        ema: averaged weights, if there are any.
    """
    path = Path(folder) / STATE
    tensors = {name: value.detach() for name, value in _tensors(module, optimizer, ema).items()}
    with _quiet():
        save(tensors, storage_writer=FileSystemWriter(path), no_dist=parallel.world == 1)
    if parallel.main:
        described = {"format": FORMAT, "world": parallel.world, "kind": parallel.kind, **vars(meta)}
        _write(path / META, json.dumps(described, indent=1, default=str) + "\n")


def read_meta(folder: Path | str) -> Meta:
    """Return what the state of a step folder says about itself.

    Raises:
        StateError: there is none, or it is damaged or of another format.
    """
    path = Path(folder) / STATE / META
    try:
        values = json.loads(path.read_text("utf-8"))
        if values["format"] != FORMAT:
            raise StateError(f"{path} has format {values['format']!r}; this version reads {FORMAT!r}")
        return Meta(**{name: values[name] for name in ("step", "config", "fingerprints", "extra")})
    except FileNotFoundError as error:
        raise StateError(f"{folder} holds no training state ({STATE}/{META} is missing)") from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise StateError(f"{path} is damaged: {error!r}") from error


def load_state(
    folder: Path | str,
    parallel: Parallel,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: Ema | None = None,
) -> Meta:
    """Put weights, optimizer and averages of a step folder in place, on any number of processes.

    Learning rate, weight decay and the like stay as the optimizer has them: they are settings.

    Args:
        folder: of the step.
        parallel, module, optimizer, ema: as in `save_state`; the optimizer may be new.

    Raises:
        StateError: the state is of a network with other, or otherwise trained, parameters, and nothing has changed; or
            its files are damaged, and what was read before may have changed.
    """
    path, meta = Path(folder) / STATE, read_meta(folder)
    try:
        stored = FileSystemReader(path).read_metadata().state_dict_metadata
    except Exception as error:  # unpickling damaged bytes may raise anything
        raise StateError(f"{path / '.metadata'} cannot be read: {error!r}") from error
    kept = _moments(module, optimizer, stored)
    wanted = {**_named(module, ema), **{_key(n, k): value for n, part in kept.items() for k, value in part.items()}}
    _require_same(path, wanted, stored)
    try:
        tensors = {name: value.detach() for name, value in wanted.items()}
        with _quiet():
            load(tensors, storage_reader=FileSystemReader(path), no_dist=parallel.world == 1)
    except (Exception, CheckpointException) as error:
        raise StateError(f"{path} is damaged: {error!r}; resume from an older step") from error
    parameters = named_parameters(module)
    optimizer.state.clear()
    for name, moments in kept.items():
        optimizer.state[parameters[name]] = moments
    return meta


def _key(name: str, moment: str) -> str:
    return f"optimizer.{moment}.{name}"


def _named(module: nn.Module, ema: Ema | None) -> dict[str, Tensor]:
    weights = {f"model.{name}": p for name, p in named_parameters(module).items()}
    averages = {} if ema is None else {f"ema.{name}": value for name, value in ema.values.items()}
    return {**weights, **averages}


def _tensors(module: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None) -> dict[str, Tensor]:
    """Return everything by name. Parameters that no step has reached have no optimizer state, and none is stored."""
    moments: dict[str, Tensor] = {}
    for name, parameter in named_parameters(module).items():
        for moment, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                raise StateError(
                    f"{type(optimizer).__name__} keeps {moment} as {type(value).__name__}, not as a tensor"
                )
            moments[_key(name, moment)] = value
    return {**_named(module, ema), **moments}


def _moments(
    module: nn.Module, optimizer: torch.optim.Optimizer, stored: Mapping[str, Any]
) -> dict[str, dict[str, Tensor]]:
    """Return room for the optimizer state that is stored: parts like the parameter's, and counts of steps."""
    found: dict[str, dict[str, Tensor]] = {}
    parameters = named_parameters(module)
    # One kernel for all (fused) counts steps where the weights are, the others on the CPU.
    fused = {p for group in optimizer.param_groups if group.get("fused") for p in group["params"]}
    for key, described in stored.items():
        section, _, rest = key.partition(".")
        moment, _, name = rest.partition(".")
        if section != "optimizer" or name not in parameters:
            continue
        parameter, dtype = parameters[name], described.properties.dtype
        if described.size == parameter.shape:
            room = torch.zeros_like(parameter.detach(), dtype=dtype)
        else:
            room = torch.zeros(described.size, dtype=dtype, device=parameter.device if parameter in fused else "cpu")
        found.setdefault(name, {})[moment] = room
    return found


def _require_same(path: Path, wanted: Mapping[str, Tensor], stored: Mapping[str, Any]) -> None:
    sizes = {name: tuple(x.size) for name, x in stored.items() if isinstance(x, TensorStorageMetadata)}
    problems = [f"{name} is missing" for name in wanted if name not in sizes]
    problems += [f"{name} is not in this run" for name in sizes if name not in wanted]
    problems += [
        f"{name} is {sizes[name]}, here {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in sizes and sizes[name] != tuple(tensor.shape)
    ]
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise StateError(f"{path} is of another run: {', '.join(problems[:5])}{more}")


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process needs no group
        yield


def _clean(out: Path) -> None:
    for left in out.glob(".step_*"):
        whole = out / left.name.removeprefix(".").removesuffix(".old")
        if left.suffix == ".old" and not whole.exists():  # killed while a step was being replaced
            left.rename(whole)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _publish(part: Path, final: Path) -> None:
    _sync(part)
    if final.exists():  # a run that was resumed from an earlier step
        final.rename(final.with_name(f".{final.name}.old"))
    part.rename(final)
    link = final.with_name(f".{LATEST}.part")
    link.unlink(missing_ok=True)
    link.symlink_to(final.name)
    link.rename(final.with_name(LATEST))
    _sync(final.parent)


def _prune(out: Path, keep: Retention) -> None:
    steps = steps_of(out)
    for step in steps.keys() - keep.kept(list(steps)):
        gone = out / f".{steps[step].name}.gone"
        steps[step].rename(gone)  # at once, so that nobody finds half of it
    _clean(out)


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _plain(values: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(values, default=str))


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {name: value} if name else {}
    parts = (_flat(one, f"{name}.{key}" if name else key) for key, one in value.items())
    return {key: one for part in parts for key, one in part.items()}


def _below(name: str, ignored: str) -> bool:
    return name == ignored or name.startswith(f"{ignored}.")
