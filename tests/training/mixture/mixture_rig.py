"""Small data of every kind for tests of the mixture: 32-pixel images, a few frames per episode."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pi05_ros.contract import Image, load_contract
from pi05_ros.messages import encode_jpeg
from pi05_training.data.episode import EpisodeInfo, Frame
from pi05_training.data.folder_writer import FolderWriter
from pi05_training.data.lerobot_writer import LeRobotFormat, LeRobotWriter

EDGE = 32
CONTRACT = load_contract().model_copy(update={"image": Image(width=EDGE, height=EDGE, jpeg_quality=95)})
D, H = CONTRACT.dim, CONTRACT.rates.chunk_steps
TASK = "clear the table"
SUBTASKS = {"p": "pick up the red cube", "q": "put it in the bin", "t": TASK, ".": ""}
CAMERAS = ("front", "left_wrist", "right_wrist")
ARM = ("right_joint1", "right_joint2", "right_joint3", "right_joint4", "right_joint5", "right_joint6", "right_gripper")


def picture(episode: int, frame: int, camera: int = 0, edge: int = EDGE) -> NDArray[np.uint8]:
    """Return an RGB image that differs by episode, frame and camera, with a bright patch in it."""
    image = np.full((edge, edge, 3), (frame * 11 % 200, 30 + 40 * episode % 200, 60 + 50 * camera), np.uint8)
    image[edge // 4 : edge // 2, edge // 3 : edge // 2] = 255
    return image


def vector(episode: int, frame: int, entries: int = D) -> NDArray[np.float32]:
    """Return a vector that tells its episode, frame and entry: 100 · episode + frame + entry / 100."""
    return (100 * episode + frame + np.arange(entries) / 100).astype(np.float32)


def frames(
    episode: int, subtasks: str, cameras: Sequence[str] = CAMERAS, entries: int = D, fps: int = 50
) -> list[Frame]:
    """Make one frame per letter of `SUBTASKS`; an action is the state plus 1000."""
    return [
        Frame(
            1000 + k * round(1e9 / fps),
            {name: encode_jpeg(picture(episode, k, number), 95) for number, name in enumerate(cameras)},
            vector(episode, k, entries),
            vector(episode, k, entries) + 1000,
            SUBTASKS[letter],
        )
        for k, letter in enumerate(subtasks)
    ]


def write_folder(root: Path, episodes: Sequence[str], outcomes: Sequence[str] = (), task: str = TASK) -> Path:
    """Write a folder dataset (layout A), one episode per string of letters; they are called e0, e1, …"""
    writer = FolderWriter(root, CONTRACT, "a")
    for number, subtasks in enumerate(episodes):
        outcome = outcomes[number] if outcomes else "success"
        episode = writer.episode(EpisodeInfo(f"e{number}", task, outcome, CONTRACT.rates.action_hz))
        for frame in frames(number, subtasks):
            episode.add(frame)
        episode.close()
    return root


def write_arm(root: Path, names: Sequence[str] = ARM, episodes: int = 2, fps: int = 50, length: int = 12) -> Path:
    """Write a LeRobot dataset of a single arm with one camera, "top"."""
    writer = LeRobotWriter(root, LeRobotFormat(tuple(names), ("top",), (EDGE, EDGE), fps, "arm"))
    for number in range(episodes):
        episode = writer.episode(EpisodeInfo(f"a{number}", "fold the shirt", "success", float(fps)))
        for frame in frames(number, "p" * (length // 2) + "q" * (length - length // 2), ("top",), len(names), fps):
            episode.add(frame)
        episode.close()
    return root


def write_lines(path: Path, lines: Sequence[Any]) -> Path:
    """Write JSON Lines; a string is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def write_web(root: Path, size: tuple[int, int] = (EDGE, EDGE)) -> Path:
    """Write web data: a caption and a detection of a bright patch, in pictures of some height and width."""
    height, width = size
    image = np.full((height, width, 3), 20, np.uint8)
    cv2.rectangle(image, (width // 2, height // 4), (width // 4 * 3 - 1, height // 2 - 1), (250, 250, 250), -1)
    root.mkdir(parents=True, exist_ok=True)
    (root / "one.jpg").write_bytes(encode_jpeg(image, 100))
    box = {"label": "patch", "box": [0.25, 0.5, 0.5, 0.75]}
    write_lines(
        root / "samples.jsonl",
        [
            {"image": "one.jpg", "prompt": "caption the image", "answer": "a bright patch"},
            {"image": "one.jpg", "prompt": "detect patch", "boxes": [box]},
        ],
    )
    return root


def write_verbal(root: Path) -> Path:
    """Write verbal instructions: one with a picture and a state, one without."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "one.jpg").write_bytes(encode_jpeg(picture(0, 0), 95))
    write_lines(
        root / "samples.jsonl",
        [
            {"task": "tidy up", "subtask": "pick up the cup"},
            {
                "task": "tidy up",
                "subtask": "put it down",
                "images": {"base_0_rgb": "one.jpg"},
                "state": vector(1, 2).tolist(),
            },
        ],
    )
    return root
