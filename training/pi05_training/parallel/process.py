"""The processes of a training run: who this one is, and what they do together.

One process per device, started by `torchrun`; without it there is one. The loss of a process is its own sums over the
counts of all processes, so gradients are added up, never averaged: any number of processes has the gradient that one
process has with the whole batch, however its rows are shared out.

Every process must take the same branches of the network in the same step (planner or not, action tokens or not, flow
or not): under FSDP each branch is a series of collective operations, and `BranchError` tells of a difference.
"""

import atexit
import gc
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from pi05_training.parallel.branches import check_branches
from pi05_training.parallel.sharding import local, replicate, shard

Kind = Literal["none", "ddp", "fsdp"]
_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_meshes: list[DeviceMesh] = []
"""Those of the process group in use; see `_forget_group`."""


class ParallelError(RuntimeError):
    """The processes were started in a way that does not fit what was asked for."""


@dataclass(frozen=True)
class Parallel:
    """This process among those of the run. Made by `setup`; usable as a context manager, which calls `close`.

    Attributes:
        kind: "none" (one process), "ddp" (every process holds everything) or "fsdp" (each holds a part of everything).
        device: of this process.
        rank, world: which of how many processes this is.
        owner: whether `close` ends the process group.
    """

    kind: Kind
    device: torch.device
    rank: int = 0
    world: int = 1
    owner: bool = False

    @classmethod
    def setup(cls, kind: Kind = "none", device: str = "cpu", timeout_s: float = 600.0) -> "Parallel":
        """Join the run, once per process: torchrun's meeting place cannot be used a second time after `close`.

        Args:
            kind: see the attributes.
            device: "cpu" (gloo) or "cuda" (nccl; the device with torchrun's LOCAL_RANK, unless an index is given).
            timeout_s: after which a collective operation that some process does not join fails.

        Raises:
            ParallelError: `kind`, `device` and torchrun's environment do not fit together.
        """
        if kind not in get_args(Kind):
            raise ParallelError(f"unknown kind {kind!r}; choose one of {', '.join(get_args(Kind))}")
        rank, local_rank, world = _environment()
        place = _device(device, local_rank)
        if kind == "none":
            if world > 1:
                raise ParallelError(
                    f"torchrun started {world} processes; choose ddp or fsdp, or start without torchrun"
                )
            return cls(kind, place)
        owner = not dist.is_initialized()
        if owner:
            _join(place, rank, world, timedelta(seconds=timeout_s))
        return cls(kind, place, dist.get_rank(), dist.get_world_size(), owner)

    @property
    def main(self) -> bool:
        """Whether this process writes and prints what is written and printed once."""
        return self.rank == 0

    def wrap(self, model: nn.Module, gather: torch.dtype = torch.float32) -> nn.Module:
        """Return the module to call; `unwrap` gives the network back.

        All processes get the weights of rank 0. Call the result, or its `row_losses` under FSDP; methods below that
        (`encode_images`, the engine's) need a network of their own: see `gather.assemble`. The optimizer is made
        afterwards, from `named_parameters` of the result.

        Args:
            model: network, complete: LoRA, freezing and `checkpoint_layers` come before. Under FSDP it may be on the
                CPU and larger than the device.
            gather: dtype in which FSDP gathers the weights of Gemma layers. bfloat16 suits a network that computes in
                it: half the traffic, and no second copy of a weight stays from the forward to the backward pass. It
                rounds the layers' plain norms, too; gradients, masters and optimizer stay float32.
        """
        if self.kind == "fsdp":
            check_branches(model)
            mesh = init_device_mesh(self.device.type, (self.world,))
            _meshes.append(mesh)
            return shard(model, mesh, self.device, gather)
        model = model.to(self.device)
        return replicate(model, self.device) if self.kind == "ddp" else model

    @contextmanager
    def accumulating(self, module: nn.Module, last: bool) -> Iterator[None]:
        """Run forward and backward of one of several parts of a step; gradients are exchanged in the last one only."""
        if isinstance(module, DistributedDataParallel) and not last:
            with module.no_sync():
                yield
        elif isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(last)
            yield
        else:
            yield

    def all_sum(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return sums over all processes, as detached tensors of the same shapes and types, in one exchange.

        Args:
            values: counts, sums, metrics; the same names and shapes in every process. Numbers are added in float64.
        """
        if self.world == 1 or not values:
            return {name: value.detach() for name, value in values.items()}
        names = sorted(values)
        flat = torch.cat([values[name].detach().to(self.device, torch.float64).flatten() for name in names])
        dist.all_reduce(flat)
        parts = torch.split(flat, [values[name].numel() for name in names])
        found = {name: part.view(values[name].shape) for name, part in zip(names, parts, strict=True)}
        return {name: found[name].to(value.device, value.dtype) for name, value in values.items()}

    def clip_grad_norm(self, parameters: Iterable[Tensor], max_norm: float) -> Tensor:
        """Scale gradients in place so that their norm over all processes is at most `max_norm`.

        Returns:
            The norm before, a float32 scalar; not finite if a gradient is not.
        """
        with torch.no_grad():
            grads = [local(p.grad) for p in parameters if p.grad is not None]
            square = torch.zeros((), device=self.device)
            if grads:
                square = torch.stack([n.float() for n in torch._foreach_norm(grads)]).square().sum()
            if self.kind == "fsdp":
                dist.all_reduce(square)
            norm = square.sqrt()
            if grads:
                torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value (picklable), such as a decision or a folder's name."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier(device_ids=None if self.device.index is None else [self.device.index])

    def close(self) -> None:
        """Leave the run; what `wrap` returned under FSDP can no longer be used. Other processes are not waited for."""
        if self.owner and dist.is_initialized():
            dist.destroy_process_group()
            _forget_group()

    def __enter__(self) -> "Parallel":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self.owner and error is None:  # after an error the others may be anywhere, and torchrun ends them
            self.barrier()
        self.close()


def _environment() -> tuple[int, int, int]:
    """Return (rank, local rank, world) as torchrun tells; (0, 0, 1) without it."""
    given = {name: os.environ[name] for name in _TORCHRUN if name in os.environ}
    if "WORLD_SIZE" not in given:
        return 0, 0, 1
    if missing := [name for name in _TORCHRUN if name not in given]:
        raise ParallelError(f"WORLD_SIZE is set, but {', '.join(missing)} not; start with torchrun")
    try:
        return int(given["RANK"]), int(given["LOCAL_RANK"]), int(given["WORLD_SIZE"])
    except ValueError as error:
        raise ParallelError(f"RANK, LOCAL_RANK and WORLD_SIZE must be numbers: {error}") from error


def _device(name: str, local_rank: int) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ParallelError(f"unknown device {name!r}; choose cpu or cuda") from error
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise ParallelError(f"device {name!r} is not supported; choose cpu or cuda")
    if not torch.cuda.is_available():
        raise ParallelError("no CUDA device is visible; choose --device cpu, or install torch with CUDA")
    index, count = local_rank if device.index is None else device.index, torch.cuda.device_count()
    if index >= count:
        raise ParallelError(f"device {index} of {count}: start torchrun with --nproc-per-node {count} at most")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _join(device: torch.device, rank: int, world: int, timeout: timedelta) -> None:
    atexit.register(gc.collect)  # see _forget_group
    # gloo too on a GPU machine: counts and steps of the optimizer are tensors on the CPU.
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        store = dist.HashStore()  # type: ignore[attr-defined]  # public, but not in torch's stubs
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)


def _forget_group() -> None:
    """Let go of a destroyed process group, so that gloo's threads end while the interpreter still runs.

    `destroy_process_group` only unregisters the group: its threads end with the last reference to it. A thread that is
    late to let go of the tensor of its last operation needs the interpreter for it, and when that is already being
    torn down, the process aborts ("terminate called without an active exception"). FSDP's mesh holds the group, and
    DTensor's caches hold the mesh for good; networks hold it too, in cycles, until `gc.collect` at exit at the latest.
    """
    for mesh in _meshes:
        groups = getattr(mesh, "_pg_registry", None)  # there is no public way; torch 2.13 keeps the groups here
        if groups is not None:
            groups.clear()
    _meshes.clear()
    gc.collect()
