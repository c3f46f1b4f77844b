"""The training loop.

Every random number of a step (which samples, their augmentation, noise and flow times) is a function of the seed, the
step and the place in the global batch. So a run that was interrupted and resumed is the run that was not, bit for bit
on a CPU, and one process computes what several would.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pi05_model.flow_policy import FlowPolicy, combine
from pi05_training.optim import Ema, adamw, ema_decay, learning_rate
from pi05_training.parallel import Parallel, assemble, named_parameters
from pi05_training.state import (
    Meta,
    Retention,
    compare_config,
    latest_step,
    load_state,
    read_meta,
    save_state,
    writing_step,
)
from pi05_training.trainer.batches import Portion, Portions, load, schedule
from pi05_training.trainer.error import TrainingError
from pi05_training.trainer.log import Log
from pi05_training.trainer.metrics import evaluate
from pi05_training.trainer.noise import Noise
from pi05_training.trainer.prepare import Prepared

Losses = dict[str, Tensor]
AfterSave = Callable[[Path], Mapping[str, float]]

_ONE = torch.ones(())
_COUNTED = {"text": "text", "token_accuracy": "text", "fast": "fast", "fast_accuracy": "fast", "flow": "flow"}
"""What each metric is a mean over; a step in which that is nothing says nothing about it."""

MAY_DIFFER = (
    "out",
    "resume",
    "init",
    "seconds",
    "workers",
    "prefetch",
    "threads",
    "log_every",
    "save_every",
    "keep",
    "evaluate_every",
    "closed_loop_episodes",
    "tensorboard",
    "wandb",
    "device",
    "parallel",
    "accumulate",
    "checkpoint_layers",
    "compile",
)
"""Settings that a resumed run may have of its own. They change no number but for rounding (and `seconds`, the rate)."""


class Trainer:
    """One training run.

    Args:
        prepared: settings, data, network and what belongs to them.
        parallel: the processes that share the work.
        after_save: called by the first process with every checkpoint's folder; what it returns is logged.
    """

    def __init__(self, prepared: Prepared, parallel: Parallel, after_save: AfterSave | None = None) -> None:
        config = prepared.config
        torch.set_num_threads(config.threads)
        self.config, self.parallel, self._prepared = config, parallel, prepared
        self._network = prepared.model
        self.model = parallel.wrap(prepared.model, gather=torch.bfloat16 if config.bf16 else torch.float32)
        self.optimizer = adamw(self.model, config.learning_rate, config.weight_decay)
        self.average = Ema(self.model) if config.ema_decay else None
        self._forward_rows = torch.compile(self.model) if config.compile else self.model
        self.step = self._begin()
        self._after_save = after_save
        self._log = Log(config, prepared.settings, prepared.names, parallel.main, self.step)
        self._started = time.monotonic()
        self._reader: Iterator[Portion] | None = None

    def run(self) -> Path:
        """Train to the last step; return the folder of the last checkpoint.

        Raises:
            TrainingError: the loss is not finite (raised before the optimizer step).
        """
        config = self.config
        self._started, saved = time.monotonic(), -1
        try:
            while self.step < config.steps and not self._out_of_time():
                self.advance()
                if config.evaluate_every and self.step % config.evaluate_every == 0:
                    self._log.metrics(self.step, self.measure(), "held_out")
                if self.step % config.save_every == 0:
                    self.save()
                    saved = self.step
            if saved != self.step:
                self.save()
        finally:
            self._log.close()
        return config.out / "latest"

    def advance(self) -> None:
        """Do one optimizer step.

        Raises:
            TrainingError: the loss is not finite; nothing has changed then.
        """
        config, now = self.config, time.monotonic
        if self._reader is None:
            self._reader = self._portions()
        before = now()
        parts = list(itertools.islice(self._reader, config.accumulate))
        waited_s = now() - before
        done = max(self.step / config.steps, self._elapsed_s() / config.seconds)
        rate = learning_rate(config.learning_rate, config.final_rate, config.warmup_steps, self.step, done)
        losses = self._step(parts, rate)
        self.step += 1
        self._log.step(self.step, losses, rate, waited_s, parts)

    def measure(self) -> dict[str, float]:
        """Return the held-out metrics of the averaged weights; every process must call it."""
        held_out = self._prepared.held_out
        model = assemble(self.parallel, self.model, self._averages()) if held_out else None
        if model is None:
            return {}
        model = model.to(self.parallel.device)
        return evaluate(model, self._prepared.preprocessor, held_out, self._prepared.names)

    def save(self) -> None:
        """Write step_<N>, the policy of the averaged weights with the state to resume from; `latest` points to it."""
        prepared, keep = self._prepared, Retention(last=self.config.keep)
        meta = Meta(self.step, prepared.settings, prepared.fingerprints)
        with writing_step(self.config.out, self.step, self.parallel, keep) as folder:
            save_state(folder, self.parallel, meta, self.model, self.optimizer, self.average)
            model = assemble(self.parallel, self.model, self._averages())
            if model is not None:
                prepared.save(folder, model, self.step)
        if self._after_save is not None and self.parallel.main:
            self._log.metrics(self.step, self._after_save((self.config.out / "latest").resolve()), "closed_loop")

    def _averages(self) -> dict[str, Tensor] | None:
        return None if self.average is None else self.average.values

    def _begin(self) -> int:
        """Load the newest state to go on from; return its step, or 0 where there is none.

        Raises:
            TrainingError: there is one, and it was not asked for, or it belongs to a run with other settings, data,
                statistics or tokenizers; the message lists what differs.
        """
        folder = latest_step(self.config.out)
        if folder is None:
            return 0
        if not self.config.resume:
            raise TrainingError(f"{self.config.out} holds a run already: go on with --resume, or choose another --out")
        meta = read_meta(folder)
        differing = compare_config(meta.config, self._prepared.settings, MAY_DIFFER)
        differing += compare_config({"data": meta.fingerprints}, {"data": self._prepared.fingerprints})
        if differing:
            listed = "\n  ".join(map(str, differing))
            raise TrainingError(
                f"{folder} is of another run:\n  {listed}\nresume with the same settings, or start anew with "
                f"--init {folder} and another --out"
            )
        return load_state(folder, self.parallel, self.model, self.optimizer, self.average).step

    def _out_of_time(self) -> bool:
        return self._elapsed_s() > self.config.seconds

    def _elapsed_s(self) -> float:
        """Return the time since the start, the same in all processes; 0 where nothing depends on it."""
        if self.config.seconds == float("inf"):
            return 0.0
        return float(self.parallel.broadcast(time.monotonic() - self._started))

    def _portions(self) -> Iterator[Portion]:
        config, parallel, prepared = self.config, self.parallel, self._prepared
        work = schedule(
            prepared.mixture,
            config.batch_size,
            config.accumulate,
            self.step,
            config.steps,
            parallel.rank,
            parallel.world,
        )
        every = config.planner_every if "text" in prepared.losses else 0
        portions = Portions(prepared.mixture, prepared.collator, every, trim=not config.compile)
        return load(portions, work, config.workers, config.prefetch)

    def _step(self, parts: Sequence[Portion], rate: float) -> Losses:
        """Do one optimizer step; return its losses over the global batch."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # What the losses are means over, in all parts and processes: known before any of them is computed.
        counts = {name: torch.zeros((), dtype=torch.int64) for name in ("text", "fast", "flow")}
        for part in parts:
            for name, rows in part.batch.counts(config.draws).items():
                counts[name] = counts[name] + rows.sum()
        counts = self.parallel.all_sum(counts)
        self.optimizer.zero_grad(set_to_none=True)
        total: Losses = {}
        for i, part in enumerate(parts):
            with self.parallel.accumulating(self.model, last=i + 1 == len(parts)):
                losses = self._forward(part, counts)
                torch.autograd.backward(losses["total"])
            total = {name: value.detach() + total.get(name, 0.0) for name, value in losses.items()}
        total = self.parallel.all_sum(total)
        if not bool(torch.isfinite(total["total"])):
            raise TrainingError(
                f"step {self.step}: the loss is {total['total'].item()}; lower --learning-rate, or look for wrong "
                "statistics (`pi05 stats` names narrow dimensions)"
            )
        trained = (p for p in named_parameters(self.model).values() if p.requires_grad)
        total["grad_norm"] = self.parallel.clip_grad_norm(trained, config.clip_norm)
        if not bool(torch.isfinite(total["grad_norm"])):
            raise TrainingError(f"step {self.step}: a gradient is not finite; lower --learning-rate, or try --no-bf16")
        self.optimizer.step()
        if self.average is not None:
            self.average.update(ema_decay(config.ema_decay, self.step))
        return {name: value for name, value in total.items() if counts.get(_COUNTED.get(name, ""), _ONE) > 0}

    def _forward(self, part: Portion, counts: Losses) -> Losses:
        """Return this part's share of the losses of the global batch."""
        config, model = self.config, self._network
        batch = part.batch.to(self.parallel.device)
        if not isinstance(model, FlowPolicy):
            rows = self._forward_rows(batch)
            loss = rows["fast"].sum() / counts["fast"].clamp(min=1)
            return {"total": loss, "fast": loss, "fast_accuracy": rows["fast_hits"].sum() / counts["fast"].clamp(min=1)}
        alpha = self._prepared.alpha
        noise = Noise(config.seed, part.work.step, (model.config.horizon, model.config.max_action_dim), config.draws)
        drawn = noise.of(part.work.rows, config.batch_size, self.parallel.device)
        rows = self._forward_rows(batch, flow=alpha != 0, insulate=config.insulate, **drawn)
        return combine(rows, counts, alpha)
