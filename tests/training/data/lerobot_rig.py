"""Small LeRobot datasets for tests: two joints, two cameras, images that tell their episode and frame by colour."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pi05_training.data.episode import EpisodeInfo, Frame
from pi05_training.data.lerobot import LeRobotFormat, LeRobotWriter

SIZE = (48, 64)
FPS = 50
LAYOUT = LeRobotFormat(("shoulder", "elbow"), ("front", "wrist"), SIZE, FPS, "arm")


def picture(episode: int, frame: int, camera: str) -> NDArray[np.uint8]:
    """Return an RGB image whose colours are the frame, the episode and the camera."""
    colour = (frame * 37 % 250, 40 + 30 * episode, 200 if camera == "front" else 90)
    return np.full((*SIZE, 3), colour, np.uint8)


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """Encode an RGB image."""
    return bytes(cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1])


def state(episode: int, frame: int) -> NDArray[np.float32]:
    """Return the state of a frame."""
    return np.array([episode + frame / 100, -frame / 50], np.float32)


def make_frame(episode: int, frame: int, subtask: str = "reach", without: tuple[str, ...] = ()) -> Frame:
    """Return a frame; its action is the state of the next one."""
    images = {name: jpeg(picture(episode, frame, name)) for name in LAYOUT.cameras if name not in without}
    stamp = 7_000_000_000 * (episode + 1) + frame * 20_000_000
    return Frame(stamp, images, state(episode, frame), state(episode, frame + 1), subtask)


def subtask_of(frame: int) -> str:
    """Return the subtask that `write_episode` gives a frame."""
    return "reach" if frame < 12 else "grasp"


def write_episode(writer: LeRobotWriter, episode: int, frames: int = 30, task: str = "tidy up") -> None:
    """Write an episode of `frames` frames; every fifth lacks the wrist's image."""
    out = writer.episode(EpisodeInfo(f"bag_{episode}", task, "success", writer.layout.fps))
    for k in range(frames):
        out.add(make_frame(episode, k, subtask_of(k), ("wrist",) if k % 5 == 0 else ()))
    out.close()


def write_dataset(root: Path, episodes: int = 2, layout: LeRobotFormat = LAYOUT) -> LeRobotWriter:
    """Write a dataset of some episodes of 30, 31, … frames."""
    writer = LeRobotWriter(root, layout)
    for episode in range(episodes):
        write_episode(writer, episode, 30 + episode)
    return writer
