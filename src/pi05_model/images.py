"""Images on their way into the network: resize with padding, and the scale [-1, 1].

Resizing is bilinear with align_corners False and no antialiasing, keeps the aspect ratio and centres the image in
black. These are the numbers of openpi's and lerobot's PyTorch path, including the rounding of the uint8 path and the
odd pixel of padding, which goes below and to the right. openpi fails on an image so thin that its short side rounds to
nothing; here it keeps one pixel.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pi05_model.observation import Image

_SLACK = 1e-3
"""How far float images may leave their range: resizing and arithmetic in half precision overshoot a little."""


def to_unit(images: Tensor, from_zero_one: bool = False) -> Tensor:
    """Return images as float32 in [-1, 1].

    Args:
        images: uint8; or float in [0, 1], which must be said, because a dark image in [-1, 1] could not be told apart.
        from_zero_one: float images are in [0, 1].

    Raises:
        ValueError: another dtype or range.
    """
    if images.dtype == torch.uint8:
        return images.float() * (2 / 255) - 1
    if not (images.is_floating_point() and from_zero_one):
        raise ValueError(
            f"images are {images.dtype}, expected uint8: float images in [-1, 1] need no conversion, for those in "
            "[0, 1] say from_zero_one=True"
        )
    _check_range(images, 0.0, 1.0)
    return images.float() * 2 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Return float images in [-1, 1] as uint8, rounded: the inverse of `to_unit`.

    Raises:
        ValueError: another dtype or range.
    """
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}, expected float in [-1, 1]")
    _check_range(images, -1.0, 1.0)
    return ((images.float() + 1) * (255 / 2)).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Placement:
    """Where an image of `source` (height, width) lies inside a `size` square, in pixels from the top left corner."""

    source: tuple[int, int]
    size: int
    height: int
    width: int
    top: int
    left: int

    @classmethod
    def of(cls, height: int, width: int, size: int) -> "Placement":
        """Return the placement that keeps the aspect ratio and centres the image.

        Raises:
            ValueError: a length is not positive.
        """
        if min(height, width, size) < 1:
            raise ValueError(f"an image of {height} x {width} pixels does not go into a square of {size}")
        ratio = max(height / size, width / size)
        # Truncated, as openpi does it.
        new_height, new_width = max(1, int(height / ratio)), max(1, int(width / ratio))
        return cls((height, width), size, new_height, new_width, (size - new_height) // 2, (size - new_width) // 2)

    def undo(self, images: Tensor) -> Tensor:
        """Return [..., size, size] without its border, resized to the source."""
        if tuple(images.shape[-2:]) != (self.size, self.size):
            raise ValueError(f"images are {tuple(images.shape)}, expected [..., {self.size}, {self.size}]")
        inner = images[..., self.top : self.top + self.height, self.left : self.left + self.width]
        return _interpolate(inner, *self.source)


def resize_with_pad(images: Tensor, size: int) -> Tensor:
    """Fit images into a `size` square.

    Args:
        images: [..., C, H, W], uint8, or float in [-1, 1].
        size: edge of the result in pixels.

    Returns:
        The same dtype, [..., C, size, size]; the padding is black (0 for uint8, -1 for float).

    Raises:
        ValueError: the dtype is neither, float values are out of range, or an image has no pixels.
    """
    if images.ndim < 3:
        raise ValueError(f"images are {tuple(images.shape)}, expected [..., channels, height, width]")
    floating = images.is_floating_point()
    if images.dtype != torch.uint8 and not floating:
        raise ValueError(f"images must be uint8 or float in [-1, 1], not {images.dtype}")
    if floating:
        _check_range(images, -1.0, 1.0)
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    place = Placement.of(height, width, size)
    resized = _interpolate(images, place.height, place.width)
    right, below = size - place.width - place.left, size - place.height - place.top
    return F.pad(resized, (place.left, right, place.top, below), value=-1.0 if floating else 0.0)


def check_image(image: Image, name: str = "image") -> Image:
    """Return an RGB image uint8 [H, W, 3].

    Raises:
        ValueError: it is something else; the message says what and how to make it one.
    """
    if not isinstance(image, np.ndarray):
        raise ValueError(f"{name} is a {type(image).__name__}, expected a uint8 array [H, W, 3]")
    if image.dtype != np.uint8:
        raise ValueError(f"{name} is {image.dtype}, expected uint8: scale float images to 0 ... 255 and round")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"{name} is {image.shape}, expected [H, W, 3]: RGB, channels last, no batch dimension")
    return image


def _interpolate(images: Tensor, height: int, width: int) -> Tensor:
    if tuple(images.shape[-2:]) == (height, width):
        return images
    if not images.is_floating_point() and (height, width) == (1, 1):
        # torch 2.13 fails an assertion of its own when uint8 images shrink to one pixel.
        return _interpolate(images.float() / 255, height, width).mul(255).round().to(torch.uint8)
    flat = images.reshape(-1, *images.shape[-3:])
    # For uint8, torch interpolates in fixed point and rounds; going through float differs in the last bit.
    resized = F.interpolate(flat, (height, width), mode="bilinear", align_corners=False)
    if images.is_floating_point():
        resized = resized.clamp(-1, 1)
    return resized.reshape(*images.shape[:-2], height, width)


def _check_range(images: Tensor, low: float, high: float) -> None:
    if not images.numel():
        return
    smallest, largest = (float(x) for x in images.aminmax())
    # Written so that NaN is refused too.
    if not (smallest >= low - _SLACK and largest <= high + _SLACK):
        raise ValueError(f"float images must be in [{low:g}, {high:g}], got {smallest:g} ... {largest:g}")
