"""Folder datasets: both layouts, written here or by hand, give the same typed samples; what is missing is named."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pi05_ros.contract import load_contract
from pi05_ros.messages import decode_jpeg
from pi05_training.data.episode import DatasetError, EpisodeInfo, Frame
from pi05_training.data.folder import FolderDataset
from pi05_training.data.folder_writer import FolderWriter, Layout
from pi05_training.data.instructions import Instructions, find_instructions, folder_name, folder_text, read_instructions
from pi05_training.data.open import open_dataset
from pi05_training.data.synthetic import numbered_image

CONTRACT = load_contract()
H, D = CONTRACT.rates.chunk_steps, CONTRACT.dim
STEP_NS = round(CONTRACT.step_s * 1e9)
TASK, PICK, PUT = "clear the table", "pick up the red cube", "put it in the bin/tray_1"


def row(value: float) -> NDArray[np.float32]:
    return np.full(D, value, np.float32)


def frames(subtasks: str, missing: dict[str, set[int]] | None = None) -> list[Frame]:
    """Make one frame per letter: p is PICK, q is PUT, a dot is none."""
    texts = {"p": PICK, "q": PUT, ".": ""}
    found = []
    for k, letter in enumerate(subtasks):
        blobs = {
            name: numbered_image(CONTRACT, number, k)
            for number, name in enumerate(CONTRACT.cameras)
            if k not in (missing or {}).get(name, set())
        }
        found.append(Frame(1000 + k * STEP_NS, blobs, row(k), row(100 + k), texts[letter]))
    return found


def write(root: Path, made: list[Frame], layout: Layout = "a", name: str = "one", task: str = TASK) -> None:
    episode = FolderWriter(root, CONTRACT, layout).episode(EpisodeInfo(name, task, "success", 50.0))
    for frame in made:
        episode.add(frame)
    episode.close()


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("layout", ["a", "b"])
def test_what_is_written_is_read(tmp_path: Path, layout: Layout) -> None:
    made = frames("pppqqp", {"back": {1, 2}})
    write(tmp_path / "set", made, layout)
    dataset = open_dataset(tmp_path / "set")
    assert isinstance(dataset, FolderDataset) and dataset.layout == layout and len(dataset) == 6
    for index, frame in enumerate(made):
        sample = dataset[index]
        assert (sample.task, sample.subtask, sample.text) == (TASK, frame.subtask, frame.subtask)
        assert (sample.episode, sample.frame) == ("one", index)
        np.testing.assert_array_equal(sample.state, frame.state)
        assert sample.state.dtype == sample.actions.dtype == np.float32 and sample.actions.shape == (H, D)
        # The chunk goes on into the next run and repeats the episode's last action.
        np.testing.assert_array_equal(sample.actions[:, 0], np.minimum(100 + index + np.arange(H), 105))
        np.testing.assert_array_equal(sample.action_is_pad, index + np.arange(H) > 5)
        assert set(sample.images) == {CONTRACT.cameras[name].model_key for name in frame.images}
        for name, blob in frame.images.items():
            np.testing.assert_array_equal(sample.images[CONTRACT.cameras[name].model_key], decode_jpeg(blob))
        state, actions = dataset.labels(index)
        np.testing.assert_array_equal(state, sample.state)
        np.testing.assert_array_equal(actions, sample.actions)
    assert dataset.runs[0].outcome == "success"


def test_the_folders_are_those_of_the_layout(tmp_path: Path) -> None:
    write(tmp_path / "a", frames("ppqqp"))
    write(tmp_path / "b", frames("ppqqp"), "b")
    sub = "put_it_in_the_bin%2Ftray%5F1"
    a, b = tmp_path / "a", tmp_path / "b"
    assert np.load(a / "clear_the_table" / "pick_up_the_red_cube" / "run_001" / "actions.npy").shape == (2, D)
    assert np.load(a / "clear_the_table" / "pick_up_the_red_cube" / "run_002" / "qpos.npy").shape == (1, D)
    assert len(list((a / "clear_the_table" / sub / "run_001" / "front").glob("*.jpg"))) == 2
    assert np.load(b / "stage1" / "run_002" / "qpos.npy")[0, 0] == 4
    told = json.loads((b / "instructions.json").read_text())
    assert told["task_instructions"][1] == {"stage": 2, "high_level_task": TASK, "subtask": PUT, "text": PUT}
    told = json.loads((a / "instructions.json").read_text())
    assert told["tasks"]["clear_the_table"]["subtasks"][sub] == {"text": PUT}
    np.testing.assert_array_equal(
        np.load(b / "stage2" / "run_001" / "stamps.npy"), [1000 + k * STEP_NS for k in (2, 3)]
    )


def test_episodes_without_a_subtask_and_with_unicode(tmp_path: Path) -> None:
    task = "räume den 桌子 auf: „schnell“ 🤖 " + "sehr " * 60
    write(tmp_path / "set", frames("..p"), task=task)
    samples = [open_dataset(tmp_path / "set")[index] for index in range(3)]
    assert [sample.subtask for sample in samples] == ["", "", PICK] and samples[0].task == task


def test_an_episode_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    write(tmp_path / "set", frames("pq"))
    before = tree(tmp_path / "set")
    writer = FolderWriter(tmp_path / "set", CONTRACT)
    episode = writer.episode(EpisodeInfo("two", TASK, "", 50.0))
    for frame in frames("pq"):
        episode.add(frame)
    assert len(open_dataset(tmp_path / "set")) == 2
    episode.discard()
    assert tree(tmp_path / "set") == before and writer.episodes() == ["one"]


def test_a_killed_commit_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root, frames("pq"))
    write(root, frames("pqp"), name="two")
    # As if the process had been killed after the runs were moved and before the episode was listed.
    runs = [run["path"] for run in json.loads((root / "meta/episodes/two.json").read_text())["runs"]]
    (root / "meta/episodes/two.json").unlink()
    (root / "meta/placing.json").write_text(json.dumps({"runs": runs}))
    assert len(open_dataset(root)) == 2
    write(root, frames("ppp"), name="three")
    assert not (root / "meta/placing.json").exists()
    assert [run["path"] for run in json.loads((root / "meta/episodes/three.json").read_text())["runs"]] == [runs[0]]
    assert len(open_dataset(root)) == 5


def test_removing_an_episode_leaves_the_others(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root, frames("pq"))
    before = tree(root)
    write(root, frames("qp"), name="two")
    FolderWriter(root, CONTRACT).remove("two")
    assert tree(root) == before


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root, frames("p"))
    with pytest.raises(DatasetError, match="another layout"):
        FolderWriter(root, CONTRACT, "b")
    with pytest.raises(DatasetError, match="another contract"):
        FolderWriter(root, CONTRACT.model_copy(update={"robot": "other"}))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(DatasetError, match="neither empty nor"):
        FolderWriter(tmp_path / "mine", CONTRACT)
    with pytest.raises(DatasetError, match="already there"):
        FolderWriter(root, CONTRACT).episode(EpisodeInfo("one", TASK, "", 50.0))
    episode = FolderWriter(root, CONTRACT).episode(EpisodeInfo("two", TASK, "", 50.0))
    with pytest.raises(DatasetError, match="18 numbers"):
        episode.add(Frame(0, {}, np.zeros(3, np.float32), row(0), PICK))
    with pytest.raises(DatasetError, match="unknown camera"):
        episode.add(Frame(0, {"side": b""}, row(0), row(0), PICK))
    with pytest.raises(DatasetError, match="without frames"):
        episode.close()


def test_a_dataset_travels_to_other_processes(tmp_path: Path) -> None:
    write(tmp_path / "set", frames("ppqq"))
    dataset = open_dataset(tmp_path / "set")
    first = dataset[3]
    again = pickle.loads(pickle.dumps(dataset))[3]
    np.testing.assert_array_equal(again.images["base_0_rgb"], first.images["base_0_rgb"])


def test_only_the_cameras_that_are_wanted(tmp_path: Path) -> None:
    write(tmp_path / "set", frames("pp"))
    assert list(FolderDataset(tmp_path / "set", cameras=["front"], chunk_steps=5)[0].images) == ["base_0_rgb"]
    assert FolderDataset(tmp_path / "set", chunk_steps=5)[0].actions.shape == (5, D)
    with pytest.raises(DatasetError, match=r"no camera side; it has: .*front"):
        FolderDataset(tmp_path / "set", cameras=["side"])


@pytest.mark.parametrize("index", [2, -3])
def test_indices_outside(tmp_path: Path, index: int) -> None:
    write(tmp_path / "set", frames("pp"))
    with pytest.raises(IndexError, match="it has 2"):
        open_dataset(tmp_path / "set")[index]


# -- datasets made by others ------------------------------------------------------------------------------------------


def run_folder(folder: Path, count: int = 3, dim: int = 7, camera: str = "cam_high") -> None:
    """Write a run as other programs do: float64, images counted from 1 without leading zeros."""
    (folder / camera).mkdir(parents=True)
    np.save(folder / "qpos.npy", np.arange(count * dim, dtype=np.float64).reshape(count, dim))
    np.save(folder / "actions.npy", np.arange(count * dim, dtype=np.float64).reshape(count, dim) + 0.5)
    for k in range(count):
        (folder / camera / f"{k + 8}.jpg").write_bytes(numbered_image(CONTRACT, 0, k))


def instruction_file(path: Path, **changes: Any) -> None:
    """Write the seed's own example."""
    bedroom = "clean the bedroom"
    texts = {"subtask1": {"text": "pick up pillow"}, "subtask2": {"text": "adjust blanket"}}
    data = {
        "high_level_task": bedroom,
        "task_instructions": [
            {"stage": 1, "high_level_task": bedroom, "subtask": "pick up pillow", "text": "grasp it softly"},
            {"stage": 2, "high_level_task": bedroom, "subtask": "adjust blanket", "text": "..."},
        ],
        "tasks": {"task1": {"text": bedroom, "subtasks": texts}},
    }
    path.write_text(json.dumps(data | changes))


def test_layout_a_made_by_others(tmp_path: Path) -> None:
    for sub in ("subtask1", "subtask2"):
        run_folder(tmp_path / "task1" / sub / "run_001")
    run_folder(tmp_path / "task1" / "subtask1" / "run_010")
    run_folder(tmp_path / "task1" / "subtask1" / "run_002", count=4)
    instruction_file(tmp_path / "my_instructions.json")
    dataset = open_dataset(tmp_path)
    assert isinstance(dataset, FolderDataset)
    assert [run.folder.name for run in dataset.runs] == ["run_001", "run_002", "run_010", "run_001"]
    first, last = dataset[0], dataset[12]
    assert (first.task, first.subtask, first.text) == ("clean the bedroom", "pick up pillow", "grasp it softly")
    assert last.subtask == "adjust blanket"
    # Every run stands alone: nothing says that the next one goes on.
    assert dataset[2].action_is_pad.tolist() == [False] + [True] * 49
    # 8, 9, 10 are sorted as numbers.
    np.testing.assert_array_equal(dataset[2].images["cam_high"], decode_jpeg(numbered_image(CONTRACT, 0, 2)))


def test_layout_a_without_a_file_goes_by_the_names(tmp_path: Path) -> None:
    run_folder(tmp_path / "clean_the_bedroom" / "pick_up_pillow" / "run_001")
    sample = open_dataset(tmp_path)[0]
    assert (sample.task, sample.subtask) == ("clean the bedroom", "pick up pillow")


def test_layout_b_made_by_others(tmp_path: Path) -> None:
    for stage in ("stage1", "stage2"):
        run_folder(tmp_path / stage / "run_001", camera="front")
    instruction_file(tmp_path / "instruction.json")
    dataset = open_dataset(tmp_path)
    assert [dataset[index].subtask for index in (0, 3)] == ["pick up pillow", "adjust blanket"]
    assert set(dataset[0].images) == {"base_0_rgb"}  # the contract knows the camera


def test_a_stage_that_the_file_lacks(tmp_path: Path) -> None:
    run_folder(tmp_path / "stage3" / "run_001")
    instruction_file(tmp_path / "instructions.json")
    with pytest.raises(DatasetError, match=r"stage3: .*instructions.json: task_instructions has no .* stage 3 .*1, 2"):
        open_dataset(tmp_path)
    with pytest.raises(DatasetError, match=r"no instructions\.json"):
        (tmp_path / "instructions.json").unlink()
        open_dataset(tmp_path)


def test_a_subtask_that_the_file_lacks(tmp_path: Path) -> None:
    run_folder(tmp_path / "task1" / "subtask7" / "run_001")
    instruction_file(tmp_path / "instructions.json")
    with pytest.raises(DatasetError, match=r"subtask7: .*tasks.task1.subtasks has no key 'subtask7'.*subtask2"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda run: (run / "qpos.npy").unlink(), r"run_001: qpos.npy is missing"),
        (lambda run: (run / "actions.npy").unlink(), r"run_001: actions.npy is missing"),
        (lambda run: np.save(run / "actions.npy", np.zeros((2, 7))), r"qpos.npy has 3 rows, actions.npy has 2"),
        (lambda run: np.save(run / "qpos.npy", np.zeros(3)), r"qpos.npy has shape \[3\]"),
        (lambda run: (run / "qpos.npy").write_bytes(b"\x93NUMPY"), r"qpos.npy cannot be read"),
        (lambda run: (run / "cam_high" / "8.jpg").unlink(), r"cam_high: 2 images for 3 rows"),
    ],
)
def test_missing_parts_are_named(tmp_path: Path, break_it: Any, message: str) -> None:
    run = tmp_path / "task" / "subtask" / "run_001"
    run_folder(run)
    break_it(run)
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path)


def test_an_image_that_is_none_is_named_when_it_is_needed(tmp_path: Path) -> None:
    run = tmp_path / "task" / "subtask" / "run_001"
    run_folder(run)
    (run / "cam_high" / "9.jpg").write_bytes(b"")
    dataset = open_dataset(tmp_path)
    assert dataset[0].images
    with pytest.raises(DatasetError, match=r"cam_high/9.jpg"):
        dataset[1]


def test_other_widths_in_one_dataset(tmp_path: Path) -> None:
    run_folder(tmp_path / "task" / "subtask" / "run_001")
    run_folder(tmp_path / "task" / "subtask" / "run_002", dim=8)
    with pytest.raises(DatasetError, match=r"run_002: qpos.npy has 8 columns, the runs before 7"):
        open_dataset(tmp_path)


def test_what_is_no_dataset_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"neither <task>/<subtask>/run_001 nor stage1/run_001"):
        open_dataset(tmp_path)
    with pytest.raises(DatasetError, match="pi05 convert"):
        open_dataset(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task_instructions": [{"stage": 1, "high_level_task": "t"}]}, r"task_instructions\[0\].subtask: is missing"),
        ({"task_instructions": [{"stage": "1", "subtask": "t"}]}, r"task_instructions\[0\].stage: '1' is not a number"),
        ({"task_instructions": [{"stage": 1, "subtask": 3}]}, r"task_instructions\[0\].subtask: 3 is not a text"),
        ({"task_instructions": [{"stage": 1, "subtask": "t"}] * 2}, r"task_instructions\[1\].stage: 1 is listed twice"),
        ({"task_instructions": {}}, r"task_instructions: expected a list"),
        ({"tasks": {"task1": {"text": "t", "subtasks": {"s": {}}}}}, r"tasks.task1.subtasks.s.text: is missing"),
        ({"tasks": []}, r"tasks: expected an object"),
    ],
)
def test_instruction_files_that_are_wrong(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    instruction_file(tmp_path / "i.json", **changes)
    with pytest.raises(DatasetError, match=message):
        read_instructions(tmp_path / "i.json")


def test_an_instruction_file_comes_back_as_it_was(tmp_path: Path) -> None:
    instruction_file(tmp_path / "i.json")
    told = read_instructions(tmp_path / "i.json")
    told.write(tmp_path / "instructions.json")
    assert json.loads((tmp_path / "instructions.json").read_text()) == json.loads((tmp_path / "i.json").read_text())
    assert find_instructions(tmp_path).to_json() == told.to_json()
    assert Instructions().to_json() == {"task_instructions": [], "tasks": {}}


@given(st.text(max_size=60))
def test_names_of_folders_stand_for_their_text(text: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        return
    name = folder_name(text)
    assert "/" not in name and "\0" not in name and not name.startswith(".") and len(name.encode()) <= 255
    if "%~" not in name:
        assert folder_text(Path("x") / name) == text


def test_a_few_damaged_runs_may_be_left_out(tmp_path: Path) -> None:
    for number in range(1, 5):
        run_folder(tmp_path / "tidy" / "pick" / f"run_{number:03d}")
    (tmp_path / "tidy" / "pick" / "run_002" / "qpos.npy").write_bytes(b"cut off")
    with pytest.raises(DatasetError, match="run_002"):
        FolderDataset(tmp_path)
    with pytest.raises(DatasetError, match="run_002"):
        FolderDataset(tmp_path, skip_damaged=0.2)
    dataset = FolderDataset(tmp_path, skip_damaged=0.25)
    assert len(dataset) == 9 and len(dataset.damaged) == 1 and "run_002" in dataset.damaged[0]
    (tmp_path / "tidy" / "pick" / "run_003" / "actions.npy").unlink()
    with pytest.raises(DatasetError, match=r"run_002.*and 1 more of 4 runs"):
        FolderDataset(tmp_path, skip_damaged=0.25)
