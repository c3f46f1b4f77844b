"""All processes must take the same branches of the network: a difference is an error at once, not a wait for ever."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pi05_model.batch import TrainBatch


class BranchError(RuntimeError):
    """Processes were about to run different parts of the network."""


def check_branches(module: nn.Module) -> None:
    """Compare, before every forward pass, what the processes are going to run."""
    module.register_forward_pre_hook(_compare, with_kwargs=True)


def _compare(_: nn.Module, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
    mine = _branches([*arguments, *options.values()], options)
    # On the CPU (gloo): a GPU goes on working meanwhile.
    total = torch.tensor(list(mine.values()), dtype=torch.int64)
    dist.all_reduce(total)
    world = dist.get_world_size()
    differing = [name for name, count in zip(mine, total.tolist(), strict=True) if count not in (0, world)]
    if differing:
        here = ", ".join(f"{name} is {mine[name]}" for name in differing)
        raise BranchError(
            f"process {dist.get_rank()} of {world}: {here}, but not in all processes; decide by step and settings, "
            "not by the rows that a process has (a text without targets, or a mask of zeros, counts nothing)"
        )


def _branches(given: list[Any], options: Mapping[str, Any]) -> dict[str, bool]:
    batch = next((x for x in given if isinstance(x, TrainBatch)), None)
    return {
        "planner": batch is not None and batch.planner is not None,
        "action_tokens": batch is not None and batch.action_tokens,
        "condition": batch is not None and batch.condition is not None,
        "flow": bool(options.get("flow", True)),
        "insulate": bool(options.get("insulate", True)),
        "gradients": torch.is_grad_enabled(),
    }
