"""Recordings without a robot: messages of the contract's topics, and bags made of them, for tests and benchmarks."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.typesys import Stores, get_typestore

from pi05_ros import topics
from pi05_ros.contract import Contract
from pi05_ros.messages import Array, Pixels, encode_jpeg
from pi05_ros.recording import BagRecording, recorded_topics

NS = 1_000_000_000
_STORE = get_typestore(Stores.ROS2_KILTED)


@dataclass(frozen=True, slots=True)
class Event:
    """A message as it came over the wire: time of receipt [ns], relative topic, CDR."""

    log_ns: int
    topic: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Messages:
    """Makes events; every one is received `latency_s` after its stamp."""

    contract: Contract
    latency_s: float = 0.004

    def image(self, camera: str, stamp_ns: int, encoded: bytes, kind: str = "jpeg") -> Event:
        """Make a CompressedImage."""
        frame = self.contract.cameras[camera].frame
        data = np.frombuffer(encoded, np.uint8)
        message = _make("sensor_msgs/msg/CompressedImage", header=_header(stamp_ns, frame), format=kind, data=data)
        return self._event(topics.camera_image(camera), stamp_ns, message)

    def state(self, stamp_ns: int, vector: Array, names: Sequence[str] | None = None) -> Event:
        """Make a state [D]."""
        return self._joints(topics.STATE, stamp_ns, names or self.contract.names, vector)

    def joint_states(self, stamp_ns: int, names: Sequence[str], positions: Array) -> Event:
        """Make a JointState of a robot's driver."""
        return self._joints(topics.JOINT_STATES, stamp_ns, names, positions)

    def odom(self, stamp_ns: int, twist: Array) -> Event:
        """Make an Odometry with a body twist [3] (vx, vy [m/s], wz [rad/s])."""
        make = _STORE.types
        linear = make["geometry_msgs/msg/Vector3"](float(twist[0]), float(twist[1]), 0.0)
        angular = make["geometry_msgs/msg/Vector3"](0.0, 0.0, float(twist[2]))
        point = make["geometry_msgs/msg/Point"](0.0, 0.0, 0.0)
        pose = make["geometry_msgs/msg/Pose"](point, make["geometry_msgs/msg/Quaternion"](0.0, 0.0, 0.0, 1.0))
        zeros = np.zeros(36)
        message = _make(
            "nav_msgs/msg/Odometry",
            header=_header(stamp_ns, "odom"),
            child_frame_id="base_link",
            pose=make["geometry_msgs/msg/PoseWithCovariance"](pose, zeros),
            twist=make["geometry_msgs/msg/TwistWithCovariance"](
                make["geometry_msgs/msg/Twist"](linear, angular), zeros
            ),
        )
        return self._event(topics.ODOM, stamp_ns, message)

    def text(self, topic: str, log_ns: int, text: str) -> Event:
        """Make a String."""
        return Event(log_ns, topic, _serialise(_make("std_msgs/msg/String", data=text)))

    def chunk(self, stamp_ns: int, actions: Array, latency_s: float | None = None) -> Event:
        """Make an action chunk [H, D]; it is received `latency_s` after its stamp."""
        step_ns = round(self.contract.step_s * NS)
        empty = np.zeros(0)
        duration = _STORE.types["builtin_interfaces/msg/Duration"]
        point = _STORE.types["trajectory_msgs/msg/JointTrajectoryPoint"]
        points = [
            point(np.asarray(row, np.float64), empty, empty, empty, duration(*divmod((k + 1) * step_ns, NS)))
            for k, row in enumerate(actions)
        ]
        message = _make(
            "trajectory_msgs/msg/JointTrajectory",
            header=_header(stamp_ns, ""),
            joint_names=list(self.contract.names),
            points=points,
        )
        latency_s = self.latency_s if latency_s is None else latency_s
        return Event(stamp_ns + round(latency_s * NS), topics.ACTION_CHUNK, _serialise(message))

    def _joints(self, topic: str, stamp_ns: int, names: Sequence[str], positions: Array) -> Event:
        empty = np.zeros(0)
        header, position = _header(stamp_ns, "base_link"), np.ascontiguousarray(positions, np.float64)
        kind = "sensor_msgs/msg/JointState"
        message = _make(kind, header=header, name=list(names), position=position, velocity=empty, effort=empty)
        return self._event(topic, stamp_ns, message)

    def _event(self, topic: str, stamp_ns: int, message: Any) -> Event:
        return Event(stamp_ns + round(self.latency_s * NS), topic, _serialise(message))


@dataclass(frozen=True, slots=True)
class Script:
    """An episode: sensors at steady rates, chunks that follow a smooth path, one subtask after the other.

    Attributes:
        seconds: length.
        camera_hz, state_hz, chunk_hz: rates.
        start_ns: stamp of the first message.
        skew_s: offset of camera i's stamps is i times this.
        subtasks: each in force for an equal share of the time.
        task: said at the start; "" says nothing.
        cameras: names; None takes all.
    """

    seconds: float = 2.0
    camera_hz: float = 25.0
    state_hz: float = 200.0
    chunk_hz: float = 5.0
    start_ns: int = 100 * NS
    skew_s: float = 0.0
    subtasks: tuple[str, ...] = ("pick up the red cube", "put the red cube in the bin")
    task: str = "clear the table"
    cameras: tuple[str, ...] | None = None

    def events(self, contract: Contract, picture: Callable[[int, int], bytes] | None = None) -> list[Event]:
        """Return all messages in order of receipt.

        Args:
            contract: the robot.
            picture: gives the JPEG of (camera number, image number); None draws `numbered_image`.
        """
        make, found = Messages(contract), list[Event]()
        picture = picture or (lambda camera, number: numbered_image(contract, camera, number))
        for number, camera in enumerate(self.cameras if self.cameras is not None else contract.cameras):
            for k in range(round(self.seconds * self.camera_hz)):
                stamp_ns = self._stamp(k / self.camera_hz + number * self.skew_s)
                found.append(make.image(camera, stamp_ns, picture(number, k)))
        for k in range(round(self.seconds * self.state_hz)):
            found.append(make.state(self._stamp(k / self.state_hz), self.state(contract, k / self.state_hz)))
        ahead = np.arange(1, contract.rates.chunk_steps + 1) * contract.step_s
        for k in range(round(self.seconds * self.chunk_hz)):
            now_s = k / self.chunk_hz
            actions = np.stack([self.state(contract, now_s + after) for after in ahead])
            found.append(make.chunk(self._stamp(now_s), actions, latency_s=0.06))
        if self.task:
            found.append(make.text(topics.TASK, self.start_ns, self.task))
        for k, subtask in enumerate(self.subtasks):
            found.append(make.text(topics.SUBTASK, self._stamp(k * self.seconds / len(self.subtasks)), subtask))
        return sorted(found, key=lambda event: event.log_ns)

    def state(self, contract: Contract, time_s: float) -> Array:
        """Return where the robot is at a time [s] after the start: slow sines, grippers within [0, 1]."""
        phase = np.arange(contract.dim)
        vector: Array = 0.3 + 0.2 * np.sin(0.7 * time_s + phase)
        return vector

    def _stamp(self, time_s: float) -> int:
        return self.start_ns + round(time_s * NS)


def write_bag(
    directory: Path,
    contract: Contract,
    events: Iterable[Event],
    notes: Mapping[str, str] | None = None,
    namespace: str = "",
) -> Path:
    """Write events into a bag as the recorder does and return its folder."""
    root = f"/{namespace.strip('/')}".rstrip("/")
    names = {topic: topic if topic[0] == "/" else f"{root}/{topic}" for topic in recorded_topics(contract)}
    recording = BagRecording(directory, names, contract)
    for event in events:
        recording.write(event.topic, event.log_ns, event.data)
    return recording.close(notes or {})


def numbered_image(contract: Contract, camera: int, number: int) -> bytes:
    """Return a JPEG that shows its camera and number as brightness, with an edge in it."""
    width, height = contract.image.width, contract.image.height
    pixels: Pixels = np.full((height, width, 3), (number * 7 + 31 * camera) % 256, np.uint8)
    pixels[:, : width // (camera + 2)] = (number * 13) % 256
    return encode_jpeg(pixels, contract.image.jpeg_quality)


def textured_images(contract: Contract, count: int, seed: int = 0) -> list[bytes]:
    """Return JPEGs as large as those of a real scene (about 10 kB at 224x224): smooth shapes with fine noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0 : contract.image.height, 0 : contract.image.width]
    found = []
    for _ in range(count):
        waves = rng.uniform(0.01, 0.15, (3, 2))
        smooth = [128 + 80 * np.sin(a * rows + b * columns + rng.uniform(0, 6)) for a, b in waves]
        noisy = np.stack(smooth, axis=-1) + rng.normal(0, 3, (*rows.shape, 1))
        found.append(encode_jpeg(np.clip(noisy, 0, 255).astype(np.uint8), contract.image.jpeg_quality))
    return found


def _header(stamp_ns: int, frame: str) -> Any:
    time = _STORE.types["builtin_interfaces/msg/Time"](*divmod(stamp_ns, NS))
    return _STORE.types["std_msgs/msg/Header"](time, frame)


def _make(kind: str, **fields: Any) -> Any:
    return _STORE.types[kind](**fields)


def _serialise(message: Any) -> bytes:
    return bytes(_STORE.serialize_cdr(message, message.__msgtype__))
