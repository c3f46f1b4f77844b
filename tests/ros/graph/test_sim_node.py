"""The simulated robot as others see it: time, sensors at their rates, services, lock-step, and a controller inside."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from nav_msgs.msg import Odometry
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from pi05_ros import topics
from pi05_ros.contract import load_contract
from pi05_ros.control.chunk import Chunk
from pi05_ros.messages import chunk_from, decode_jpeg, fill_chunk, stamp_to_ns
from pi05_ros.nodes.pd_controller_node import PdControllerNode
from pi05_ros.nodes.qos import profile
from pi05_ros.nodes.sim_node import SimNode
from pi05_ros.nodes.sim_process import make_nodes
from pi05_ros.qos import offered, recorded
from pi05_ros.sim.truth import WORLD_OF_SIM, world_from_json

pytestmark = pytest.mark.ros
CONTRACT = load_contract()
MS = 1_000_000


@dataclass
class Heard:
    """What a listener has heard, in order of arrival."""

    clock: list[int] = field(default_factory=list)
    joints: list[Any] = field(default_factory=list)
    odom: list[Any] = field(default_factory=list)
    images: dict[str, list[Any]] = field(default_factory=dict)
    worlds: list[Any] = field(default_factory=list)

    @property
    def now_ns(self) -> int:
        return self.clock[-1] if self.clock else -1

    @property
    def position(self) -> Any:
        return np.array(self.joints[-1].position)


def listen(node: Any) -> Heard:
    heard = Heard(images={name: [] for name in CONTRACT.cameras})

    def subscribe(kind: Any, topic: str, keep: Callable[[Any], None]) -> None:
        node.create_subscription(kind, topic, keep, profile(recorded(topic)))

    subscribe(Clock, topics.CLOCK, lambda m: heard.clock.append(stamp_to_ns(m.clock)))
    subscribe(JointState, topics.JOINT_STATES, heard.joints.append)
    subscribe(Odometry, topics.ODOM, heard.odom.append)
    for name, topic in topics.camera_images(CONTRACT).items():
        subscribe(CompressedImage, topic, heard.images[name].append)
    node.create_subscription(String, WORLD_OF_SIM, lambda m: heard.worlds.append(world_from_json(m.data)), 100)
    return heard


def parameters(**values: Any) -> list[Parameter]:
    return [Parameter(name, value=value) for name, value in values.items()]


class Rig:
    """The simulator's process inside the test, a listener, and somebody who sends chunks."""

    def __init__(self, ros: Any, **values: Any) -> None:
        self.ros = ros
        self.tester = ros.node()
        self.heard = listen(self.tester)
        self.chunks = self.tester.create_publisher(
            JointTrajectory, topics.ACTION_CHUNK, profile(offered(topics.ACTION_CHUNK))
        )
        self.sim, self.controller = make_nodes(context=ros.context)
        self.sim.set_parameters(parameters(**{"realtime_factor": 0.0, **values}))
        for node in (self.sim, self.controller):
            ros.add(node)
            assert node.autostart(), node.failure
        assert ros.until(lambda: self.chunks.get_subscription_count() >= 1)
        assert ros.until(lambda: self.heard.worlds and self.heard.joints)

    def send(self, actions: Any, stamp_ns: int | None = None) -> None:
        chunk = Chunk(self.heard.now_ns if stamp_ns is None else stamp_ns, CONTRACT.names, actions)
        self.chunks.publish(fill_chunk(JointTrajectory(), JointTrajectoryPoint, chunk, CONTRACT.step_s))

    def vector(self) -> Any:
        return CONTRACT.from_joint_units(self.heard.position, np.zeros(3))

    def counted(self) -> dict[str, Any]:
        return {**self.controller.report()[0].values}


def stamps(messages: list[Any]) -> list[int]:
    return [stamp_to_ns(message.header.stamp) for message in messages]


def test_sensors_come_at_their_rates_in_simulated_time(ros: Any) -> None:
    rig = Rig(ros, lockstep_s=1.2, first_chunk_wait_s=600.0)  # time stops at 1.2 s, whatever the machine's speed
    heard = rig.heard
    assert ros.until(lambda: heard.now_ns == 1_200 * MS)
    assert ros.until(lambda: all(1_200 * MS in stamps(images) for images in heard.images.values()))
    # Best effort: a loaded machine may lose some on the way, but what comes is on the declared grid.
    frames = set(range(0, 1_201 * MS, 40 * MS))
    for images in heard.images.values():
        assert set(stamps(images)) <= frames
        assert len(set(stamps(images))) > 15
        assert decode_jpeg(images[-1].data).shape == (224, 224, 3)
    samples = {2 * MS * math.ceil(2.5 * k) for k in range(241)}  # 200 Hz on the physics' grid of 2 ms
    assert set(stamps(heard.joints)) <= samples
    assert set(heard.clock) <= set(range(0, 1_201 * MS, 10 * MS))
    assert len(set(stamps(heard.joints))) > 120
    assert heard.joints[-1].name == list(CONTRACT.joint_names)
    assert heard.odom


def test_the_robot_holds_still_without_chunks(ros: Any) -> None:
    rig = Rig(ros, lockstep_s=0.0)
    first = rig.heard.position
    assert ros.until(lambda: rig.heard.now_ns > 1_500 * MS)
    assert np.abs(rig.heard.position - first).max() < 0.02
    assert rig.counted()["latch"] == ""


def test_reset_draws_another_scene_and_time_goes_on(ros: Any) -> None:
    rig = Rig(ros, lockstep_s=0.0, seed=1)
    assert ros.until(lambda: rig.heard.now_ns > 200 * MS)
    before, scene = rig.heard.now_ns, rig.heard.worlds[0].objects
    rig.sim.set_parameters(parameters(seed=2))
    assert ros.call(rig.tester, Trigger, "/sim_node/reset").success
    assert ros.until(lambda: [item.name for item in rig.heard.worlds[-1].objects] != [item.name for item in scene])
    count = len(rig.heard.worlds)
    assert ros.until(lambda: len(rig.heard.worlds) > count + 5)
    assert rig.heard.now_ns > before
    assert (np.diff(rig.heard.clock) >= 0).all()
    assert rig.counted()["latch"] == ""


def test_success_is_told_with_a_reason(ros: Any) -> None:
    rig = Rig(ros, lockstep_s=0.0)
    answer = ros.call(rig.tester, Trigger, "/sim_node/success")
    count = len(rig.heard.worlds[0].objects)
    assert (answer.success, answer.message) == (False, f"0 of {count} objects in the bin")


def test_simulated_time_waits_for_chunks(ros: Any) -> None:
    rig = Rig(ros, lockstep_s=0.2, first_chunk_wait_s=600.0, chunk_wait_s=600.0)
    heard = rig.heard
    assert ros.until(lambda: heard.clock.count(200 * MS) >= 4), "the last time is said again while time stands still"
    assert max(heard.clock) == 200 * MS
    home = np.tile(rig.vector(), (CONTRACT.rates.chunk_steps, 1))
    rig.send(home, stamp_ns=160 * MS)
    assert ros.until(lambda: heard.clock.count(360 * MS) >= 4)
    assert max(heard.clock) == 360 * MS
    rig.send(home, stamp_ns=10_000 * MS)  # from the future: as good as now
    assert ros.until(lambda: heard.clock.count(560 * MS) >= 4)
    assert max(heard.clock) == 560 * MS
    assert rig.counted()["chunks_refused.from_future"] == 1


def test_time_runs_free_when_chunks_stay_away_too_long(ros: Any) -> None:
    rig = Rig(ros, lockstep_s=0.2, first_chunk_wait_s=0.0)
    assert ros.until(lambda: rig.heard.now_ns > 600 * MS)


def test_a_chunk_moves_the_robot_and_a_bad_one_does_not(ros: Any) -> None:
    rig = Rig(ros, lockstep_s=0.5, first_chunk_wait_s=600.0, chunk_wait_s=600.0)
    assert ros.until(lambda: rig.heard.now_ns >= 480 * MS)
    start = rig.vector()
    bad = np.tile(start, (CONTRACT.rates.chunk_steps, 1))
    bad[7, 3] = np.nan
    rig.send(bad)
    assert ros.until(lambda: rig.counted().get("chunks_refused.not_finite") == 1)
    move = np.tile(start, (CONTRACT.rates.chunk_steps, 1))
    index = CONTRACT.names.index("left_joint1")
    move[:, index] += np.linspace(0.0, 0.3, CONTRACT.rates.chunk_steps)
    rig.send(move)
    assert ros.until(lambda: rig.counted()["chunks_accepted"] == 1)
    rig.send(move, stamp_ns=rig.heard.now_ns)
    assert ros.until(lambda: rig.vector()[index] > start[index] + 0.1)


def test_software_stop_over_services(ros: Any) -> None:
    rig = Rig(ros, lockstep_s=0.2, first_chunk_wait_s=600.0, chunk_wait_s=600.0)
    hold = np.tile(rig.vector(), (CONTRACT.rates.chunk_steps, 1))
    assert ros.call(rig.tester, Trigger, "/pd_controller_node/stop").success
    rig.send(hold)
    assert ros.until(lambda: rig.counted().get("chunks_refused.stopped") == 1)
    assert rig.counted()["latch"] == "stop_called"
    assert ros.call(rig.tester, Trigger, "/pd_controller_node/reset").success
    rig.send(hold)  # a refused chunk lets time run on, so the controller ticks and leaves the stop
    assert ros.until(lambda: rig.counted()["state"] != "stopped")
    rig.send(hold)
    assert ros.until(lambda: rig.counted()["chunks_accepted"] >= 1)


def test_a_deactivated_controller_holds(ros: Any) -> None:
    rig = Rig(ros, lockstep_s=0.0)
    rig.controller.trigger_deactivate()
    begin, first = rig.heard.now_ns, rig.heard.position
    assert ros.until(lambda: rig.heard.now_ns > begin + 1_000 * MS)
    assert np.abs(rig.heard.position - first).max() < 0.02


def test_without_a_controller_time_stands_still(ros: Any) -> None:
    sim, _ = make_nodes(context=ros.context)
    ros.add(sim)
    assert sim.autostart()
    assert "nobody drives" in sim.report()[0].message
    assert sim.time_ns == 0


def test_a_controller_over_topics_holds_the_pose(ros: Any) -> None:
    tester = ros.node()
    heard = listen(tester)
    sim = ros.add(SimNode(context=ros.context))
    # Slowly, so that the way over topics costs little simulated time on any machine.
    sim.set_parameters(parameters(controller="topics", lockstep_s=0.0, realtime_factor=0.1))
    controller = ros.add(PdControllerNode(context=ros.context, parameter_overrides=parameters(use_sim_time=True)))
    assert sim.autostart(), sim.failure
    assert controller.autostart(), controller.failure
    assert ros.until(lambda: heard.joints)
    first = heard.position
    assert ros.until(lambda: heard.now_ns > 600 * MS)
    assert np.abs(heard.position - first).max() < 0.02
    values = controller.report()[0].values
    assert (values["latch"], values["state"]) == ("", "idle")


def test_chunk_messages_survive_the_way() -> None:
    actions = np.random.default_rng(1).standard_normal((CONTRACT.rates.chunk_steps, CONTRACT.dim))
    chunk = Chunk(123, CONTRACT.names, actions)
    back = chunk_from(fill_chunk(JointTrajectory(), JointTrajectoryPoint, chunk, CONTRACT.step_s))
    np.testing.assert_array_equal(back.actions, actions)
