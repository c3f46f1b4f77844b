"""Pictures from a file and from topics, what is made of them, and cameras that stop."""

import itertools
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image

from pi05_ros.camera import DeviceSource
from pi05_ros.contract import load_contract
from pi05_ros.health import Health
from pi05_ros.messages import decode_jpeg, encode_jpeg, fill_compressed, fill_image, image_to_rgb, stamp_to_ns
from pi05_ros.nodes.camera_node import CameraNode
from pi05_ros.topics import DIAGNOSTICS, camera_image, camera_raw

pytestmark = pytest.mark.ros
CONTRACT = load_contract()
STAMP_NS = 1_700_000_000_123_456_789


def video(path: Path, frames: int, fps: float = 50.0) -> str:
    """Write a video whose k-th frame is grey of level 10 k."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (320, 240))
    assert writer.isOpened()
    for k in range(frames):
        writer.write(np.full((240, 320, 3), 10 * k, np.uint8))
    writer.release()
    return str(path)


def levels(messages: list[Any]) -> list[int]:
    return [round(float(decode_jpeg(message.data).mean()) / 10) for message in messages]


def diagnosis(messages: list[Any], name: str) -> Any:
    """Return the newest entry of a name, or None."""
    return next((s for m in reversed(messages) for s in m.status if s.name == name), None)


def test_video_loops_in_order_with_growing_stamps(graph: Any, tmp_path: Path) -> None:
    heard = graph.hear(CompressedImage, camera_image("back"))
    graph.add(CameraNode, camera="back", source="video", address=video(tmp_path / "v.avi", 5))
    graph.until(lambda: len(heard) >= 12, "12 frames")
    order = levels(heard)
    steps = [(b - a) % 5 for a, b in itertools.pairwise(order)]
    assert set(order) <= {0, 1, 2, 3, 4}
    # Best effort may lose a frame, but never repeats or swaps any.
    assert steps.count(1) >= 8 and 0 not in steps
    stamps = [stamp_to_ns(message.header.stamp) for message in heard]
    gaps = np.diff(stamps)
    # 50 frames a second: a late one is followed by a short gap, and none is given out ahead of its time.
    assert (gaps > 0).all() and np.median(gaps) > 10e6
    assert heard[0].header.frame_id == "back_camera_optical_frame"
    assert decode_jpeg(heard[0].data).shape == (224, 224, 3)


def test_video_that_ends_is_told_once_and_counted_as_silence(graph: Any, tmp_path: Path) -> None:
    heard, told = graph.hear(CompressedImage, camera_image("front")), graph.hear(DiagnosticArray, DIAGNOSTICS)
    node = graph.add(
        CameraNode, source="video", address=video(tmp_path / "v.avi", 3), loop=False, silence_s=0.2, camera="front"
    )
    graph.until(lambda: node.health.troubles.get("camera front"), "warning")
    assert node.health.troubles["camera front"].startswith("no picture from video ")
    graph.until(lambda: (entry := diagnosis(told, "camera_node: health")) and entry.level == b"\x01")
    assert set(levels(heard)) <= {0, 1, 2} and len(heard) <= 3


def test_image_topic_keeps_the_drivers_stamp(graph: Any, striped: NDArray[np.uint8]) -> None:
    heard = graph.hear(CompressedImage, camera_image("left_wrist"))
    driver = graph.mouth(Image, camera_raw("driver"))
    graph.add(CameraNode, camera="left_wrist", source="image_topic", address=camera_raw("driver"))
    big = cv2.resize(striped, (480, 480), interpolation=cv2.INTER_NEAREST)
    graph.every(0.02, lambda: driver.publish(fill_image(Image(), STAMP_NS, "lens", np.asarray(big, np.uint8))))
    graph.until(lambda: heard)
    assert stamp_to_ns(heard[0].header.stamp) == STAMP_NS
    assert heard[0].header.frame_id == "left_wrist_camera_optical_frame" and heard[0].format == "jpeg"
    assert np.abs(decode_jpeg(heard[0].data).astype(int) - striped).mean() < 2


def test_jpeg_of_the_right_size_passes_untouched(graph: Any, striped: NDArray[np.uint8]) -> None:
    heard = graph.hear(CompressedImage, camera_image("front"))
    driver = graph.mouth(CompressedImage, camera_image("driver"))
    graph.add(CameraNode, camera="front", source="compressed_topic", address=camera_image("driver"))
    jpeg = encode_jpeg(striped, 55)
    graph.every(0.02, lambda: driver.publish(fill_compressed(CompressedImage(), STAMP_NS, "lens", jpeg)))
    graph.until(lambda: heard)
    assert bytes(heard[0].data) == jpeg


def test_raw_output(graph: Any, tmp_path: Path) -> None:
    heard = graph.hear(Image, camera_raw("front"))
    graph.add(CameraNode, raw=True, source="video", address=video(tmp_path / "v.avi", 5))
    graph.until(lambda: heard)
    assert image_to_rgb(heard[0]).shape == (224, 224, 3)


def test_camera_that_stops_is_warned_once_and_its_return_logged(graph: Any, striped: NDArray[np.uint8]) -> None:
    heard = graph.hear(CompressedImage, camera_image("front"))
    driver = graph.mouth(Image, camera_raw("driver"))
    node = graph.add(CameraNode, source="image_topic", address=camera_raw("driver"), silence_s=0.15)
    timer = graph.every(0.02, lambda: driver.publish(fill_image(Image(), STAMP_NS, "lens", striped)))
    graph.until(lambda: heard and not node.health.troubles)
    timer.cancel()
    graph.until(lambda: "camera front" in node.health.troubles)
    sent = len(heard)
    timer.reset()
    graph.until(lambda: len(heard) > sent + 2 and not node.health.troubles)


def test_broken_pictures_are_counted_and_the_next_good_one_goes_through(graph: Any, striped: NDArray[np.uint8]) -> None:
    heard = graph.hear(CompressedImage, camera_image("front"))
    driver = graph.mouth(CompressedImage, camera_image("driver"))
    node = graph.add(CameraNode, source="compressed_topic", address=camera_image("driver"))
    data = [b"\xff\xd8\xff broken"]
    graph.every(0.02, lambda: driver.publish(fill_compressed(CompressedImage(), STAMP_NS, "lens", data[0])))
    graph.until(lambda: node.health.counts.get("picture not understood", 0) >= 2)
    assert not heard and "no JPEG" in node.health.troubles["picture"]
    data[0] = encode_jpeg(striped, 90)
    graph.until(lambda: heard and not node.health.troubles)


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"camera": "rear"}, "camera: 'rear' is not valid; valid: front, left_wrist, right_wrist, back"),
        ({"source": "video", "address": "none.mp4"}, "address: 'none.mp4' is no file"),
        ({"source": "cloud"}, "source: 'cloud' is not valid; valid: one of 'device', 'video'"),
    ],
)
def test_wrong_parameters_are_named(graph: Any, parameters: dict[str, Any], told: str) -> None:
    node = graph.add(CameraNode, start=False, **parameters)
    assert not node.autostart()
    assert told in node.failure


def test_file_without_a_video_is_named(graph: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("no video")
    node = graph.add(CameraNode, start=False, source="video", address=str(tmp_path / "notes.mp4"))
    assert not node.autostart()
    assert "holds no frame that OpenCV can decode" in node.failure


def test_device_that_is_not_there_is_told_and_tried_again(graph: Any) -> None:
    node = graph.add(CameraNode, source="device", address="/dev/video77", silence_s=0.1)
    graph.until(lambda: "camera front" in node.health.troubles)
    assert "no picture from device /dev/video77" in node.health.troubles["camera front"]
    assert node.active


def test_lost_device_is_counted_and_opened_again(tmp_path: Path) -> None:
    # To OpenCV a file is a device that is lost at its end.
    health = Health(lambda text: None, lambda text: None)
    device = DeviceSource(video(tmp_path / "v.avi", 2), lambda: STAMP_NS, health)
    pictures = [device.read(0.1) for _ in range(6)]
    device.close()
    assert [picture is not None for picture in pictures] == [True, True, False, True, True, False]
    assert health.counts == {"device lost": 2}
    assert pictures[0] is not None and pictures[0].stamp_ns == STAMP_NS
