"""Folders of episode files (simulation) as a dataset: the same samples as the files hold, damage left out."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from mixture_rig import CONTRACT, EDGE, D, H, picture, vector

from pi05_ros.messages import encode_jpeg
from pi05_training.data.episode import DatasetError
from pi05_training.data.open import open_dataset
from pi05_training.mixture.sources import RobotSource
from pi05_training.samples import EpisodeFiles, LabelledSample, Sample, read_samples, write_samples

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb")


def write_episode(root: Path, number: int, count: int = 4, steps: int = H) -> Path:
    """Write an episode; the second camera is missing in every third sample."""
    samples = [
        Sample(
            images={
                key: encode_jpeg(picture(number, k, column), 95)
                for column, key in enumerate(CAMERAS)
                if not (column and k % 3 == 2)
            },
            state=vector(number, k).astype(float),
            actions=np.stack([vector(number, k + step) for step in range(steps)]).astype(float),
            task="clear the table",
            subtask=f"pick up cube {k}",
            planner_target=f"pick up cube {k % 2}",
        )
        for k in range(count)
    ]
    path = root / f"episode_{number:04d}.npz"
    write_samples(path, samples)
    return path


def test_samples_are_those_of_the_files(tmp_path: Path) -> None:
    paths = [write_episode(tmp_path, number, 3 + number) for number in range(3)]
    dataset = pickle.loads(pickle.dumps(open_dataset(tmp_path)))
    assert isinstance(dataset, EpisodeFiles) and len(dataset) == 12
    index = 0
    for path in paths:
        whole = read_samples(path, CAMERAS, (EDGE, EDGE))
        for row in range(len(whole.task)):
            sample = dataset[index]
            assert isinstance(sample, LabelledSample)
            assert (sample.episode, sample.frame) == (path.stem, row)
            assert (sample.task, sample.subtask, sample.answer) == (
                whole.task[row],
                whole.subtask[row],
                whole.planner_target[row],
            )
            assert (sample.state == whole.state[row]).all() and (sample.actions == whole.actions[row]).all()
            assert not sample.action_is_pad.any() and len(sample.action_is_pad) == H
            for column, key in enumerate(CAMERAS):
                assert (key in sample.images) == bool(whole.image_mask[row, column])
                if key in sample.images:
                    assert (sample.images[key] == whole.images[row, column]).all()
            state, actions = dataset.labels(index)
            assert (state == sample.state).all() and (actions == sample.actions).all()
            index += 1
    assert dataset[-1].episode == paths[-1].stem
    with pytest.raises(IndexError, match="no sample 12"):
        dataset[12]


def test_the_planner_answers_with_its_own_target(tmp_path: Path) -> None:
    write_episode(tmp_path, 0)
    source = RobotSource("MM", 1.0, frozenset({"text", "flow"}), [tmp_path], CONTRACT, H)
    reading = source.read(3)
    assert (reading.answer, reading.subtask) == ("pick up cube 1", "pick up cube 3")
    assert source.answers() == {"pick up cube 0", "pick up cube 1"}


def test_chunks_can_be_cut_but_not_made_longer(tmp_path: Path) -> None:
    write_episode(tmp_path, 0)
    assert open_dataset(tmp_path, horizon=10)[0].actions.shape == (10, D)
    with pytest.raises(DatasetError, match=rf"expected \[samples, {H + 1}, {D}\]"):
        open_dataset(tmp_path, horizon=H + 1)


def test_chunks_of_different_lengths_are_refused(tmp_path: Path) -> None:
    write_episode(tmp_path, 0)
    write_episode(tmp_path, 1, steps=20)
    with pytest.raises(DatasetError, match=r"episode_0001\.npz: actions are \[4, 20"):
        open_dataset(tmp_path)


def test_a_few_damaged_episodes_are_left_out(tmp_path: Path) -> None:
    for number in range(101):
        write_episode(tmp_path, number, 1)
    path = tmp_path / "episode_0050.npz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"1 damaged episodes are left out: .*episode_0050"):
        dataset = open_dataset(tmp_path)
    assert len(dataset) == 100 and isinstance(dataset, EpisodeFiles) and len(dataset.unreadable) == 1
    path = tmp_path / "episode_0051.npz"
    path.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"2 of 101 episodes are damaged: .*episode_0050"):
        open_dataset(tmp_path)


def test_other_archives_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "episode_0.npz", state=np.zeros((3, D)))
    with pytest.raises(DatasetError, match=r"expected cameras, jpeg, .*found state \[3, 18\]"):
        open_dataset(tmp_path)
    np.savez_compressed(tmp_path / "episode_0.npz", state=np.zeros((3, D)))
    with pytest.raises(DatasetError, match=r"state\.npy is compressed; write it with np\.savez"):
        open_dataset(tmp_path)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    path = write_episode(tmp_path, 0)
    with np.load(path) as data:
        arrays = {name: data[name] for name in data.files}
    arrays["jpeg"][: int(arrays["jpeg_end"][0, 0])] = 0
    np.savez(path, **arrays)
    dataset = open_dataset(tmp_path)
    with pytest.raises(DatasetError, match=r"episode_0000\.npz: sample 0, camera base_0_rgb"):
        dataset[0]
    assert dataset[1].images.keys() == set(CAMERAS)
