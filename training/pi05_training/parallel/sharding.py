"""How a network is spread over processes, and how to look through that.

FSDP's units: each layer of the two Gemma stacks, each vision block, and the modulations of the action expert's norms
together (the network computes them all at once, outside of the layers' `forward`). The root holds the rest and stays
whole from the forward to the backward pass: the token embedding is read twice, as embedding and as text head.
"""

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from pi05_model.gemma import AdaRMSNorm, KeyValues, Layer
from pi05_model.siglip import VisionBlock


def units(model: nn.Module) -> list[list[nn.Module]]:
    """Return the groups of modules below the root whose parameters come and go together, inner ones first."""
    modulations: list[nn.Module] = [norm.dense for norm in model.modules() if isinstance(norm, AdaRMSNorm)]
    layers: list[list[nn.Module]] = [[x] for x in model.modules() if isinstance(x, Layer | VisionBlock)]
    return [modulations, *layers] if modulations else layers


def shard(model: nn.Module, mesh: DeviceMesh, device: torch.device, gather: torch.dtype) -> nn.Module:
    """Spread parameters, gradients and so optimizer state over the mesh (FSDP2); changes and returns `model`.

    Args:
        model: network.
        mesh: of all processes, one dimension.
        device: of this process.
        gather: dtype in which the weights of Gemma layers travel; all others, and all gradients, travel in float32.
    """
    _register_outputs()
    # FSDP warns of outputs that are views, because changing them in place would go wrong; the network does not.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module")
    _broadcast(model, device)
    for unit in units(model):
        travels = gather if isinstance(unit[0], Layer) else None
        fully_shard(unit if len(unit) > 1 else unit[0], mesh=mesh, mp_policy=_precision(travels))
    fully_shard(model, mesh=mesh, mp_policy=_precision(None))
    for module in model.modules():
        if isinstance(module, Layer):
            register_fsdp_forward_method(module, "keys_values")
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows sums alone
    register_fsdp_forward_method(model, "row_losses")
    return model


def replicate(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Return `model` with gradients added up over all processes (DDP)."""
    wrapped = DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        find_unused_parameters=True,  # what a step trains depends on its losses and on insulation
    )
    wrapped.register_comm_hook(None, _add_up)
    return wrapped


def unwrap(module: nn.Module) -> nn.Module:
    """Return the network inside what `Parallel.wrap` returned."""
    inner: nn.Module = module.module if isinstance(module, DistributedDataParallel) else module
    return inner


def named_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that the optimizer steps, by the names of the network: this process's parts under FSDP."""
    inner = unwrap(module)
    # After a forward pass without a backward pass the root is still whole; state_dict puts the parts back first.
    state = inner.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, nn.Parameter)}


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds; the tensor itself where it is whole. Shares memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _precision(gather: torch.dtype | None) -> MixedPrecisionPolicy:
    # The network casts its activations itself; a layer's inputs carry positions and modulations that stay float32.
    return MixedPrecisionPolicy(param_dtype=gather, reduce_dtype=torch.float32, cast_forward_inputs=False)


# GradBucket is public, but not in torch's stubs; DDP checks the annotation.
def _add_up(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])  # type: ignore[no-any-return]


def _broadcast(model: nn.Module, device: torch.device) -> None:
    """Give every process rank 0's weights, one after another over the device."""
    with torch.no_grad():
        for value in model.state_dict().values():
            here = value.to(device)
            dist.broadcast(here, src=0)
            if here is not value:
                value.copy_(here)


def _register_outputs() -> None:
    """Let FSDP look into `KeyValues`: their gradient may be the only one that reaches a layer."""
    leaf: Any = torch.utils._pytree.tree_is_leaf
    if leaf(KeyValues(torch.empty(0), torch.empty(0))):
        torch.export.register_dataclass(KeyValues)
