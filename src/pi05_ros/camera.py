"""Where a camera's pictures come from, and what is made of them. Free of rclpy.

A source blocks in `read` for at most a given time; whoever runs it does so on a thread of its own.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from pi05_model.observation import Image as Pixels
from pi05_ros.config import ConfigError
from pi05_ros.contract import Contract
from pi05_ros.health import Health
from pi05_ros.messages import decode_jpeg, encode_jpeg, fit, image_to_rgb, is_jpeg

Clock = Callable[[], int]


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture as it came.

    Attributes:
        stamp_ns: capture time, ROS clock.
        pixels: RGB uint8 [H, W, 3].
        encoded: the JPEG that the pixels were decoded from, or None.
    """

    stamp_ns: int
    pixels: Pixels
    encoded: bytes | None = None

    def jpeg(self, contract: Contract) -> bytes:
        """Return a JPEG of the contract's size; one that has it already is passed on untouched."""
        size = contract.image
        if self.encoded is not None and self.pixels.shape[:2] == (size.height, size.width):
            return self.encoded
        return encode_jpeg(self.resized(contract), size.jpeg_quality)

    def resized(self, contract: Contract) -> Pixels:
        """Return the pixels in the contract's size."""
        return fit(self.pixels, contract.image.width, contract.image.height)


class Source(Protocol):
    """Something that gives pictures."""

    def read(self, timeout_s: float) -> Picture | None:
        """Return the next picture, or None after the time-out. Raises MessageError for one that is broken."""

    def close(self) -> None:
        """Release it."""


class DeviceSource:
    """A camera that OpenCV knows; a lost one is opened again every second.

    Args:
        address: index ("0") or path ("/dev/video0").
        now: ROS clock [ns].
        health: where losses are counted.
    """

    retry_s = 1.0

    def __init__(self, address: str, now: Clock, health: Health) -> None:
        self._device: int | str = int(address) if address.isdecimal() else address
        self._now, self._health = now, health
        self._closed = threading.Event()
        self._capture: Any = None

    def read(self, timeout_s: float) -> Picture | None:
        """Return the next picture, stamped when it was grabbed."""
        if self._capture is None and not self._open():
            self._closed.wait(min(timeout_s, self.retry_s))
            return None
        grabbed = self._capture.grab()
        stamp_ns = self._now()
        ok, frame = self._capture.retrieve() if grabbed else (False, None)
        if not ok:
            self._health.drop("device lost")
            self._capture.release()
            self._capture = None
            return None
        return Picture(stamp_ns, np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8))

    def close(self) -> None:
        """Release the device."""
        self._closed.set()
        if self._capture is not None:
            self._capture.release()

    def _open(self) -> bool:
        capture = cv2.VideoCapture(self._device)
        if not capture.isOpened():
            capture.release()
            return False
        # One buffer: an old frame would be stamped as a new one.
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        self._capture = capture
        return True


class VideoSource:
    """A video file, paced by its own frame rate.

    Args:
        address: path of the file.
        loop: begin again at its end; otherwise it falls silent.
        now: ROS clock [ns].

    Raises:
        ConfigError: the file is missing or no video; names it.
    """

    def __init__(self, address: str, loop: bool, now: Clock) -> None:
        if not Path(address).is_file():
            raise ConfigError(f"address: {address!r} is no file; give a video")
        self._capture = cv2.VideoCapture(address)
        ok, self._frame = self._capture.read()
        if not ok:
            raise ConfigError(f"address: {address!r} holds no frame that OpenCV can decode; give a video")
        self._loop, self._now = loop, now
        self._period_s = 1.0 / (self._capture.get(cv2.CAP_PROP_FPS) or 25.0)
        self._due_s: float | None = None
        self._closed = threading.Event()

    def read(self, timeout_s: float) -> Picture | None:
        """Return the next frame when it is due."""
        if self._frame is None:
            self._closed.wait(timeout_s)
            return None
        now_s = time.monotonic()
        due_s = now_s if self._due_s is None else self._due_s
        if self._closed.wait(min(max(due_s - now_s, 0.0), timeout_s)) or due_s - now_s > timeout_s:
            return None
        # After a pause it goes on from here and does not hurry after.
        self._due_s = max(due_s, now_s - self._period_s) + self._period_s
        picture = Picture(self._now(), np.asarray(cv2.cvtColor(self._frame, cv2.COLOR_BGR2RGB), np.uint8))
        self._frame = self._next()
        return picture

    def close(self) -> None:
        """Close the file."""
        self._closed.set()
        self._capture.release()

    def _next(self) -> Any:
        ok, frame = self._capture.read()
        if not ok and self._loop:
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
            ok, frame = self._capture.read()
        return frame if ok else None


class TopicSource:
    """Image messages of another node: the newest waits in a slot, its header stamp is the capture time.

    Args:
        health: where overtaken pictures are counted.
    """

    def __init__(self, health: Health) -> None:
        self._health = health
        self._changed = threading.Condition()
        self._slot: tuple[int, Any] | None = None
        self._closed = False

    def put(self, stamp_ns: int, message: Any) -> None:
        """Take a sensor_msgs/Image or CompressedImage; safe from another thread."""
        with self._changed:
            if self._slot is not None:
                self._health.drop("picture overtaken")
            self._slot = (stamp_ns, message)
            self._changed.notify()

    def read(self, timeout_s: float) -> Picture | None:
        """Return the newest picture."""
        with self._changed:
            self._changed.wait_for(lambda: self._slot is not None or self._closed, timeout_s)
            taken, self._slot = self._slot, None
        if taken is None:
            return None
        stamp_ns, message = taken
        if hasattr(message, "encoding"):
            return Picture(stamp_ns, image_to_rgb(message))
        data = bytes(message.data)
        return Picture(stamp_ns, decode_jpeg(data), data if is_jpeg(data) else None)

    def close(self) -> None:
        """Wake the reader."""
        with self._changed:
            self._closed = True
            self._changed.notify()
