"""Image augmentation on the training device."""

import torch
from torch import Tensor


def augment_images(images: Tensor, strength: float = 0.15) -> Tensor:
    """Vary brightness, contrast and colour of each image, the same over its pixels.

    Args:
        images: uint8 [B, N, 3, H, W].
        strength: standard deviation of the factors.

    Returns:
        uint8 [B, N, 3, H, W].
    """
    shape = (*images.shape[:2], 1, 1, 1)
    colour_shape = (*images.shape[:2], 3, 1, 1)
    contrast = 1.0 + strength * torch.randn(shape, device=images.device)
    colour = 1.0 + 0.3 * strength * torch.randn(colour_shape, device=images.device)
    brightness = 127.5 * strength * torch.randn(shape, device=images.device)
    varied = (images.to(torch.bfloat16) - 127.5) * (contrast * colour).to(torch.bfloat16) + (127.5 + brightness).to(
        torch.bfloat16
    )
    return varied.clamp_(0, 255).to(torch.uint8)
