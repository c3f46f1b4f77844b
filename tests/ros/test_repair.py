"""Bags cut anywhere: everything in front of the cut comes back, byte for byte, and the rest is accounted for."""

import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as ForeignWriter
from rosbags.typesys import Stores, get_typestore

from pi05_ros import topics
from pi05_ros.bagfile import BagFile, locked
from pi05_ros.contract import load_contract
from pi05_ros.qos import offered
from pi05_ros.recording import bag_topic, recorded_topics, text_to_cdr
from pi05_ros.repair import Loss, RepairError, State, find_bags, read_records, repair, salvage, state_of

CONTRACT = load_contract()
NOTES = {"task": "clear the table", "contract": CONTRACT.model_dump_json(), "seed": "3"}
PER_CHUNK, CHUNKS = 7, 6


def payload(k: int) -> bytes:
    return bytes([0, 1, 0, 0]) + k.to_bytes(4, "little") + bytes(range(256)) * 5


def write_bag(folder: Path, chunks: int = CHUNKS) -> tuple[BagFile, list[int]]:
    """Write numbered messages in known chunks; return the open bag, and the file's size after each chunk."""
    bag = BagFile(folder, NOTES, ballast_bytes=0)
    kinds = recorded_topics(CONTRACT)
    channels = [bag.add_topic(bag_topic(f"/{name}", kinds[name], offered(name))) for name in ("state", "odom")]
    sizes = []
    for chunk in range(chunks):
        for k in range(chunk * PER_CHUNK, (chunk + 1) * PER_CHUNK):
            bag.write(channels[k % 2], 1000 + k, payload(k))
        bag.end_chunk()
        sizes.append(bag.committed)
    return bag, sizes


@cache
def whole_bag(folder: Path) -> tuple[bytes, list[int]]:
    bag, sizes = write_bag(folder / "episode_000000")
    bag.finish({"outcome": "success"})
    return bag.path.read_bytes(), sizes


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[int]]:
    """The bytes of a finished MCAP file, and its size after each chunk."""
    return whole_bag(tmp_path_factory.mktemp("whole"))


def cut_bag(root: Path, content: bytes) -> Path:
    folder = root / "episode_000000"
    shutil.rmtree(root, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "episode_000000_0.mcap").write_bytes(content)
    return folder


def messages(bag: Path) -> list[bytes]:
    with AnyReader([bag]) as reader:
        return [bytes(data) for _, _, data in reader.messages()]


def custom_data(bag: Path) -> dict[str, str]:
    return dict(yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"]["custom_data"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_cut_at_any_byte(data: st.DataObject, whole: tuple[bytes, list[int]], tmp_path: Path) -> None:
    content, sizes = whole
    cut = data.draw(st.integers(0, len(content)))
    folder = cut_bag(tmp_path / "bags", content[:cut])
    assert state_of(folder) == State.CUT_OFF
    repaired = repair(folder)
    chunks = sum(size <= cut for size in sizes)
    # The last chunk's own index may be cut off while the chunk is whole.
    assert repaired.loss.messages in (chunks * PER_CHUNK, min(chunks + 1, CHUNKS) * PER_CHUNK)
    assert repaired.loss.bytes_read + repaired.loss.bytes_lost == cut
    assert messages(folder) == [payload(k) for k in range(repaired.loss.messages)]
    assert state_of(folder) == State.FINISHED
    custom = custom_data(folder)
    assert custom["lost"] == repaired.loss.text()
    if chunks:
        assert {key: custom[key] for key in NOTES} == NOTES
        assert (repaired.loss.first_ns, repaired.loss.last_ns) == (1000, 999 + repaired.loss.messages)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_rubbish_in_the_middle_costs_no_more_than_it_hits(
    data: st.DataObject, whole: tuple[bytes, list[int]], tmp_path: Path
) -> None:
    content, sizes = whole
    chunk = data.draw(st.integers(1, CHUNKS - 2))
    where = data.draw(st.integers(sizes[chunk - 1] + 60, sizes[chunk] - 400))  # inside the compressed data
    spoiled = content[:where] + bytes(b ^ 0x55 for b in content[where : where + 20]) + content[where + 20 :]
    folder = cut_bag(tmp_path / "bags", spoiled)
    repaired = repair(folder)
    assert (repaired.loss.broken_chunks, repaired.loss.without_end) == (1, 0)
    hit = range(chunk * PER_CHUNK, (chunk + 1) * PER_CHUNK)
    assert messages(folder) == [payload(k) for k in range(CHUNKS * PER_CHUNK) if k not in hit]


def test_a_bag_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    bag, _ = write_bag(tmp_path / "episode_000000")
    assert locked(bag.path)
    assert find_bags(tmp_path) == [(bag.folder, State.RECORDING)]
    with pytest.raises(RepairError, match="is still being recorded"):
        repair(bag.folder)
    bag.abandon()
    assert find_bags(tmp_path) == [(bag.folder, State.CUT_OFF)]
    assert repair(bag.folder).loss.messages == CHUNKS * PER_CHUNK


def test_blocks_that_a_power_failure_left_empty(tmp_path: Path, whole: tuple[bytes, list[int]]) -> None:
    content, sizes = whole
    folder = cut_bag(tmp_path, content[: sizes[2]] + bytes(5000))
    repaired = repair(folder)
    assert repaired.loss.messages == 3 * PER_CHUNK
    assert repaired.loss.bytes_lost == 5000
    assert "5000 bytes unreadable; cut off 0.0 s after the first message" in repaired.loss.text()


def test_the_cut_file_stays_beside_the_repaired_one(tmp_path: Path, whole: tuple[bytes, list[int]]) -> None:
    content = whole[0][:-5]
    folder = cut_bag(tmp_path / "bags", content)
    repair(folder)
    assert (folder / "episode_000000_0.mcap.cut").read_bytes() == content
    assert sorted(path.name for path in (tmp_path / "bags").iterdir()) == ["episode_000000"]
    with pytest.raises(RepairError, match="is whole; there is nothing to repair"):
        repair(folder)


def test_a_repair_that_was_interrupted_is_done_again(tmp_path: Path, whole: tuple[bytes, list[int]]) -> None:
    content, sizes = whole
    folder = cut_bag(tmp_path / "bags", content[: sizes[1] + 50])
    # What a kill between setting the cut file aside and putting the new one in its place leaves.
    (folder / "episode_000000_0.mcap").rename(folder / "episode_000000_0.mcap.cut")
    (tmp_path / "bags" / ".repair-episode_000000" / "episode_000000").mkdir(parents=True)
    assert find_bags(tmp_path) == [(folder, State.CUT_OFF)]
    assert repair(folder).loss.messages == 2 * PER_CHUNK
    # And between the new file and its metadata: the account of the loss is not forgotten.
    told = custom_data(folder)["lost"]
    (folder / "metadata.yaml").unlink()
    repair(folder)
    assert custom_data(folder)["lost"] == told


def test_salvage_leaves_the_input_alone(tmp_path: Path, whole: tuple[bytes, list[int]]) -> None:
    content, sizes = whole
    folder = cut_bag(tmp_path / "bags", content[: sizes[3]])
    salvaged = salvage(folder, tmp_path / "copy")
    assert messages(salvaged.folder) == [payload(k) for k in range(4 * PER_CHUNK)]
    assert salvaged.notes["outcome"] == "unknown"
    assert [path.name for path in folder.iterdir()] == ["episode_000000_0.mcap"]


def test_metadata_without_a_whole_file_is_no_finished_bag(tmp_path: Path, whole: tuple[bytes, list[int]]) -> None:
    content, sizes = whole
    bag, _ = write_bag(tmp_path / "episode_000000")
    bag.finish()
    bag.path.write_bytes(content[: sizes[0]])  # a copy that broke off
    assert state_of(bag.folder) == State.CUT_OFF
    assert repair(bag.folder).loss.messages == PER_CHUNK


def test_finished_before_its_metadata_was_written(tmp_path: Path) -> None:
    bag, _ = write_bag(tmp_path / "episode_000000")
    bag.finish({"outcome": "success"})
    (bag.folder / "metadata.yaml").unlink()
    repaired = repair(bag.folder)
    assert (repaired.loss.bytes_lost, repaired.loss.without_end) == (0, 0)
    assert custom_data(bag.folder)["outcome"] == "success"


@pytest.mark.parametrize("content", [b"", b"\x89MCAP0", b"not an MCAP file at all", bytes(100)])
def test_a_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    folder = cut_bag(tmp_path, content)
    repaired = repair(folder)
    assert (repaired.loss.messages, repaired.loss.bytes_lost + repaired.loss.bytes_read) == (0, len(content))
    assert messages(folder) == []


def test_what_is_no_bag(tmp_path: Path) -> None:
    assert state_of(tmp_path) is None
    with pytest.raises(RepairError, match="holds no MCAP file"):
        salvage(tmp_path, tmp_path / "copy")
    with pytest.raises(NotADirectoryError, match="nowhere is no folder"):
        find_bags(tmp_path / "nowhere")


@pytest.mark.parametrize("mode", [CompressionMode.NONE, CompressionMode.STORAGE])
def test_somebody_else_s_bag_in_two_files(tmp_path: Path, mode: CompressionMode) -> None:
    store = get_typestore(Stores.ROS2_HUMBLE)
    for index in range(2):
        writer = ForeignWriter(tmp_path / f"part{index}", version=8, storage_plugin=StoragePlugin.MCAP)
        writer.set_compression(mode, CompressionFormat.ZSTD)
        with writer:
            connection = writer.add_connection("/chatter", "std_msgs/msg/String", typestore=store)
            for k in range(5):
                writer.write(connection, 10 * index + k, text_to_cdr(f"{index} {k}"))
    folder = tmp_path / "bag"
    folder.mkdir()
    for index, name in enumerate(("bag_9.mcap", "bag_10.mcap")):
        content = (tmp_path / f"part{index}" / f"part{index}.mcap").read_bytes()
        (folder / name).write_bytes(content if index == 0 else content[:-20])
    repaired = repair(folder)
    assert repaired.loss.messages == 10
    with AnyReader([folder]) as reader:
        said: list[Any] = [reader.deserialize(data, c.msgtype).data for c, _, data in reader.messages()]
    assert said == [f"{index} {k}" for index in range(2) for k in range(5)]


def test_reading_needs_little_memory(tmp_path: Path) -> None:
    bag = BagFile(tmp_path / "episode_000000", NOTES, ballast_bytes=0)
    channel = bag.add_topic(bag_topic("/state", recorded_topics(CONTRACT)[topics.STATE], offered(topics.STATE)))
    for k in range(64):
        bag.write(channel, k, os.urandom(1 << 20))
        bag.commit()
    bag.abandon()
    import tracemalloc

    tracemalloc.start()
    loss = Loss()
    count = sum(1 for _ in read_records(bag.path, loss))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count > 64
    assert peak < 16 << 20
