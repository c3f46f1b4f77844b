"""Images: scale, resize with padding at its edges, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pi05_model.images import Placement, check_image, resize_with_pad, to_uint8, to_unit

sizes = st.integers(1, 90)


def test_resize_centres_and_pads() -> None:
    image = torch.full((1, 3, 100, 200), 255, dtype=torch.uint8)
    resized = resize_with_pad(image, 224)
    assert resized.shape == (1, 3, 224, 224)
    assert (resized[0, 0, :56] == 0).all() and (resized[0, 0, 168:] == 0).all()
    assert (resized[0, 0, 56:168] == 255).all()
    scaled = resize_with_pad(image.float() / 127.5 - 1, 224)
    assert (scaled[0, 0, :56] == -1).all() and (scaled[0, 0, 56:168] - 1).abs().max() < 1e-6


def test_the_odd_pixel_of_padding_is_below_and_to_the_right() -> None:
    # 48 * 80 / 77 = 49.9 rows, cut to 49: 15 black ones above, 16 below.
    white = torch.full((3, 48, 77), 255, dtype=torch.uint8)
    rows = (resize_with_pad(white, 80)[0] > 0).any(dim=1).nonzero()
    assert (rows.min(), rows.max()) == (15, 63)
    columns = (resize_with_pad(torch.full((3, 9, 4), 255, dtype=torch.uint8), 9)[0] > 0).any(dim=0).nonzero()
    assert (columns.min(), columns.max()) == (2, 5)


def test_an_image_of_the_right_size_is_left_alone() -> None:
    image = torch.randint(0, 256, (2, 3, 31, 31), dtype=torch.uint8)
    assert torch.equal(resize_with_pad(image, 31), image)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (7, 1), (1, 500), (500, 1), (3, 224), (223, 224)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_thin_and_tiny_images(height: int, width: int, dtype: torch.dtype) -> None:
    bright = torch.ones(1, 3, height, width) * (255 if dtype == torch.uint8 else 1)
    resized = resize_with_pad(bright.to(dtype), 224)
    assert resized.shape == (1, 3, 224, 224) and resized.dtype == dtype
    place = Placement.of(height, width, 224)
    inner = resized[..., place.top : place.top + place.height, place.left : place.left + place.width]
    assert min(place.height, place.width) >= 1 and (inner - bright.max()).abs().max() < 1e-6


@given(height=sizes, width=sizes, size=sizes, seed=st.integers(0, 9), floating=st.booleans())
@settings(deadline=None)
def test_resize_keeps_dtype_aspect_border_and_range(
    height: int, width: int, size: int, seed: int, floating: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(1, 256, (2, 3, height, width), dtype=torch.uint8, generator=generator)
    source = to_unit(image) if floating else image
    resized = resize_with_pad(source, size)
    assert resized.shape == (2, 3, size, size) and resized.dtype == source.dtype
    place = Placement.of(height, width, size)
    # One side is filled, the other is the true length cut to a whole pixel; openpi's truncation may miss by one.
    assert size - 1 <= max(place.height, place.width) <= size
    scale = size / max(height, width)
    assert abs(place.height - max(1, height * scale)) <= 1 and abs(place.width - max(1, width * scale)) <= 1
    assert 0 <= size - place.height - 2 * place.top <= 1 and 0 <= size - place.width - 2 * place.left <= 1
    inside = torch.zeros(size, size, dtype=torch.bool)
    inside[place.top : place.top + place.height, place.left : place.left + place.width] = True
    assert (resized[..., ~inside] == (-1 if floating else 0)).all()
    # Bilinear weights are a mean: nothing is darker or brighter than the source.
    shown = resized[..., inside]
    assert shown.min() >= source.min() - 1e-6 and shown.max() <= source.max() + 1e-6


@given(height=sizes, width=sizes, size=sizes)
@settings(deadline=None)
def test_both_paths_agree_within_their_rounding(height: int, width: int, size: int) -> None:
    image = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    through_uint8 = to_unit(resize_with_pad(image, size))
    through_float = resize_with_pad(to_unit(image), size)
    assert (through_uint8 - through_float).abs().max() <= 1.5 * 2 / 255


@given(height=sizes, width=sizes, value=st.integers(0, 255))
@settings(deadline=None)
def test_undo_gives_a_flat_image_back(height: int, width: int, value: int) -> None:
    image = torch.full((3, height, width), value, dtype=torch.uint8)
    assert torch.equal(Placement.of(height, width, 40).undo(resize_with_pad(image, 40)), image)


def test_undo_gives_a_gradient_back() -> None:
    ramp = torch.linspace(-1, 1, 96).expand(3, 64, 96)
    back = Placement.of(64, 96, 224).undo(resize_with_pad(ramp, 224))
    assert (back - ramp).abs().max() < 0.02
    with pytest.raises(ValueError, match=r"expected \[\.\.\., 224, 224\]"):
        Placement.of(64, 96, 224).undo(ramp)


def test_scale() -> None:
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    unit = to_unit(every)
    assert unit.min() == -1 and unit.max() == 1 and unit.dtype == torch.float32
    # openpi: x / 255 * 2 - 1.
    torch.testing.assert_close(unit, every.float() / 255 * 2 - 1, atol=1e-6, rtol=0)
    assert torch.equal(to_uint8(unit), every)
    assert torch.equal(to_uint8(to_unit(every / 255, from_zero_one=True)), every)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((1, 3, 4, 4), 255.0), r"\[-1, 1\], got 255"),
        (torch.full((1, 3, 4, 4), float("nan")), "nan"),
        (torch.full((1, 3, 4, 4), -2.0), "got -2"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), "torch.int64"),
        (torch.zeros(4, 4), "channels, height, width"),
        (torch.zeros(1, 3, 0, 4), "0 x 4 pixels"),
    ],
)
def test_resize_refuses(images: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resize_with_pad(images, 8)


def test_scale_refuses_what_it_would_have_to_guess() -> None:
    with pytest.raises(ValueError, match="from_zero_one"):
        to_unit(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match=r"\[0, 1\], got -1"):
        to_unit(-torch.ones(3, 4, 4), from_zero_one=True)
    with pytest.raises(ValueError, match="float in"):
        to_uint8(torch.zeros(3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"got 0 \.\.\. 255"):
        to_uint8(torch.tensor([0.0, 255.0]))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3)), "front is float64, expected uint8"),
        (np.zeros((3, 4, 4), np.uint8), r"front is \(3, 4, 4\), expected \[H, W, 3\]"),
        (np.zeros((1, 4, 4, 3), np.uint8), "no batch dimension"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        ([[1]], "list"),
    ],
)
def test_check_image_names_what_is_wrong(image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_image(image, "front")
    good = np.zeros((4, 5, 3), np.uint8)
    assert check_image(good) is good
