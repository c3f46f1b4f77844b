"""LeRobotDataset v3.0: what is written is read back, loads after any crash, and says what is wrong with it."""

import dataclasses
import json
import os
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from lerobot_rig import FPS, LAYOUT, make_frame, picture, state, subtask_of, write_dataset, write_episode

from pi05_ros.contract import load_contract
from pi05_training.data.episode import DatasetError, EpisodeInfo, Sample
from pi05_training.data.lerobot import LeRobotDataset, LeRobotFormat, LeRobotWriter, lerobot_format
from pi05_training.data.video import probe

INFO = "meta/info.json"
DATA = "data/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.front/chunk-000/file-000.mp4"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes of 30 and 31 frames. Read only."""
    root = tmp_path_factory.mktemp("shared") / "dataset"
    write_dataset(root)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The same, to be damaged."""
    write_dataset(tmp_path / "dataset")
    return tmp_path / "dataset"


def check(sample: Sample, episode: int, frame: int, length: int, horizon: int) -> None:
    """Compare a sample with what the rig wrote."""
    assert (sample.episode, sample.frame) == (f"bag_{episode}", frame)
    assert (sample.task, sample.subtask, sample.text) == ("tidy up", subtask_of(frame), subtask_of(frame))
    np.testing.assert_array_equal(sample.state, state(episode, frame))
    for row in range(horizon):
        np.testing.assert_array_equal(sample.actions[row], state(episode, min(frame + row, length - 1) + 1))
    assert sample.action_is_pad.tolist() == [frame + row >= length for row in range(horizon)]
    assert set(sample.images) == ({"base_0_rgb"} if frame % 5 == 0 else {"base_0_rgb", "wrist"})
    for key, image in sample.images.items():
        wanted = picture(episode, frame, "front" if key == "base_0_rgb" else "wrist")
        assert image.shape == wanted.shape and image.dtype == np.uint8
        assert np.abs(image.astype(int) - wanted).mean() < 6


def set_info(root: Path, **values: object) -> None:
    path = root / INFO
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_every_frame_comes_back(shared: Path) -> None:
    dataset = LeRobotDataset(shared, horizon=4)
    assert (len(dataset), dataset.fps, dataset.names) == (61, 50.0, ("shoulder", "elbow"))
    for index in range(61):
        episode, frame = divmod(index, 30) if index < 60 else (1, 30)
        check(dataset[index], episode, frame, 30 + episode, 4)
    assert dataset[-1].frame == 30
    for index in (61, -62):
        with pytest.raises(IndexError):
            dataset[index]


def test_random_access_gives_the_images_of_sequential_access(shared: Path) -> None:
    forwards, shuffled = LeRobotDataset(shared), LeRobotDataset(shared)
    images = [forwards[index].images["base_0_rgb"] for index in range(61)]
    for index in np.random.default_rng(0).permutation(61).tolist():
        np.testing.assert_array_equal(shuffled[index].images["base_0_rgb"], images[index])


def test_labels_and_trajectories_are_those_of_the_samples(shared: Path) -> None:
    dataset = LeRobotDataset(shared, horizon=5)
    for index in (0, 29, 30, 60):
        found, sample = dataset.labels(index), dataset[index]
        np.testing.assert_array_equal(found[0], sample.state)
        np.testing.assert_array_equal(found[1], sample.actions)
    lengths = [(s.shape, a.shape) for s, a in dataset.trajectories()]
    assert lengths == [((30, 2), (30, 2)), ((31, 2), (31, 2))]
    ((states, actions),) = dataset.trajectories(1, 2)
    np.testing.assert_array_equal(states, [state(1, k) for k in range(31)])
    np.testing.assert_array_equal(actions, [state(1, k + 1) for k in range(31)])


def test_spans_cover_the_episode(shared: Path) -> None:
    spans = LeRobotDataset(shared).spans(1)
    assert [(span.start, span.stop, span.text) for span in spans] == [(0, 12, "reach"), (12, 31, "grasp")]


def test_files_are_lerobots(shared: Path) -> None:
    info = json.loads((shared / INFO).read_text())
    assert (info["codebase_version"], info["fps"], info["robot_type"]) == ("v3.0", 50, "arm")
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (2, 61, 1)
    assert info["splits"] == {"train": "0:2"}
    assert info["data_path"] == "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    front = info["features"]["observation.images.front"]
    assert (front["dtype"], front["shape"], front["info"]["video.codec"]) == ("video", [48, 64, 3], "h264")
    table = pq.read_table(shared / DATA)
    assert set(table.column_names) == {key for key, feature in info["features"].items() if feature["dtype"] != "video"}
    assert table["index"].to_pylist() == list(range(61))
    assert table["frame_index"].to_pylist() == [*range(30), *range(31)]
    np.testing.assert_allclose(table["timestamp"].to_numpy(), [k / 50 for k in (*range(30), *range(31))], rtol=1e-6)
    assert probe(shared / VIDEO).frames == 61
    rows = pq.read_table(shared / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["length"] for row in rows] == [30, 31]
    assert [row["dataset_to_index"] for row in rows] == [30, 61]
    assert [row["videos/observation.images.front/from_timestamp"] for row in rows] == [0.0, 0.6]
    assert rows[1]["tasks"] == ["tidy up"] and (rows[1]["name"], rows[1]["outcome"]) == ("bag_1", "success")
    assert rows[1]["start_stamp_ns"] == 14_000_000_000


def test_texts_are_the_index_that_pandas_reads(shared: Path) -> None:
    for name in ("task", "subtask"):
        schema = pq.read_schema(shared / f"meta/{name}s.parquet")
        assert json.loads(schema.metadata[b"pandas"])["index_columns"] == [name]


def test_statistics_are_those_of_the_frames(shared: Path) -> None:
    stats = json.loads((shared / "meta/stats.json").read_text())
    states = np.array([state(0, k) for k in range(30)] + [state(1, k) for k in range(31)], np.float64)
    found = stats["observation.state"]
    assert found["count"] == [61] == stats["index"]["count"]
    for name, wanted in (("mean", states.mean(0)), ("std", states.std(0)), ("min", states.min(0))):
        np.testing.assert_allclose(found[name], wanted, rtol=1e-9, atol=1e-12)
    # lerobot merges quantiles to the widest of the episodes'.
    ends = [np.quantile([state(e, k) for k in range(30 + e)], 0.99, axis=0) for e in (0, 1)]
    np.testing.assert_allclose(found["q99"], np.max(ends, axis=0), rtol=1e-6)
    image = stats["observation.images.front"]
    assert np.shape(image["mean"]) == (3, 1, 1)
    assert abs(image["mean"][2][0][0] - 200 / 255) < 0.02 and image["max"][1][0][0] < 0.4


def test_files_roll_over_at_their_size(tmp_path: Path) -> None:
    layout = dataclasses.replace(LAYOUT, data_files_size_in_mb=1e-4, video_files_size_in_mb=1e-4, chunks_size=2)
    write_dataset(tmp_path / "d", 3, layout)
    for kind in ("data", "videos/observation.images.wrist"):
        files = sorted(
            str(path.relative_to(tmp_path / "d" / kind).with_suffix(""))
            for path in (tmp_path / "d" / kind).rglob("*.*")
        )
        assert files == ["chunk-000/file-000", "chunk-000/file-001", "chunk-001/file-000"]
    dataset = LeRobotDataset(tmp_path / "d", horizon=3)
    for index, (episode, frame) in {0: (0, 0), 45: (1, 15), 61: (2, 0), 92: (2, 31)}.items():
        check(dataset[index], episode, frame, 30 + episode, 3)


def test_another_writer_goes_on(root: Path) -> None:
    writer = LeRobotWriter(root, LAYOUT)
    assert writer.episodes() == ["bag_0", "bag_1"]
    write_episode(writer, 2, 13, task="fold the towel")
    dataset = LeRobotDataset(root, horizon=2)
    assert (len(dataset), dataset[73].task, dataset[60].task) == (74, "fold the towel", "tidy up")
    assert not (root / ".staging").exists()


def test_other_quality_starts_a_new_video(root: Path) -> None:
    video = dataclasses.replace(LAYOUT.video, crf=35)
    write_episode(LeRobotWriter(root, dataclasses.replace(LAYOUT, video=video)), 2, 32)
    assert (root / VIDEO).with_name("file-001.mp4").exists()
    check(LeRobotDataset(root, horizon=2)[80], 2, 19, 32, 2)


def test_discarded_episode_leaves_nothing(root: Path) -> None:
    before = sorted(root.rglob("*"))
    episode = LeRobotWriter(root, LAYOUT).episode(EpisodeInfo("bag_2", "tidy up", "", FPS))
    episode.add(make_frame(2, 0))
    episode.discard()
    assert sorted(path for path in root.rglob("*") if ".staging" not in path.parts) == before
    assert len(LeRobotDataset(root)) == 61


def killed_commit(root: Path, after: int) -> int:
    """Commit a third episode in a process that dies at a renaming; return its exit status, 9 if it died."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    left, replace = [after], Path.replace

    def dying(self: Path, target: Path) -> Path:
        left[0] -= 1
        return replace(self, target) if left[0] >= 0 else os._exit(9)

    Path.replace = dying  # type: ignore[method-assign]
    try:
        write_episode(LeRobotWriter(root, LAYOUT), 2, 32)
    finally:
        os._exit(0)


@pytest.mark.parametrize("rolls", [False, True], ids=["joined", "new files"])
def test_a_commit_may_die_anywhere(tmp_path: Path, rolls: bool) -> None:
    died = 0
    while True:
        root = tmp_path / f"{died}"
        write_dataset(root)
        if rolls:
            set_info(root, data_files_size_in_mb=1e-4, video_files_size_in_mb=1e-4)
        if killed_commit(root, died) == 0:
            break
        dataset = LeRobotDataset(root, horizon=3)
        assert [episode.name for episode in dataset.episodes] == ["bag_0", "bag_1"]
        check(dataset[60], 1, 30, 31, 3)
        set_info(root, data_files_size_in_mb=100, video_files_size_in_mb=200)
        for episode, frames in ((2, 32), (3, 33)):
            write_episode(LeRobotWriter(root, LAYOUT), episode, frames)
        dataset = LeRobotDataset(root, horizon=3)
        for index, (episode, frame) in {60: (1, 30), 61: (2, 0), 92: (2, 31), 93: (3, 0), 125: (3, 32)}.items():
            check(dataset[index], episode, frame, 30 + episode, 3)
        assert json.loads((root / "meta/stats.json").read_text())["index"]["count"] == [126]
        died += 1
    assert died == 8  # two videos, tasks, subtasks, rows, the episode's row, statistics, info.json


def test_remains_are_cut_off_when_the_next_file_begins(root: Path) -> None:
    # A commit dies after its rows were written, and the next one starts new files.
    assert killed_commit(root, 5) == 9
    assert len(pq.read_table(root / DATA)) == 93
    set_info(root, data_files_size_in_mb=1e-4)
    write_episode(LeRobotWriter(root, LAYOUT), 2, 32)
    assert len(pq.read_table(root / DATA)) == 61
    check(LeRobotDataset(root, horizon=3)[92], 2, 31, 32, 3)


def stage(work: tuple[Path, int]) -> None:
    write_episode(LeRobotWriter(work[0], LAYOUT), work[1], 30 + work[1])


def test_processes_may_write_together(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        list(pool.map(stage, [(tmp_path / "d", episode) for episode in range(4)]))
    dataset = LeRobotDataset(tmp_path / "d", horizon=3)
    assert sorted(episode.name for episode in dataset.episodes) == ["bag_0", "bag_1", "bag_2", "bag_3"]
    for row in dataset.episodes:
        number = int(row.name[-1])
        check(dataset[row.start + 7], number, 7, 30 + number, 3)


def test_staged_episodes_are_committed_in_the_order_wanted(tmp_path: Path) -> None:
    writer = LeRobotWriter(tmp_path / "d", LAYOUT)
    staged = []
    for number in (1, 0):
        episode = writer.episode(EpisodeInfo(f"bag_{number}", "tidy up", "", FPS))
        episode.add(make_frame(number, 0))
        staged.append(episode.stage())
    assert writer.episodes() == []
    for folder in reversed(staged):
        writer.commit(folder)
    assert writer.episodes() == ["bag_0", "bag_1"]


def test_no_name_leads_out_of_the_staging_folder(root: Path) -> None:
    writer = LeRobotWriter(root, LAYOUT)
    for name in ("..", ".", "../meta", "a/b", "ünï code"):
        episode = writer.episode(EpisodeInfo(name, "tidy up", "", FPS))
        episode.add(make_frame(0, 0))
        episode.close()
    assert [row.name for row in LeRobotDataset(root).episodes][2:] == ["..", ".", "../meta", "a/b", "ünï code"]
    assert not (root / ".staging").exists() and len(LeRobotDataset(root)) == 66


def test_remains_of_a_finished_commit_are_cleared(root: Path) -> None:
    writer = LeRobotWriter(root, LAYOUT)
    episode = writer.episode(EpisodeInfo("bag_2", "tidy up", "", FPS))
    episode.add(make_frame(2, 0))
    staged = episode.stage()
    shutil.copytree(staged, tmp := root.with_name("copy"))
    writer.commit(staged)
    shutil.move(tmp, staged)  # as if the process had died before it removed the folder
    write_episode(writer, 3)
    assert not (root / ".staging").exists()


def read_image(dataset: LeRobotDataset) -> bytes:
    return dataset[40].images["base_0_rgb"].tobytes()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_datasets_work_in_other_processes(shared: Path, start: str) -> None:
    dataset = LeRobotDataset(shared)
    wanted = read_image(dataset)
    with ProcessPoolExecutor(1, get_context(start)) as pool:
        assert pool.submit(read_image, dataset).result() == wanted
    assert read_image(pickle.loads(pickle.dumps(dataset))) == wanted == read_image(dataset)


def test_language_columns_carry_the_subtasks(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", 2, dataclasses.replace(LAYOUT, language_columns=True))
    rows = pq.read_table(tmp_path / "d" / DATA, columns=["language_persistent"]).to_pylist()
    assert rows[0] == rows[29] and [row["content"] for row in rows[0]["language_persistent"]] == ["reach", "grasp"]
    assert rows[0]["language_persistent"][1]["timestamp"] == pytest.approx(12 / 50)
    # As lerobot 0.6 leaves a dataset: without subtask_index.
    features = json.loads((tmp_path / "d" / INFO).read_text())["features"]
    del features["subtask_index"]
    set_info(tmp_path / "d", features=features)
    dataset = LeRobotDataset(tmp_path / "d", horizon=3)
    for index in (0, 11, 12, 29, 41, 42):
        check(dataset[index], index // 30, index % 30, 30 + index // 30, 3)
    assert [(s.start, s.stop, s.text) for s in dataset.spans(1)] == [(0, 12, "reach"), (12, 31, "grasp")]


def test_without_subtasks_the_task_stands_for_them(root: Path) -> None:
    features = json.loads((root / INFO).read_text())["features"]
    del features["subtask_index"]
    set_info(root, features=features)
    assert LeRobotDataset(root)[3].subtask == "tidy up"


def test_cameras_and_format_follow_the_contract(shared: Path) -> None:
    contract = load_contract()
    layout = lerobot_format(contract, chunks_size=7)
    assert (layout.names, layout.cameras, layout.fps) == (contract.names, tuple(contract.cameras), 50)
    assert (layout.image_size, layout.chunks_size) == ((224, 224), 7)
    assert set(LeRobotDataset(shared, cameras={"wrist": "left_wrist_0_rgb"})[1].images) == {"front", "left_wrist_0_rgb"}


BAD_FRAMES = {
    "image of 10 bytes": (dict(images={"front": b"0123456789"}), "frame 1: camera front: 10 bytes that are no image"),
    "empty image": (dict(images={"wrist": b""}), "camera wrist: 0 bytes that are no image"),
    "other size": (dict(images={"front": "small"}), r"\(24, 32\) px \(height, width\), the dataset has \(48, 64\)"),
    "camera": (dict(images={"back": b"x"}), r"unknown camera \['back'\]; cameras: \['front', 'wrist'\]"),
    "dims": (dict(state=np.zeros(3, np.float32)), r"state: shape \(3,\), expected 2 entries: shoulder, elbow"),
    "nan": (dict(action=np.array([0, np.nan], np.float32)), "action: not a finite number: elbow"),
    "late": (dict(stamp_ns=7_000_000_000 + 60_000_000), "frame 1: 40.0 ms off the grid of 50 frames per second"),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_frames_that_do_not_fit_are_refused(tmp_path: Path, name: str) -> None:
    changes, message = BAD_FRAMES[name]
    if changes.get("images") == {"front": "small"}:
        from lerobot_rig import jpeg

        changes = {"images": {"front": jpeg(picture(0, 0, "front")[::2, ::2])}}
    episode = LeRobotWriter(tmp_path / "d", LAYOUT).episode(EpisodeInfo("bag_0", "tidy up", "", FPS))
    episode.add(make_frame(0, 0))
    with pytest.raises(DatasetError, match=message):
        episode.add(dataclasses.replace(make_frame(0, 1), **changes))
    episode.add(make_frame(0, 1))  # the frame was refused, not the episode
    episode.close()
    assert len(LeRobotDataset(tmp_path / "d")) == 2


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (EpisodeInfo("bag_1", "t", "", 50), "episode 'bag_1' is already there"),
        (EpisodeInfo("", "t", "", 50), "needs a name"),
        (EpisodeInfo("bag_9", "t", "", 30), "bag_9: 30 frames per second, .* has 50"),
    ],
)
def test_episodes_that_do_not_fit_are_refused(shared: Path, info: EpisodeInfo, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        LeRobotWriter(shared, LAYOUT).episode(info)


def test_an_episode_without_frames_is_refused(root: Path) -> None:
    with pytest.raises(DatasetError, match="without frames"):
        LeRobotWriter(root, LAYOUT).episode(EpisodeInfo("bag_2", "t", "", 50)).close()
    assert len(LeRobotDataset(root).episodes) == 2


OTHER_LAYOUTS: dict[str, tuple[dict[str, object], str]] = {
    "rate": (dict(fps=30), "has 50 frames per second, 30 are to be added"),
    "cameras": (dict(cameras=("front",)), "feature camera_present is"),
    "size": (dict(image_size=(96, 96)), r"observation.images.front is .*\[48, 64, 3\].*\[96, 96, 3\]"),
    "vector": (dict(names=("a", "b", "c")), r"feature action is .*\[2\]"),
}


@pytest.mark.parametrize("name", OTHER_LAYOUTS)
def test_other_contents_are_refused(shared: Path, name: str) -> None:
    changes, message = OTHER_LAYOUTS[name]
    layout: LeRobotFormat = dataclasses.replace(LAYOUT, **changes)  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match=message):
        LeRobotWriter(shared, layout)


def test_a_folder_with_other_things_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(DatasetError, match="neither empty nor a LeRobot dataset"):
        LeRobotWriter(tmp_path, LAYOUT)


def test_damaged_info_is_explained(root: Path) -> None:
    set_info(root, codebase_version="v2.1")
    with pytest.raises(DatasetError, match=r"v2.1, v3.0 is expected.*convert_dataset_v21_to_v30"):
        LeRobotDataset(root)
    (root / INFO).write_text('{"codebase')
    with pytest.raises(DatasetError, match=r"not an info.json"):
        LeRobotDataset(root)
    (root / INFO).unlink()
    with pytest.raises(DatasetError, match="no LeRobot dataset"):
        LeRobotDataset(root)


def test_info_that_does_not_fit_is_explained(root: Path) -> None:
    with pytest.raises(DatasetError, match="50 frames per second, 30 are expected"):
        LeRobotDataset(root, fps=30)
    set_info(root, total_frames=1000)
    with pytest.raises(DatasetError, match=r"61 frames, meta/info.json says 1000"):
        LeRobotDataset(root)
    set_info(root, total_frames=61, total_episodes=3)
    with pytest.raises(DatasetError, match=r"2 episodes, meta/info.json says 3"):
        LeRobotDataset(root)
    features = json.loads((root / INFO).read_text())["features"]
    set_info(root, total_episodes=2, features={k: v for k, v in features.items() if k != "action"})
    with pytest.raises(DatasetError, match=r"needs a vector feature 'action'; features: observation.state"):
        LeRobotDataset(root)


def test_wrong_dimensions_are_explained(root: Path) -> None:
    features = json.loads((root / INFO).read_text())["features"]
    features["observation.state"]["shape"] = [7]
    set_info(root, features=features)
    with pytest.raises(DatasetError, match=r"observation.state: 60 values in 30 rows, info.json says 7 in each"):
        LeRobotDataset(root)[0]


@pytest.mark.parametrize("file", [DATA, VIDEO, "meta/episodes/chunk-000/file-000.parquet", "meta/tasks.parquet"])
@pytest.mark.parametrize("how", ["cut", "noise"])
def test_damaged_files_are_named(root: Path, file: str, how: str) -> None:
    path = root / file
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if how == "cut" else os.urandom(len(whole)))
    with pytest.raises(DatasetError, match=f"{path}|meta/episodes"):
        LeRobotDataset(root)[60]


@pytest.mark.parametrize("file", [DATA, VIDEO])
def test_missing_files_are_named(root: Path, file: str) -> None:
    (root / file).unlink()
    with pytest.raises(DatasetError, match=f"{root / file}: the .*file is missing"):
        LeRobotDataset(root)[0]
