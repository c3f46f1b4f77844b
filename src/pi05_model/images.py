"""Images on their way into the network: resize with padding, and the scale [-1, 1].

Resizing is bilinear with align_corners False and no antialiasing, keeps the aspect ratio and centres the image in
black. These are the numbers of openpi and lerobot, including the rounding of the uint8 path.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def to_unit(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [-1, 1]."""
    return images.float() * (2 / 255) - 1


def resize_with_pad(images_B3HW: Tensor, size: int) -> Tensor:
    """Fit images into a `size` square.

    Args:
        images_B3HW: uint8, or float in [-1, 1].
        size: edge of the result in pixels.

    Returns:
        The same dtype, [B, 3, size, size]; the padding is black (0 for uint8, -1 for float).

    Raises:
        ValueError: the dtype is neither.
    """
    if images_B3HW.dtype != torch.uint8 and not images_B3HW.is_floating_point():
        raise ValueError(f"images must be uint8 or float, not {images_B3HW.dtype}")
    height, width = images_B3HW.shape[-2:]
    if (height, width) == (size, size):
        return images_B3HW
    ratio = max(height / size, width / size)
    new_height, new_width = int(height / ratio), int(width / ratio)
    # For uint8, torch interpolates in fixed point and rounds; going through float differs in the last bit.
    resized = F.interpolate(images_B3HW, (new_height, new_width), mode="bilinear", align_corners=False)
    black = 0.0
    if images_B3HW.is_floating_point():
        resized, black = resized.clamp(-1, 1), -1.0
    top, left = (size - new_height) // 2, (size - new_width) // 2
    padding = (left, size - new_width - left, top, size - new_height - top)
    return F.pad(resized, padding, value=black)
