"""The film of a run: the four cameras in a grid, the subtask as caption, in simulated time."""

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
    captions = _Captions(log)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        rows = -(-len(cursors) // 2)
        stream.width, stream.height, stream.pix_fmt = 2 * TILE_PX, rows * TILE_PX + CAPTION_PX, "yuv420p"
        stream.options = {"crf": "26", "preset": "veryfast"}
        for index in range(count):
            stamp_ns = log.start_ns + round((index + 1) / FPS * NS)
            grid = compose({name: cursor.at(stamp_ns) for name, cursor in cursors.items()})
            picture = np.concatenate([grid, captions.at(stamp_ns)])
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
    size = (TILE_PX, TILE_PX)
    picture = np.zeros((*size, 3), np.uint8) if image is None else cv2.resize(image, size)
    label = name.replace("_", " ") + ("" if image is not None else " (no image)")
    for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(picture, label, (10, 22), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, thickness, cv2.LINE_AA)
    return picture.astype(np.uint8, copy=False)


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


class _Captions:
    """Draws the strip below the pictures; the text part only when it changes."""

    def __init__(self, log: DemoLog) -> None:
        self._log = log
        fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        self._bold = ImageFont.truetype(str(fonts / "DejaVuSans-Bold.ttf"), 20)
        self._plain = ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), 14)

    def at(self, stamp_ns: int) -> Pixels:
        """Return the strip RGB uint8 [CAPTION_PX, 2·TILE_PX, 3] at a time."""
        log = self._log
        subtask = next((text for stamp, text in reversed(log.subtasks) if stamp <= stamp_ns), "")
        done = any(answer and stamp <= stamp_ns for stamp, answer, _ in log.success)
        width = 2 * TILE_PX
        strip = PilImage.new("RGB", (width, CAPTION_PX), PAPER)
        draw = ImageDraw.Draw(strip)
        draw.text((14, 14), _fit(subtask or "(no subtask yet)", self._bold, width - 28), INK, self._bold)
        clock = f"{log.seconds(stamp_ns):6.2f} s" + ("   task done" if done else "")
        draw.text((14, 54), _fit(f"task: {log.task}", self._plain, width - 190), MUTED, self._plain)
        draw.text((width - 14, 54), clock, MUTED, self._plain, anchor="ra")
        return np.asarray(strip, dtype=np.uint8)


def _fit(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Cut a text so that it fits into a width [px]."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
