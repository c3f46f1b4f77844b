"""Bags of someone else's robot become samples through a mapping file; mistakes in it are named with what is valid."""

import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from pi05_ros.contract import Contract, load_contract
from pi05_ros.messages import decode_jpeg, fit
from pi05_training.data.bags import open_bag
from pi05_training.data.command import main
from pi05_training.data.episode import DatasetError
from pi05_training.data.folder import FolderDataset
from pi05_training.data.mapping import parse_mapping
from pi05_training.data.open import open_dataset
from pi05_training.data.synthetic import numbered_image

FOREIGN = Path(__file__).parent / "foreign"
ARM = load_contract(FOREIGN / "arm.yaml")
STORE = get_typestore(Stores.ROS2_KILTED)
T = STORE.types
MS, NS = 1_000_000, 1_000_000_000
START = 50 * NS

MAPPING = f"""
contract: {FOREIGN / "arm.yaml"}
cameras: {{front: /cam/color/image_raw}}
state:
  sources:
    - topic: /arm/joint_states
      joints:
        j1: shoulder
        j2: {{name: elbow, scale: 0.0174532925199433}}
        j3: {{name: wrist, offset: -1.0, field: velocity}}
  fill: {{grip: 0.5}}
"""


def header(stamp_ns: int) -> Any:
    return T["std_msgs/msg/Header"](T["builtin_interfaces/msg/Time"](*divmod(stamp_ns, NS)), "x")


def joints(stamp_ns: int, k: float, names: tuple[str, ...] = ("elbow", "wrist", "shoulder")) -> Any:
    """Positions 90, 7, k; velocities 0, 2, 0."""
    position, velocity = np.array([90.0, 7.0, k]), np.array([0.0, 2.0, 0.0])
    return T["sensor_msgs/msg/JointState"](header(stamp_ns), list(names), position, velocity, np.zeros(0))


def raw_image(stamp_ns: int, level: int) -> Any:
    """A bgr8 image of 64x48 whose rows are longer than they need to be."""
    step = 64 * 3 + 8
    data = np.full(48 * step, level, np.uint8)
    return T["sensor_msgs/msg/Image"](header(stamp_ns), 48, 64, "bgr8", 0, step, data)


def twist(x: float) -> Any:
    vector = T["geometry_msgs/msg/Vector3"]
    return T["geometry_msgs/msg/Twist"](vector(x, 0.0, 0.0), vector(0.0, 0.0, 2 * x))


def text(said: str) -> Any:
    return T["std_msgs/msg/String"](said)


def write(path: Path, messages: list[tuple[int, str, Any]], plugin: StoragePlugin = StoragePlugin.MCAP) -> Path:
    """Write a bag as other programs do: without our metadata."""
    with Writer(path, version=9, storage_plugin=plugin) as writer:
        connections: dict[str, Any] = {}
        for log_ns, topic, message in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, message.__msgtype__, typestore=STORE)
            writer.write(connections[topic], log_ns, bytes(STORE.serialize_cdr(message, message.__msgtype__)))
    return path


def arm_messages(seconds: float = 2.0, stamped: bool = True) -> list[tuple[int, str, Any]]:
    found: list[tuple[int, str, Any]] = []
    for k in range(round(seconds * 100)):
        at = START + k * 10 * MS
        found.append((at + MS, "/arm/joint_states", joints(at if stamped else 0, k / 100)))
    for k in range(round(seconds * 30)):
        at = START + k * NS // 30
        found.append((at + MS, "/cam/color/image_raw", raw_image(at if stamped else 0, k)))
    return found


@pytest.fixture
def mapping(tmp_path: Path) -> Callable[[str], Path]:
    def put(contents: str) -> Path:
        (tmp_path / "mapping.yaml").write_text(contents)
        return tmp_path / "mapping.yaml"

    return put


@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
@pytest.mark.parametrize("ordered", [True, False])
def test_joints_units_and_raw_images(
    tmp_path: Path, mapping: Callable[[str], Path], plugin: StoragePlugin, ordered: bool
) -> None:
    messages = arm_messages()
    if ordered:  # not one topic after the other
        messages.sort(key=lambda entry: entry[0])
    bag = write(tmp_path / "bag", messages, plugin)
    assert main([str(bag), str(tmp_path / "set"), "--mapping", str(mapping(MAPPING)), "--task", "wave"]) == 0
    dataset = open_dataset(tmp_path / "set")
    assert isinstance(dataset, FolderDataset) and dataset.contract == ARM and len(dataset) > 90
    stamps = np.load(dataset.runs[0].folder / "stamps.npy")
    for index in (0, 17, 60):
        sample = dataset[index]
        shoulder = (stamps[index] - START) // (10 * MS) / 100
        np.testing.assert_allclose(sample.state, [shoulder, np.pi / 2, 1.0, 0.5], rtol=1e-6)
        # The state one step later, which is two messages on.
        np.testing.assert_allclose(sample.actions[0], [shoulder + 0.02, np.pi / 2, 1.0, 0.5], rtol=1e-6)
        level = (stamps[index] - START) * 30 // NS
        assert sample.images["base_0_rgb"].shape == (224, 224, 3)
        assert abs(float(sample.images["base_0_rgb"].mean()) - level) < 2
        assert sample.task == "wave" and sample.subtask == ""


def test_messages_without_stamps_count_when_they_were_received(tmp_path: Path, mapping: Callable[[str], Path]) -> None:
    bag = write(tmp_path / "bag", sorted(arm_messages(stamped=False), key=lambda entry: entry[0]))
    assert main([str(bag), str(tmp_path / "set"), "--mapping", str(mapping(MAPPING)), "--task", "wave"]) == 0
    assert len(open_dataset(tmp_path / "set")) > 90


def test_fields_commands_and_texts(tmp_path: Path, mapping: Callable[[str], Path]) -> None:
    base = load_contract(FOREIGN / "base.yaml")
    messages: list[tuple[int, str, Any]] = [(START, "/what", text("explore")), (START, "/how", text("go round"))]
    for k in range(200):
        at = START + k * 10 * MS
        vector, pose = T["geometry_msgs/msg/Vector3"], T["geometry_msgs/msg/Pose"]
        where = pose(T["geometry_msgs/msg/Point"](0.0, 0.0, 0.0), T["geometry_msgs/msg/Quaternion"](0.0, 0.0, 0.0, 1.0))
        moving = T["geometry_msgs/msg/Twist"](vector(0.1, 0.0, 0.0), vector(0.0, 0.0, 0.3))
        odometry = T["nav_msgs/msg/Odometry"](
            header(at),
            "base",
            T["geometry_msgs/msg/PoseWithCovariance"](where, np.arange(36.0)),
            T["geometry_msgs/msg/TwistWithCovariance"](moving, np.zeros(36)),
        )
        messages += [(at, "/odom", odometry), (at, "/cmd_vel", twist(0.2))]
    contents = f"""
contract: {FOREIGN / "base.yaml"}
state:
  sources:
    - topic: odom
      fields: {{vx: twist.twist.linear.x, vy: "pose.covariance[7]", wz: {{path: twist.twist.angular.z, scale: -1}}}}
action:
  sources: [{{topic: /cmd_vel, fields: {{vx: linear.x, wz: {{path: angular.z, scale: -1}}}}}}]
task: /what
subtask: /how
"""
    bag = write(tmp_path / "bag", messages)
    assert main([str(bag), str(tmp_path / "set"), "--mapping", str(mapping(contents))]) == 0
    sample = open_dataset(tmp_path / "set")[5]
    np.testing.assert_allclose(sample.state, [0.1, 7.0, -0.3], rtol=1e-6)
    np.testing.assert_allclose(sample.actions[0], [0.2, 7.0, -0.4], rtol=1e-6)  # vy has no command: it follows
    assert (sample.task, sample.subtask) == ("explore", "go round") and base.dim == 3


def test_compressed_images_go_through_untouched(tmp_path: Path, mapping: Callable[[str], Path]) -> None:
    jpeg = numbered_image(ARM, 0, 3)
    messages = [entry for entry in arm_messages() if entry[1] == "/arm/joint_states"]
    kind = T["sensor_msgs/msg/CompressedImage"]
    for k in range(60):
        at = START + k * NS // 30
        messages.append((at, "/cam/color/image_raw", kind(header(at), "jpeg", np.frombuffer(jpeg, np.uint8))))
    bag = write(tmp_path / "bag", messages)
    assert main([str(bag), str(tmp_path / "set"), "--mapping", str(mapping(MAPPING)), "--task", "wave"]) == 0
    np.testing.assert_array_equal(
        open_dataset(tmp_path / "set")[9].images["base_0_rgb"], fit(decode_jpeg(jpeg), 224, 224)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("/cam/color/image_raw", "/cam"),
            r"no topic /cam; it has: .*/cam/color/image_raw \(sensor_msgs/msg/Image\)",
        ),
        (("/arm/joint_states", "/cam/color/image_raw"), r"/cam/color/image_raw is sensor_msgs/msg/Image, expected"),
        (("shoulder", "hip"), r"nothing was heard of j1 .*joints elbow, wrist, shoulder"),
        (("j1:", "j9:"), r"no entry j9; the contract has: j1, j2, j3, grip"),
        (("fill: {grip: 0.5}", "fill: {}"), r"nothing for grip; name a source, or a value under `fill`"),
        (("fill: {grip: 0.5}", "fill: {grip: 0.5, j1: 0}"), r"j1 is given twice"),
        (("{front:", "{side:"), r"cameras.side: no such camera; the contract has: front"),
        (("field: velocity", "field: torque"), r"field: .*'position', 'velocity' or 'effort'"),
        (("field: velocity", "field: effort"), r"3 names but 0 values in `effort`"),
        (("state:", "stat:"), r"stat: Extra inputs"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path,
    mapping: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    change: tuple[str, str],
    message: str,
) -> None:
    bag = write(tmp_path / "bag", arm_messages(0.5))
    flags = ["--mapping", str(mapping(MAPPING.replace(*change))), "--task", "wave"]
    try:
        assert main([str(bag), str(tmp_path / "set"), *flags]) == 1
        told = capsys.readouterr().out
    except DatasetError as error:
        told = str(error)
    assert re.search(message, told.replace("\n", " ")), told


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "twist.linear.x",
            r"joint_states: twist.linear.x: there is no 'twist'; valid here: header, name, position",
        ),
        ("position[9]", r"position\[9\]: position has 3 elements"),
        ("header.frame_id", r"header.frame_id is no number"),
        ("header", r"header is no number"),
    ],
)
def test_fields_that_are_not_there(
    tmp_path: Path, mapping: Callable[[str], Path], capsys: pytest.CaptureFixture[str], path: str, message: str
) -> None:
    contents = f"""
contract: {FOREIGN / "arm.yaml"}
state:
  sources: [{{topic: /arm/joint_states, fields: {{j1: "{path}"}}}}]
  fill: {{j2: 0, j3: 0, grip: 0}}
"""
    bag = write(tmp_path / "bag", arm_messages(0.5))
    assert main([str(bag), str(tmp_path / "set"), "--mapping", str(mapping(contents)), "--task", "wave"]) == 1
    assert re.search(message, capsys.readouterr().out)
    assert not list((tmp_path / "set").glob(".staging/*"))


@pytest.mark.parametrize("contents", ["", "- 1", "{", "state: {sources: []}"])
def test_what_is_no_mapping(contents: str) -> None:
    with pytest.raises(DatasetError, match="mapping"):
        parse_mapping(contents, ARM)


def test_this_robots_default_contract_is_used_without_one() -> None:
    contract: Contract = load_contract()
    filled = ", ".join(f"{name}: 0" for name in contract.names[1:])
    text = f"state: {{sources: [{{topic: /a, joints: {{left_joint1: x}}}}], fill: {{{filled}}}}}"
    assert parse_mapping(text, contract).state.sources[0].joint("left_joint1").name == "x"


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Source archives of two packages that hold recordings nobody here made."""
    if not os.environ.get("PI05_FOREIGN_BAGS"):
        pytest.skip("set PI05_FOREIGN_BAGS=1 to download recordings of others")
    folder = tmp_path_factory.mktemp("foreign")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
    subprocess.run([*command, "deepen-grade==0.4.1", "evo==1.38.1"], check=True, capture_output=True)
    for archive in folder.glob("*.tar.gz"):
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
    yield folder


def test_a_turtlebot_recorded_by_others(downloads: Path, tmp_path: Path) -> None:
    bag = next(downloads.rglob("nav2_turtlebot.mcap"))
    flags = ["--mapping", str(FOREIGN / "base_map.yaml"), "--task", "drive"]
    assert main([str(bag), str(tmp_path / "set"), *flags]) == 0
    dataset = open_dataset(tmp_path / "set")
    odometry = [entry.message.twist.twist for entry in open_bag(bag).messages(["/odom"])]
    assert len(dataset) > 4500
    said = {np.float32(entry.linear.x) for entry in odometry}
    assert all(dataset.labels(index)[0][0] in said for index in range(0, len(dataset), 97))


@pytest.mark.parametrize("name", ["sample.mcap", "sample_ros2"])
def test_an_arm_recorded_by_others(downloads: Path, tmp_path: Path, name: str) -> None:
    """Its images are placeholders that no decoder knows; they are counted, and the joints are all there."""
    bag = next(downloads.rglob(name))
    contents = (FOREIGN / "arm_map.yaml").read_text().replace("arm.yaml", str(FOREIGN / "arm.yaml"))
    if "/camera/image_raw" not in open_bag(bag).topics:
        contents = contents.replace("cameras: {front: /camera/image_raw}\n", "")
    (tmp_path / "map.yaml").write_text(contents)
    flags = ["--mapping", str(tmp_path / "map.yaml"), "--task", "wave", "--threshold", "1"]
    assert main([str(bag), str(tmp_path / "set"), *flags]) == 0
    assert len(open_dataset(tmp_path / "set")) > 490
