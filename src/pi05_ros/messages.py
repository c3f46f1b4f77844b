"""Translate between ROS messages and the plain arrays of this project, free of rclpy.

Reading is duck-typed: a message of rclpy, of rosbags or a plain namespace with the same fields all work, so the live
nodes and the bag converter share this code. Writing fills a message that the caller made. Images are RGB uint8
[H, W, 3] everywhere inside; only this module knows that OpenCV works in BGR.
"""

from array import array
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pi05_ros.contract import Contract
from pi05_ros.control.chunk import Chunk

Array = NDArray[np.float64]
Pixels = NDArray[np.uint8]
NS = 1_000_000_000

# Channels per pixel and, for colour, the conversion to RGB. Encodings: sensor_msgs/image_encodings.hpp.
_ENCODINGS: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
}


class MessageError(ValueError):
    """A message that cannot be understood; says what was wrong and what would be valid."""


def stamp_to_ns(stamp: Any) -> int:
    """Return a builtin_interfaces/Time as nanoseconds (rosbags spells the field `nanosec` too)."""
    return int(stamp.sec) * NS + int(stamp.nanosec)


def set_stamp(stamp: Any, stamp_ns: int) -> None:
    """Write nanoseconds into a builtin_interfaces/Time or Duration."""
    stamp.sec, stamp.nanosec = divmod(stamp_ns, NS)


def encode_jpeg(image: Pixels, quality: int) -> bytes:
    """Encode an RGB image uint8 [H, W, 3] as JPEG.

    Raises:
        MessageError: not an RGB uint8 image.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise MessageError(f"expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise MessageError(f"OpenCV cannot encode an image of shape {list(image.shape)}")
    return bytes(data)


def is_jpeg(data: bytes) -> bool:
    """Return whether bytes begin as a JPEG does (ISO/IEC 10918-1: SOI marker)."""
    return data[:3] == b"\xff\xd8\xff"


def decode_jpeg(data: Any) -> Pixels:
    """Decode a compressed image (JPEG or PNG; bytes, array.array or uint8 array) to RGB uint8 [H, W, 3].

    Raises:
        MessageError: empty or not an image.
    """
    raw = np.frombuffer(data, np.uint8)
    decoded = cv2.imdecode(raw, cv2.IMREAD_COLOR) if raw.size else None
    if decoded is None:
        raise MessageError(f"{raw.size} bytes are no JPEG or PNG image")
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)


def image_to_rgb(message: Any) -> Pixels:
    """Return a sensor_msgs/Image as RGB uint8 [H, W, 3], rows cut to width when `step` is longer.

    Raises:
        MessageError: unknown encoding (lists the known ones), or fewer bytes than height·step.
    """
    if message.encoding not in _ENCODINGS:
        raise MessageError(f"image encoding {message.encoding!r} is not supported; valid: {', '.join(_ENCODINGS)}")
    channels, conversion = _ENCODINGS[message.encoding]
    height, width, step = int(message.height), int(message.width), int(message.step)
    raw = np.frombuffer(message.data, np.uint8)
    if height * width == 0 or step < width * channels or raw.size < height * step:
        raise MessageError(f"image {width}x{height} {message.encoding} with step {step} has {raw.size} bytes")
    rows = raw[: height * step].reshape(height, step)[:, : width * channels]
    pixels = np.ascontiguousarray(rows.reshape(height, width, channels))
    return pixels if conversion is None else np.asarray(cv2.cvtColor(pixels, conversion), np.uint8)


def fill_compressed(message: Any, stamp_ns: int, frame_id: str, jpeg: bytes) -> Any:
    """Write a JPEG into a sensor_msgs/CompressedImage and return it."""
    set_stamp(message.header.stamp, stamp_ns)
    message.header.frame_id = frame_id
    message.format = "jpeg"
    message.data = array("B", jpeg)
    return message


def fill_image(message: Any, stamp_ns: int, frame_id: str, image: Pixels) -> Any:
    """Write RGB pixels uint8 [H, W, 3] into a sensor_msgs/Image (rgb8) and return it."""
    set_stamp(message.header.stamp, stamp_ns)
    message.header.frame_id = frame_id
    message.height, message.width, message.step = image.shape[0], image.shape[1], image.shape[1] * 3
    message.encoding, message.is_bigendian = "rgb8", 0
    message.data = array("B", image.tobytes())
    return message


def fit(image: Pixels, width: int, height: int) -> Pixels:
    """Resize an RGB image to [height, width, 3], keeping its proportions: the longer side is cropped around the centre.

    The policy was trained on square images; squeezing would change every shape it knows.
    """
    have_h, have_w = image.shape[:2]
    if (have_h, have_w) == (height, width):
        return image
    crop_w = min(have_w, max(1, round(have_h * width / height)))
    crop_h = min(have_h, max(1, round(have_w * height / width)))
    top, left = (have_h - crop_h) // 2, (have_w - crop_w) // 2
    cropped = image[top : top + crop_h, left : left + crop_w]
    method = cv2.INTER_AREA if crop_w > width else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(cropped, (width, height), interpolation=method), np.uint8)


def fill_state(message: Any, contract: Contract, stamp_ns: int, vector: Array) -> Any:
    """Write a state vector [D] into a sensor_msgs/JointState and return it."""
    set_stamp(message.header.stamp, stamp_ns)
    message.header.frame_id = "base_link"
    message.name = list(contract.names)
    message.position = np.asarray(vector, dtype=np.float64).tolist()
    return message


def state_from(message: Any, contract: Contract) -> Array:
    """Return the state vector [D] of a JointState that holds the contract's names in any order.

    Raises:
        MessageError: names missing (all are listed), or another number of positions than of names.
    """
    names = tuple(message.name)
    if len(message.position) != len(names):
        raise MessageError(f"state has {len(names)} names but {len(message.position)} positions")
    position = np.asarray(message.position, dtype=np.float64)
    if names == contract.names:
        return position
    missing = [name for name in contract.names if name not in names]
    if missing:
        raise MessageError(f"state lacks {', '.join(missing)}")
    return position[[names.index(name) for name in contract.names]]


def fill_chunk(message: Any, make_point: Any, chunk: Chunk, step_s: float) -> Any:
    """Write a chunk into a trajectory_msgs/JointTrajectory and return it.

    Point k holds the whole row k in `positions` (base entries are target velocities) and its time_from_start is
    (k+1)·step_s: row 0 is due one step after the observation.

    Args:
        message: an empty JointTrajectory.
        make_point: makes an empty JointTrajectoryPoint.
        chunk: what to write.
        step_s: duration of one step [s].
    """
    set_stamp(message.header.stamp, chunk.stamp_ns)
    message.joint_names = list(chunk.names)
    points = []
    for k, row in enumerate(np.asarray(chunk.actions, dtype=np.float64).tolist()):
        point = make_point()
        point.positions = row
        set_stamp(point.time_from_start, round((k + 1) * step_s * NS))
        points.append(point)
    message.points = points
    return message


def chunk_from(message: Any) -> Chunk:
    """Return a JointTrajectory as a chunk, as it claims to be: names and values are judged by the controller.

    Raises:
        MessageError: no point, or points of unequal length.
    """
    rows = [np.asarray(point.positions, dtype=np.float64) for point in message.points]
    names = tuple(message.joint_names)
    if not rows or any(row.size != len(names) for row in rows):
        sizes = sorted({row.size for row in rows})
        raise MessageError(f"trajectory with {len(names)} joint_names has {len(rows)} points of sizes {sizes}")
    return Chunk(stamp_ns=stamp_to_ns(message.header.stamp), names=names, actions=np.stack(rows))
