"""Video files of a dataset: writing, joining without encoding again, and reading single frames.

Frame k of a file is shown at k / fps; there are no B-frames, so packets stand in the order of their frames and a file
can be cut or continued between any two of them. H.264 at 4:2:0 is lossy: `VideoSettings.crf` says how much.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from pi05_model.observation import Image
from pi05_training.data.episode import DatasetError

PIXEL_FORMAT = "yuv420p"


@dataclass(frozen=True, slots=True)
class VideoSettings:
    """How images become video.

    Attributes:
        codec: an encoder of FFmpeg that knows `crf`.
        crf: quality; lower is better and larger. 18: 36 dB to a noisy picture's JPEG, at 40 % of its bytes.
        gop: frames from one key frame to the next; small, because training reads frames in random order.
        preset: speed against size.
    """

    codec: str = "libx264"
    crf: int = 18
    gop: int = 2
    preset: str = "superfast"

    def options(self) -> dict[str, str]:
        """Return FFmpeg's options. One thread: the result is the same on every machine, and cameras run in parallel."""
        values = {"crf": self.crf, "g": self.gop, "bf": 0, "preset": self.preset, "threads": 1, "tune": "fastdecode"}
        return {name: str(value) for name, value in values.items()}


class VideoWriter:
    """Encodes one video, frame by frame.

    Args:
        path: the file; it is whole when `close` returns.
        fps: frames per second.
        size: (height, width) [px], even numbers.
        settings: codec and quality.

    Raises:
        DatasetError: the size or a setting is not possible.
    """

    def __init__(self, path: Path, fps: int, size: tuple[int, int], settings: VideoSettings) -> None:
        if any(edge % 2 or edge < 2 for edge in size):
            raise DatasetError(f"{path}: images of {size} px (height, width): 4:2:0 needs even numbers; resize them")
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "faststart"})
        try:
            self._stream: Any = self._container.add_stream(settings.codec, rate=fps, options=settings.options())
        except ValueError as error:  # av's answer to an encoder that this FFmpeg lacks
            raise DatasetError(f"video codec {settings.codec!r}: {error}; libx264 is always there") from error
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = PIXEL_FORMAT
        self._stream.time_base = self._tick = Fraction(1, fps)
        self.frames = 0

    def write(self, bgr: Image) -> None:
        """Append an image uint8 [H, W, 3], blue first as cv2 decodes it."""
        frame = av.VideoFrame.from_ndarray(bgr, format="bgr24")
        frame.pts, frame.time_base = self.frames, self._tick
        self.frames += 1
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what is left and the index."""
        self._container.mux(self._stream.encode(None))
        self._container.close()


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a video file is.

    Attributes:
        frames: how many.
        width, height: [px].
        codec, pixel_format: FFmpeg's names.
        setup: codec private data; files that differ in it cannot be joined.
    """

    frames: int
    width: int
    height: int
    codec: str
    pixel_format: str
    setup: bytes


def probe(path: Path) -> VideoInfo:
    """Describe a video file.

    Raises:
        DatasetError: the file is missing or not a video.
    """
    with _open(path) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        return VideoInfo(
            frames=stream.frames,
            width=context.width,
            height=context.height,
            codec=context.codec.canonical_name,
            pixel_format=context.pix_fmt,
            setup=bytes(context.extradata or b""),
        )


def join(first: Path, keep: int, second: Path, out: Path, fps: int) -> None:
    """Write the first `keep` frames of one video followed by all of another, without decoding.

    Args:
        first: file that is continued.
        keep: frames of it that are kept.
        second: file that follows; of the same `VideoInfo.setup`.
        out: the result; neither of the two.
        fps: frames per second of both.

    Raises:
        DatasetError: a file cannot be read, or `first` holds fewer than `keep` frames.
    """
    with av.open(str(out), "w", format="mp4", options={"movflags": "faststart"}) as target:
        with _open(first) as source:
            stream: Any = target.add_stream_from_template(source.streams.video[0])
            stream.time_base = Fraction(1, fps)
            copied = _copy(source, target, stream, range(keep), fps)
        if copied < keep:
            raise DatasetError(f"{first}: holds {copied} frames, {keep} are expected; the file has been cut")
        with _open(second) as source:
            _copy(source, target, stream, itertools.count(keep), fps)


def _copy(source: Any, target: Any, stream: Any, numbers: Iterable[int], fps: int) -> int:
    """Copy packets and number their frames; return how many."""
    packets = (packet for packet in source.demux(source.streams.video[0]) if packet.dts is not None)
    count = 0
    for number, packet in zip(numbers, packets):  # noqa: B905  the shorter one decides
        packet.time_base = Fraction(1, fps)
        packet.pts = packet.dts = number
        packet.duration = 1
        packet.stream = stream
        target.mux(packet)
        count += 1
    return count


class VideoReader:
    """Random access to the frames of a file by time; going forwards is cheapest.

    Holds an open file: neither pickle it nor use it after a fork or from two threads.

    Raises:
        DatasetError: the file is missing or not a video.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._container = _open(path)
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "NONE"  # threads would hold frames back, and a seek would lose them
        self._period = float(1 / (self._stream.average_rate or 30))
        self._convert = VideoReformatter()
        self._frames: Iterator[Any] = self._container.decode(self._stream)
        self._time = -np.inf
        self._image: Image | None = None

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def frame(self, time_s: float) -> Image:
        """Return the RGB image uint8 [H, W, 3] shown at a time, to within half a frame.

        Raises:
            DatasetError: the file holds no such frame, or it cannot be decoded.
        """
        half = self._period / 2
        if self._image is None or abs(time_s - self._time) > half:
            try:
                self._image = self._decode(time_s, half)
            except (av.error.FFmpegError, StopIteration) as error:
                self._time, self._image = -np.inf, None
                why = "it ends before that" if isinstance(error, StopIteration) else str(error)
                raise DatasetError(f"{self._path}: no frame at {time_s:.3f} s: {why}") from error
        return self._image

    def _decode(self, time_s: float, half: float) -> Image:
        # Two frames on is never further than the next key frame of a file written here.
        if not self._time - half < time_s <= self._time + 2.5 * self._period:
            self._container.seek(round((time_s + half / 2) / self._stream.time_base), stream=self._stream)
            self._frames = self._container.decode(self._stream)
        while True:
            frame = next(self._frames)
            self._time = float(frame.pts * self._stream.time_base)
            if self._time >= time_s - half:
                break
        if self._time > time_s + half:
            raise StopIteration
        # One converter for all frames: setting one up costs ten times what a frame does.
        image: Any = self._convert.reformat(frame, format="rgb24").to_ndarray()
        rgb: Image = image
        return rgb


def feature_info(info: VideoInfo, fps: int, settings: VideoSettings) -> Mapping[str, Any]:
    """Return what lerobot keeps in info.json about a video feature."""
    return {
        "video.height": info.height,
        "video.width": info.width,
        "video.codec": info.codec,
        "video.pix_fmt": info.pixel_format,
        "video.fps": fps,
        "video.channels": 3,
        "video.g": settings.gop,
        "video.crf": settings.crf,
        "video.preset": settings.preset,
        "is_depth_map": False,
        "video.is_depth_map": False,
        "has_audio": False,
    }


def _open(path: Path) -> Any:
    try:
        container: Any = av.open(str(path))
    except FileNotFoundError:
        raise DatasetError(f"{path}: the video file is missing") from None
    except av.error.FFmpegError as error:
        raise DatasetError(f"{path}: not a readable video ({error}); restore it or convert again") from error
    if not container.streams.video:
        raise DatasetError(f"{path}: holds no video stream")
    return container
