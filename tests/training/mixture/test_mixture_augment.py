"""Augmentation of images in the worker: deterministic, within its limits, wrists in place; boxes follow the picture."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pi05_model.prompts import Box
from pi05_training.augment import Augmentation, Change
from pi05_training.mixture.boxes import fit_boxes, move_boxes

FRONT, WRIST = "base_0_rgb", "left_wrist_0_rgb"
PLAIN = Augmentation(crop=1, rotate_deg=0, brightness=0, contrast=0, saturation=0)


def scene(height: int = 60, width: int = 60) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[:height, :width]
    waves = [128 + 60 * np.sin(rows / 9 + k) + 50 * np.cos(columns / 7 - k) for k in range(3)]
    return np.clip(np.stack(waves, -1), 0, 255).astype(np.uint8)


def disc(x: float, y: float, edge: int = 200) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[:edge, :edge] + 0.5
    inside = (columns - x) ** 2 + (rows - y) ** 2 < 36
    return np.repeat((255 * inside).astype(np.uint8)[..., None], 3, axis=2)


def centroid(image: NDArray[np.uint8]) -> tuple[float, float]:
    mass = image[..., 0].astype(float)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    return float((columns * mass).sum() / mass.sum()), float((rows * mass).sum() / mass.sum())


def test_the_same_three_give_the_same_change() -> None:
    augmentation = Augmentation()
    assert augmentation.draw(FRONT, 3, 17) == augmentation.draw(FRONT, 3, 17)
    others = [augmentation.draw(*which) for which in ((FRONT, 3, 18), (FRONT, 4, 17), ("base_1_rgb", 3, 17))]
    assert all(other != augmentation.draw(FRONT, 3, 17) for other in others)
    image = scene()
    assert (augmentation.draw(FRONT, 3, 17).apply(image) == augmentation.draw(FRONT, 3, 17).apply(image)).all()


def test_no_change_is_no_change() -> None:
    assert (PLAIN.draw(FRONT, 0, 0).apply(scene()) == scene()).all()


def test_the_given_image_stays_as_it_is() -> None:
    image = scene()
    Augmentation().draw(FRONT, 0, 1).apply(image)
    assert (image == scene()).all()


def test_changes_fill_their_range_and_stay_in_it() -> None:
    changes = [Augmentation().draw(FRONT, 0, row) for row in range(2000)]
    limits = {
        "brightness": (0.7, 1.3),
        "contrast": (0.6, 1.4),
        "saturation": (0.5, 1.5),
        "left": (0, 0.05),
        "top": (0, 0.05),
        "angle": (-np.radians(5), np.radians(5)),
    }
    for name, (low, high) in limits.items():
        values = np.array([getattr(change, name) for change in changes])
        assert low <= values.min() < low + 0.02 * (high - low), name
        assert high - 0.02 * (high - low) < values.max() <= high, name
    assert {change.crop for change in changes} == {0.95}


def test_colours_of_a_wrist_change_as_the_formula_says_and_nothing_moves() -> None:
    image = scene()
    for row in range(20):
        change = Augmentation().draw(WRIST, 0, row)
        assert not change.moves
        bright = image.astype(float) * change.brightness
        grey = bright @ [0.299, 0.587, 0.114]
        contrasted = change.contrast * bright + (1 - change.contrast) * grey.mean()
        pale = contrasted @ [0.299, 0.587, 0.114]
        expected = change.saturation * contrasted + (1 - change.saturation) * pale[..., None]
        assert np.abs(change.apply(image) - np.clip(expected, 0, 255)).max() <= 1


def test_a_point_goes_where_it_is_said_to_go() -> None:
    augmentation = Augmentation(brightness=0, contrast=0, saturation=0)
    for row in range(20):
        change = augmentation.draw(FRONT, 5, row)
        for x, y in ((60.0, 70.0), (130.0, 50.0), (100.0, 150.0)):
            assert change.moves
            moved = change.move(np.array([x, y]), 200, 200)
            assert centroid(change.apply(disc(x, y))) == pytest.approx(tuple(moved), abs=0.3)


def test_the_turn_is_counter_clockwise() -> None:
    change = Change(1, 1, 1, angle=np.radians(5))
    x, y = change.move(np.array([180.0, 100.0]), 200, 200)
    assert y < 95 and x < 180  # what was to the right of the centre has gone up


def test_a_crop_shows_a_part_of_the_image() -> None:
    for row in range(50):
        change = Augmentation(rotate_deg=0).draw(FRONT, 0, row)
        (left, top), (right, bottom) = change.move(np.array([[0.0, 0.0], [1.0, 1.0]]), 1, 1)
        assert max(left, top) <= 1e-9 and min(right, bottom) >= 1 - 1e-9
        assert right - left == pytest.approx(1 / 0.95)


@pytest.mark.parametrize(
    "wrong", [{"crop": 0}, {"crop": 1.1}, {"rotate_deg": -1}, {"rotate_deg": 90}, {"brightness": 1}, {"contrast": -0.1}]
)
def test_numbers_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augmentation(**wrong)


@pytest.mark.parametrize(("height", "width"), [(40, 40), (30, 60), (60, 30), (48, 64)])
def test_boxes_follow_into_the_square(height: int, width: int) -> None:
    box = Box(0.25, 0.5, 0.5, 0.75, "patch")
    (fitted,) = fit_boxes([box], (height, width))
    size = max(height, width)
    pad_x, pad_y = (size - width) // 2, (size - height) // 2
    assert fitted.y_min == pytest.approx((0.25 * height + pad_y) / size)
    assert fitted.x_max == pytest.approx((0.75 * width + pad_x) / size)
    assert fitted.label == "patch"


@settings(max_examples=60, deadline=None)
@given(row=st.integers(0, 10**6), x=st.floats(0.1, 0.6), y=st.floats(0.1, 0.6), w=st.floats(0.1, 0.3))
def test_moved_boxes_hold_their_object(row: int, x: float, y: float, w: float) -> None:
    change = Augmentation(brightness=0, contrast=0, saturation=0).draw(FRONT, 1, row)
    image = np.zeros((100, 100, 3), np.uint8)
    x0, x1, y0, y1 = (round(100 * edge) for edge in (x, x + w, y, y + w))
    image[y0:y1, x0:x1] = 255
    moved = move_boxes([Box(y0 / 100, x0 / 100, y1 / 100, x1 / 100, "it")], change)
    assert moved is not None
    rows, columns = np.nonzero(change.apply(image)[..., 0] > 127)
    found = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
    box = moved[0]
    assert [box.y_min * 100, box.x_min * 100, box.y_max * 100, box.x_max * 100] == pytest.approx(found, abs=1.6)


def test_a_box_that_would_leave_the_view_is_not_moved() -> None:
    change = Change(1, 1, 1, crop=0.5, left=0.5, top=0.5)
    assert move_boxes([Box(0.0, 0.0, 0.3, 0.3, "gone")], change) is None
    assert move_boxes([Box(0.6, 0.6, 0.9, 0.9, "here"), Box(0.0, 0.0, 0.3, 0.3, "gone")], change) is None
    (here,) = move_boxes([Box(0.6, 0.6, 0.9, 0.9, "here")], change) or ()
    assert (here.y_min, here.x_max) == pytest.approx((0.2, 0.8))


def test_a_box_is_cut_at_the_edge() -> None:
    (cut,) = move_boxes([Box(0.4, 0.4, 0.9, 0.9, "half")], Change(1, 1, 1, crop=0.5, left=0.5, top=0.5)) or ()
    assert (cut.y_min, cut.x_min) == (0, 0) and cut.y_max == pytest.approx(0.8)
