"""lerobot itself reads what is written here, and writes what is read here.

Runs when PI05_PEER_PYTHON names a Python with lerobot's `dataset` extra (0.4 to 0.6); PI05_PEER_PATH may add folders.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from lerobot_rig import write_dataset

from pi05_training.data.lerobot import LeRobotDataset

PEER = os.environ.get("PI05_PEER_PYTHON", "")

pytestmark = pytest.mark.skipif(not PEER, reason="PI05_PEER_PYTHON names no Python that has lerobot")


def peer(*arguments: object) -> None:
    script = Path(__file__).with_name("lerobot_peer.py")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.environ.get("PI05_PEER_PATH", "")}
    done = subprocess.run([PEER, script, *map(str, arguments)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_lerobot_reads_our_dataset(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", 3)
    peer("read", tmp_path / "d", tmp_path / "found.npz")
    dataset, found = LeRobotDataset(tmp_path / "d", horizon=5), np.load(tmp_path / "found.npz")
    samples = [dataset[index] for index in range(len(dataset))]
    assert len(found["action"]) == len(samples) == 93
    np.testing.assert_array_equal(found["observation.state"], [sample.state for sample in samples])
    np.testing.assert_array_equal(found["action"], [sample.actions for sample in samples])
    np.testing.assert_array_equal(found["action_is_pad"], [sample.action_is_pad for sample in samples])
    assert found["frame_index"].tolist() == [sample.frame for sample in samples]
    assert set(found["task"]) == {"tidy up"}
    np.testing.assert_allclose(found["mean"], np.mean([sample.state for sample in samples], axis=0), rtol=1e-5)
    shown = [sample.images["base_0_rgb"] for sample in samples[::7]]
    np.testing.assert_array_equal(found["front"], shown)


@pytest.mark.parametrize("kind", ["video", "image"])
def test_we_read_lerobots_dataset(tmp_path: Path, kind: str) -> None:
    peer("write", tmp_path / "d", kind)
    dataset = LeRobotDataset(tmp_path / "d", horizon=5)
    assert (len(dataset), dataset.fps, dataset.cameras, dataset.names[6]) == (63, 30.0, ("top",), "joint6")
    index = 0
    for episode in range(3):
        for k in range(20 + episode):
            sample = dataset[index]
            assert (sample.frame, sample.episode) == (k, f"episode_{episode:06d}")
            assert sample.task == sample.subtask == ("fold", "wipe")[episode % 2]
            np.testing.assert_allclose(sample.state, episode + k / 100, atol=1e-6)
            np.testing.assert_allclose(sample.actions[0], episode + k / 100 + 0.5, atol=1e-6)
            assert sample.action_is_pad.sum() == max(0, k + 5 - (20 + episode))
            colour = sample.images["top"].reshape(-1, 3).mean(axis=0)
            np.testing.assert_allclose(colour, [k * 10, episode * 60, 90], atol=8)
            index += 1
