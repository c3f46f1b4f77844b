"""Layouts are drawn from seeds: reproducible, without collisions, within what the configuration allows."""

import mujoco
import numpy as np
import pytest

from pi05_ros.contract import Contract
from pi05_ros.sim.description import home_joints
from pi05_ros.sim.scene import Layout, SceneConfig, random_layout
from pi05_ros.sim.simulator import Simulator

CONFIG = SceneConfig()
SEEDS = range(30)


def draw(seed: int, config: SceneConfig = CONFIG) -> Layout:
    return random_layout(config, seed, ("front",), 15)


def test_a_seed_gives_one_layout_and_seeds_differ() -> None:
    assert draw(3) == draw(3)
    assert len({str(draw(seed)) for seed in SEEDS}) == len(SEEDS)


def test_layouts_keep_to_the_configuration() -> None:
    counts = set()
    for seed in SEEDS:
        layout = draw(seed)
        counts.add(len(layout.objects))
        names = [item.name for item in layout.objects]
        assert len(set(names)) == len(names)
        assert CONFIG.start_back[0] <= -layout.base_pose[0] <= CONFIG.start_back[1]
        for item in layout.objects:
            x, y, yaw = item.pose
            assert CONFIG.object_x[0] <= x <= CONFIG.object_x[1]
            assert CONFIG.object_y[0] <= abs(y) <= CONFIG.object_y[1]
            assert abs(yaw) <= CONFIG.object_yaw
            assert 0.040 <= 2 * min(item.size[:2]) <= 0.056
    assert counts == {2, 3, 4}


def test_what_does_not_fit_is_an_error_and_not_an_endless_search() -> None:
    with pytest.raises(ValueError, match="no room for 2 objects"):
        draw(0, SceneConfig(object_gap=2.0, objects=(2, 2)))
    with pytest.raises(ValueError, match="12 different names"):
        draw(0, SceneConfig(objects=(2, 13)))


def test_nothing_but_the_tables_load_touches_anything(contract: Contract, shared_simulator: Simulator) -> None:
    """At the start and at the work pose, the only contacts are objects on the table and the bin."""
    simulator = shared_simulator
    for seed in range(12):
        simulator.reset(seed)
        resting = {simulator.model.body(item.name).id for item in simulator.layout.objects}
        resting_on = {simulator.model.body(name).id for name in ("table", "bin")}
        for pose in (np.array(simulator.layout.base_pose), np.zeros(3)):
            simulator.set_joints(home_joints(contract), pose)
            for contact in simulator.data.contact[: simulator.data.ncon]:
                first, second = simulator.model.geom_bodyid[contact.geom]
                assert ({first, second} & resting) and ({first, second} & resting_on)


def test_objects_stand_still(simulator: Simulator) -> None:
    before = {o.name: o.position for o in simulator.snapshot().objects}
    for _ in range(500):
        mujoco.mj_step(simulator.model, simulator.data)
    for item in simulator.snapshot().objects:
        np.testing.assert_allclose(item.position, before[item.name], atol=3e-3)
        assert not item.in_bin and item.held_by is None
