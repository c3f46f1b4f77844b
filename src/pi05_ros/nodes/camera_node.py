"""camera_node: a device, a video file or another node's images in, the contract's images out.

One node is one camera. Pictures are read, resized and encoded once on a thread of their own.
"""

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from sensor_msgs.msg import CompressedImage, Image

from pi05_ros import topics
from pi05_ros.camera import DeviceSource, Picture, Source, TopicSource, VideoSource
from pi05_ros.config import ConfigError, Doc, OneOf, Range
from pi05_ros.health import Status
from pi05_ros.messages import MessageError, fill_compressed, fill_image, stamp_to_ns
from pi05_ros.nodes.base import BaseNode, monotonic_ns, run
from pi05_ros.qos import external

NS = 1_000_000_000
KINDS = ("device", "video", "image_topic", "compressed_topic")
READ_S = 0.1


@dataclass(frozen=True)
class CameraConfig:
    """Parameters of camera_node."""

    camera: Annotated[str, Doc("name of the camera in the contract")] = "front"
    source: Annotated[str, Doc("where pictures come from"), OneOf(KINDS)] = "device"
    address: Annotated[str, Doc("device index or path, video file, or topic")] = "0"
    loop: Annotated[bool, Doc("begin a video file again at its end")] = True
    raw: Annotated[bool, Doc("publish sensor_msgs/Image instead of JPEG")] = False
    silence_s: Annotated[float, Doc("warn when no picture came for this long [s]"), Range(0.05, 60)] = 1.0


class CameraNode(BaseNode[CameraConfig]):
    """Publishes one camera of the contract."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__("camera_node", CameraConfig, **arguments)
        self._source: Source | None = None
        self._thread: threading.Thread | None = None
        self._running = threading.Event()

    def build(self, config: CameraConfig) -> None:
        """Open the source and the publisher."""
        if config.camera not in self.contract.cameras:
            raise ConfigError(f"camera: {config.camera!r} is not valid; valid: {', '.join(self.contract.cameras)}")
        self._config, self._sent = config, 0
        self._frame = self.contract.cameras[config.camera].frame
        self._source = self._open(config)
        topic = topics.camera_raw(config.camera) if config.raw else topics.camera_image(config.camera)
        self._images = self.publisher(Image if config.raw else CompressedImage, topic)

    def start(self) -> None:
        """Begin to read."""
        self._running.set()
        self._thread = threading.Thread(target=self._work, name="camera", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finish the picture in hand."""
        self._running.clear()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def teardown(self) -> None:
        """Release the source."""
        if self._source is not None:
            self._source.close()
            self._source = None

    def report(self) -> list[Status]:
        """Tell how many pictures went out."""
        return [Status(f"camera {self._config.camera}", values={"published": self._sent})]

    def _open(self, config: CameraConfig) -> Source:
        if config.source == "device":
            return DeviceSource(config.address, self.now_ns, self.health)
        if config.source == "video":
            return VideoSource(config.address, config.loop, self.now_ns)
        source = TopicSource(self.health)
        kind = Image if config.source == "image_topic" else CompressedImage
        self.subscribe(kind, config.address, lambda m: source.put(stamp_to_ns(m.header.stamp), m), external())
        return source

    def _work(self) -> None:
        heard_ns = monotonic_ns()
        while self._running.is_set() and self._source is not None:
            try:
                picture = self._source.read(READ_S)
                if picture is not None:
                    heard_ns = monotonic_ns()
                    self._publish(picture)
                    self.health.fine("picture")
            except MessageError as error:
                heard_ns = monotonic_ns()
                self.health.drop("picture not understood")
                self.health.trouble("picture", str(error))
            silent = monotonic_ns() - heard_ns > self._config.silence_s * NS
            what = f"no picture from {self._config.source} {self._config.address} for {self._config.silence_s:g} s"
            self.health.set(f"camera {self._config.camera}", what if silent else "")

    def _publish(self, picture: Picture) -> None:
        if self._config.raw:
            message = fill_image(Image(), picture.stamp_ns, self._frame, picture.resized(self.contract))
        else:
            message = fill_compressed(CompressedImage(), picture.stamp_ns, self._frame, picture.jpeg(self.contract))
        self._sent += 1
        self._images.publish(message)


def main(args: Sequence[str] | None = None) -> None:
    """Run camera_node."""
    sys.exit(run(lambda: [CameraNode()], args))


if __name__ == "__main__":
    main()
