"""How much memory training takes per device, from a network without weights (meta device).

Counted are weights, gradients, optimizer and averages as each process holds them, and what FSDP gathers for a moment.
Activations depend on batch size, prompt lengths and checkpointing, and come on top.
"""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from pi05_model.build import build
from pi05_model.config import ModelConfig
from pi05_training.parallel.process import Kind
from pi05_training.parallel.sharding import units

GIB = 2**30
_FLOAT32 = 4


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes per process.

    Attributes:
        kind, world: how the network is spread.
        parameters, trained: numbers of the whole network.
        weights, gradients, optimizer, ema: what is held all the time; gradients from the backward pass to the step.
        gathered: whole weights and gradients that FSDP holds for a moment: root, the layer at work and the next.
    """

    kind: Kind
    world: int
    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    ema: int
    gathered: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.ema + self.gathered


def plan_memory(
    config: ModelConfig, world: int = 1, kind: Kind = "fsdp", ema: bool = True, frozen: Sequence[str] = ()
) -> MemoryPlan:
    """Plan the memory of a training run with AdamW and float32 masters.

    Args:
        config: sizes.
        world: number of processes.
        kind: how the network is spread.
        ema: whether averaged weights are kept.
        frozen: patterns of parameters that are not trained, such as "vision.*".

    Raises:
        ValueError: as `plan_model`.
    """
    model = build(config, device="meta")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(fnmatch.fnmatchcase(name, pattern) for pattern in frozen))
    return plan_model(model, world, kind, ema)


def plan_model(model: nn.Module, world: int = 1, kind: Kind = "fsdp", ema: bool = True) -> MemoryPlan:
    """Plan for a network as it is going to be wrapped, such as one on the meta device with low-rank updates.

    Raises:
        ValueError: `world` is not positive, or `kind` is "none" for several processes.
    """
    if world < 1 or (kind == "none" and world > 1):
        raise ValueError(f"{world} processes of kind {kind!r}; valid: 1 and more, more than 1 with ddp or fsdp")
    everything = list(model.parameters())
    trained = [p for p in everything if p.requires_grad]
    parts = world if kind == "fsdp" else 1
    held, held_trained = _part(everything, parts), _part(trained, parts)
    return MemoryPlan(
        kind,
        world,
        parameters=sum(p.numel() for p in everything),
        trained=sum(p.numel() for p in trained),
        weights=held,
        gradients=held_trained,
        optimizer=2 * held_trained,
        ema=held_trained if ema else 0,
        gathered=_gathered(model) if kind == "fsdp" else 0,
    )


def plan_table(config: ModelConfig, name: str, worlds: Sequence[int] = (1, 2, 4, 8)) -> str:
    """Return a table, in GiB per process: one process alone, several with FSDP."""
    columns = ("weights", "gradients", "optimizer", "ema", "gathered", "total")
    plans = [plan_memory(config, world, "fsdp" if world > 1 else "none") for world in worlds]
    lines = [f"{name}: {plans[0].parameters / 1e6:.1f} M parameters, float32 masters, AdamW, EMA; GiB per process"]
    lines.append("processes " + " ".join(f"{column:>9}" for column in columns))
    for plan in plans:
        lines.append(f"{plan.world:>9} " + " ".join(f"{getattr(plan, column) / GIB:9.2f}" for column in columns))
    return "\n".join(lines)


def _part(parameters: Sequence[nn.Parameter], parts: int) -> int:
    """Return the bytes of the largest part: FSDP cuts each tensor along its first dimension, into equal rows."""
    rows = ((len(p) if p.ndim else 1, p.numel()) for p in parameters)
    return sum(-(-first // parts) * (numel // max(first, 1)) for first, numel in rows) * _FLOAT32


def _gathered(model: nn.Module) -> int:
    groups = [[p for module in unit for p in module.parameters()] for unit in units(model)]
    inner = {id(p) for group in groups for p in group}
    root = [p for p in model.parameters() if id(p) not in inner]
    own = _outermost_only(groups)
    largest = sorted((_whole(group) for group in own), reverse=True)[:2]
    # The root stays whole with its gradients; one layer has both, the next one's weights are on their way.
    return 2 * _whole(root) + 2 * sum(largest[:1]) + sum(largest[1:])


def _outermost_only(groups: list[list[nn.Parameter]]) -> list[list[nn.Parameter]]:
    """Return each group without what an earlier one holds."""
    seen: set[int] = set()
    own = []
    for group in groups:
        own.append([p for p in group if id(p) not in seen])
        seen |= {id(p) for p in group}
    return own


def _whole(parameters: Sequence[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters) * _FLOAT32
