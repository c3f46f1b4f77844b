"""From stamped messages to observations: the one way in, for the live nodes and for the bag converter alike.

What always holds: an observation is a function of the messages and its stamp alone. Every source contributes its newest
sample at or before the stamp (never one from the future, which a robot could not have seen), unless that is older than
the source's limit. Live, `look_stamp` waits until every living source has passed the stamp, so that a message still on
its way cannot change what the converter later finds in the bag. Offline, a source can be given another `SourceRule`.
"""

import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from pi05_model.observation import Image, Observation
from pi05_ros.contract import Contract
from pi05_ros.messages import MessageError, decode_jpeg, fit

Array = NDArray[np.float64]
NS = 1_000_000_000
STATE = "state"
T = TypeVar("T")
SamplePolicy = Literal["hold", "nearest", "drop"]
SAMPLE_POLICIES: tuple[SamplePolicy, ...] = get_args(SamplePolicy)


@dataclass(frozen=True, slots=True)
class SourceRule:
    """Which sample of a source counts at a stamp.

    Attributes:
        policy: "hold" takes the newest at or before the stamp; a camera without a fresh one is left out. "nearest"
            takes the nearest on either side (the earlier of two equally near), which only a recording can know.
            "drop" takes what "hold" takes, but without a fresh sample there is no observation at all. Nothing is
            ever observed without a state.
        max_age_s: a sample further from the stamp does not count.
    """

    policy: SamplePolicy = "hold"
    max_age_s: float = 0.25


@dataclass(frozen=True, slots=True)
class IngestConfig:
    """Limits of an observation.

    Attributes:
        image_max_age_s: an older image is left out (and masked by the policy).
        state_max_age_s: with an older state there is no observation.
        history_s: how far back observations can be taken; None keeps everything (offline).
        rules: rules that replace the two limits above, by source ("state", or a camera's name).
    """

    image_max_age_s: float = 0.25
    state_max_age_s: float = 0.1
    history_s: float | None = 1.0
    rules: Mapping[str, SourceRule] = field(default_factory=dict)

    def rule(self, source: str) -> SourceRule:
        """Return the rule of a source."""
        limit_s = self.state_max_age_s if source == STATE else self.image_max_age_s
        return self.rules.get(source) or SourceRule("hold", limit_s)


@dataclass
class Picture:
    """An encoded image, decoded and fitted to the contract when it is first needed.

    Attributes:
        encoded: JPEG or PNG bytes; None once decoded.
    """

    encoded: Any
    decoded: Image | None = field(default=None)
    error: MessageError | None = field(default=None)

    def pixels(self, contract: Contract) -> Image:
        """Return RGB uint8 [H, W, 3] in the contract's size.

        Raises:
            MessageError: the bytes are no image.
        """
        if self.error is not None:
            raise self.error
        if self.decoded is None:
            try:
                self.decoded = fit(decode_jpeg(self.encoded), contract.image.width, contract.image.height)
            except MessageError as error:
                self.error = error
                raise
            self.encoded = None
        return self.decoded


@dataclass(frozen=True, slots=True)
class Selection:
    """The samples that count at a stamp, nothing decoded.

    Attributes:
        stamp_ns: the stamp.
        state: its own stamp and the vector [D]; None when there is none.
        images: own stamp and image by camera name; a camera without one that counts is left out.
        missing: why a source is left out, by source ("state", or a camera's name).
        complete: whether an observation can be made: a state, and no source whose rule is "drop" missing.
    """

    stamp_ns: int
    state: tuple[int, Array] | None
    images: dict[str, tuple[int, Picture]]
    missing: dict[str, str]
    complete: bool


@dataclass(frozen=True, slots=True)
class Taken:
    """What was found at a stamp.

    Attributes:
        observation: None when there is no state.
        missing: why a source is left out, by source ("state", or a camera's name).
    """

    observation: Observation | None
    missing: dict[str, str]


class ObservationBuffer:
    """Collects encoded images and state vectors and gives observations. Safe to feed and read from two threads.

    Args:
        contract: the robot.
        cameras: names of the cameras to look at; None takes all.
        config: limits.
    """

    def __init__(
        self, contract: Contract, cameras: Sequence[str] | None = None, config: IngestConfig | None = None
    ) -> None:
        self.contract, self.config = contract, config or IngestConfig()
        self.cameras = tuple(contract.cameras) if cameras is None else tuple(cameras)
        self._rules = {source: self.config.rule(source) for source in (STATE, *self.cameras)}
        self._lock = threading.Lock()
        self._images = {name: _History[Picture](self.config.history_s) for name in self.cameras}
        self._states = _History[Array](self.config.history_s)
        self._counts: Counter[str] = Counter()
        self._last: Taken | None = None

    def add_image(self, camera: str, stamp_ns: int, encoded: Any) -> None:
        """Add an encoded image (JPEG or PNG bytes); it is decoded when an observation needs it, at most once."""
        with self._lock:
            self._images[camera].add(stamp_ns, Picture(encoded))

    def add_state(self, stamp_ns: int, vector: Array) -> None:
        """Add a state vector [D] in contract order; one that is not finite is counted and left out."""
        with self._lock:
            if np.isfinite(vector).all():
                self._states.add(stamp_ns, vector)
            else:
                self._counts[f"{STATE}: not finite"] += 1

    @property
    def counts(self) -> dict[str, int]:
        """How often a source was left out of an observation, by "source: reason"."""
        with self._lock:
            return dict(self._counts)

    def passed_ns(self) -> int | None:
        """Return the newest stamp that the state and every living camera have passed; None before the first state.

        A camera whose newest image is older than its limit is taken for dead and does not hold the others up.
        """
        with self._lock:
            newest = self._states.newest
            return None if newest is None else min([newest, *(h.newest or 0 for h in self._living(newest))])

    def look_stamp(self, tick_ns: int) -> tuple[int | None, str]:
        """Choose the stamp of the observation for a tick: that of the newest image at or before it.

        It waits until every living source has passed the tick. Images that came too late for an earlier tick (just
        after the start) are looked at as they are.

        Returns:
            The stamp and "", or None and what is missing.
        """
        with self._lock:
            newest = self._states.newest
            if newest is None:
                return None, "a state (topic `state`)"
            living = self._living(newest)
            if not living:
                limit_s = self.config.image_max_age_s
                why = (f"{name} {_why_not(h.at(newest), newest, limit_s)}" for name, h in self._images.items())
                return None, f"at least one image ({'; '.join(why)})"
            passed = min([newest, *(h.newest or 0 for h in living)])
            if passed < tick_ns:
                return None, f"samples of every source (the last is {(tick_ns - passed) / NS:.2f} s behind)"
            oldest = tick_ns - round(self.config.image_max_age_s * NS)
            stamps = [entry[0] for h in living if (entry := h.at(tick_ns)) is not None and entry[0] >= oldest]
            late = [entry[0] for h in living if (entry := h.at(passed)) is not None]
            for stamp_ns in (*sorted(stamps, reverse=True), *sorted(late, reverse=True), newest):
                if self._usable(stamp_ns, living):
                    return stamp_ns, ""
            return None, "a state and an image of the same time"

    def _usable(self, stamp_ns: int, living: Sequence["_History[Picture]"]) -> bool:
        config = self.config
        if _why_not(self._states.at(stamp_ns), stamp_ns, config.state_max_age_s):
            return False
        return any(not _why_not(h.at(stamp_ns), stamp_ns, config.image_max_age_s) for h in living)

    def _living(self, state_ns: int) -> list["_History[Picture]"]:
        oldest = state_ns - round(self.config.image_max_age_s * NS)
        return [h for h in self._images.values() if h.newest is not None and h.newest >= oldest]

    def select(self, stamp_ns: int) -> Selection:
        """Return the samples that count at a stamp, as `at` does, without decoding or counting anything."""
        rules = self._rules
        with self._lock:
            state = self._states.pick(stamp_ns, rules[STATE].policy)
            pictures = {name: h.pick(stamp_ns, rules[name].policy) for name, h in self._images.items()}
        missing: dict[str, str] = {}
        images: dict[str, tuple[int, Picture]] = {}
        for name, found in pictures.items():
            reason = _why_not(found, stamp_ns, rules[name].max_age_s)
            if reason or found is None:
                missing[name] = reason
            else:
                images[name] = found
        reason = _why_not(state, stamp_ns, rules[STATE].max_age_s)
        if reason:
            missing[STATE], state = reason, None
        complete = state is not None and not any(rules[source].policy == "drop" for source in missing)
        return Selection(stamp_ns, state, images, missing, complete)

    def at(self, stamp_ns: int) -> Taken:
        """Return the observation at a stamp; the same stamp asked for again gives the same object.

        Cameras without an image that is fresh enough are left out and named in `missing`.
        """
        if self._last is not None and self._last.observation and self._last.observation.stamp_ns == stamp_ns:
            return self._last
        chosen = self.select(stamp_ns)
        missing = dict(chosen.missing)
        images: dict[str, Image] = {}
        for name, (_, picture) in chosen.images.items():
            try:
                images[self.contract.cameras[name].model_key] = picture.pixels(self.contract)
            except MessageError as error:
                missing[name] = f"undecodable ({error})"
        usable = chosen.complete and not any(self._rules[source].policy == "drop" for source in missing)
        state = chosen.state if usable else None
        observation = None if state is None else Observation(stamp_ns, images, state[1])
        with self._lock:
            # The figure in the reason would make every count its own key.
            self._counts.update(f"{source}: {reason.partition(' (')[0]}" for source, reason in missing.items())
        self._last = Taken(observation, missing)
        return self._last

    def first_from(self, source: str, stamp_ns: int) -> int | None:
        """Return the first stamp of a source at or after a stamp; None when there is none yet."""
        with self._lock:
            return (self._states if source == STATE else self._images[source]).first_from(stamp_ns)


class StateMerger:
    """Merges any number of joint state sources and odometry into the contract's vector.

    Args:
        contract: the robot.
        max_age_s: an entry may be this much older than the newest one [s].
        base_required: False reads a base without odometry as standing still.
    """

    def __init__(self, contract: Contract, max_age_s: float, base_required: bool = True) -> None:
        self._contract, self._max_age_ns, self._base_required = contract, round(max_age_s * NS), base_required
        self._joints: dict[str, tuple[int, float]] = {}
        self._twist: tuple[int, Array] | None = None
        self._wanted = frozenset(contract.joint_names)

    def add_joints(self, stamp_ns: int, names: Sequence[str], positions: Sequence[float]) -> int:
        """Add one message [joint units]; joints that the contract does not know are ignored.

        Returns:
            How many positions were not finite and left out.

        Raises:
            MessageError: another number of positions than of names.
        """
        if len(names) != len(positions):
            raise MessageError(f"joint state has {len(names)} names but {len(positions)} positions")
        self._forget_if_clock_jumped(stamp_ns)
        refused = 0
        for name, position in zip(names, positions, strict=True):
            if name not in self._wanted:
                continue
            if not np.isfinite(position):
                refused += 1
            elif stamp_ns >= self._joints.get(name, (stamp_ns, 0.0))[0]:
                self._joints[name] = (stamp_ns, float(position))
        return refused

    def add_twist(self, stamp_ns: int, twist: Array) -> int:
        """Add the base's body velocity [3] (vx, vy [m/s], wz [rad/s]); return 1 when it is not finite and left out."""
        self._forget_if_clock_jumped(stamp_ns)
        if not np.isfinite(twist).all():
            return 1
        self._twist = (stamp_ns, np.asarray(twist, dtype=np.float64))
        return 0

    def missing(self) -> dict[str, str]:
        """Return why entries are not usable, by joint name (or "odom"); empty when the vector is complete."""
        newest = self._newest()
        found: dict[str, tuple[int, Any] | None] = {name: self._joints.get(name) for name in self._contract.joint_names}
        if self._base_required or self._twist is not None:
            found["odom"] = self._twist
        reasons = {name: _why_not(item, newest, self._max_age_ns / NS) for name, item in found.items()}
        return {name: reason for name, reason in reasons.items() if reason}

    def merge(self) -> tuple[int, Array] | None:
        """Return (stamp [ns] of the newest entry, state vector [D]), or None while anything is missing or stale."""
        if self.missing():
            return None
        joints = np.array([self._joints[name][1] for name in self._contract.joint_names])
        twist = np.zeros(3) if self._twist is None else self._twist[1]
        return self._newest(), self._contract.from_joint_units(joints, twist)

    def _newest(self) -> int:
        stamps = [stamp for stamp, _ in self._joints.values()] + ([self._twist[0]] if self._twist else [])
        return max(stamps, default=0)

    def _forget_if_clock_jumped(self, stamp_ns: int) -> None:
        # A simulator that was reset starts again at 0; what it said before must not hide what it says now.
        if stamp_ns < self._newest() - NS:
            self._joints.clear()
            self._twist = None


class _History(Generic[T]):
    """Samples by stamp; a window of the newest, or all of them."""

    def __init__(self, window_s: float | None) -> None:
        self._window_ns = None if window_s is None else round(window_s * NS)
        self._items: list[tuple[int, T]] = []

    @property
    def newest(self) -> int | None:
        return self._items[-1][0] if self._items else None

    def add(self, stamp_ns: int, item: T) -> None:
        newest = self.newest
        if self._window_ns is not None and newest is not None:
            if stamp_ns < newest - self._window_ns:
                self._items.clear()  # the clock jumped back: a simulator was reset
            else:
                del self._items[: self._first_after(max(newest, stamp_ns) - self._window_ns)]
        index = self._first_after(stamp_ns)
        if index == 0 or self._items[index - 1][0] != stamp_ns:  # the first counts when a sample is said again
            self._items.insert(index, (stamp_ns, item))

    def at(self, stamp_ns: int) -> tuple[int, T] | None:
        index = self._first_after(stamp_ns)
        return self._items[index - 1] if index else None

    def pick(self, stamp_ns: int, policy: SamplePolicy) -> tuple[int, T] | None:
        index = self._first_after(stamp_ns)
        before = self._items[index - 1] if index else None
        after = self._items[index] if index < len(self._items) else None
        if policy != "nearest" or after is None:
            return before
        return after if before is None or after[0] - stamp_ns < stamp_ns - before[0] else before

    def first_from(self, stamp_ns: int) -> int | None:
        index = self._first_after(stamp_ns - 1)
        return self._items[index][0] if index < len(self._items) else None

    def _first_after(self, stamp_ns: int) -> int:
        return bisect_right(self._items, stamp_ns, key=lambda entry: entry[0])


def _why_not(found: tuple[int, Any] | None, stamp_ns: int, max_age_s: float) -> str:
    if found is None:
        return "missing"
    age_s = abs(stamp_ns - found[0]) / NS
    return f"stale ({age_s:.2f} s old)" if age_s > max_age_s else ""
