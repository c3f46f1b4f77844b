"""Contact sheets: what the cameras showed at the beginning, in the middle and at the end of a subtask span."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from pi05_model.observation import Image
from pi05_training.data.episode import SubtaskSpan
from pi05_training.data.label import LabelStore

TILE = 224
"""Edge of the square that an image is fitted into [px]."""
_LINE = 22
_MARGIN = 8
_GREY = (90, 90, 90)


def write_sheets(store: LabelStore, episode: str, folder: Path) -> Iterator[Path]:
    """Write a PNG for every span of an episode and yield its path.

    Args:
        store: where the spans are.
        episode: its name.
        folder: receives <episode>_<number>_<subtask>.png.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spans, rate = store.spans(episode), store.rate(episode)
    ticks = [moments(span) for span in spans]
    images = store.images(episode, [tick for three in ticks for tick in three])
    for number, (span, three) in enumerate(zip(spans, ticks, strict=True), 1):
        shown = images[3 * number - 3 : 3 * number]
        times = [(tick - spans[0].start) / rate for tick in three]
        title = f"{number}: {span.text or '(nobody said)'}"
        path = folder / f"{_slug(episode)}_{number:02d}_{_slug(span.text) or 'unlabelled'}.png"
        draw(title, f"{episode}, {(span.stop - span.start) / rate:.2f} s", times, shown).save(path)
        yield path


def moments(span: SubtaskSpan) -> tuple[int, int, int]:
    """Return the first, the middle and the last tick of a span."""
    return span.start, (span.start + span.stop - 1) // 2, span.stop - 1


def draw(title: str, subtitle: str, times_s: Sequence[float], images: Sequence[dict[str, Image]]) -> Picture.Image:
    """Draw a sheet: a column per time, a row per camera.

    Args:
        title, subtitle: text above.
        times_s: of the columns.
        images: RGB images by camera, per column; a missing one is said in its place.
    """
    cameras = list(dict.fromkeys(name for column in images for name in column))
    width = _MARGIN + len(images) * (TILE + _MARGIN)
    height = 3 * _LINE + _MARGIN + max(1, len(cameras)) * (TILE + _LINE)
    sheet = Picture.new("RGB", (width, height), "white")
    pen, font, small = ImageDraw.Draw(sheet), _font(17), _font(12)
    pen.text((_MARGIN, 4), _fit(title, font, width - 2 * _MARGIN), "black", font)
    pen.text((_MARGIN, _LINE + 4), _fit(subtitle, small, width - 2 * _MARGIN), _GREY, small)
    for column, (time_s, shown) in enumerate(zip(times_s, images, strict=True)):
        left = _MARGIN + column * (TILE + _MARGIN)
        pen.text((left, 2 * _LINE + 4), f"{time_s:.2f} s", "black", small)
        for row, camera in enumerate(cameras):
            top = 3 * _LINE + row * (TILE + _LINE)
            if camera in shown:
                sheet.paste(_fitted(shown[camera]), (left, top))
            else:
                pen.rectangle((left, top, left + TILE - 1, top + TILE - 1), outline=_GREY)
                pen.text((left + _MARGIN, top + TILE // 2), "no image", _GREY, small)
            pen.text((left, top + TILE + 3), camera, _GREY, small)
    return sheet


def _fitted(image: Image) -> Picture.Image:
    """Return an image in a black square."""
    picture = Picture.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((TILE, TILE))
    square = Picture.new("RGB", (TILE, TILE))
    square.paste(picture, ((TILE - picture.width) // 2, (TILE - picture.height) // 2))
    return square


def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib's own: it knows Latin, Greek and Cyrillic, and is there wherever this package is.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def _fit(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Shorten a text to a width [px]."""
    while font.getlength(text) > width:
        text = text[:-2].rstrip("…") + "…"
    return text


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).strip("_")[:60]
