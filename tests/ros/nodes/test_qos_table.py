"""Everybody who should hear each other can."""

from dataclasses import replace

import pytest
from rclpy.qos import LivelinessPolicy, QoSCompatibility, QoSProfile, qos_check_compatible, qos_profile_sensor_data

from pi05_ros import topics
from pi05_ros.contract import load_contract
from pi05_ros.nodes.qos import profile
from pi05_ros.qos import CHUNK, OFFERED, Qos, external, offered, recorded, requested

ALL = [*OFFERED, *topics.camera_images(load_contract()).values(), topics.camera_raw("front")]


def compatible(offer: QoSProfile, request: QoSProfile) -> bool:
    return qos_check_compatible(offer, request)[0] == QoSCompatibility.OK


def defaults() -> QoSProfile:
    """ROS's defaults; the liveliness is what "system default" means to every middleware."""
    return QoSProfile(depth=10, liveliness=LivelinessPolicy.AUTOMATIC)


def sensors() -> QoSProfile:
    """What rclpy calls qos_profile_sensor_data."""
    return QoSProfile(
        depth=qos_profile_sensor_data.depth,
        reliability=qos_profile_sensor_data.reliability,
        liveliness=LivelinessPolicy.AUTOMATIC,
    )


@pytest.mark.parametrize("topic", ALL)
def test_table_fits_itself(topic: str) -> None:
    offer = profile(offered(topic))
    assert compatible(offer, profile(requested(topic)))
    assert compatible(offer, profile(recorded(topic)))
    assert compatible(offer, profile(external()))


@pytest.mark.parametrize("topic", ALL)
def test_foreign_nodes_connect(topic: str) -> None:
    # Drivers publish with ROS defaults or as sensors; what is latched here needs a latched publisher, as
    # `ros2 topic pub` is.
    latched = profile(Qos(reliable=True, latched=True))
    publishers = [latched] if offered(topic).latched else [defaults(), latched]
    publishers += [sensors()] if not offered(topic).reliable else []
    for publisher in publishers:
        assert compatible(publisher, profile(requested(topic)))
    # ros2_control's controllers and RViz subscribe with reliable defaults to commands and with sensor QoS to sensors.
    assert compatible(profile(offered(topic)), defaults() if offered(topic).reliable else sensors())


def test_check_can_fail() -> None:
    assert not compatible(profile(offered(topics.STATE)), profile(replace(requested(topics.STATE), reliable=True)))
    assert not compatible(profile(requested(topics.ACTION_CHUNK)), profile(CHUNK))


def test_unknown_topic_lists_the_known() -> None:
    with pytest.raises(KeyError, match="no QoS for topic 'sate'; known: joint_states"):
        offered("sate")
