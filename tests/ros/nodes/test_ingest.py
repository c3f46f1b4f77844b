"""Observations are a function of stamped messages and a stamp; the merger names what is missing."""

import numpy as np
import pytest
from numpy.typing import NDArray

from pi05_ros.contract import load_contract
from pi05_ros.ingest import IngestConfig, ObservationBuffer, StateMerger
from pi05_ros.messages import encode_jpeg

CONTRACT = load_contract()
MS = 1_000_000
T0 = 100_000 * MS


def flat(level: int) -> bytes:
    size = CONTRACT.image
    return encode_jpeg(np.full((size.height, size.width, 3), level, np.uint8), 90)


def state(value: float) -> NDArray[np.float64]:
    return np.full(CONTRACT.dim, value)


def level_of(buffer: ObservationBuffer, stamp_ns: int, key: str = "base_0_rgb") -> int:
    observation = buffer.at(stamp_ns).observation
    assert observation is not None
    return round(float(observation.images[key].mean()))


def test_newest_at_or_before_the_stamp() -> None:
    buffer = ObservationBuffer(CONTRACT, ["front"])
    for k in range(5):
        buffer.add_image("front", T0 + 40 * k * MS, flat(10 * k))
        buffer.add_state(T0 + 40 * k * MS, state(k))
    assert level_of(buffer, T0 + 80 * MS) == 20
    assert level_of(buffer, T0 + 119 * MS) == 20
    assert level_of(buffer, T0 + 120 * MS) == 30
    taken = buffer.at(T0 + 119 * MS)
    assert taken.observation is not None and taken.observation.state[0] == 2 and not taken.missing
    assert taken.observation.stamp_ns == T0 + 119 * MS


def test_order_of_arrival_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    messages = [(T0 + 40 * k * MS, flat(int(rng.integers(256)))) for k in range(12)]
    states = [(T0 + 5 * k * MS, state(float(k))) for k in range(96)]
    results = []
    for seed in (1, 2, 3):
        buffer = ObservationBuffer(CONTRACT, ["front"], IngestConfig(history_s=None))
        order = np.random.default_rng(seed)
        for i in order.permutation(len(messages)):
            buffer.add_image("front", *messages[i])
        for i in order.permutation(len(states)):
            buffer.add_state(*states[i])
        observation = buffer.at(T0 + 333 * MS).observation
        assert observation is not None
        results.append(observation)
    assert results[0].state[0] == 66
    for other in results[1:]:
        np.testing.assert_array_equal(other.images["base_0_rgb"], results[0].images["base_0_rgb"])
        np.testing.assert_array_equal(other.state, results[0].state)


def test_live_and_offline_agree_bit_for_bit() -> None:
    """What is taken at a stamp that all have passed is what the whole recording gives afterwards."""
    rng = np.random.default_rng(4)
    events = []
    for phase, camera in enumerate(CONTRACT.cameras):
        for k in range(25):
            stamp = T0 + (40 * k + 7 * phase) * MS
            events.append((stamp + int(rng.integers(0, 60)) * MS, camera, stamp, flat((17 * k + phase) % 256)))
    for k in range(200):
        events.append((T0 + (5 * k + int(rng.integers(0, 8))) * MS, "state", T0 + 5 * k * MS, state(float(k))))
    # Every source delivers in its own order, whatever the delays.
    by_source = {s: sorted((e for e in events if e[1] == s), key=lambda e: e[2]) for s in {e[1] for e in events}}
    for line in by_source.values():
        arrivals = np.maximum.accumulate([e[0] for e in line])
        line[:] = [(int(a), *e[1:]) for a, e in zip(arrivals, line, strict=True)]
    live = ObservationBuffer(CONTRACT)
    offline = ObservationBuffer(CONTRACT, config=IngestConfig(history_s=None))
    taken = {}
    for _, source, stamp, data in sorted((e for line in by_source.values() for e in line), key=lambda e: e[0]):
        for buffer in (live, offline):
            if isinstance(data, bytes):
                buffer.add_image(source, stamp, data)
            else:
                buffer.add_state(stamp, data)
        ready = live.passed_ns()
        if ready is not None and ready not in taken:
            observation = live.at(ready).observation
            if observation is not None and len(observation.images) == 4:
                taken[ready] = observation
    assert len(taken) > 20
    for stamp, seen in taken.items():
        again = offline.at(stamp).observation
        assert again is not None and list(again.images) == list(seen.images)
        np.testing.assert_array_equal(again.state, seen.state)
        for key, image in seen.images.items():
            np.testing.assert_array_equal(again.images[key], image)


def test_missing_stale_and_broken_sources_are_left_out_named_and_counted() -> None:
    buffer = ObservationBuffer(CONTRACT, config=IngestConfig(image_max_age_s=0.1))
    buffer.add_state(T0 + 200 * MS, state(1))
    buffer.add_image("front", T0 + 190 * MS, flat(9))
    buffer.add_image("back", T0, flat(9))
    buffer.add_image("left_wrist", T0 + 200 * MS, b"broken")
    taken = buffer.at(T0 + 200 * MS)
    assert taken.observation is not None and list(taken.observation.images) == ["base_0_rgb"]
    assert taken.missing["back"] == "stale (0.20 s old)"
    assert taken.missing["right_wrist"] == "missing"
    assert taken.missing["left_wrist"].startswith("undecodable (6 bytes")
    assert buffer.counts == {"back: stale": 1, "right_wrist: missing": 1, "left_wrist: undecodable": 1}


def test_no_fresh_state_no_observation() -> None:
    buffer = ObservationBuffer(CONTRACT, ["front"])
    assert buffer.passed_ns() is None
    buffer.add_image("front", T0, flat(1))
    assert buffer.at(T0).observation is None and buffer.at(T0).missing == {"state": "missing"}
    buffer.add_state(T0 - 150 * MS, state(0))
    assert buffer.at(T0).missing == {"state": "stale (0.15 s old)"}
    buffer.add_state(T0, np.full(CONTRACT.dim, np.nan))
    assert buffer.at(T0).observation is None
    assert buffer.counts["state: not finite"] == 1


def test_the_living_are_waited_for_and_the_dead_are_not() -> None:
    buffer = ObservationBuffer(CONTRACT, ["front", "back"])
    for camera in ("front", "back"):
        buffer.add_image(camera, T0, flat(1))
    buffer.add_state(T0 + 45 * MS, state(0))
    buffer.add_image("front", T0 + 40 * MS, flat(1))
    assert buffer.passed_ns() == T0  # the back camera's picture of T0 + 40 ms may be on its way
    buffer.add_image("back", T0 + 40 * MS, flat(1))
    assert buffer.passed_ns() == T0 + 40 * MS
    for k in range(2, 12):
        buffer.add_image("front", T0 + 40 * k * MS, flat(1))
        buffer.add_state(T0 + (40 * k + 5) * MS, state(0))
    assert buffer.passed_ns() == T0 + 440 * MS


def test_a_tick_waits_for_every_source_and_then_looks_at_images_of_its_time() -> None:
    buffer = ObservationBuffer(CONTRACT, ["front", "back"])
    assert buffer.look_stamp(T0) == (None, "a state (topic `state`)")
    buffer.add_state(T0 - 20 * MS, state(0))
    buffer.add_state(T0, state(0))
    assert buffer.look_stamp(T0) == (None, "at least one image (front missing; back missing)")
    buffer.add_image("front", T0 - 30 * MS, flat(1))
    buffer.add_image("back", T0 - 10 * MS, flat(1))
    assert buffer.look_stamp(T0) == (None, "samples of every source (the last is 0.03 s behind)")
    buffer.add_image("front", T0 + 10 * MS, flat(1))
    buffer.add_image("back", T0 + 30 * MS, flat(1))
    buffer.add_state(T0 + 35 * MS, state(0))
    assert buffer.look_stamp(T0) == (T0 - 10 * MS, "")
    # Whatever comes later does not change the answer.
    buffer.add_image("front", T0 + 50 * MS, flat(1))
    assert buffer.look_stamp(T0) == (T0 - 10 * MS, "")
    # Joined after the tick: the newest that all have passed.
    late = ObservationBuffer(CONTRACT, ["front"])
    late.add_state(T0, state(0))
    late.add_image("front", T0, flat(1))
    assert late.look_stamp(T0 - 100 * MS) == (T0, "")
    # Joined while simulated time stands still: one image, and one state that is newer.
    still = ObservationBuffer(CONTRACT, ["front"])
    still.add_image("front", T0, flat(1))
    still.add_state(T0 + 20 * MS, state(0))
    assert still.look_stamp(T0 - 100 * MS) == (T0 + 20 * MS, "")
    assert still.at(T0 + 20 * MS).observation is not None
    ahead = ObservationBuffer(CONTRACT, ["front"])
    ahead.add_image("front", T0 + 20 * MS, flat(1))
    ahead.add_state(T0, state(0))
    assert ahead.look_stamp(T0 - 100 * MS) == (None, "a state and an image of the same time")


def test_a_sample_said_again_changes_nothing() -> None:
    buffer = ObservationBuffer(CONTRACT, ["front"])
    for level in (10, 90):
        buffer.add_state(T0, state(level))
        buffer.add_image("front", T0, flat(level))
    observation = buffer.at(T0).observation
    assert observation is not None and observation.state[0] == 10 and level_of(buffer, T0) == 10


def test_the_same_stamp_gives_the_same_observation() -> None:
    buffer = ObservationBuffer(CONTRACT, ["front"])
    buffer.add_state(T0, state(0))
    buffer.add_image("front", T0, flat(3))
    first = buffer.at(T0).observation
    assert first is not None and buffer.at(T0).observation is first
    # Decoded once: the next observation shares the array.
    buffer.add_state(T0 + 5 * MS, state(1))
    second = buffer.at(T0 + 5 * MS).observation
    assert second is not None and second.images["base_0_rgb"] is first.images["base_0_rgb"]


def test_a_clock_that_jumps_back_starts_afresh() -> None:
    buffer = ObservationBuffer(CONTRACT, ["front"])
    buffer.add_state(T0, state(1))
    buffer.add_image("front", T0, flat(1))
    buffer.add_state(10 * MS, state(7))
    buffer.add_image("front", 10 * MS, flat(70))
    assert buffer.passed_ns() == 10 * MS
    assert level_of(buffer, 10 * MS) == 70


def test_images_of_another_size_are_fitted() -> None:
    buffer = ObservationBuffer(CONTRACT, ["front"])
    buffer.add_state(T0, state(0))
    buffer.add_image("front", T0, encode_jpeg(np.zeros((480, 640, 3), np.uint8), 90))
    observation = buffer.at(T0).observation
    assert observation is not None and observation.images["base_0_rgb"].shape == (224, 224, 3)


def joints(names: tuple[str, ...], stamp_ns: int, merger: StateMerger, value: float = 0.01) -> None:
    merger.add_joints(stamp_ns, names, [value] * len(names))


def test_merge_of_two_sources_in_any_order_with_strangers() -> None:
    merger = StateMerger(CONTRACT, 0.1)
    names = CONTRACT.joint_names
    merger.add_joints(T0, [*names[:7][::-1], "wheel"], [0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0, 9.0])
    joints(names[7:], T0 + 3 * MS, merger, 0.0)
    assert merger.missing() == {"odom": "missing"}
    assert merger.merge() is None
    merger.add_twist(T0 + 5 * MS, np.array([0.1, 0.2, 0.3]))
    merged = merger.merge()
    assert merged is not None
    stamp_ns, vector = merged
    assert stamp_ns == T0 + 5 * MS
    # names[:7] reversed: gripper first; a finger at 0.6 m would be a fraction beyond the range, so check it by the map.
    np.testing.assert_allclose(vector[:6], [0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert vector[6] == pytest.approx((0.6 - 0.045) / (0.0 - 0.045))
    assert vector[13] == 1.0  # finger joint at 0: closed
    np.testing.assert_allclose(vector[15:], [0.1, 0.2, 0.3])


def test_stale_and_missing_joints_are_named() -> None:
    merger = StateMerger(CONTRACT, 0.1, base_required=False)
    joints(CONTRACT.joint_names[:-1], T0, merger)
    assert merger.missing() == {"torso_lift": "missing"}
    joints(("torso_lift",), T0, merger)
    assert merger.missing() == {}
    joints(CONTRACT.joint_names[1:], T0 + 150 * MS, merger)
    assert merger.missing() == {"left_joint1": "stale (0.15 s old)"}
    assert merger.merge() is None


def test_values_that_are_not_finite_do_not_enter() -> None:
    merger = StateMerger(CONTRACT, 0.1, base_required=False)
    joints(CONTRACT.joint_names, T0, merger)
    assert merger.add_joints(T0 + MS, ["left_joint1", "left_joint2"], [float("nan"), 0.3]) == 1
    assert merger.add_twist(T0 + MS, np.array([np.inf, 0, 0])) == 1
    merged = merger.merge()
    assert merged is not None and merged[1][0] == 0.01 and merged[1][1] == 0.3


def test_merger_after_a_reset_and_with_late_messages() -> None:
    merger = StateMerger(CONTRACT, 0.1, base_required=False)
    joints(CONTRACT.joint_names, T0, merger, 0.02)
    joints(CONTRACT.joint_names, T0 - 50 * MS, merger, 0.01)  # late: the newer one stays
    merged = merger.merge()
    assert merged is not None and merged[1][0] == 0.02
    joints(CONTRACT.joint_names, 5 * MS, merger, 0.03)
    merged = merger.merge()
    assert merged is not None and merged[0] == 5 * MS and merged[1][0] == 0.03
