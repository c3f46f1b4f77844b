"""Whole weights from the parts that the processes hold."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pi05_model.backbone import Backbone
from pi05_model.build import build
from pi05_training.lora import is_adapter, merged_state
from pi05_training.parallel.process import Parallel
from pi05_training.parallel.sharding import unwrap


def full_state(
    parallel: Parallel, module: nn.Module, values: Mapping[str, Tensor] | None = None, everywhere: bool = False
) -> dict[str, Tensor]:
    """Return all tensors of the network, whole and on the CPU; every process must call it.

    Args:
        parallel: the processes.
        module: what `Parallel.wrap` returned.
        values: what stands in the place of parameters, by name, such as averages.
        everywhere: in every process; otherwise in rank 0, and the others get nothing.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in unwrap(module).state_dict().items():
        value = tensor if values is None else values.get(name, tensor)
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if everywhere or parallel.main:
            found[name] = whole.detach().to("cpu", copy=True)
    return found


def assemble(
    parallel: Parallel, module: nn.Module, values: Mapping[str, Tensor] | None = None, everywhere: bool = False
) -> Backbone | None:
    """Return a plain network on the CPU with the weights of a spread one, low-rank updates merged; for saving (with
    `pi05_model.checkpoint.save_checkpoint`) and for evaluation. None where `full_state` gives nothing.

    Arguments are those of `full_state`.
    """
    inner = unwrap(module)
    assert isinstance(inner, Backbone)
    state = full_state(parallel, module, values, everywhere)
    if not state:
        return None
    if any(is_adapter(name) for name in state):
        state = merged_state(inner, state)
    model = build(inner.config, inner.compute_dtype, device="meta")
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()
