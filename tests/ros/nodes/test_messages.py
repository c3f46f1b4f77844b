"""Arrays and ROS messages, there and back."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from numpy.typing import NDArray
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from pi05_ros.contract import load_contract
from pi05_ros.control.chunk import Chunk
from pi05_ros.messages import (
    MessageError,
    chunk_from,
    decode_jpeg,
    encode_jpeg,
    fill_chunk,
    fill_compressed,
    fill_image,
    fill_state,
    fit,
    image_to_rgb,
    set_stamp,
    stamp_to_ns,
    state_from,
)

CONTRACT = load_contract()
STAMP_NS = 1_795_264_299_380_902_358


def over_the_wire(message: object) -> object:
    return deserialize_message(serialize_message(message), type(message))


def test_stamp_keeps_every_nanosecond() -> None:
    stamp = Time()
    set_stamp(stamp, STAMP_NS)
    assert stamp_to_ns(stamp) == STAMP_NS


def test_state_round_trip() -> None:
    vector = np.random.default_rng(0).normal(size=CONTRACT.dim)
    message = over_the_wire(fill_state(JointState(), CONTRACT, STAMP_NS, vector))
    np.testing.assert_array_equal(state_from(message, CONTRACT), vector)
    assert stamp_to_ns(message.header.stamp) == STAMP_NS


def test_state_in_another_order_is_sorted_and_a_gap_is_named() -> None:
    vector = np.arange(CONTRACT.dim, dtype=float)
    message = fill_state(JointState(), CONTRACT, 0, vector)
    message.name, message.position = list(message.name)[::-1], list(message.position)[::-1]
    np.testing.assert_array_equal(state_from(message, CONTRACT), vector)
    message.name = ["x", *list(message.name)[1:]]
    with pytest.raises(MessageError, match="state lacks base_wz"):
        state_from(message, CONTRACT)
    with pytest.raises(MessageError, match="18 names but 2 positions"):
        state_from(SimpleNamespace(name=CONTRACT.names, position=[0.0, 1.0]), CONTRACT)


def test_chunk_round_trip_and_due_times() -> None:
    actions = np.random.default_rng(1).normal(size=(50, CONTRACT.dim))
    chunk = Chunk(STAMP_NS, CONTRACT.names, actions)
    message = over_the_wire(fill_chunk(JointTrajectory(), JointTrajectoryPoint, chunk, CONTRACT.step_s))
    back = chunk_from(message)
    assert (back.stamp_ns, back.names) == (STAMP_NS, CONTRACT.names)
    np.testing.assert_array_equal(back.actions, actions)
    due = [
        stamp_to_ns(SimpleNamespace(sec=p.time_from_start.sec, nanosec=p.time_from_start.nanosec))
        for p in message.points
    ]
    assert due == [20_000_000 * (k + 1) for k in range(50)]


def test_ragged_or_empty_chunk_is_refused() -> None:
    points = [JointTrajectoryPoint(positions=[0.0] * 18), JointTrajectoryPoint(positions=[0.0] * 3)]
    with pytest.raises(MessageError, match=r"18 joint_names has 2 points of sizes \[3, 18\]"):
        chunk_from(JointTrajectory(joint_names=list(CONTRACT.names), points=points))
    with pytest.raises(MessageError, match="0 points"):
        chunk_from(JointTrajectory(joint_names=list(CONTRACT.names)))


def test_jpeg_keeps_colours_in_order(striped: NDArray[np.uint8]) -> None:
    message = over_the_wire(fill_compressed(CompressedImage(), STAMP_NS, "camera", encode_jpeg(striped, 90)))
    decoded = decode_jpeg(message.data)
    assert decoded.shape == striped.shape
    # JPEG blurs the edges; swapped channels would be off by 180.
    assert np.abs(decoded.astype(int) - striped).mean() < 2
    with pytest.raises(MessageError, match="4 bytes are no JPEG"):
        decode_jpeg(b"nope")
    with pytest.raises(MessageError, match=r"float64 \[2, 2, 3\]"):
        encode_jpeg(np.zeros((2, 2, 3)), 90)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("encoding", "convert"),
    [
        ("rgb8", None),
        ("bgr8", cv2.COLOR_RGB2BGR),
        ("rgba8", cv2.COLOR_RGB2RGBA),
        ("bgra8", cv2.COLOR_RGB2BGRA),
    ],
)
def test_raw_encodings_with_padded_rows(striped: NDArray[np.uint8], encoding: str, convert: int | None) -> None:
    pixels = striped if convert is None else cv2.cvtColor(striped, convert)
    height, width, channels = pixels.shape
    padded = np.full((height, width * channels + 13), 255, np.uint8)
    padded[:, : width * channels] = pixels.reshape(height, -1)
    message = Image(height=height, width=width, step=padded.shape[1], encoding=encoding, data=padded.tobytes())
    np.testing.assert_array_equal(image_to_rgb(over_the_wire(message)), striped)


def test_mono_becomes_grey_and_own_images_come_back(striped: NDArray[np.uint8]) -> None:
    grey = np.ascontiguousarray(striped[:, :, 0])
    height, width = grey.shape
    message = Image(height=height, width=width, step=width, encoding="mono8", data=grey.tobytes())
    np.testing.assert_array_equal(image_to_rgb(message), np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(image_to_rgb(fill_image(Image(), 0, "f", striped)), striped)


def test_bad_raw_images_are_told_apart() -> None:
    with pytest.raises(MessageError, match="'32FC1' is not supported; valid: rgb8, bgr8"):
        image_to_rgb(Image(height=1, width=1, step=4, encoding="32FC1", data=[0, 0, 0, 0]))
    with pytest.raises(MessageError, match="image 4x2 rgb8 with step 12 has 3 bytes"):
        image_to_rgb(Image(height=2, width=4, step=12, encoding="rgb8", data=[0, 0, 0]))


def test_fit_keeps_proportions() -> None:
    wide = np.zeros((480, 640, 3), np.uint8)
    cv2.circle(wide, (320, 240), 120, (255, 255, 255), -1)
    small = fit(wide, 224, 224)
    assert small.shape == (224, 224, 3)
    rows, columns = np.flatnonzero(small[:, 112, 0] > 127), np.flatnonzero(small[112, :, 0] > 127)
    # A circle of 240 pixels across, scaled by 224/480.
    assert len(rows) == pytest.approx(112, abs=2) and len(columns) == pytest.approx(112, abs=2)
    assert fit(small, 224, 224) is small
