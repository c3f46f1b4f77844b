"""Bags are read under any namespace, in the order of writing, and up to the point where they break off."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from pi05_ros.contract import load_contract
from pi05_ros.recording import BagRecording, recorded_topics
from pi05_ros.repair import repair
from pi05_training.data.bags import Bag, find_bags, open_bag
from pi05_training.data.command import main
from pi05_training.data.episode import DatasetError
from pi05_training.data.synthetic import Script, write_bag

CONTRACT = load_contract()
STATE = "/state"


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    # Ten seconds are several chunks of the file.
    return write_bag(tmp_path / "bags", CONTRACT, Script(seconds=10).events(CONTRACT), {"outcome": "success"})


def logs(bag: Bag, topic: str = STATE) -> list[int]:
    return [message.log_ns for message in bag.messages([topic])]


def cut(bag: Path, share: float) -> Path:
    """Leave what a crash leaves: a part of the file, no metadata."""
    (bag / "metadata.yaml").unlink()
    file = next(bag.glob("*.mcap"))
    with file.open("r+b") as opened:
        opened.truncate(int(file.stat().st_size * share))
    return bag


def test_a_whole_bag(bag: Path) -> None:
    opened = open_bag(bag)
    assert opened.topics[STATE].kind == "sensor_msgs/msg/JointState" and opened.topics[STATE].count == 2000
    assert opened.contract() == CONTRACT and opened.custom["outcome"] == "success"
    assert len(logs(opened)) == 2000 and not opened.damage


def test_a_cut_off_bag_is_read_up_to_the_cut(bag: Path) -> None:
    whole = logs(open_bag(bag))
    opened = open_bag(cut(bag, 0.6))
    rest = logs(opened)
    assert rest == whole[: len(rest)] and len(whole) * 0.2 < len(rest) < len(whole) * 0.7
    assert opened.damage.unclosed and opened.damage.lost_bytes > 0
    assert "never closed" in opened.damage.describe() and str(opened.damage.lost_bytes) in opened.damage.describe()


def test_metadata_without_the_end_of_the_file(bag: Path) -> None:
    kept = (bag / "metadata.yaml").read_text()
    cut(bag, 0.5)
    (bag / "metadata.yaml").write_text(kept)
    opened = open_bag(bag)
    assert opened.custom["outcome"] == "success" and logs(opened) and opened.damage.lost_bytes


def test_a_file_alone_knows_its_metadata(bag: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.mcap"
    shutil.copy(next(bag.glob("*.mcap")), alone)
    opened = open_bag(alone)
    assert opened.name == "alone" and len(logs(opened)) == 2000 and opened.contract() == CONTRACT


def test_a_damaged_chunk_is_skipped_and_counted(bag: Path) -> None:
    file = next(bag.glob("*.mcap"))
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    file.write_bytes(data)
    opened = open_bag(bag)
    rest = logs(opened)
    assert opened.damage.bad_chunks == 1 and 0 < len(rest) < 2000


def test_messages_that_are_no_messages_are_counted(tmp_path: Path) -> None:
    rng = random.Random(0)

    def damage(data: bytes) -> bytes:
        return data[: rng.randrange(len(data))] if rng.random() < 0.5 else rng.randbytes(rng.randrange(200))

    events = Script(seconds=2).events(CONTRACT)
    kept = [event if k % 3 else replace(event, data=damage(event.data)) for k, event in enumerate(events)]
    bag = open_bag(write_bag(tmp_path, CONTRACT, kept, {"task": "clear the table"}))
    count = sum(1 for _ in bag.messages([topic.name for topic in bag.topics.values() if topic.count]))
    assert count + bag.damage.undecodable == len(events) and bag.damage.undecodable > len(events) / 4
    assert f"{bag.damage.undecodable} messages do not fit their type" in bag.damage.describe()
    assert main([str(bag.path), str(tmp_path / "set"), "--threshold", "1"]) == 0
    report = json.loads((tmp_path / "set" / "report.json").read_text())["episodes"][0]
    assert "do not fit their type" in report["damage"] and report["frames"] > 50


def test_order_of_writing_survives_a_clock_that_jumps_back(tmp_path: Path) -> None:
    first, second = Script(seconds=1, start_ns=50 * 10**9), Script(seconds=1, start_ns=1 * 10**9)
    bag = write_bag(tmp_path, CONTRACT, [*first.events(CONTRACT), *second.events(CONTRACT)])
    stamps = logs(open_bag(bag))
    assert stamps[:200] == [50 * 10**9 + 4_000_000 + 5_000_000 * k for k in range(200)]
    assert stamps[200] == 1_004_000_000


def test_db3_bags(tmp_path: Path) -> None:
    store = get_typestore(Stores.ROS2_KILTED)
    kind = "std_msgs/msg/String"
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connection = writer.add_connection("/task", kind, typestore=store)
        for k in range(3):
            writer.write(connection, k, bytes(store.serialize_cdr(store.types[kind](f"task {k}"), kind)))
    opened = open_bag(tmp_path / "bag")
    assert [m.message.data for m in opened.messages(["/task"])] == ["task 0", "task 1", "task 2"]


def test_bags_are_found_below_folders_and_in_hidden_ones(bag: Path, tmp_path: Path) -> None:
    hidden = tmp_path / "bags" / ".recording-x" / "episode_000001"
    shutil.copytree(bag, hidden)
    (hidden / "metadata.yaml").unlink()
    assert find_bags([tmp_path / "bags", bag]) == [hidden, bag]
    # Files side by side are recordings of their own, unless they are named after their folder.
    for name in ("loose/one.mcap", "loose/two.mcap", "long/long_0.mcap", "long/long_1.mcap"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(next(bag.glob("*.mcap")), tmp_path / name)
    loose = tmp_path / "loose"
    assert find_bags([loose, tmp_path / "long"]) == [loose / "one.mcap", loose / "two.mcap", tmp_path / "long"]
    assert open_bag(tmp_path / "long").topics[STATE].count == 4000
    with pytest.raises(DatasetError, match="no bag here"):
        find_bags([hidden.parent / "nothing"])


@pytest.mark.parametrize("content", [b"", b"not a bag"])
def test_what_is_no_bag_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.mcap").write_bytes(content)
    with pytest.raises(DatasetError, match=r"broken.mcap: not an? .*MCAP file"):
        open_bag(tmp_path / "broken.mcap")


def test_an_unknown_topic_lists_those_there_are(bag: Path) -> None:
    with pytest.raises(DatasetError, match=r"no topic /nothing; it has: .*/state"):
        next(open_bag(bag).messages(["/nothing"]))


def test_a_contract_that_cannot_be_read_is_named(bag: Path) -> None:
    written = yaml.safe_load((bag / "metadata.yaml").read_text())
    written["rosbag2_bagfile_information"]["custom_data"]["contract"] = "{}"
    (bag / "metadata.yaml").write_text(yaml.safe_dump(written))
    with pytest.raises(DatasetError, match="give --contract"):
        open_bag(bag).contract()


def test_a_cut_off_bag_still_knows_what_it_is(bag: Path) -> None:
    assert open_bag(cut(bag, 0.5)).contract() == CONTRACT


def test_a_bag_that_is_being_recorded_is_left_alone(tmp_path: Path) -> None:
    names = {topic: f"/{topic.strip('/')}" for topic in recorded_topics(CONTRACT)}
    recording = BagRecording(tmp_path, names, CONTRACT)
    found = find_bags([tmp_path])
    assert len(found) == 1
    with pytest.raises(DatasetError, match="still being recorded"):
        open_bag(found[0])
    recording.discard()


def test_what_a_repair_lost_is_told(bag: Path) -> None:
    repair(cut(bag, 0.6))
    opened = open_bag(bag)
    assert "repaired (" in opened.damage.describe() and logs(opened) and opened.contract() == CONTRACT
