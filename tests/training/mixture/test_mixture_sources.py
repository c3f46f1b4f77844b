"""Robot sources: fields, other robots' entries, choice of episodes, held-out parts, what is said of unfit data."""

import json
from pathlib import Path

import numpy as np
import pytest
from mixture_rig import ARM, CONTRACT, TASK, D, H, picture, vector, write_arm, write_folder, write_lines

from pi05_model.prompts import Box
from pi05_training.data.episode import DatasetError
from pi05_training.mixture.example import LOSSES
from pi05_training.mixture.groups import hold_out
from pi05_training.mixture.high_level import HighLevelSource
from pi05_training.mixture.sources import RobotOptions, RobotSource

ALL, FLOW = frozenset(LOSSES), frozenset({"flow"})
LABEL = {
    "episode": "e1",
    "frame": 3,
    "subtask": "pick up the cup",
    "boxes": [{"label": "cup", "box": [0, 0.1, 0.5, 1]}],
}


def robot(*folders: Path, losses: frozenset[str] = ALL, **options: object) -> RobotSource:
    return RobotSource("MM", 1.0, losses, folders, CONTRACT, H, RobotOptions(**options))  # type: ignore[arg-type]


def test_a_sample_of_our_own_robot(tmp_path: Path) -> None:
    source = robot(write_folder(tmp_path, ["ppqq", "ppp"]), control="joint")
    assert (len(source), source.groups) == (7, 2)
    reading = source.read(2)
    assert (reading.prompt, reading.answer, reading.subtask) == (TASK, "put it in the bin", "put it in the bin")
    assert reading.control == "joint" and reading.action_mask is None and reading.state_mask is None
    assert reading.state == pytest.approx(vector(0, 2))
    assert reading.actions is not None and reading.actions.shape == (H, D)
    assert reading.actions[:2] == pytest.approx(np.stack([vector(0, 2), vector(0, 3)]) + 1000)
    assert reading.action_is_pad is not None and reading.action_is_pad.tolist() == [False] * 2 + [True] * (H - 2)
    assert set(reading.images) == {"base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"}
    assert np.abs(reading.images["base_0_rgb"].astype(int) - picture(0, 2)).mean() < 6
    assert reading.losses(ALL) == ALL


def test_several_datasets_are_one_source(tmp_path: Path) -> None:
    source = robot(write_folder(tmp_path / "a", ["ppq"]), write_folder(tmp_path / "b", ["qqqq", "pp"]))
    assert (len(source), source.groups) == (9, 3)
    states = [source.read(index).state for index in (0, 2, 3, 8)]
    assert [round(float(state[0])) for state in states if state is not None] == [0, 2, 0, 101]


def test_a_frame_that_nobody_named_carries_no_text(tmp_path: Path) -> None:
    source = robot(write_folder(tmp_path, ["p.p"]))
    reading = source.read(1)
    assert reading.answer is None and reading.subtask == TASK
    assert reading.losses(ALL) == {"fast", "flow"}


def test_another_robot_is_mapped_by_name(tmp_path: Path) -> None:
    source = robot(write_arm(tmp_path / "arm"), cameras={"top": "base_0_rgb"})
    reading, has = source.read(3), [name in ARM for name in CONTRACT.names]
    assert reading.state is not None and reading.actions is not None
    assert reading.state_mask is not None and reading.state_mask.tolist() == has
    assert reading.action_mask is not None and reading.action_mask.tolist() == has
    assert reading.state[CONTRACT.names.index("right_joint3")] == pytest.approx(vector(0, 3)[2])
    assert reading.actions[1, CONTRACT.names.index("right_gripper")] == pytest.approx(vector(0, 4)[6] + 1000)
    absent = ~np.array(has)
    assert not reading.state[absent].any() and not reading.actions[:, absent].any()
    state, actions = source.labels(3) or (None, None)
    assert (state == reading.state).all() and (actions == reading.actions).all()
    assert source.masks(3)[1] is not None


@pytest.mark.parametrize("by_name", [False, True])
def test_another_robot_is_mapped_as_the_mixture_says(tmp_path: Path, by_name: bool) -> None:
    theirs = ["j1", "j2", "grip"]
    ours = ["left_joint2", None, "left_gripper"]
    entries = dict(zip(theirs, ours, strict=True)) if by_name else ours
    source = robot(write_arm(tmp_path / "arm", theirs), entries=entries, cameras={"top": "base_0_rgb"})
    state = source.read(0).state
    assert state is not None
    expected = np.zeros(D, np.float32)
    expected[CONTRACT.names.index("left_joint2")], expected[CONTRACT.names.index("left_gripper")] = 0, 0.02
    assert state == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"3 entries called j1, j2, grip.*entries: \[our name or null"),
        ({"entries": ["left_joint1"]}, "lists 1 names, the vector has 3"),
        ({"entries": ["elbow", None, None]}, "elbow is not ours"),
        ({"entries": ["left_joint1", "left_joint1", None]}, "left_joint1 is not ours or is there twice"),
        ({"entries": [None, None, None]}, "every entry is left out"),
        ({"entries": {"j9": "left_joint1"}}, "no entry j9; it has: j1, j2, grip"),
    ],
)
def test_entries_that_do_not_fit_are_named(tmp_path: Path, options: dict[str, object], message: str) -> None:
    write_arm(tmp_path / "arm", ["j1", "j2", "grip"])
    with pytest.raises(DatasetError, match=message):
        robot(tmp_path / "arm", cameras={"top": "base_0_rgb"}, **options)


def test_cameras_that_the_policy_does_not_have_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"cameras top, none of which the policy knows.*base_0_rgb"):
        robot(write_arm(tmp_path / "arm"))


def test_another_rate_has_to_be_said(tmp_path: Path) -> None:
    write_arm(tmp_path / "arm", fps=10)
    with pytest.raises(DatasetError, match=r"10 frames per second, 50 are expected.*fps: 10"):
        robot(tmp_path / "arm", cameras={"top": "base_0_rgb"})
    assert len(robot(tmp_path / "arm", cameras={"top": "base_0_rgb"}, fps=10.0)) == 24


def test_episodes_are_chosen_by_outcome_and_length(tmp_path: Path) -> None:
    write_folder(tmp_path, ["ppq", "ppqq", "pqpqpq"], ["success", "failure", "success"])
    chosen = robot(tmp_path, outcome="success")
    assert (len(chosen), chosen.groups) == (9, 2)
    assert [round(float(chosen.labels(i)[0][0])) for i in (0, 3, 8)] == [0, 200, 205]  # type: ignore[index]
    short = robot(tmp_path, outcome="success", max_episode_s=4 / 50)
    assert (len(short), short.groups) == (3, 1)
    with pytest.raises(DatasetError, match=r"no episode is left.*max_episode_s 0\.01"):
        robot(tmp_path, max_episode_s=0.01)


@pytest.mark.parametrize("subtasks", ["....", "tttt"])
def test_text_needs_subtasks(tmp_path: Path, subtasks: str) -> None:
    write_folder(tmp_path, [subtasks])
    with pytest.raises(DatasetError, match=r"source MM.*no subtasks.*losses: \[fast, flow\]"):
        robot(tmp_path)
    assert robot(tmp_path, losses=FLOW).read(0).subtask == TASK


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere"):
        robot(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty"):
        robot(tmp_path / "empty")


def test_numbers_that_are_not_finite_are_damage(tmp_path: Path) -> None:
    write_folder(tmp_path, ["pppp"])
    path = next(tmp_path.rglob("qpos.npy"))
    states = np.load(path)
    states[2, 5] = np.nan
    np.save(path, states)
    source = robot(tmp_path)
    source.read(1)
    with pytest.raises(DatasetError, match=r"episode e0, frame 2: values are not finite at \[5\]"):
        source.read(2)


def test_what_is_wrong_with_every_sample_is_said_at_once(tmp_path: Path) -> None:
    write_folder(tmp_path, ["pppp"])
    for path in tmp_path.rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"\.jpg"):
        robot(tmp_path)


def test_held_out_episodes_are_whole(tmp_path: Path) -> None:
    source = robot(write_folder(tmp_path, ["ppq"] * 10))
    kept, held = source.split(hold_out([source.members], 0.2))
    assert kept is not None and held is not None and (kept.groups, held.groups) == (8, 2)
    episodes = [{int(part.labels(i)[0][0]) // 100 for i in range(len(part))} for part in (kept, held)]
    assert not episodes[0] & episodes[1] and len(episodes[0] | episodes[1]) == 10
    assert len(kept) + len(held) == len(source) == 30


def test_labelled_frames_say_boxes_and_subtask(tmp_path: Path) -> None:
    write_folder(tmp_path, ["ppqq", "ppqq"])
    write_lines(tmp_path / "boxes.jsonl", [LABEL, {"episode": "e0", "frame": 0, "boxes": []}])
    source = HighLevelSource("HL", 1.0, ALL, [tmp_path], CONTRACT, H)
    assert (len(source), source.groups) == (2, 2)
    first, second = source.read(0), source.read(1)
    assert first.answer == "pick up the red cube" and first.boxes == ()
    assert second.boxes == (Box(0, 0.1, 0.5, 1, "cup"),) and second.box_camera == "base_0_rgb"
    assert second.answer == second.subtask == "pick up the cup"
    assert second.state == pytest.approx(vector(1, 3))
    assert source.labels(1)[0] == pytest.approx(vector(1, 3))  # type: ignore[index]
    assert source.answers() == {"pick up the cup", "pick up the red cube", "put it in the bin"}


def test_labels_bring_subtasks_to_a_dataset_without(tmp_path: Path) -> None:
    write_folder(tmp_path, ["....", "...."])
    write_lines(tmp_path / "boxes.jsonl", [LABEL])
    assert HighLevelSource("HL", 1.0, ALL, [tmp_path], CONTRACT, H).read(0).answer == "pick up the cup"
    write_lines(tmp_path / "boxes.jsonl", [LABEL, {"episode": "e0", "frame": 0}])
    with pytest.raises(DatasetError, match="no subtasks"):
        HighLevelSource("HL", 1.0, ALL, [tmp_path], CONTRACT, H)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"episode": "e7"}, r"boxes\.jsonl:2: no episode 'e7'; there are: e0, e1"),
        ({"frame": 4}, r"boxes\.jsonl:2: episode e1 has frames 0 to 3, not 4"),
        ({"frame": "three"}, r"boxes\.jsonl:2: frame"),
        ({"boxes": [{"label": "cup", "box": [0, 0, 1]}]}, r"boxes\.jsonl:2: boxes\.0\.box"),
        ({"boxes": [{"label": "cup", "box": [0.5, 0, 0.4, 1]}]}, r"boxes\.jsonl:2: boxes\.0.*min <= max"),
    ],
)
def test_labels_that_do_not_fit_are_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    write_folder(tmp_path, ["ppqq", "ppqq"])
    write_lines(tmp_path / "boxes.jsonl", [LABEL, json.dumps(LABEL | change)])
    with pytest.raises(DatasetError, match=message):
        HighLevelSource("HL", 1.0, ALL, [tmp_path], CONTRACT, H)


def test_labels_have_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"boxes\.jsonl: cannot be read"):
        HighLevelSource("HL", 1.0, ALL, [write_folder(tmp_path, ["pp"])], CONTRACT, H)
