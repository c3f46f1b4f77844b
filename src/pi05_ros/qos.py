"""One table of the quality of service of every topic, free of rclpy.

Kinds of topics:
  sensor   best effort, depth 1: only the newest sample counts, and a slow reader must not hold up the writer.
  stream   joint states and odometry of any number of writers: best effort, but a queue, because depth 1 is shared by
           all writers of a topic and one arm's sample would overwrite the other's.
  command  reliable, depth 1, with a deadline (the writer promises a rate) and a lifespan (late is worse than never).
  latched  reliable, transient local: who joins late gets the last value.
  report   reliable, volatile, short queue.

The deadline is offered and not requested: a foreign tool without one still connects. Deadline and lifespan run on the
wall clock; the lifespan counts from the writer's clock, so two machines need synchronised clocks (as stamps do).
"""

from dataclasses import dataclass, replace

from pi05_ros import topics


@dataclass(frozen=True, slots=True)
class Qos:
    """Quality of service of one end of a topic.

    Attributes:
        reliable: lost samples are sent again.
        latched: transient local; False is volatile.
        depth: samples kept.
        deadline_s: longest promised time between two samples [s]; None makes no promise.
        lifespan_s: samples older than this are not delivered [s]; None never expires.
    """

    reliable: bool
    latched: bool = False
    depth: int = 1
    deadline_s: float | None = None
    lifespan_s: float | None = None


SENSOR = Qos(reliable=False)
STREAM = Qos(reliable=False, depth=20)
LATCHED = Qos(reliable=True, latched=True)
REPORT = Qos(reliable=True, depth=10)
CHUNK = Qos(reliable=True, deadline_s=1.0, lifespan_s=1.0)
LOW_LEVEL = Qos(reliable=True, deadline_s=0.05, lifespan_s=0.1)

OFFERED: dict[str, Qos] = {
    topics.JOINT_STATES: STREAM,
    topics.ODOM: STREAM,
    topics.STATE: SENSOR,
    topics.TASK: LATCHED,
    topics.SUBTASK: LATCHED,
    topics.EVENT: REPORT,
    topics.ACTION_CHUNK: CHUNK,
    topics.ACTION_CHUNK_DRY_RUN: CHUNK,
    topics.LEADER: STREAM,
    topics.JOY: REPORT,
    topics.EFFORT_COMMANDS: LOW_LEVEL,
    topics.CMD_VEL: LOW_LEVEL,
    topics.DIAGNOSTICS: REPORT,
    topics.CLOCK: SENSOR,
}


def offered(topic: str) -> Qos:
    """Return what a publisher of a topic offers; camera topics are sensors.

    Raises:
        KeyError: a topic that the table does not know; lists those it knows.
    """
    if topic.startswith("cameras/"):
        return SENSOR
    if topic not in OFFERED:
        raise KeyError(f"no QoS for topic {topic!r}; known: {', '.join(OFFERED)} and cameras/…")
    return OFFERED[topic]


def requested(topic: str) -> Qos:
    """Return what a subscriber of a topic asks for: the offer without its deadline and lifespan."""
    return replace(offered(topic), deadline_s=None, lifespan_s=None)


def recorded(topic: str) -> Qos:
    """Return what the recorder asks for: any offer is compatible, and the queue outlasts a slow disk."""
    offer = offered(topic)
    return Qos(reliable=offer.reliable, latched=offer.latched, depth=500)


def external() -> Qos:
    """Return what to ask of a publisher outside this project (a camera driver, Gazebo): accepts any offer."""
    return SENSOR
