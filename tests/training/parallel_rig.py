"""A debug-size training run on shared-out rows, the same code in one process and, under torchrun, in several.

`run_processes` starts this file with torchrun; each job writes what rank 0 found to a file.
"""

import atexit
import dataclasses
import faulthandler
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pi05_model.backbone import Backbone
from pi05_model.batch import Text, TrainBatch
from pi05_model.build import build
from pi05_model.config import PRESETS, ModelConfig
from pi05_model.flow_policy import FlowPolicy, combine
from pi05_training.lora import add_lora
from pi05_training.optim import Ema, adamw
from pi05_training.parallel import (
    BranchError,
    Kind,
    Parallel,
    assemble,
    checkpoint_layers,
    full_state,
    local,
    named_parameters,
    unwrap,
)
from pi05_training.state import Meta, latest_step, load_state, save_state, writing_step

ROWS = 6
ALPHA = 10.0


@dataclasses.dataclass(frozen=True)
class Case:
    """What is trained, and how."""

    policy: str = "pi05"
    planner: bool = True
    fast: bool = False
    flow: bool = True
    insulate: bool = True
    checkpointed: bool = False
    accumulate: int = 1
    lora: bool = False
    gather: torch.dtype = torch.float32
    frozen: tuple[str, ...] = ()


CASES = {
    "hierarchical": Case(),
    "everything": Case(fast=True, insulate=False, accumulate=2),
    "keys_and_values_alone": Case(planner=False, insulate=False),
    "expert_alone": Case(planner=False, frozen=("vision.", "embed.", "vlm.")),
    "planner_alone": Case(flow=False, frozen=("expert.", "action_", "time_")),
    "low_rank": Case(lora=True, checkpointed=True, insulate=False),
    "gathered_in_bfloat16": Case(insulate=False, gather=torch.bfloat16),
    "pi0": Case(policy="pi0", planner=False, insulate=False),
    "pi0_fast": Case(policy="pi0_fast", planner=False, flow=False, fast=True),
}

KINDS: dict[Kind, tuple[str, ...]] = {"ddp": ("hierarchical", "everything", "low_rank"), "fsdp": tuple(CASES)}


def network(case: Case) -> Backbone:
    """Return a network whose modulations and biases are not zero, unlike those of a new one."""
    torch.manual_seed(0)
    model = build(PRESETS[f"{case.policy}_debug"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".dense." in name or name.endswith(("bias", "norm.weight")):
                parameter.normal_(std=0.3)
            parameter.copy_(parameter.to(case.gather))  # so that gathering loses nothing at first
    if case.lora:
        for name in add_lora(model, ("vlm.*", "vision.blocks.*", "action_in"), rank=4, alpha=8.0):
            nn.init.normal_(model.get_submodule(name).lora_b, std=0.1)
    for name, parameter in model.named_parameters():
        if name.startswith(case.frozen):
            parameter.requires_grad_(False)
    if case.checkpointed:
        checkpoint_layers(model)
    return model


def global_batch(config: ModelConfig, case: Case) -> tuple[TrainBatch, dict[str, Tensor]]:
    """Return a batch with rows of different lengths, and the noise and times of its rows."""
    generator = torch.Generator().manual_seed(1)
    size, dim, horizon = config.image_size, config.max_action_dim, config.horizon
    images = torch.rand(ROWS, len(config.cameras), 3, size, size, generator=generator) * 2 - 1
    mask = torch.rand(images.shape[:2], generator=generator) < 0.8
    mask[:, 0] = True
    lengths = torch.tensor([12, 9, 15, 10, 8, 14])
    ends = torch.tensor([50, 20, 50, 35, 50, 10])
    action_mask = (torch.arange(horizon) < ends[:, None])[..., None] & (torch.arange(dim) < 18)
    batch = TrainBatch(
        images,
        mask,
        _text(generator, lengths + 5, answer=4) if case.planner else None,
        _text(generator, lengths, answer=5 if case.fast else 0),
        torch.randn(ROWS, horizon, dim, generator=generator),
        action_mask,
        action_tokens=case.fast,
        state=torch.randn(ROWS, dim, generator=generator) if case.policy == "pi0" else None,
    )
    noise = torch.randn(ROWS, horizon, dim, generator=generator)
    return batch, {"noise": noise, "time": torch.rand(ROWS, generator=generator)}


def _text(generator: torch.Generator, lengths: Tensor, answer: int) -> Text:
    index, ends = torch.arange(int(lengths.max())), lengths[:, None]
    valid, targets = index < ends, (index < ends) & (index >= ends - answer)
    tokens = torch.randint(10, 5000, tuple(valid.shape), generator=generator) * valid
    return Text(tokens, valid, targets, targets)


def take(batch: TrainBatch, rows: Sequence[int]) -> TrainBatch:
    """Return some rows; -1 is a row that fills up and counts nothing."""
    index = torch.tensor([max(row, 0) for row in rows])
    real = torch.tensor([row >= 0 for row in rows])

    def text(whole: Text) -> Text:
        parts = {field.name: getattr(whole, field.name)[index] for field in dataclasses.fields(Text)}
        return Text(**parts | {"targets": parts["targets"] & real[:, None]})

    return TrainBatch(
        batch.images[index],
        batch.image_mask[index],
        None if batch.planner is None else text(batch.planner),
        text(batch.expert),
        batch.actions[index],
        batch.action_mask[index] & real[:, None, None],
        batch.action_tokens,
        None if batch.state is None else batch.state[index],
    )


def share(parallel: Parallel) -> list[int]:
    """Return the rows of this process: uneven, the last ones filled up."""
    if parallel.world == 1:
        return list(range(ROWS))
    return [[0, 1, 2, 3], [4, 5, -1, -1]][parallel.rank]


class Run:
    """Model, optimizer and averages of a case on some processes."""

    def __init__(self, case: Case, parallel: Parallel) -> None:
        self.case, self.parallel = case, parallel
        self.module = parallel.wrap(network(case), case.gather)
        self.optimizer = adamw(self.module, learning_rate=1e-3, weight_decay=0.1)
        self.ema = Ema(self.module)
        model = unwrap(self.module)
        assert isinstance(model, Backbone)
        self.flows = isinstance(model, FlowPolicy)
        self.batch, self.drawn = global_batch(model.config, case)

    def backward(self) -> dict[str, Tensor]:
        """Compute the gradient of the global batch; return summed metrics."""
        rows, counts = share(self.parallel), self.batch.counts()
        mine = take(self.batch, rows).counts()
        counts = self.parallel.all_sum({name: value.sum() for name, value in mine.items()})
        parts = [rows[i :: self.case.accumulate] for i in range(self.case.accumulate)]
        found: list[Mapping[str, Tensor]] = []
        for i, part in enumerate(parts):
            with self.parallel.accumulating(self.module, last=i == len(parts) - 1):
                losses = self._losses(part, counts)
                losses["total"].backward()
                found.append(losses)
        local = {name: torch.stack([losses[name].detach() for losses in found]).sum() for name in found[0]}
        return self.parallel.all_sum(local)

    def _losses(self, rows: Sequence[int], counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        batch, arguments = take(self.batch, rows), {}
        if self.flows:
            index = torch.tensor([max(row, 0) for row in rows])
            arguments = {name: value[index] for name, value in self.drawn.items()}
            arguments |= {"flow": self.case.flow, "insulate": self.case.insulate}
        sums = self.module(batch, **arguments)
        none = torch.zeros(())
        every = {name: sums.get(name, none) for name in ("text", "text_hits", "fast", "fast_hits", "flow")}
        return combine(every, counts, ALPHA)

    def gradients(self) -> dict[str, Tensor]:
        """Return whole gradients by name."""
        have = {name: p.grad for name, p in named_parameters(self.module).items() if p.grad is not None}
        whole = full_state(self.parallel, self.module, have)
        return {name: whole[name] for name in have if name in whole}

    def step(self) -> dict[str, Tensor]:
        """Make one optimizer step; return metrics and the norm of the gradient before clipping."""
        metrics = self.backward()
        norm = self.parallel.clip_grad_norm(named_parameters(self.module).values(), max_norm=1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(0.9)
        return metrics | {"norm": norm}

    def result(self) -> dict[str, Any]:
        """Return gradients of the first step, and weights, averages and metrics after three."""
        self.backward()
        gradients = self.gradients()
        self.optimizer.zero_grad(set_to_none=True)
        metrics = [self.step() for _ in range(3)]
        return {"gradients": gradients, "metrics": metrics, **self.weights()}

    def weights(self) -> dict[str, dict[str, Tensor]]:
        return {
            "weights": full_state(self.parallel, self.module),
            "averages": full_state(self.parallel, self.module, self.ema.values),
        }

    def held(self) -> dict[str, int]:
        """Return the bytes that this process holds all the time."""
        state = [value for moments in self.optimizer.state.values() for value in moments.values() if value.ndim]
        kinds = {"weights": named_parameters(self.module).values(), "optimizer": state, "ema": self.ema.values.values()}
        return {name: sum(local(x.detach()).nbytes for x in tensors) for name, tensors in kinds.items()}

    def save(self, out: Path, step: int) -> None:
        with writing_step(out, step, self.parallel) as folder:
            save_state(folder, self.parallel, Meta(step), self.module, self.optimizer, self.ema)

    def load(self, folder: Path) -> Meta:
        return load_state(folder, self.parallel, self.module, self.optimizer, self.ema)


def run_processes(folder: Path, job: str, world: int = 2) -> None:
    """Run a job under torchrun; it reads and writes in `folder`."""
    start([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"], folder, job)


def start(command: Sequence[str], folder: Path, job: str) -> None:
    """Run a job of this file; torchrun ends its processes when it is told to end."""
    with subprocess.Popen(
        [*command, __file__, job, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.terminate()
            said, _ = process.communicate()
            raise AssertionError(f"{job} took more than two minutes\n{said[-8000:]}") from None
    assert process.returncode == 0, said[-8000:]


def job_cases(folder: Path) -> None:
    """Train the cases, each with DDP and with FSDP."""
    with Parallel.setup("ddp"):  # one process group for all
        for kind in KINDS:
            parallel = Parallel.setup(kind)
            for name in KINDS[kind]:
                run = Run(CASES[name], parallel)
                result = run.result() | {"held": run.held()}
                with torch.no_grad():  # leaves FSDP's root whole
                    run.module(run.batch, **run.drawn) if run.flows else run.module(run.batch)
                after = run.weights()
                whole = assemble(parallel, run.module, run.ema.values)
                if whole is not None:
                    torch.save(result | {"after": after, "whole": whole.state_dict()}, folder / f"{name}-{kind}.pt")
        run = Run(CASES["hierarchical"], parallel)
        try:
            run.module(dataclasses.replace(run.batch, action_tokens=parallel.rank == 1))
        except BranchError as error:
            (folder / f"branches{parallel.rank}.txt").write_text(str(error))


def job_states(folder: Path) -> None:
    """Go on from the state of one process for two steps, save a state after each, and load it the other way."""
    with Parallel.setup("ddp"):
        for kind, other in (("fsdp", "ddp"), ("ddp", "fsdp")):
            parallel = Parallel.setup(kind)
            run = Run(CASES["hierarchical"], parallel)
            run.load(folder / "one" / "step_1")
            for step in (2, 3):
                run.step()
                run.save(folder / kind, step)
            second = Run(CASES["hierarchical"], Parallel.setup(other))
            second.load(folder / kind / "step_3")
            found = {"saved": run.weights(), "crossed": second.weights()}
            if parallel.main:
                torch.save(found, folder / f"{kind}.pt")


def job_kills(folder: Path) -> None:
    """Kill a process while it saves, some times, each time later in the files; then load what is left."""
    found = []
    for kill in range(6):
        run, out = Run(CASES["hierarchical"], Parallel.setup()), folder / f"kill{kill}"
        run.step()  # gives the optimizer its state
        _fill(run, 1)
        run.save(out, 1)
        child = os.fork()
        if child == 0:
            for step in itertools.count(2):
                _fill(run, step)
                run.save(out, step)
        started, seen = time.monotonic(), -1
        while seen < kill * 800_000 and time.monotonic() - started < 60:
            seen = _being_written(out)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left = [path.name for path in out.glob(".step_*")]
        path = latest_step(out)
        assert path is not None
        meta = run.load(path)
        values = {x.item() for p in named_parameters(run.module).values() for x in (p.min(), p.max())}
        values |= {x.item() for v in run.ema.values.values() for x in (v.min(), v.max())}
        found.append({"left": left, "step": meta.step, "values": values, "link": (out / "latest").readlink().name})
        run.save(out, meta.step + 1)
        found[-1]["after"] = sorted(path.name for path in out.iterdir())
    torch.save(found, folder / "kills.pt")


def _fill(run: Run, step: int) -> None:
    with torch.no_grad():
        for value in (*named_parameters(run.module).values(), *run.ema.values.values()):
            value.fill_(step)


def _being_written(out: Path) -> int:
    """Return the bytes of the step that is being written; -1 when there is none."""
    try:
        return sum(path.stat().st_size for path in out.glob(".step_*.part/state/*.distcp")) or -1
    except FileNotFoundError:
        return -1


def _write_threads(folder: Path) -> None:
    names = sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
    (folder / f"threads{os.environ.get('RANK', 0)}.txt").write_text("\n".join(names))


if __name__ == "__main__":
    atexit.register(_write_threads, Path(sys.argv[2]))  # first in, so last: after the cleaning up of `Parallel`
    torch.set_num_threads(1)
    faulthandler.register(signal.SIGTERM, chain=True)
    {"cases": job_cases, "states": job_states, "kills": job_kills}[sys.argv[1]](Path(sys.argv[2]))
