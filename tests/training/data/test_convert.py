"""Conversion of bags that are whole, skewed, broken or empty: nothing shifted, nothing lost without a word."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pi05_ros import topics
from pi05_ros.contract import load_contract
from pi05_ros.control.chunk import Chunk
from pi05_ros.control.config import ControllerConfig
from pi05_ros.ingest import SAMPLE_POLICIES, IngestConfig, ObservationBuffer, SamplePolicy, SourceRule
from pi05_training.data.command import main, parse_rules
from pi05_training.data.commands import ChunkCommands
from pi05_training.data.convert import Settings, convert
from pi05_training.data.engines import LocalEngine, RayEngine
from pi05_training.data.episode import DatasetError
from pi05_training.data.folder import FolderDataset
from pi05_training.data.open import open_dataset
from pi05_training.data.synthetic import Event, Messages, Script, numbered_image, write_bag

CONTRACT = load_contract()
H, D = CONTRACT.rates.chunk_steps, CONTRACT.dim
MS, NS = 1_000_000, 1_000_000_000
STEP_NS = round(CONTRACT.step_s * NS)
MAKE = Messages(CONTRACT)
CAMERA_OF = {topics.camera_image(name): name for name in CONTRACT.cameras}


def convert_events(tmp_path: Path, events: list[Event], *flags: str, **notes: str) -> tuple[int, dict[str, Any]]:
    """Convert one bag; return the exit status and its report."""
    bag = write_bag(tmp_path / "bags", CONTRACT, events, notes)
    status = main([str(bag), str(tmp_path / "set"), *flags])
    return status, report(tmp_path)


def report(tmp_path: Path) -> dict[str, Any]:
    written = json.loads((tmp_path / "set" / "report.json").read_text())["episodes"]
    assert len(written) == 1
    return dict(written[0])


def stamps(dataset: FolderDataset) -> list[int]:
    return [int(stamp) for run in dataset.runs for stamp in np.load(run.folder / "stamps.npy")]


def in_order(path: Path) -> tuple[FolderDataset, list[int]]:
    """Open a dataset and return the indices of its samples in order of time."""
    dataset = FolderDataset(path)
    return dataset, [int(index) for index in np.argsort(stamps(dataset))]


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def without(events: list[Event], topic: str, begin_ns: int = 0, end_ns: int = 2**62) -> list[Event]:
    return [event for event in events if event.topic != topic or not begin_ns <= event.log_ns < end_ns]


# -- frames and actions -----------------------------------------------------------------------------------------------


def test_frames_stand_on_the_grid_and_actions_are_what_was_commanded(tmp_path: Path) -> None:
    script = Script(seconds=3)
    status, said = convert_events(tmp_path, script.events(CONTRACT), outcome="True")
    assert status == 0 and said["outcome"] == "success" and said["loss"] == 0 and not said["dropped"]
    dataset, order = in_order(tmp_path / "set")
    times = np.sort(stamps(dataset))
    assert set(np.diff(times)) == {STEP_NS}
    # Nothing before the first chunk was received (60 ms after its stamp); the grid lies on the images.
    assert times[0] == script.start_ns + 40 * MS
    chunk_rows = {}
    for k in range(15):
        now_s = k / script.chunk_hz
        for row in range(H):
            chunk_rows[k, row] = script.state(CONTRACT, now_s + (row + 1) * CONTRACT.step_s).astype(np.float32)
    for index, stamp_ns in zip(order, times, strict=True):
        due_ns = int(stamp_ns) + STEP_NS - script.start_ns
        newest = max(k for k in range(15) if k * 200 * MS + 60 * MS <= due_ns)
        row = due_ns // STEP_NS - newest * 10 - 1
        state, actions = dataset.labels(index)
        np.testing.assert_array_equal(actions[0], chunk_rows[newest, row])
        held_s = (stamp_ns - script.start_ns) // (5 * MS) * 5e-3
        np.testing.assert_allclose(state, script.state(CONTRACT, held_s), atol=1e-6)


def test_subtasks_span_from_message_to_message(tmp_path: Path) -> None:
    script = Script(seconds=3, subtasks=("", "pick", "put"))
    convert_events(tmp_path, script.events(CONTRACT))
    dataset, order = in_order(tmp_path / "set")
    said = [(stamps(dataset)[index] - script.start_ns, dataset[index].subtask) for index in order]
    # A frame has the subtask that its action is for, and that is due one step later.
    due = [at + STEP_NS for at, _ in said]
    assert [text for _, text in said] == ["" if at < NS else "pick" if at < 2 * NS else "put" for at in due]


@pytest.mark.parametrize("topic", [None, topics.SUBTASK])
def test_the_task_comes_from_the_topic_else_from_the_metadata(tmp_path: Path, topic: str | None) -> None:
    events = Script(seconds=1, task="").events(CONTRACT)
    events = events if topic is None else without(events, topic)
    status, _ = convert_events(tmp_path, events, task="set the table")
    assert status == 0
    sample = open_dataset(tmp_path / "set")[0]
    assert sample.task == "set the table" and (sample.subtask == "") == (topic is not None)


def test_a_bag_without_a_task_needs_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bag = write_bag(tmp_path / "bags", CONTRACT, Script(seconds=1, task="").events(CONTRACT))
    assert main([str(bag), str(tmp_path / "set")]) == 1
    assert "--task" in capsys.readouterr().out
    assert main([str(bag), str(tmp_path / "set"), "--task", "wipe"]) == 0
    assert open_dataset(tmp_path / "set")[0].task == "wipe"


def test_a_task_that_is_withdrawn_ends_the_episode(tmp_path: Path) -> None:
    script = Script(seconds=2)
    events = [*script.events(CONTRACT), MAKE.text(topics.TASK, script.start_ns + NS, "")]
    status, said = convert_events(tmp_path, sorted(events, key=lambda event: event.log_ns), task="clear the table")
    assert status == 0 and said["without_task"] > 40 and not said["dropped"]
    assert max(stamps(FolderDataset(tmp_path / "set"))) < script.start_ns + NS


def test_another_task_is_another_episode(tmp_path: Path) -> None:
    script = Script(seconds=2)
    events = [*script.events(CONTRACT), MAKE.text(topics.TASK, script.start_ns + NS, "set the table")]
    status, said = convert_events(tmp_path, sorted(events, key=lambda event: event.log_ns))
    assert status == 0 and said["episodes"] == ["episode_000000", "episode_000000_part2"]
    assert {sample.task for sample in (open_dataset(tmp_path / "set")[k] for k in (0, 80))} == {
        "clear the table",
        "set the table",
    }


def chunk(stamp_ns: int, level: float) -> Chunk:
    return Chunk(stamp_ns, CONTRACT.names, level + 0.001 * np.arange(1, H + 1)[:, None] * np.ones(D))


def test_commands_follow_the_controllers_rules() -> None:
    commands = ChunkCommands(CONTRACT, ControllerConfig(jump_rad=0.5, jump_m=2.0))
    still = np.zeros(D)
    assert commands.at(0, still) is None
    commands.offer(chunk(1000 * MS, 0.1), 1100 * MS, still)
    assert commands.at(1099 * MS, still) is None  # it had not come yet
    np.testing.assert_allclose(commands.at(1100 * MS, still), 0.1 + 0.005)
    np.testing.assert_allclose(commands.at(1110 * MS, still), 0.1 + 0.0055)  # between two rows
    commands.offer(chunk(1200 * MS, 0.2), 1300 * MS, still)
    np.testing.assert_allclose(commands.at(1280 * MS, still), 0.1 + 0.014)  # the older one until the newer is there
    np.testing.assert_allclose(commands.at(1300 * MS, still), 0.2 + 0.005)
    commands.offer(chunk(1100 * MS, 0.3), 1310 * MS, still)  # older than the one in force
    commands.offer(chunk(0, 0.3), 1310 * MS, still)  # stale
    commands.offer(chunk(1900 * MS, 0.3), 1310 * MS, still)  # from the future
    commands.offer(chunk(1310 * MS, 0.9), 1310 * MS, still)  # too far away
    bad = chunk(1310 * MS, 0.2)
    bad.actions[3, 3] = np.nan
    commands.offer(bad, 1310 * MS, still)
    commands.offer(Chunk(1310 * MS, CONTRACT.names[::-1], bad.actions), 1310 * MS, still)
    commands.offer(Chunk(1310 * MS, CONTRACT.names, bad.actions[:5]), 1310 * MS, still)
    assert commands.accepted == 2 and dict(commands.refused) == {
        "stale": 2, "from_future": 1, "jump": 1, "not_finite": 1, "wrong_names": 1, "wrong_shape": 1,
    }  # fmt: skip
    last = commands.at(2200 * MS, still)
    np.testing.assert_allclose(last, 0.25)
    held = commands.at(2220 * MS, np.full(D, 0.7))  # after the last row: hold
    assert held is not None and commands.held == 1
    gripper = CONTRACT.names.index("left_gripper")
    assert held[0] == 0.7 and abs(held[gripper] - 0.25) < 1e-9 and not held[CONTRACT.base_index].any()
    np.testing.assert_array_equal(commands.at(2240 * MS, np.full(D, 0.9)), held)


# -- bad input --------------------------------------------------------------------------------------------------------


def test_skewed_stamps_are_aligned_and_reported(tmp_path: Path) -> None:
    status, said = convert_events(tmp_path, Script(seconds=2, skew_s=0.009).events(CONTRACT))
    assert status == 0 and 0.02 < said["worst_skew_s"] <= 0.04
    assert said["sources"]["back"]["worst_age_s"] <= 0.04 and said["sources"]["front"]["rate_hz"] == pytest.approx(25)


def test_a_gap_in_the_state_splits_the_episode_and_is_counted(tmp_path: Path) -> None:
    script = Script(seconds=3)
    events = without(script.events(CONTRACT), topics.STATE, script.start_ns + NS, script.start_ns + round(1.5 * NS))
    status, said = convert_events(tmp_path, events)
    assert status == 1 and len(said["episodes"]) == 2
    lost = sum(said["dropped"].values())
    assert set(said["dropped"]) == {"state stale"} and 18 <= lost <= 22  # 0.5 s less the 0.1 s for which it holds
    assert said["sources"]["state"]["longest_gap_s"] == pytest.approx(0.505, abs=0.01)
    times = np.sort(stamps(FolderDataset(tmp_path / "set")))
    assert sorted(set(np.diff(times)))[0] == STEP_NS and len(set(np.diff(times))) == 2


def test_messages_out_of_order_change_nothing(tmp_path: Path) -> None:
    script = Script(seconds=2, skew_s=0.003)
    events = script.events(CONTRACT)
    rng = np.random.default_rng(3)
    # Sensors overtake each other and themselves by up to 80 ms; what was said and commanded keeps its time.
    mixed = [
        Event(e.log_ns + int(rng.integers(0, 80)) * MS, e.topic, e.data)
        if e.topic in CAMERA_OF or e.topic == topics.STATE
        else e
        for e in events
    ]
    convert_events(tmp_path / "straight", events)
    _, said = convert_events(tmp_path / "mixed", sorted(mixed, key=lambda event: event.log_ns))
    assert said["sources"]["state"]["out_of_order"] > 100 and said["sources"]["state"]["late"] == 0
    straight, mixed_set = (in_order(tmp_path / name / "set") for name in ("straight", "mixed"))
    first = dict(zip(np.sort(stamps(straight[0])), straight[1], strict=True))
    second = dict(zip(np.sort(stamps(mixed_set[0])), mixed_set[1], strict=True))
    shared = sorted(first.keys() & second.keys())
    assert len(shared) > 80 and len(shared) >= len(first) - 5
    for stamp in shared[::7]:
        one, other = straight[0][first[stamp]], mixed_set[0][second[stamp]]
        np.testing.assert_array_equal(one.state, other.state)
        for key in one.images:
            np.testing.assert_array_equal(one.images[key], other.images[key])


def test_a_clock_that_jumps_back_begins_a_new_episode(tmp_path: Path) -> None:
    first, second = Script(seconds=2, start_ns=80 * NS), Script(seconds=2, start_ns=1 * NS)
    status, said = convert_events(tmp_path, [*first.events(CONTRACT), *second.events(CONTRACT)])
    assert status == 0 and said["clock_jumps"] >= 1 and len(said["episodes"]) == 2
    times = np.array(stamps(FolderDataset(tmp_path / "set")))
    assert (times > 50 * NS).sum() > 80 and (times < 50 * NS).sum() > 80


def test_a_clock_that_jumps_ahead_begins_a_new_episode(tmp_path: Path) -> None:
    first, second = Script(seconds=2), Script(seconds=2, start_ns=10**9 * NS)
    status, said = convert_events(tmp_path, [*first.events(CONTRACT), *second.events(CONTRACT)])
    assert status == 0 and said["clock_jumps"] == 1 and len(said["episodes"]) == 2


def test_a_camera_that_is_not_there(tmp_path: Path) -> None:
    status, said = convert_events(tmp_path, Script(seconds=1, cameras=("front", "back")).events(CONTRACT))
    assert status == 0 and set(said["sources"]) == {"state", "front", "back"}
    assert set(open_dataset(tmp_path / "set")[3].images) == {"base_0_rgb", "base_1_rgb"}


def test_a_camera_that_dies_exceeds_the_threshold(tmp_path: Path) -> None:
    script = Script(seconds=2)
    lost = topics.camera_image("front")
    events = without(script.events(CONTRACT), lost, script.start_ns + NS)
    status, said = convert_events(tmp_path, events)
    assert status == 1 and said["sources"]["front"]["missing"] == {"stale": pytest.approx(36, abs=3)}
    assert said["loss"] > 0.3
    _, again = main([str(tmp_path / "bags"), str(tmp_path / "set"), "--threshold", "0.5"]), report(tmp_path)
    assert again["status"] in ("unchanged", "converted")


def test_policy_drop_leaves_out_frames_without_the_camera(tmp_path: Path) -> None:
    script = Script(seconds=2)
    events = without(
        script.events(CONTRACT), topics.camera_image("front"), script.start_ns + NS, script.start_ns + round(1.6 * NS)
    )
    flags = ("--policy", "front=drop", "--max-age", "front=0.1", "--threshold", "1")
    status, said = convert_events(tmp_path, events, *flags)
    assert status == 0 and len(said["episodes"]) == 2 and set(said["dropped"]) == {"front stale"}
    dataset = open_dataset(tmp_path / "set")
    assert all("base_0_rgb" in dataset[index].images for index in range(len(dataset)))


def test_policy_nearest_takes_the_nearest_image(tmp_path: Path) -> None:
    # The back camera's images come 5 ms after every other frame: nearest is 5 ms away, the newest before it 35 ms.
    script = Script(seconds=1, cameras=("front", "back"), skew_s=0.005)
    _, said = convert_events(tmp_path, script.events(CONTRACT), "--policy", "back=nearest")
    assert said["sources"]["back"]["worst_age_s"] == pytest.approx(0.015)
    _, held = convert_events(tmp_path / "held", script.events(CONTRACT))
    assert held["sources"]["back"]["worst_age_s"] == pytest.approx(0.035)


def test_a_cut_off_bag_gives_what_is_left_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bag = write_bag(tmp_path / "bags", CONTRACT, Script(seconds=8).events(CONTRACT))
    (bag / "metadata.yaml").unlink()
    file = next(bag.glob("*.mcap"))
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size * 6 // 10)
    assert main([str(bag), str(tmp_path / "set")]) == 0
    said = report(tmp_path)
    assert "never closed" in said["damage"] and "bytes" in said["damage"]
    assert "cut off" in capsys.readouterr().out and 50 < said["frames"] < 300


def test_bags_that_give_nothing_are_named_and_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = Script(seconds=1)
    events = script.events(CONTRACT)
    (tmp_path / "bags" / "broken").mkdir(parents=True)
    (tmp_path / "bags" / "broken" / "broken.mcap").write_bytes(b"")
    write_bag(tmp_path / "bags", CONTRACT, [])
    write_bag(tmp_path / "bags", CONTRACT, without(events, topics.ACTION_CHUNK))
    write_bag(tmp_path / "bags", CONTRACT, without(events, topics.STATE))
    names = [MAKE.state(script.start_ns + k * 5 * MS, np.zeros(3), ("a", "b", "c")) for k in range(200)]
    mixed = sorted([*without(events, topics.STATE), *names], key=lambda event: event.log_ns)
    write_bag(tmp_path / "bags", CONTRACT, mixed)
    good = write_bag(tmp_path / "bags", CONTRACT, events)
    assert main([str(tmp_path / "bags"), str(tmp_path / "set")]) == 1
    told = capsys.readouterr().out
    assert "broken.mcap: not an MCAP file" in told
    assert "no `state` or `joint_states`" in told
    assert "nothing was ever commanded" in told
    assert "state lacks left_joint1" in told
    dataset = FolderDataset(tmp_path / "set")
    assert {run.episode for run in dataset.runs} == {good.name}
    assert not (tmp_path / "set" / ".staging").exists()


def test_bags_of_two_robots_do_not_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = CONTRACT.model_copy(update={"robot": "other_robot"})
    events = Script(seconds=1).events(CONTRACT)
    write_bag(tmp_path / "bags", CONTRACT, events)
    write_bag(tmp_path / "bags", other, events)
    assert main([str(tmp_path / "bags"), str(tmp_path / "set")]) == 1
    assert "another contract: robot is other_robot" in capsys.readouterr().out
    assert len({run.episode for run in FolderDataset(tmp_path / "set").runs}) == 1


def test_state_in_another_order_is_put_in_order(tmp_path: Path) -> None:
    script = Script(seconds=1)
    events = without(script.events(CONTRACT), topics.STATE)
    vector, names = script.state(CONTRACT, 0.0), CONTRACT.names[::-1]
    events += [MAKE.state(script.start_ns + k * 5 * MS, vector[::-1], names) for k in range(200)]
    status, _ = convert_events(tmp_path, sorted(events, key=lambda event: event.log_ns))
    assert status == 0
    np.testing.assert_array_equal(open_dataset(tmp_path / "set")[0].state, vector.astype(np.float32))


def test_joint_states_and_odometry_without_a_state_topic(tmp_path: Path) -> None:
    script = Script(seconds=1)
    events = without(script.events(CONTRACT), topics.STATE)
    vector = script.state(CONTRACT, 0.0)
    joints = CONTRACT.to_joint_units(vector)
    for k in range(200):
        stamp_ns = script.start_ns + k * 5 * MS
        events.append(MAKE.joint_states(stamp_ns, CONTRACT.joint_names[::-1], joints[::-1]))
        events.append(MAKE.odom(stamp_ns, vector[CONTRACT.base_index]))
    status, _ = convert_events(tmp_path, sorted(events, key=lambda event: event.log_ns))
    assert status == 0
    np.testing.assert_allclose(open_dataset(tmp_path / "set")[0].state, vector, rtol=1e-6)


@pytest.mark.parametrize("namespace", ["", "robot1", "lab/robot_7"])
def test_any_namespace(tmp_path: Path, namespace: str) -> None:
    bag = write_bag(tmp_path, CONTRACT, Script(seconds=1).events(CONTRACT), namespace=namespace)
    assert main([str(bag), str(tmp_path / "set")]) == 0
    assert len(open_dataset(tmp_path / "set")) > 40


def test_replayed_bags_whose_receipt_is_another_clock(tmp_path: Path) -> None:
    events = Script(seconds=1).events(CONTRACT)
    later = [Event(event.log_ns + 7_000_000 * NS, event.topic, event.data) for event in events]
    convert_events(tmp_path / "now", events)
    _, said = convert_events(tmp_path / "later", later)
    assert said["clock_shift_s"] == pytest.approx(7_000_000, abs=0.1)
    assert stamps(FolderDataset(tmp_path / "later/set"))[0] - stamps(FolderDataset(tmp_path / "now/set"))[0] <= STEP_NS


# -- again, and by many -----------------------------------------------------------------------------------------------


@pytest.fixture
def bags(tmp_path: Path) -> Path:
    for k in range(3):
        subtasks = ("pick", "put") if k % 2 else ("put", "pick", "put")
        write_bag(
            tmp_path / "bags", CONTRACT, Script(seconds=1.5, start_ns=(k + 5) * NS, subtasks=subtasks).events(CONTRACT)
        )
    return tmp_path / "bags"


def test_a_second_run_does_nothing(bags: Path, tmp_path: Path) -> None:
    arguments = [str(bags), str(tmp_path / "set"), "--jobs", "1"]
    assert main(arguments) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*") if path.name != "report.json"}
    assert main(arguments) == 0
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*") if path.name != "report.json"}
    assert after == before
    told = json.loads((tmp_path / "set" / "report.json").read_text())
    assert [entry["status"] for entry in told["episodes"]] == ["unchanged"] * 3


def test_a_conversion_goes_on_where_it_was_stopped(bags: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = Settings(CONTRACT)
    paths = sorted(bags.iterdir())
    convert(paths, whole, settings, LocalEngine())

    class Killed(Exception):
        pass

    def stop_after_one(report: dict[str, Any]) -> None:
        raise Killed

    with pytest.raises(Killed):
        convert(paths, parts, settings, LocalEngine(), stop_after_one)
    assert len(episode_names(parts)) == 1
    convert(paths, parts, settings, LocalEngine())
    assert tree(parts) == tree(whole)


def episode_names(root: Path) -> list[str]:
    return sorted(path.stem for path in (root / "meta/episodes").glob("*.json"))


def test_a_bag_that_changed_is_converted_anew(bags: Path, tmp_path: Path) -> None:
    arguments = [str(bags), str(tmp_path / "set"), "--jobs", "1"]
    main(arguments)
    changed = bags / "episode_000001"
    shutil.rmtree(changed)
    made = write_bag(tmp_path / "new", CONTRACT, Script(seconds=1, start_ns=3 * NS).events(CONTRACT))
    made.rename(changed)
    assert main(arguments) == 0
    told = {e["name"]: e["status"] for e in json.loads((tmp_path / "set" / "report.json").read_text())["episodes"]}
    assert told == {"episode_000000": "unchanged", "episode_000001": "converted", "episode_000002": "unchanged"}
    dataset = FolderDataset(tmp_path / "set")
    assert sum(run.frames for run in dataset.runs if run.episode == "episode_000001") < 50


def test_a_bag_that_broke_since_keeps_what_it_gave(bags: Path, tmp_path: Path) -> None:
    arguments = [str(bags), str(tmp_path / "set"), "--jobs", "1"]
    main(arguments)
    before = tree(tmp_path / "set")
    next((bags / "episode_000001").glob("*.mcap")).write_bytes(b"")
    assert main(arguments) == 1
    after = tree(tmp_path / "set")
    assert {**before, "report.json": b""} == {**after, "report.json": b""}


def test_other_settings_convert_anew(bags: Path, tmp_path: Path) -> None:
    arguments = [str(bags), str(tmp_path / "set"), "--jobs", "1"]
    main(arguments)
    assert main([*arguments, "--policy", "front=nearest"]) == 0
    assert main([*arguments, "--policy", "front=nearest", "--jobs", "2"]) == 0
    told = json.loads((tmp_path / "set" / "report.json").read_text())
    assert [entry["status"] for entry in told["episodes"]] == ["unchanged"] * 3
    assert main([str(bags), str(tmp_path / "fresh"), "--policy", "front=nearest", "--jobs", "1"]) == 0
    again, fresh = tree(tmp_path / "set"), tree(tmp_path / "fresh")
    assert {**again, "report.json": b""} == {**fresh, "report.json": b""}


def test_a_lerobot_dataset_cannot_give_up_an_episode(bags: Path, tmp_path: Path) -> None:
    arguments = [str(bags / "episode_000000"), str(tmp_path / "set"), "--format", "lerobot"]
    assert main(arguments) == 0 and main(arguments) == 0
    with pytest.raises(DatasetError, match="give another folder"):
        main([*arguments, "--max-age", "front=0.5"])


def test_bags_of_the_same_name_get_names_of_their_own(tmp_path: Path) -> None:
    for day in ("monday", "tuesday"):
        write_bag(tmp_path / day, CONTRACT, Script(seconds=1, start_ns=len(day) * NS).events(CONTRACT))
    assert main([str(tmp_path / "monday"), str(tmp_path / "set")]) == 0
    assert main([str(tmp_path / "tuesday"), str(tmp_path / "set")]) == 0
    assert episode_names(tmp_path / "set") == ["episode_000000", "tuesday_episode_000000"]


def test_two_processes_make_what_one_makes(bags: Path, tmp_path: Path) -> None:
    assert main([str(bags), str(tmp_path / "one"), "--jobs", "1"]) == 0
    assert main([str(bags), str(tmp_path / "two"), "--jobs", "2"]) == 0
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_ray_makes_what_the_pool_makes(bags: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the optional package ray is not installed")
    settings = Settings(CONTRACT)
    paths = sorted(bags.iterdir())
    convert(paths, tmp_path / "local", settings, LocalEngine())
    convert(paths, tmp_path / "ray", settings, RayEngine(jobs=2))
    assert tree(tmp_path / "local") == tree(tmp_path / "ray")


def test_without_ray_the_engine_says_what_is_missing(
    bags: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(DatasetError, match=r"pi05_ros\[ray\]"):
        main([str(bags), str(tmp_path / "set"), "--engine", "ray"])


def test_both_formats_give_the_same_samples(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bags", CONTRACT, Script(seconds=1.5).events(CONTRACT))
    for name in ("folder", "lerobot"):
        assert main([str(bag), str(tmp_path / name), "--format", name]) == 0
    folder, lerobot = open_dataset(tmp_path / "folder"), open_dataset(tmp_path / "lerobot")
    assert len(folder) == len(lerobot)
    by_frame = {folder[index].frame: folder[index] for index in range(len(folder))}
    for index in range(0, len(lerobot), 9):
        other = lerobot[index]
        one = by_frame[other.frame]
        np.testing.assert_array_equal(one.state, other.state)
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_array_equal(one.action_is_pad, other.action_is_pad)
        assert (one.task, one.subtask, one.text, one.episode) == (other.task, other.subtask, other.text, other.episode)
        assert one.images.keys() == other.images.keys()
        for key, image in one.images.items():
            assert np.abs(image.astype(int) - other.images[key]).mean() < 6  # a video codec's loss


# -- flags ------------------------------------------------------------------------------------------------------------


def test_rules_from_flags() -> None:
    rules = parse_rules(["front=drop", "/robot1/state=nearest"], ["front=0.5", "back=1"], CONTRACT)
    assert rules == {
        "front": SourceRule("drop", 0.5),
        "state": SourceRule("nearest", 0.1),
        "back": SourceRule("hold", 1.0),
    }


@pytest.mark.parametrize(
    ("policies", "ages", "message"),
    [
        (["side=hold"], [], r"--policy side=hold: expected SOURCE=VALUE with a source of: state, front"),
        (["front"], [], r"expected SOURCE=VALUE"),
        (["front=keep"], [], r"'keep' is not valid; valid: hold, nearest, drop"),
        ([], ["front=soon"], r"'soon' is not valid; valid: seconds"),
        ([], ["front=-1"], r"'-1' is not valid"),
    ],
)
def test_flags_that_make_no_sense(policies: list[str], ages: list[str], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        parse_rules(policies, ages, CONTRACT)


def test_a_dataset_alone_is_no_conversion(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="last the folder of the dataset"):
        main([str(tmp_path)])


# -- the resampler ----------------------------------------------------------------------------------------------------

PICTURES = [numbered_image(CONTRACT, 0, 0)]


@settings(deadline=None)
@given(
    samples=st.lists(st.integers(0, 400), min_size=1, max_size=30, unique=True),
    at=st.integers(0, 500),
    policy=st.sampled_from(SAMPLE_POLICIES),
    max_age=st.integers(1, 200),
    data=st.data(),
)
def test_what_counts_at_a_stamp(
    samples: list[int], at: int, policy: SamplePolicy, max_age: int, data: st.DataObject
) -> None:
    rules = {"front": SourceRule(policy, max_age / 1000)}
    buffer = ObservationBuffer(CONTRACT, ["front"], IngestConfig(history_s=None, rules=rules))
    buffer.add_state(at * MS, np.zeros(D))
    for stamp in data.draw(st.permutations(samples)):
        buffer.add_image("front", stamp * MS, PICTURES[0])
    chosen = buffer.select(at * MS)
    allowed = [s for s in samples if abs(s - at) <= max_age and (policy == "nearest" or s <= at)]
    if not allowed:
        assert "front" in chosen.missing and not chosen.images and chosen.complete == (policy != "drop")
        return
    found = chosen.images["front"][0] // MS
    assert found in allowed and chosen.complete
    assert abs(found - at) == min(abs(s - at) for s in allowed)  # never from the future unless nearest; never older


@given(period=st.integers(2, 100), offset=st.integers(0, 99), at=st.integers(200, 800))
def test_the_nearest_of_a_steady_source_is_within_half_a_period(period: int, offset: int, at: int) -> None:
    buffer = ObservationBuffer(
        CONTRACT, ["front"], IngestConfig(history_s=None, rules={"front": SourceRule("nearest", 1.0)})
    )
    for k in range(1000 // period + 2):
        buffer.add_image("front", (offset + k * period) * MS, b"")
    found = buffer.select(at * MS).images["front"][0]
    assert abs(found - at * MS) <= period * MS / 2
