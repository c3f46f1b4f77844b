"""From the simulator to an evaluated policy, through the public commands alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from rosbags.highlevel import AnyReader

from pi05_ros.cli import main
from pi05_ros.contract import load_contract
from pi05_ros.messages import decode_jpeg
from pi05_training.data.open import open_dataset


@pytest.fixture(scope="module")
def videos(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos") / "set"
    bags = [str(bag) for bag in sorted(recorded.glob("episode_*"))]
    assert main(["convert", *bags[:2], str(folder), "--format", "lerobot"]) == 0
    return folder


def test_both_formats_hold_the_images_of_the_bag(recorded: Path, dataset: Path, videos: Path) -> None:
    contract = load_contract()
    folder, lerobot = open_dataset(dataset), open_dataset(videos)
    bag = sorted(recorded.glob("episode_*"))[0]
    sent: dict[str, dict[int, bytes]] = {name: {} for name in contract.cameras}
    with AnyReader([bag]) as reader:
        for connection, _, data in reader.messages():
            for name in contract.cameras:
                if connection.topic == f"/cameras/{name}/image/compressed":
                    message = reader.deserialize(data, connection.msgtype)
                    stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
                    sent[name][stamp] = bytes(message.data)
    checked = 0
    for index in range(0, 200, 37):
        exact, coded = folder[index], lerobot[index]
        assert (exact.episode, exact.frame, exact.subtask) == (coded.episode, coded.frame, coded.subtask)
        np.testing.assert_allclose(exact.state, coded.state, atol=1e-6)
        np.testing.assert_allclose(exact.actions, coded.actions, atol=1e-6)
        for name, camera in contract.cameras.items():
            pixels = exact.images[camera.model_key]
            assert any(np.array_equal(pixels, decode_jpeg(jpeg)) for jpeg in sent[name].values()), (name, index)
            difference = np.abs(pixels.astype(int) - coded.images[camera.model_key].astype(int))
            assert difference.mean() < 6, (name, index)  # H.264 is lossy
            checked += 1
    assert checked == 6 * len(contract.cameras)


def test_a_second_conversion_does_nothing(recorded: Path, dataset: Path) -> None:
    def when() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in dataset.rglob("*") if path.suffix in (".npy", ".jpg")}

    before = when()
    bags = [str(bag) for bag in sorted(recorded.glob("episode_*"))]
    assert main(["convert", *bags, str(dataset), "--format", "folder"]) == 0
    assert when() == before and len(before) > 1000


def test_from_demonstrations_to_an_evaluated_policy(dataset: Path, tmp_path: Path) -> None:
    run, report = tmp_path / "run", tmp_path / "eval"
    flags = ["--data-root", str(dataset), "--out", str(run), "--preset", "pi05_debug", "--steps", "200"]
    flags += ["--batch-size", "8", "--learning-rate", "3e-3", "--workers", "0", "--threads", "1", "--no-tensorboard"]
    flags += ["--no-insulate", "--evaluate-every", "0", "--warmup-steps", "20", "--log-every", "1", "--no-bf16"]
    assert main(["train", "hierarchical", *flags]) == 0
    losses = [json.loads(line)["total"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:3])
    evaluate = ["--policy", str(run / "latest"), "--episodes", "1", "--out", str(report), "--workers", "1"]
    assert main(["eval", *evaluate, "--time-limit-s", "5"]) == 0
    summary = json.loads((report / "report.json").read_text())["tasks"]["clear_table"]
    assert summary["episodes"] == 1 and 0 <= summary["planner_accuracy"] <= 1
