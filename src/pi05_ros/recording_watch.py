"""Watches what arrives at the recorder: rate, age and gaps of every topic, judged while an episode runs. Free of rclpy.

Rates and gaps are counted in header stamps (capture time), so that a slow simulator or a burst on the wire looks like
neither a slow camera nor a lost frame; age is counted on the monotonic clock, because what died stamps nothing.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NS = 1_000_000_000
SLOW = 0.8  # of the nominal rate: below it a topic is too slow
GAPS = 0.05  # share of samples missing within a second that is worth a warning
SKEW_S = 1.0  # stamps this far from the clock are wrong, or the clocks are not synchronised
_LITTLE, _BIG = struct.Struct("<iI"), struct.Struct(">iI")


def header_stamp_ns(data: bytes) -> int:
    """Return the stamp [ns] of a serialised message that begins with a std_msgs/Header.

    Args:
        data: CDR with its 4-byte encapsulation header, whose second byte tells the byte order (DDSI-RTPS 10.2).
    """
    sec, nanosec = (_LITTLE if data[1] & 1 else _BIG).unpack_from(data, 4)
    return int(sec) * NS + int(nanosec)


@dataclass(frozen=True, slots=True)
class TopicFigures:
    """What one topic did since the last look.

    Attributes:
        messages: in all, since `begin`.
        rate_hz: in stamps since the last look; wall time for topics without a header.
        age_s: wall time since the newest message; infinite when none came.
        missing: samples that the nominal rate promises and that did not come, since `begin`.
        missing_now: the same since the last look.
        skew_s: clock minus newest stamp at its arrival [s]; the latency, if all is well.
        backwards: stamps that ran backwards by more than a second, since `begin`.
    """

    messages: int
    rate_hz: float
    age_s: float
    missing: int
    missing_now: int
    skew_s: float
    backwards: int

    def values(self) -> dict[str, str | int | float]:
        """Return the figures for /diagnostics."""
        return {
            "messages": self.messages,
            "rate_hz": self.rate_hz,
            "age_s": self.age_s,
            "missing": self.missing,
            "latency_ms": self.skew_s * 1e3,
            "stamps_backwards": self.backwards,
        }


class TopicWatch:
    """Counts one topic.

    Args:
        stamped: its messages begin with a header.
        nominal_hz: promised rate; None: no promise.
    """

    def __init__(self, stamped: bool, nominal_hz: float | None = None) -> None:
        self._stamped, self.nominal_hz = stamped, nominal_hz
        self._period_ns = round(NS / nominal_hz) if nominal_hz else 0
        self._arrived_ns: int | None = None
        self._stamp_ns: int | None = None
        self._skew_s = 0.0
        self._fresh = 0  # messages whose stamp moved on
        self._looked = (0, 0)  # fresh messages and time at the last look
        self._missing_looked = 0
        self.begin()

    def begin(self) -> None:
        """An episode begins: count from zero."""
        self.messages = self.missing = self.backwards = self._missing_looked = 0

    def heard(self, data: bytes, arrived_ns: int, clock_ns: int) -> None:
        """Count a message.

        Args:
            data: serialised.
            arrived_ns: monotonic time.
            clock_ns: ROS time.
        """
        self.messages += 1
        self._arrived_ns = arrived_ns
        if not self._stamped:
            self._fresh += 1
            return
        stamp_ns, before = header_stamp_ns(data), self._stamp_ns
        self._skew_s = (clock_ns - stamp_ns) / NS
        if before is None or stamp_ns < before - NS:
            self.backwards += before is not None
            self._stamp_ns, self._fresh, self._looked = stamp_ns, 0, (0, stamp_ns)
        elif stamp_ns > before:
            if self._period_ns and stamp_ns - before > 1.5 * self._period_ns:
                self.missing += round((stamp_ns - before) / self._period_ns) - 1
            self._stamp_ns, self._fresh = stamp_ns, self._fresh + 1

    def look(self, now_ns: int) -> TopicFigures:
        """Return the figures, and begin a new interval.

        Args:
            now_ns: monotonic time.
        """
        time_ns = (self._stamp_ns or 0) if self._stamped else now_ns
        count, since_ns = self._fresh - self._looked[0], time_ns - self._looked[1]
        age_s = float("inf") if self._arrived_ns is None else (now_ns - self._arrived_ns) / NS
        missing_now = self.missing - self._missing_looked
        self._looked, self._missing_looked = (self._fresh, time_ns), self.missing
        rate_hz = count * NS / since_ns if since_ns > 0 else 0.0
        return TopicFigures(self.messages, rate_hz, age_s, self.missing, missing_now, self._skew_s, self.backwards)

    def age_s(self, now_ns: int) -> float:
        """Return the wall time since the newest message; infinite when none came."""
        return float("inf") if self._arrived_ns is None else (now_ns - self._arrived_ns) / NS


def judge(figures: TopicFigures, nominal_hz: float | None, silence_s: float) -> str:
    """Return what is wrong with a topic in the middle of an episode; empty: nothing."""
    if figures.age_s == float("inf"):
        return "nothing has come yet"
    if figures.age_s > silence_s:
        return f"silent for {figures.age_s:.1f} s"
    if nominal_hz is None or figures.rate_hz == 0.0:
        return ""
    if figures.rate_hz < SLOW * nominal_hz:
        return f"{figures.rate_hz:.1f} Hz, nominal {nominal_hz:g} Hz"
    if figures.missing_now > max(1.0, GAPS * nominal_hz):
        return f"{figures.missing_now} samples missing in a second, {figures.missing} in this episode"
    if abs(figures.skew_s) > SKEW_S:
        return f"stamps are {abs(figures.skew_s):.1f} s {'behind' if figures.skew_s > 0 else 'ahead of'} the clock"
    return ""


def missing_topics(
    required: Sequence[str],
    watches: Mapping[str, TopicWatch],
    publishers: Mapping[str, int],
    now_ns: int,
    fresh_s: float,
) -> dict[str, str]:
    """Return what keeps an episode from beginning, by topic.

    Args:
        required: topics that must be there.
        watches: counts of every topic.
        publishers: number of publishers by topic.
        now_ns: monotonic time.
        fresh_s: a topic with a nominal rate must have spoken this recently [s]; others once.
    """
    missing = {}
    for topic in required:
        age_s, steady = watches[topic].age_s(now_ns), watches[topic].nominal_hz is not None
        if publishers[topic] == 0:
            missing[topic] = "no publisher"
        elif age_s == float("inf"):
            missing[topic] = "no message yet"
        elif steady and age_s > fresh_s:
            missing[topic] = f"silent for {age_s:.1f} s"
    return missing
