"""Run by a Python that has lerobot (test_lerobot_peer.py): read a dataset written here, or write one.

lerobot_peer.py read ROOT OUT.npz         every frame's values, and the images of every seventh
lerobot_peer.py write ROOT video|image    three episodes of 20, 21, 22 frames
"""

import sys
from pathlib import Path

import numpy as np


def read(root: str, out: str) -> None:
    """Save what lerobot makes of a dataset."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    chunk = {"action": [k / 50 for k in range(5)]}
    dataset = LeRobotDataset("local/dataset", root=root, video_backend="pyav", delta_timestamps=chunk)
    found: dict[str, list[object]] = {}
    for index in range(len(dataset)):
        item = dataset[index]
        for key in ("observation.state", "action", "action_is_pad", "episode_index", "frame_index", "camera_present"):
            found.setdefault(key, []).append(item[key].numpy())
        found.setdefault("task", []).append(item["task"])
        if index % 7 == 0:
            image = (item["observation.images.front"].numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8)
            found.setdefault("front", []).append(image)
    np.savez(out, mean=dataset.meta.stats["observation.state"]["mean"], **{k: np.array(v) for k, v in found.items()})


def write(root: str, kind: str) -> None:
    """Write a dataset with lerobot."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    image = {"dtype": kind, "shape": (96, 128, 3), "names": ["height", "width", "channels"]}
    vector = {"dtype": "float32", "shape": (7,), "names": [f"joint{i}" for i in range(7)]}
    features = {"observation.state": vector, "action": vector, "observation.images.top": image}
    dataset = LeRobotDataset.create("local/dataset", 30, features, root=Path(root), use_videos=kind == "video")
    for episode in range(3):
        for k in range(20 + episode):
            picture = np.full((96, 128, 3), (k * 10, episode * 60, 90), np.uint8)
            state = np.full(7, episode + k / 100, np.float32)
            frame = {"observation.state": state, "action": state + 0.5, "observation.images.top": picture}
            dataset.add_frame({**frame, "task": ("fold", "wipe")[episode % 2]})
        dataset.save_episode()
    dataset.finalize()


if __name__ == "__main__":
    {"read": read, "write": write}[sys.argv[1]](*sys.argv[2:])
