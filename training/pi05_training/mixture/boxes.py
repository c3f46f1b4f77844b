"""Boxes follow their image: into the network's square, and through an augmentation."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pi05_model.images import Placement
from pi05_model.prompts import Box
from pi05_training.augment import Change

_VISIBLE = 0.5


def fit_boxes(boxes: Sequence[Box], shape: tuple[int, ...]) -> tuple[Box, ...]:
    """Return boxes of an image [H, W] as fractions of the square that it is fitted into, with its padding."""
    height, width = shape
    size = max(height, width)
    place = Placement.of(height, width, size)
    if height == width:
        return tuple(boxes)
    return tuple(
        Box(
            (box.y_min * place.height + place.top) / size,
            (box.x_min * place.width + place.left) / size,
            (box.y_max * place.height + place.top) / size,
            (box.x_max * place.width + place.left) / size,
            box.label,
        )
        for box in boxes
    )


def move_boxes(boxes: Sequence[Box], change: Change) -> tuple[Box, ...] | None:
    """Return where a change of a square image brings its boxes: upright, around the turned ones, cut at the edge.

    None when less than half of one would be left in view: its object would be named where it can hardly be seen.
    """
    if not change.moves:
        return tuple(boxes)
    moved = []
    for box in boxes:
        corners = np.array([[x, y] for x in (box.x_min, box.x_max) for y in (box.y_min, box.y_max)])
        turned = change.move(corners, 1, 1)
        low, high = turned.min(axis=0), turned.max(axis=0)
        inside = np.clip(low, 0, 1), np.clip(high, 0, 1)
        if _area(*inside) < _VISIBLE * _area(low, high):
            return None
        (x_min, y_min), (x_max, y_max) = (edge.tolist() for edge in inside)
        moved.append(Box(y_min, x_min, y_max, x_max, box.label))
    return tuple(moved)


def _area(low: NDArray[np.float64], high: NDArray[np.float64]) -> float:
    return float(np.prod(high - low))
