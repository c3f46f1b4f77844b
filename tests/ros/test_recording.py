"""Bags as files: what is in them, when it reaches the disk, and what happens when the disk is full."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mcap.reader import make_reader
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

from pi05_ros import topics
from pi05_ros.config import ConfigError
from pi05_ros.contract import load_contract
from pi05_ros.health import Health, Level, Status
from pi05_ros.recording import (
    BagRecording,
    RecordingError,
    nominal_rates,
    parse_notes,
    recorded_topics,
    required_topics,
    text_from_cdr,
    text_to_cdr,
)
from pi05_ros.recording_session import Session, SessionConfig
from pi05_ros.recording_watch import header_stamp_ns
from pi05_ros.repair import State, repair, state_of

CONTRACT = load_contract()
STORE = get_typestore(Stores.ROS2_KILTED)
# rosbag2_storage reads these; a missing one is an exception there.
DOCUMENTED = {
    "version",
    "storage_identifier",
    "duration",
    "starting_time",
    "message_count",
    "topics_with_message_count",
    "compression_format",
    "compression_mode",
    "relative_file_paths",
    "files",
    "custom_data",
    "ros_distro",
}
PROFILE = {
    "history": str,
    "depth": int,
    "reliability": str,
    "durability": str,
    "deadline": dict,
    "lifespan": dict,
    "liveliness": str,
    "liveliness_lease_duration": dict,
    "avoid_ros_namespace_conventions": bool,
}


def open_bag(directory: Path, **rest: Any) -> BagRecording:
    resolved = {topic: f"/{topic.lstrip('/')}" for topic in recorded_topics(CONTRACT)}
    return BagRecording(directory, resolved, CONTRACT, **rest)


def information(bag: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"])


def messages(bag: Path) -> list[tuple[str, int, bytes]]:
    with AnyReader([bag]) as reader:
        return [(connection.topic, stamp, bytes(data)) for connection, stamp, data in reader.messages()]


def until(predicate: Callable[[], object], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not predicate() and time.monotonic() < end:
        os.sched_yield()
    return bool(predicate())


@pytest.fixture
def limited() -> Iterator[Callable[[int | None], None]]:
    """Limits how large a file of this process may grow; writing more is an error, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size is None else size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_bag_is_finished_when_its_metadata_is_there(tmp_path: Path) -> None:
    bag = open_bag(tmp_path, notes={"task": "clear the table", "seed": 7})
    bag.write(topics.SUBTASK, 5, text_to_cdr("drive to the table"))
    assert not (bag.folder / "metadata.yaml").exists()
    assert state_of(bag.folder) == State.RECORDING
    path = bag.close({"outcome": "success"})
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name] == ["episode_000000"]
    assert sorted(entry.name for entry in path.iterdir()) == ["episode_000000_0.mcap", "metadata.yaml"]
    assert state_of(path) == State.FINISHED
    custom = information(path)["custom_data"]
    assert (custom["task"], custom["seed"], custom["outcome"]) == ("clear the table", "7", "success")
    assert json.loads(custom["contract"])["robot"] == CONTRACT.robot
    assert custom["software"].startswith("pi05_ros ")


def test_metadata_is_what_rosbag2_reads(tmp_path: Path) -> None:
    bag = open_bag(tmp_path, notes={"task": 'ä "quoted": yes\nand: more'})
    bag.write(topics.SUBTASK, 5, text_to_cdr("a"))
    bag.write(topics.TASK, 1_000_000_007, text_to_cdr("b"))
    path = bag.close()
    told = information(path)
    assert set(told) == DOCUMENTED
    assert (told["version"], told["storage_identifier"]) == (9, "mcap")
    assert (told["starting_time"], told["duration"]) == (
        {"nanoseconds_since_epoch": 5},
        {"nanoseconds": 1_000_000_002},
    )
    assert told["message_count"] == 2
    assert told["files"] == [
        {"path": "episode_000000_0.mcap", **{key: told[key] for key in ("duration", "starting_time", "message_count")}}
    ]
    assert all(isinstance(value, str) for value in told["custom_data"].values())
    assert told["custom_data"]["task"] == 'ä "quoted": yes\nand: more'
    for entry in told["topics_with_message_count"]:
        topic = entry["topic_metadata"]
        assert topic["type_description_hash"] == STORE.hash_rihs01(topic["type"])
        assert topic["type_description_hash"].startswith("RIHS01_")
        assert topic["serialization_format"] == "cdr"
        [profile] = topic["offered_qos_profiles"]
        assert {key: type(value) for key, value in profile.items()} == PROFILE
    chunk = next(e for e in told["topics_with_message_count"] if e["topic_metadata"]["name"] == "/action_chunk")
    [profile] = chunk["topic_metadata"]["offered_qos_profiles"]
    assert (profile["reliability"], profile["deadline"]) == ("reliable", {"sec": 1, "nsec": 0})


def test_the_file_says_the_same_as_its_metadata(tmp_path: Path) -> None:
    bag = open_bag(tmp_path, notes={"task": "wait"})
    bag.write(topics.TASK, 1, text_to_cdr("wait"))
    path = bag.close()
    told = {e["topic_metadata"]["name"]: e["topic_metadata"] for e in information(path)["topics_with_message_count"]}
    with (path / f"{path.name}_0.mcap").open("rb") as file:
        reader = make_reader(file, validate_crcs=True)
        summary = reader.get_summary()
        assert summary is not None
        for channel in summary.channels.values():
            # Where rosbag2's MCAP plugin looks for them.
            assert channel.metadata["topic_type_hash"] == told[channel.topic]["type_description_hash"]
            assert (
                yaml.safe_load(channel.metadata["offered_qos_profiles"]) == told[channel.topic]["offered_qos_profiles"]
            )
        assert {schema.encoding for schema in summary.schemas.values()} == {"ros2msg"}
        assert {chunk.compression for chunk in summary.chunk_indexes} == {"zstd"}
        records = {record.name: record.metadata for record in reader.iter_metadata()}
    assert records["pi05"]["task"] == "wait"
    assert yaml.safe_load(records["rosbag2"]["serialized_metadata"]) == information(path)
    with Reader(path) as opened:
        assert {c.topic.lstrip("/") for c in opened.connections} == {t.lstrip("/") for t in recorded_topics(CONTRACT)}


def test_bags_are_numbered_and_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "episode_000007").mkdir()
    first, second = open_bag(tmp_path), open_bag(tmp_path)
    for bag in (first, second):
        bag.write(topics.TASK, 1, text_to_cdr("wait"))
    assert [bag.close().name for bag in (second, first)] == ["episode_000009", "episode_000008"]
    assert messages(tmp_path / "episode_000009") == [("/task", 1, text_to_cdr("wait"))]


def test_a_discarded_bag_leaves_nothing(tmp_path: Path) -> None:
    bag = open_bag(tmp_path)
    bag.write(topics.TASK, 1, text_to_cdr("wait"))
    bag.discard()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_bag_can_be_read(tmp_path: Path) -> None:
    path = open_bag(tmp_path).close()
    assert messages(path) == []
    assert information(path)["message_count"] == 0


def test_messages_reach_the_file_without_being_asked_for(tmp_path: Path) -> None:
    bag = open_bag(tmp_path, chunk_s=0.3)
    file = bag.folder / f"{bag.folder.name}_0.mcap"
    before = file.stat().st_size
    bag.write(topics.TASK, 1, text_to_cdr("wait"))
    assert until(lambda: file.stat().st_size > before)
    assert bag.waiting_bytes == 0
    bag.close()


def test_more_than_a_chunk_comes_back_byte_for_byte(tmp_path: Path) -> None:
    bag = open_bag(tmp_path)
    written = [("/state", k, bytes([0, 1, 0, 0]) + os.urandom(50_000)) for k in range(100)]
    for topic, stamp, data in written:
        bag.write(topic.lstrip("/"), stamp, data)
    assert messages(bag.close()) == written


def test_a_file_that_cannot_grow_ends_the_bag_at_its_last_chunk(
    tmp_path: Path, limited: Callable[[int | None], None]
) -> None:
    bag = open_bag(tmp_path, ballast_bytes=0)
    limited(3_000_000)
    data = [bytes([0, 1, 0, 0]) + os.urandom(50_000) for _ in range(200)]
    for k, one in enumerate(data):
        bag.write(topics.STATE, k, one)
    assert until(lambda: bag.failure is not None)
    with pytest.raises(RecordingError, match=r"File too large; .*episode_000000 is whole up to its last chunk"):
        bag.close()
    limited(None)
    assert state_of(bag.folder) == State.CUT_OFF
    repaired = repair(bag.folder)
    assert repaired.loss.bytes_lost == 0
    kept = messages(bag.folder)
    assert len(kept) > 20
    assert [one for _, _, one in kept] == data[: len(kept)]


SMALL_DISK = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_recording import open_bag, until
from pi05_ros import topics
bag = open_bag(Path(sys.argv[1]), ballast_bytes=2 << 20)
for k in range(400):
    bag.write(topics.STATE, k, bytes([0, 1, 0, 0]) + os.urandom(50_000))
    if bag.full:
        break
assert until(lambda: bag.full), "the disk did not fill"
assert bag.failure is None
print(bag.close({{"outcome": "unknown"}}))
"""


def test_a_bag_on_a_full_disk_is_finished_on_the_space_set_aside(tmp_path: Path) -> None:
    disk, code = tmp_path / "disk", SMALL_DISK.format(tests=str(Path(__file__).parent))
    disk.mkdir()
    script = 'mount -t tmpfs -o size=8m none "$1" && "$2" -c "$3" "$1" && cp -r "$1"/episode_000000 "$4"'
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        allowed = subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("this machine lets nobody mount a small disk in a user namespace")
    done = subprocess.run(
        [*namespace, "sh", "-c", script, "sh", str(disk), sys.executable, code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    copied = tmp_path / "episode_000000"
    assert state_of(copied) == State.FINISHED
    kept = messages(copied)
    assert len(kept) > 50
    assert [stamp for _, stamp, _ in kept] == list(range(len(kept)))


def test_what_an_episode_needs(tmp_path: Path) -> None:
    assert set(required_topics(CONTRACT)) <= set(recorded_topics(CONTRACT))
    assert {topics.camera_image(name) for name in CONTRACT.cameras} <= set(required_topics(CONTRACT))
    assert nominal_rates(CONTRACT)[topics.camera_image("front")] == CONTRACT.rates.camera_hz


def test_notes() -> None:
    assert parse_notes(" seed=3;operator = A. B. ;; url=a=b ") == {"seed": "3", "operator": "A. B.", "url": "a=b"}
    for wrong in ("seed", "=3"):
        with pytest.raises(ConfigError, match=f"notes: '{wrong}' is not valid; valid: `key=value; key=value`"):
            parse_notes(wrong)


def test_text_on_the_wire_is_ros_s() -> None:
    std_msgs = pytest.importorskip("std_msgs.msg", reason="rclpy's own serialisation is the reference")
    from rclpy.serialization import deserialize_message, serialize_message

    for text in ("", "pick up the red cube", "räume auf 🧹"):
        assert text_from_cdr(bytes(serialize_message(std_msgs.String(data=text)))) == text
        assert deserialize_message(text_to_cdr(text), std_msgs.String).data == text


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.ns = 10**12

    def __call__(self) -> int:
        return self.ns


def make_session(directory: Path, clock: Clock, **config: Any) -> tuple[Session, Health]:
    resolved = {topic: f"/{topic.lstrip('/')}" for topic in recorded_topics(CONTRACT)}
    health = Health(lambda _: None, lambda _: None)
    stamped = [topic for topic, kind in recorded_topics(CONTRACT).items() if not kind.startswith("std_msgs/")]
    settings = SessionConfig(directory=str(directory), **config)
    return Session(CONTRACT, settings, resolved, stamped, clock, clock, health), health


def stamped_bytes(stamp_ns: int, size: int = 8) -> bytes:
    sec, nanosec = divmod(stamp_ns, 10**9)
    return bytes([0, 1, 0, 0]) + sec.to_bytes(4, "little") + nanosec.to_bytes(4, "little") + os.urandom(size)


def test_a_failing_disk_ends_the_episode_and_says_so(tmp_path: Path, limited: Callable[[int | None], None]) -> None:
    clock = Clock()
    session, _ = make_session(tmp_path, clock, min_free_mb=0, chunk_s=0.3)
    folder = session.begin({"task": "wait"})
    limited((8 << 20) + 200_000)  # the space that is set aside fits, and little more
    for k in range(2000):
        session.heard(topics.STATE, stamped_bytes(k, 10_000))
    assert until(lambda: session.guard() or session.ended)
    assert not session.open
    assert "the episode was ended: File too large" in session.ended
    assert f"`pi05 record --repair {folder}`" in session.ended
    # Whoever asks now is told why there is nothing to stop; the next episode is a new beginning.
    with pytest.raises(RecordingError, match="the episode was ended"):
        session.keep({})
    [status] = [status for status in session.report() if status.part == "bag"]
    assert status.level == Level.ERROR
    limited(None)
    assert session.begin({}) != folder
    assert session.ended == ""
    assert repair(folder).loss.messages > 100


def test_no_room_is_noticed_before_the_disk_is_full(tmp_path: Path) -> None:
    session, _ = make_session(tmp_path, Clock(), min_free_mb=0)
    free_mb = session.free_mb()
    assert session.guard() == ""
    crowded, _ = make_session(tmp_path, Clock(), min_free_mb=free_mb * 2)
    with pytest.raises(RecordingError, match=f"min_free_mb is {free_mb * 2}"):
        crowded.begin({})
    nearly, _ = make_session(tmp_path, Clock(), min_free_mb=max(1, free_mb * 3 // 4))
    nearly.begin({})
    [status] = [status for status in nearly.report() if status.part == "bag"]
    assert status.level == Level.WARN and "the episode ends at" in status.message
    nearly.discard()


def test_rates_are_counted_in_stamps(tmp_path: Path) -> None:
    clock, front = Clock(), topics.camera_image("front")
    session, health = make_session(tmp_path, clock, min_free_mb=0)
    session.begin({})

    def second(rate_hz: int, burst: bool = False) -> Status:
        """Let the camera speak for a second of its time; a burst arrives all at once at its end."""
        begin_ns = clock.ns
        for k in range(1, rate_hz + 1):
            clock.ns = begin_ns + (10**9 if burst else round(1e9 * k / rate_hz))
            session.heard(front, stamped_bytes(begin_ns + round(1e9 * k / rate_hz)))
        return next(status for status in session.report() if status.part == front)

    second(25)
    assert second(25).values["rate_hz"] == pytest.approx(25.0)
    slow_camera = second(15)
    assert slow_camera.level == Level.WARN and slow_camera.message == "15.0 Hz, nominal 25 Hz"
    assert front in health.troubles
    assert second(25).level == Level.OK
    assert front not in health.troubles
    # What the wire held up and delivered at once was captured in time.
    late = second(25, burst=True)
    assert late.level == Level.OK and late.values["rate_hz"] == pytest.approx(25.0)
    session.discard()


def test_what_never_spoke_is_told_when_the_graph_has_had_time_to_start(tmp_path: Path) -> None:
    clock = Clock()
    session, health = make_session(tmp_path, clock, min_free_mb=0)
    session.begin({"task": "wait"})
    assert all(status.level == Level.OK for status in session.report())
    clock.ns += 6 * 10**9
    told = {status.part: status.message for status in session.report() if status.level == Level.WARN}
    assert set(told) == set(required_topics(CONTRACT)) - {topics.TASK}  # the prompt is known from elsewhere
    assert set(told.values()) == {"nothing has come yet"} and set(health.troubles) == set(told)
    session.discard()
    assert all(status.level == Level.OK for status in session.report())


def test_stamps_off_the_clock_or_backwards_are_told(tmp_path: Path) -> None:
    clock = Clock()
    session, _ = make_session(tmp_path, clock, min_free_mb=0)
    session.begin({})

    def front(offset_ns: int) -> Status:
        for _ in range(25):
            clock.ns += 40_000_000
            session.heard(topics.camera_image("front"), stamped_bytes(clock.ns + offset_ns))
        return next(s for s in session.report() if s.part == topics.camera_image("front"))

    front(0)
    assert front(0).message == "ok"
    front(-5 * 10**9)
    behind = front(-5 * 10**9)
    assert behind.message == "stamps are 5.0 s behind the clock"
    assert behind.values["stamps_backwards"] == 1
    front(3 * 10**9)
    assert front(3 * 10**9).message == "stamps are 3.0 s ahead of the clock"
    session.discard()


def test_big_endian_stamps() -> None:
    assert header_stamp_ns(bytes([0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 9])) == 7_000_000_009
    assert header_stamp_ns(bytes([0, 1, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0])) == 7_000_000_009
