"""From a configuration to its network."""

import torch

from pi05_model.backbone import Backbone
from pi05_model.config import ModelConfig
from pi05_model.pi0 import Pi0
from pi05_model.pi0_fast import Pi0Fast
from pi05_model.pi05 import Pi05

_CLASSES: dict[str, type[Backbone]] = {"pi05": Pi05, "pi0": Pi0, "pi0_fast": Pi0Fast}


def build(
    config: ModelConfig,
    compute_dtype: torch.dtype = torch.float32,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Backbone:
    """Return a new network with random weights (under `torch.device("meta")`: with none).

    Args:
        config: sizes and policy.
        compute_dtype: of activations and matrix products.
        dtype: that matrices and embeddings are stored in; norms and heads are float32 in any case. With bfloat16 a
            network never exists in float32, so that `pi05_base` fits into 9 GB.
        device: where the weights are made; the current default when None.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(torch.get_default_device() if device is None else device):
            return _CLASSES[config.policy](config, compute_dtype)
    finally:
        torch.set_default_dtype(before)
