"""The QoS table (`pi05_ros.qos`) as rclpy profiles."""

from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, LivelinessPolicy, QoSProfile, ReliabilityPolicy

from pi05_ros.qos import Qos


def profile(qos: Qos) -> QoSProfile:
    """Return the rclpy profile of a table entry."""
    made = QoSProfile(
        depth=qos.depth,
        reliability=ReliabilityPolicy.RELIABLE if qos.reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if qos.latched else DurabilityPolicy.VOLATILE,
        liveliness=LivelinessPolicy.AUTOMATIC,
    )
    if qos.deadline_s is not None:
        made.deadline = Duration(seconds=qos.deadline_s)
    if qos.lifespan_s is not None:
        made.lifespan = Duration(seconds=qos.lifespan_s)
    return made
