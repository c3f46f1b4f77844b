"""What a training run tells: a progress bar, metrics.jsonl, TensorBoard, Weights & Biases when asked."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from pi05_training.trainer.batches import Portion
from pi05_training.trainer.config import TrainConfig
from pi05_training.trainer.error import TrainingError

FILE = "metrics.jsonl"
Values = dict[str, float]


class Sink(Protocol):
    """A place for scalars."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars of a step."""

    def close(self) -> None:
        """Flush and close."""


class JsonLines:
    """One JSON object a line; a resumed run goes on in the same file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """TensorBoard's event files."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases."""

    def __init__(self, project: str, settings: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise TrainingError("--wandb needs `pip install wandb`") from error
        self._run = wandb.init(project=project, config=settings)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class Log:
    """The log of a run; silent on every process but the first.

    Args:
        config: of the run.
        settings: resolved settings, for sinks that show them.
        names: of the sources, by index.
        first: whether this process logs.
        step: where the run starts.
    """

    def __init__(
        self, config: TrainConfig, settings: dict[str, Any], names: Sequence[str], first: bool, step: int
    ) -> None:
        self._every, self._batch, self._names = config.log_every, config.batch_size, names
        self._sinks: list[Sink] = []
        self._drawn = [0] * len(names)
        self._since, self._waited, self._steps = time.monotonic(), 0.0, 0
        self._sums: dict[str, tuple[float, int]] = {}
        self._bar: Progress | None = None
        if not first:
            return
        self._sinks.append(JsonLines(config.out / FILE))
        if config.tensorboard:
            self._sinks.append(TensorBoard(config.out / "tensorboard"))
        if config.wandb:
            self._sinks.append(WeightsAndBiases(config.wandb, settings))
        columns = (TextColumn("{task.fields[losses]}"), BarColumn(), MofNCompleteColumn())
        self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), disable=not sys.stderr.isatty())
        self._task = self._bar.add_task("train", total=config.steps, completed=step, losses="")
        self._bar.start()

    def step(
        self, step: int, losses: Mapping[str, Tensor], rate: float, waited_s: float, parts: Sequence[Portion]
    ) -> None:
        """Take in a step; every `log_every` steps, write means and the speed since the last line."""
        self._waited += waited_s
        self._steps += 1
        for name, value in losses.items():
            before = self._sums.get(name, (0.0, 0))
            self._sums[name] = (before[0] + float(value), before[1] + 1)
        for part in parts:
            for index in part.source.tolist():
                self._drawn[index] += 1
        if self._bar is None or (step % self._every and step != 1):
            return
        elapsed = time.monotonic() - self._since
        values = {name: round(total / count, 6) for name, (total, count) in self._sums.items()}
        values |= {
            "learning_rate": rate,
            "samples_per_s": round(self._steps * self._batch / elapsed, 2),
            "data_wait": round(self._waited / elapsed, 4),
        }
        drawn = max(sum(self._drawn), 1)
        values |= {f"drawn/{name}": round(n / drawn, 4) for name, n in zip(self._names, self._drawn, strict=True)}
        self._since, self._waited, self._steps, self._sums = time.monotonic(), 0.0, 0, {}
        self._write(step, values)

    def metrics(self, step: int, values: Mapping[str, float], group: str) -> None:
        """Write metrics under "group/name"."""
        if self._bar is not None and values:
            self._write(step, {f"{group}/{name}": round(value, 6) for name, value in values.items()})

    def close(self) -> None:
        """Close every sink."""
        if self._bar is not None:
            self._bar.stop()
        for sink in self._sinks:
            sink.close()

    def _write(self, step: int, values: Values) -> None:
        assert self._bar is not None
        for sink in self._sinks:
            sink.write(step, values)
        short = " ".join(f"{name}={value:.4g}" for name, value in values.items() if not name.startswith("drawn/"))
        self._bar.update(self._task, completed=step, losses=f"loss {values['total']:.4g}" if "total" in values else "")
        if self._bar.disable:
            print(f"step {step} {short}", flush=True)
        else:
            self._bar.console.print(f"step {step} {short}")
