"""The recorder's bench counts what was really published and really recorded."""

import pytest

from pi05_ros.bench.record import RecordCost, measure
from pi05_ros.contract import load_contract

CONTRACT = load_contract()


@pytest.mark.ros
def test_a_quiet_robot_loses_nothing() -> None:
    # Images are best effort: a machine that is busy at the wrong moment may lose some, but not every time.
    for _ in range(4):
        cost = measure(seconds=1.0, camera_hz=10.0, joints_hz=50.0)
        assert sum(cost.published.values()) == 10 * len(CONTRACT.cameras) + 50
        if cost.lost == 0:
            break
    assert cost.lost == 0
    assert 0.0 < cost.cpu_s < 1.0 + cost.seconds
    # The images are no easier to compress than a camera's.
    assert cost.bag_mb * 1e6 > 0.8 * 10 * len(CONTRACT.cameras) * cost.image_bytes > 100_000


def test_what_is_missing_in_the_bag_is_lost() -> None:
    cost = RecordCost({"a": 10, "b": 5}, {"a": 8, "c": 3}, 1.0, 0.1, 1.0, 1.0, 1)
    assert cost.lost == 7
