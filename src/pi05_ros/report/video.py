"""The film of a run: the four cameras in a grid, the subtask as caption, in simulated time."""

from functools import cache
from pathlib import Path

import av
import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont

from pi05_ros.messages import decode_jpeg
from pi05_ros.report.log import NS, DemoLog

Pixels = NDArray[np.uint8]

FPS = 25
TILE_PX, CAPTION_PX = 336, 88
INK, PAPER, MUTED = (28, 32, 38), (250, 250, 248), (110, 118, 128)


def write_video(log: DemoLog, path: Path) -> int:
    """Write the film as H.264 (yuv420p, plays everywhere).

    Args:
        log: what was heard; each film frame shows the newest image of each camera at its time.
        path: the .mp4 file.

    Returns:
        Number of frames written; 0, and no file, when no camera was heard.
    """
    if not any(log.frames.values()):
        return 0
    count = max(1, round(log.duration_s * FPS))
    cursors = {name: _Cursor(log.frames.get(name, [])) for name in log.contract.cameras}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        rows = -(-len(cursors) // 2)
        stream.width, stream.height, stream.pix_fmt = 2 * TILE_PX, rows * TILE_PX + CAPTION_PX, "yuv420p"
        stream.options = {"crf": "26", "preset": "veryfast"}
        for index in range(count):
            stamp_ns = log.start_ns + round((index + 1) / FPS * NS)
            grid = compose({name: cursor.at(stamp_ns) for name, cursor in cursors.items()})
            picture = np.concatenate([grid, caption(log, stamp_ns)])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return count


def compose(images: dict[str, Pixels | None]) -> Pixels:
    """Lay images out in two columns with their names.

    Args:
        images: RGB uint8 [H, W, 3] by camera name; None where nothing was heard yet.

    Returns:
        RGB uint8 [rows·TILE_PX, 2·TILE_PX, 3].
    """
    tiles = [_tile(name, image) for name, image in images.items()]
    if len(tiles) % 2:
        tiles.append(np.zeros_like(tiles[0]))
    return np.concatenate([np.concatenate(pair, axis=1) for pair in zip(tiles[::2], tiles[1::2], strict=True)])


def _tile(name: str, image: Pixels | None) -> Pixels:
    blank = np.zeros((TILE_PX, TILE_PX, 3), np.uint8)
    picture = PilImage.fromarray(blank if image is None else cv2.resize(image, (TILE_PX, TILE_PX)).astype(np.uint8))
    label = name.replace("_", " ") + ("" if image is not None else " (no image)")
    ImageDraw.Draw(picture).text((10, 8), label, (255, 255, 255), _font(14), stroke_width=2, stroke_fill=(0, 0, 0))
    return np.asarray(picture, dtype=np.uint8)


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return a font that comes with matplotlib, so that no system font is needed."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


class _Cursor:
    """Walks forward through a camera's frames and decodes each one once."""

    def __init__(self, frames: list[tuple[int, bytes]]) -> None:
        self._frames = frames
        self._next = 0
        self._image: Pixels | None = None

    def at(self, stamp_ns: int) -> Pixels | None:
        """Return the newest image not after a time; times must not decrease."""
        before = self._next
        while self._next < len(self._frames) and self._frames[self._next][0] <= stamp_ns:
            self._next += 1
        if self._next > before:
            self._image = decode_jpeg(self._frames[self._next - 1][1])
        return self._image


def caption(log: DemoLog, stamp_ns: int) -> Pixels:
    """Draw the strip below the pictures at a time: RGB uint8 [CAPTION_PX, 2·TILE_PX, 3]."""
    subtask = next((text for stamp, text in reversed(log.subtasks) if stamp <= stamp_ns), "(no subtask yet)")
    done = any(answer and stamp <= stamp_ns for stamp, answer, _ in log.success)
    width = 2 * TILE_PX
    strip = PilImage.new("RGB", (width, CAPTION_PX), PAPER)
    draw = ImageDraw.Draw(strip)
    draw.text((14, 14), _fit(subtask, _font(20, bold=True), width - 28), INK, _font(20, bold=True))
    clock = f"{log.seconds(stamp_ns):6.2f} s" + ("   task done" if done else "")
    draw.text((14, 54), _fit(f"task: {log.task}", _font(14), width - 190), MUTED, _font(14))
    draw.text((width - 14, 54), clock, MUTED, _font(14), anchor="ra")
    return np.asarray(strip, dtype=np.uint8)


def _fit(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Cut a text so that it fits into a width [px]."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
