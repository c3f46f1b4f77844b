"""The same bag through the live path and through the converter gives the same observations, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pi05_model.observation import Observation
from pi05_ros import topics
from pi05_ros.contract import load_contract
from pi05_ros.ingest import ObservationBuffer
from pi05_ros.messages import decode_jpeg, encode_jpeg, fit, stamp_to_ns, state_from
from pi05_training.data.bags import open_bag
from pi05_training.data.command import main
from pi05_training.data.folder import FolderDataset
from pi05_training.data.synthetic import Event, Messages, Script, write_bag

CONTRACT = load_contract()
MS = 1_000_000
Pixels = NDArray[np.uint8]


def live_observations(bag: Path, stamps: list[int]) -> dict[int, Observation]:
    """Feed the bag's messages in order of arrival as the nodes do; take each stamp as soon as all sources passed it."""
    camera_of = {f"/{topics.camera_image(name)}": name for name in CONTRACT.cameras}
    buffer, seen, waiting = ObservationBuffer(CONTRACT), dict[int, Observation](), list(stamps)
    opened = open_bag(bag)
    for message in opened.messages([name for name in (*camera_of, "/state") if opened.topics[name].count]):
        said = message.message
        if message.topic in camera_of:
            buffer.add_image(camera_of[message.topic], stamp_to_ns(said.header.stamp), said.data)
        else:
            buffer.add_state(stamp_to_ns(said.header.stamp), state_from(said, CONTRACT))
        passed = buffer.passed_ns()
        while waiting and passed is not None and waiting[0] <= passed:
            observation = buffer.at(waiting.pop(0)).observation
            if observation is not None:
                seen[observation.stamp_ns] = observation
    return seen


def frame_stamps(dataset: FolderDataset) -> list[int]:
    """Return the stamp of every sample, in the order of the dataset."""
    return [int(stamp) for run in dataset.runs for stamp in np.load(run.folder / "stamps.npy")]


def assert_same(dataset: FolderDataset, live: dict[int, Observation]) -> int:
    compared = 0
    for index, stamp_ns in enumerate(frame_stamps(dataset)):
        observation = live.get(stamp_ns)
        if observation is None:
            continue
        sample = dataset[index]
        assert list(sample.images) == [key for key in sample.images if key in observation.images]
        assert set(sample.images) == set(observation.images)
        np.testing.assert_array_equal(sample.state, observation.state.astype(np.float32))
        for key, image in observation.images.items():
            np.testing.assert_array_equal(sample.images[key], image)
        compared += 1
    return compared


def delayed(events: list[Event], seed: int) -> list[Event]:
    """Deliver every topic in its own order, each message up to 60 ms late."""
    rng = np.random.default_rng(seed)
    newest: dict[str, int] = {}
    found = []
    for event in events:
        newest[event.topic] = max(newest.get(event.topic, 0), event.log_ns + int(rng.integers(0, 60)) * MS)
        found.append(Event(newest[event.topic], event.topic, event.data))
    return sorted(found, key=lambda event: event.log_ns)


@pytest.mark.parametrize("seed", [0, 1])
def test_skewed_cameras_and_late_messages(tmp_path: Path, seed: int) -> None:
    events = delayed(Script(seconds=3, skew_s=0.007).events(CONTRACT), seed)
    bag = write_bag(tmp_path, CONTRACT, events)
    assert main([str(bag), str(tmp_path / "set")]) == 0
    dataset = FolderDataset(tmp_path / "set")
    assert len(dataset) > 130
    assert assert_same(dataset, live_observations(bag, sorted(frame_stamps(dataset)))) == len(dataset)


def test_a_missing_camera_and_a_gap(tmp_path: Path) -> None:
    script = Script(seconds=3, cameras=("front", "left_wrist", "back"))
    start = script.start_ns
    lost = topics.camera_image("front")
    events = [e for e in script.events(CONTRACT) if not (e.topic == lost and 1000 * MS < e.log_ns - start < 1700 * MS)]
    bag = write_bag(tmp_path, CONTRACT, events)
    assert main([str(bag), str(tmp_path / "set"), "--threshold", "1"]) == 0
    dataset = FolderDataset(tmp_path / "set")
    without = [index for index in range(len(dataset)) if "base_0_rgb" not in dataset[index].images]
    assert 15 < len(without) < 30  # 0.7 s less the 0.25 s for which an image holds
    assert assert_same(dataset, live_observations(bag, sorted(frame_stamps(dataset)))) == len(dataset)


def test_broken_images_mask_both_ways(tmp_path: Path) -> None:
    script, make = Script(seconds=2), Messages(CONTRACT)
    events = script.events(CONTRACT)
    lost = topics.camera_image("right_wrist")
    bad = {script.start_ns + 400 * MS: b"", script.start_ns + 800 * MS: b"\xff\xd8\xffgarbage"}
    replaced = {
        make.image("right_wrist", stamp, b"").log_ns: make.image("right_wrist", stamp, b) for stamp, b in bad.items()
    }
    events = [replaced.get(e.log_ns, e) if e.topic == lost else e for e in events]
    bag = write_bag(tmp_path, CONTRACT, events)
    assert main([str(bag), str(tmp_path / "set")]) == 0
    dataset = FolderDataset(tmp_path / "set")
    without = [index for index in range(len(dataset)) if "right_wrist_0_rgb" not in dataset[index].images]
    assert len(without) == 4  # two images, each of two frames
    assert assert_same(dataset, live_observations(bag, sorted(frame_stamps(dataset)))) == len(dataset)


def test_images_of_another_size_are_fitted_as_the_nodes_fit_them(tmp_path: Path) -> None:
    wide = np.zeros((120, 200, 3), np.uint8)
    wide[:, 40:160] = 200
    large = encode_jpeg(wide, 95)
    bag = write_bag(tmp_path, CONTRACT, Script(seconds=1).events(CONTRACT, lambda camera, k: large))
    assert main([str(bag), str(tmp_path / "set")]) == 0
    image = FolderDataset(tmp_path / "set")[10].images["base_0_rgb"]
    seen = fit(decode_jpeg(large), CONTRACT.image.width, CONTRACT.image.height)
    assert image.shape == seen.shape
    assert np.abs(image.astype(int) - seen).mean() < 2.0  # encoded once more


def test_images_are_the_bytes_that_were_sent(tmp_path: Path) -> None:
    script = Script(seconds=1, subtasks=("wait",))
    bag = write_bag(tmp_path, CONTRACT, script.events(CONTRACT))
    assert main([str(bag), str(tmp_path / "set")]) == 0
    dataset = FolderDataset(tmp_path / "set")
    opened = open_bag(bag)
    sent = {
        stamp_to_ns(m.message.header.stamp): bytes(m.message.data)
        for m in opened.messages(["/cameras/front/image/compressed"])
    }
    for index, stamp_ns in enumerate(frame_stamps(dataset)):
        newest = max(stamp for stamp in sent if stamp <= stamp_ns)
        assert (dataset.runs[0].folder / "front" / f"{index:06d}.jpg").read_bytes() == sent[newest]
