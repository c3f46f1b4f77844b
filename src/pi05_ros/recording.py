"""One episode, one rosbag2 bag: MCAP with zstd chunks, metadata version 9. Free of rclpy.

Messages are written as they came over the wire. A bag appears under its name only when it is whole: it grows in a
hidden folder beside it and is renamed when it is closed. The bag's metadata (`custom_data`) carries the task, the
contract and the software version, so that a bag explains itself. Format: rosbag2 metadata.yaml version 9, mcap.dev.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rosbags.interfaces import Connection, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.interfaces import Qos as BagQos
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from pi05_ros import topics
from pi05_ros.config import Value
from pi05_ros.contract import Contract
from pi05_ros.qos import Qos, offered

NS = 1_000_000_000
_FOREVER = QosTime(9223372036, 854775807)  # how rosbag2 writes "no deadline"
_HIDDEN = ".recording-"


def recorded_topics(contract: Contract) -> dict[str, str]:
    """Return the message type of every topic that belongs into a bag, by relative topic name."""
    images = dict.fromkeys(topics.camera_images(contract).values(), "sensor_msgs/msg/CompressedImage")
    return {
        **images,
        topics.STATE: "sensor_msgs/msg/JointState",
        topics.JOINT_STATES: "sensor_msgs/msg/JointState",
        topics.ODOM: "nav_msgs/msg/Odometry",
        topics.TASK: "std_msgs/msg/String",
        topics.SUBTASK: "std_msgs/msg/String",
        topics.ACTION_CHUNK: "trajectory_msgs/msg/JointTrajectory",
        topics.EFFORT_COMMANDS: "std_msgs/msg/Float64MultiArray",
        topics.CMD_VEL: "geometry_msgs/msg/TwistStamped",
        topics.DIAGNOSTICS: "diagnostic_msgs/msg/DiagnosticArray",
    }


class BagRecording:
    """A bag being written.

    Args:
        directory: folder of the bags; made if it is missing.
        resolved: full topic name on the wire, by relative topic name (keys of `recorded_topics`).
        contract: the robot; also written into the bag.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, directory: Path, resolved: Mapping[str, str], contract: Contract) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._hidden = Path(tempfile.mkdtemp(prefix=_HIDDEN, dir=directory))
        self._name = _next_name(directory)
        self._writer = Writer(self._hidden / self._name, version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._writer.set_custom_data("contract", contract.model_dump_json())
        self._writer.open()
        store = get_typestore(Stores.ROS2_KILTED)
        types = recorded_topics(contract)
        self._connections: dict[str, Connection] = {
            topic: self._writer.add_connection(
                name, types[topic], typestore=store, offered_qos_profiles=[_bag_qos(offered(topic))]
            )
            for topic, name in resolved.items()
        }
        self.messages = 0
        self.bytes = 0

    def write(self, topic: str, stamp_ns: int, data: bytes) -> None:
        """Append a serialised message.

        Args:
            topic: relative name.
            stamp_ns: time of receipt, ROS clock.
            data: CDR with its encapsulation header.
        """
        self._writer.write(self._connections[topic], stamp_ns, data)
        self.messages += 1
        self.bytes += len(data)

    def close(self, notes: Mapping[str, Value]) -> Path:
        """Finish the bag and give it its name.

        Args:
            notes: what else the metadata should say (task, outcome, versions).

        Returns:
            The bag's folder.

        Raises:
            OSError: the disk is full, or the folder has gone; what was written stays in the hidden folder.
        """
        for key, value in notes.items():
            self._writer.set_custom_data(key, str(value))
        self._writer.close()
        finished = self._rename()
        self._hidden.rmdir()
        return finished

    def discard(self) -> None:
        """Throw away what was written."""
        self._writer.abort()
        shutil.rmtree(self._hidden, ignore_errors=True)

    def _rename(self) -> Path:
        while True:
            target = self._directory / self._name
            # Another recorder may have taken the name meanwhile; renaming onto a full folder fails, never overwrites.
            written = next(self._hidden.iterdir())
            if not target.exists():
                return written.rename(target)
            # The file inside is named after the folder (rosbag2), and metadata.yaml names it: both stay as they are.
            self._name = _next_name(self._directory)


def _next_name(directory: Path) -> str:
    taken = [path.name.removeprefix("episode_") for path in directory.glob("episode_*")]
    return f"episode_{max((int(n) for n in taken if n.isdigit()), default=-1) + 1:06d}"


def _bag_qos(qos: Qos) -> BagQos:
    return BagQos(
        history=QosHistory.KEEP_LAST,
        depth=qos.depth,
        reliability=QosReliability.RELIABLE if qos.reliable else QosReliability.BEST_EFFORT,
        durability=QosDurability.TRANSIENT_LOCAL if qos.latched else QosDurability.VOLATILE,
        deadline=_bag_time(qos.deadline_s),
        lifespan=_bag_time(qos.lifespan_s),
        liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=_FOREVER,
        avoid_ros_namespace_conventions=False,
    )


def _bag_time(seconds: float | None) -> QosTime:
    return _FOREVER if seconds is None else QosTime(*divmod(round(seconds * NS), NS))
