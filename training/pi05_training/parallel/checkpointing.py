"""Activation checkpointing: a layer keeps its inputs and computes the rest again in the backward pass."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pi05_model.gemma import Layer
from pi05_model.siglip import VisionBlock


def checkpoint_layers(model: nn.Module) -> int:
    """Checkpoint every Gemma layer and vision block; return how many.

    Parameter names, and the network without gradients, stay as they are. Call it before `Parallel.wrap`.
    """
    layers = [module for module in model.modules() if isinstance(module, Layer | VisionBlock)]
    for layer in layers:
        if not isinstance(layer.forward, partial):
            layer.forward = partial(_run, layer.forward)  # type: ignore[method-assign]
    return len(layers)


def _run(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # The network draws no random numbers, so their state need not be kept.
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
