"""Videos: frames are found by time, files are joined without touching what they show."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pi05_training.data.episode import DatasetError
from pi05_training.data.video import VideoReader, VideoSettings, VideoWriter, join, probe

FPS = 50


def picture(number: int) -> NDArray[np.uint8]:
    """Return an image with a gradient and a bar whose place is the number."""
    ramp = np.linspace(40, 200, 80, dtype=np.uint8)
    image = np.stack([np.tile(ramp, (64, 1))] * 3, axis=-1)
    image[:, number % 20 * 4 : number % 20 * 4 + 4] = (0, 0, 250)
    return image


def write(path: Path, numbers: range, settings: VideoSettings | None = None) -> Path:
    writer = VideoWriter(path, FPS, (64, 80), settings or VideoSettings())
    for number in numbers:
        writer.write(picture(number))
    writer.close()
    return path


def shown(path: Path, frames: range) -> list[NDArray[np.uint8]]:
    with VideoReader(path) as reader:
        return [reader.frame(k / FPS) for k in frames]


def test_frames_are_what_was_written(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", range(15))
    for number, image in enumerate(shown(path, range(15))):
        assert np.abs(image[..., ::-1].astype(int) - picture(number)).mean() < 4
    info = probe(path)
    assert (info.frames, info.width, info.height, info.codec, info.pixel_format) == (15, 80, 64, "h264", "yuv420p")


@pytest.mark.parametrize("gop", [1, 2, 8])
def test_every_order_gives_the_same_images(tmp_path: Path, gop: int) -> None:
    path = write(tmp_path / "a.mp4", range(20), VideoSettings(gop=gop))
    images = shown(path, range(20))
    with VideoReader(path) as reader:
        for k in [*range(19, -1, -1), *np.random.default_rng(gop).permutation(20).tolist(), 7, 7]:
            np.testing.assert_array_equal(reader.frame(k / FPS), images[k])
            np.testing.assert_array_equal(reader.frame((k + 0.4) / FPS), images[k])


def test_joined_videos_show_what_the_parts_showed(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.mp4", range(15)), write(tmp_path / "b.mp4", range(30, 41))
    join(a, 9, b, tmp_path / "c.mp4", FPS)
    join(tmp_path / "c.mp4", 20, a, tmp_path / "d.mp4", FPS)
    assert probe(tmp_path / "d.mp4").frames == 35
    wanted = [*shown(a, range(9)), *shown(b, range(11)), *shown(a, range(15))]
    for image, same in zip(shown(tmp_path / "d.mp4", range(35)), wanted, strict=True):
        np.testing.assert_array_equal(image, same)


def test_joining_a_video_that_was_cut_is_refused(tmp_path: Path) -> None:
    a = write(tmp_path / "a.mp4", range(5))
    with pytest.raises(DatasetError, match=r"a.mp4: holds 5 frames, 6 are expected"):
        join(a, 6, a, tmp_path / "b.mp4", FPS)


def test_quality_is_a_trade(tmp_path: Path) -> None:
    fine, coarse = (write(tmp_path / f"{crf}.mp4", range(20), VideoSettings(crf=crf)) for crf in (10, 40))
    assert fine.stat().st_size > 1.5 * coarse.stat().st_size
    errors = [
        np.mean(
            [np.square(i[..., ::-1] - picture(k).astype(float)).mean() for k, i in enumerate(shown(path, range(20)))]
        )
        for path in (fine, coarse)
    ]
    assert errors[0] < errors[1]


def test_a_time_without_a_frame_is_an_error_and_the_reader_goes_on(tmp_path: Path) -> None:
    with VideoReader(write(tmp_path / "a.mp4", range(5))) as reader:
        for time_s in (5 / FPS, 90.0):
            with pytest.raises(DatasetError, match=rf"no frame at {time_s:.3f} s: it ends before that"):
                reader.frame(time_s)
        assert reader.frame(4 / FPS).shape == (64, 80, 3)


def test_files_that_are_no_videos_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"a.mp4: the video file is missing"):
        probe(tmp_path / "a.mp4")
    (tmp_path / "a.mp4").write_bytes(b"not a video")
    with pytest.raises(DatasetError, match=r"a.mp4: not a readable video"):
        VideoReader(tmp_path / "a.mp4")


def test_damage_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", range(40), VideoSettings(gop=40))
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start : start + 400] = bytes(400)
    path.write_bytes(data)
    with VideoReader(path) as reader, pytest.raises(DatasetError, match=r"a.mp4: no frame at 0.020 s"):
        reader.frame(1 / FPS)


def test_what_cannot_be_encoded_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"\(63, 80\) px \(height, width\): 4:2:0 needs even numbers"):
        VideoWriter(tmp_path / "a.mp4", FPS, (63, 80), VideoSettings())
    with pytest.raises(DatasetError, match="video codec 'h266'"):
        VideoWriter(tmp_path / "a.mp4", FPS, (64, 80), VideoSettings(codec="h266"))
