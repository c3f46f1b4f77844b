"""The simulated robot: what it measures, how it moves, what its cameras see, and what it knows of the world."""

from collections.abc import Callable

import mujoco
import numpy as np
import pytest
from numpy.typing import NDArray

from pi05_ros.contract import Contract
from pi05_ros.control.dynamics import RobotDynamics
from pi05_ros.sim.description import home_joints, robot_parameters
from pi05_ros.sim.model import robot_only_model
from pi05_ros.sim.rendering import CameraRenderer
from pi05_ros.sim.simulator import Simulator

Array = NDArray[np.float64]
STILL = np.zeros(3)


def run(simulator: Simulator, seconds: float, command: Callable[[], tuple[Array, Array]]) -> None:
    end_ns = simulator.time_ns + round(seconds * 1e9)
    while simulator.time_ns < end_ns:
        simulator.write(*command())
        simulator.step()


def holding(
    simulator: Simulator, contract: Contract, target: Array, twist: Array = STILL
) -> Callable[[], tuple[Array, Array]]:
    """Return a command that compensates gravity and pulls weakly towards a target."""
    dynamics = RobotDynamics(robot_only_model(), contract.joint_names)
    gain = dynamics.inertia(target)

    def command() -> tuple[Array, Array]:
        now = simulator.read()
        effort = dynamics.gravity(now.position) + gain * (400.0 * (target - now.position) - 40.0 * now.velocity)
        return effort, twist

    return command


def place(simulator: Simulator, name: str, position: Array) -> None:
    simulator.data.joint(name).qpos[:3] = position
    simulator.data.joint(name).qvel[:] = 0.0
    mujoco.mj_forward(simulator.model, simulator.data)


def test_reset_is_reproducible(simulator: Simulator, contract: Contract) -> None:
    traces = []
    for _ in range(2):
        simulator.reset(7)
        assert simulator.time_ns == 0
        run(simulator, 0.2, lambda: (np.full(15, 0.5), np.array([0.2, 0.1, 0.3])))
        traces.append((simulator.read().position, simulator.base_pose(), simulator.render("front")))
    for first, second in zip(*traces, strict=True):
        np.testing.assert_array_equal(first, second)


def test_time_counts_steps(simulator: Simulator) -> None:
    for _ in range(1000):
        simulator.step()
    assert simulator.time_ns == 2_000_000_000 == simulator.read().stamp_ns == simulator.snapshot().stamp_ns


def test_gravity_is_real_and_what_the_dynamics_say_holds_against_it(simulator: Simulator, contract: Contract) -> None:
    home = home_joints(contract)
    simulator.set_joints(home, np.zeros(3))
    run(simulator, 0.3, lambda: (np.zeros(15), STILL))
    assert np.abs(simulator.read().position - home).max() > 0.05
    simulator.set_joints(home, np.zeros(3))
    effort = RobotDynamics(robot_only_model(), contract.joint_names).gravity(home)
    run(simulator, 1.0, lambda: (effort, STILL))
    np.testing.assert_allclose(simulator.read().position, home, atol=2e-3)
    np.testing.assert_allclose(simulator.base_pose(), np.zeros(3), atol=2e-3)


def test_the_mimic_finger_follows(simulator: Simulator, contract: Contract) -> None:
    target = home_joints(contract)
    target[contract.joint_names.index("left_gripper")] = 0.012
    run(simulator, 1.0, holding(simulator, contract, target))
    finger = float(simulator.data.joint("left_gripper").qpos[0])
    assert finger == pytest.approx(0.012, abs=2e-3)
    assert float(simulator.data.joint("left_gripper_mimic").qpos[0]) == pytest.approx(finger, abs=5e-4)


@pytest.mark.parametrize("twist", [(0.3, 0.0, 0.0), (0.0, -0.2, 0.0), (0.1, 0.1, 0.6)])
def test_the_base_follows_body_velocities(simulator: Simulator, contract: Contract, twist: tuple[float, ...]) -> None:
    wanted, home = np.array(twist), home_joints(contract)
    simulator.set_joints(home, np.array([-2.0, 0.5, 1.0]))
    run(simulator, 1.0, holding(simulator, contract, home, wanted))
    np.testing.assert_allclose(simulator.read().base_twist, wanted, atol=0.02)
    yaw = simulator.base_pose()[2]
    velocity = simulator.data.qvel[[simulator.model.joint(name).dofadr[0] for name in ("base_x", "base_y")]]
    turned = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]) @ wanted[:2]
    np.testing.assert_allclose(velocity, turned, atol=0.02)
    run(simulator, 1.0, holding(simulator, contract, home))
    np.testing.assert_allclose(simulator.read().base_twist, STILL, atol=0.005)


def test_the_base_keeps_its_limits(simulator: Simulator, contract: Contract) -> None:
    home, base = home_joints(contract), robot_parameters()["base"]
    simulator.set_joints(home, np.array([-2.0, 0.0, np.pi]))
    run(simulator, 0.2, holding(simulator, contract, home, np.array([5.0, 0.0, 0.0])))
    assert simulator.read().base_twist[0] == pytest.approx(0.2 * base["acceleration"][0], abs=0.03)
    run(simulator, 1.3, holding(simulator, contract, home, np.array([5.0, 0.0, 0.0])))
    assert simulator.read().base_twist[0] == pytest.approx(base["velocity"][0], abs=0.02)


def test_odometry_starts_where_the_robot_stood(simulator: Simulator, contract: Contract) -> None:
    np.testing.assert_allclose(simulator.odometry(), np.zeros(3), atol=1e-9)
    hold = holding(simulator, contract, simulator.read().position, np.array([0.2, 0.0, 0.0]))
    run(simulator, 1.0, hold)
    moved = simulator.odometry()
    assert moved[0] > 0.1 and abs(moved[1]) < 0.01 and abs(moved[2]) < 0.01


def test_pictures_have_the_contracts_size_and_show_something(simulator: Simulator, contract: Contract) -> None:
    for name in contract.cameras:
        picture = simulator.render(name)
        assert picture.shape == (contract.image.height, contract.image.width, 3) and picture.dtype == np.uint8
        assert picture.std() > 5
    with pytest.raises(KeyError, match="no camera 'top'; cameras: front, left_wrist"):
        simulator.render("top")


def test_the_front_camera_sees_every_object_and_the_bin(shared_simulator: Simulator, contract: Contract) -> None:
    simulator = shared_simulator
    for seed in range(10):
        simulator.reset(seed)
        model = simulator.model
        for back_m, least_px in ((0.0, 60), (1.0, 12)):
            simulator.set_joints(home_joints(contract), np.array([-back_m, 0.0, 0.0]))
            renderer = CameraRenderer(model, contract.image.width, contract.image.height)
            shown = model.geom_bodyid[renderer.segment(simulator.data, model.camera("front").id)]
            renderer.close()
            for name in ("bin", *(item.name for item in simulator.layout.objects)):
                seen = int((shown == model.body(name).id).sum())
                assert seen >= least_px, f"seed {seed}: {name} covers {seen} pixels from {back_m} m away"


def test_wrist_cameras_see_the_fingertips(simulator: Simulator, contract: Contract) -> None:
    model = simulator.model
    renderer = CameraRenderer(model, contract.image.width, contract.image.height)
    for side in ("left", "right"):
        shown = model.geom_bodyid[renderer.segment(simulator.data, model.camera(f"{side}_wrist").id)]
        for finger in ("left", "right"):
            assert (shown == model.body(f"{side}_finger_{finger}").id).sum() > 200
    renderer.close()


def test_what_lies_in_the_bin_is_in_the_bin(simulator: Simulator) -> None:
    world = simulator.snapshot()
    first = world.objects[0]
    place(simulator, first.name, world.bin_position + np.array([0.0, 0.0, 0.05]))
    assert not simulator.snapshot().object(first.name).in_bin
    run(simulator, 0.7, lambda: (np.zeros(15), STILL))
    assert simulator.snapshot().object(first.name).in_bin
    outside = world.bin_position + np.array([world.bin_half_size[0] + 0.02, 0.0, -0.04])
    place(simulator, first.name, outside)
    assert not simulator.snapshot().object(first.name).in_bin


def test_an_object_is_held_once_both_fingers_touch_it(simulator: Simulator, contract: Contract) -> None:
    target, name = home_joints(contract), simulator.layout.objects[0].name
    simulator.set_joints(target, np.array([-1.5, 0.0, 0.0]))
    tool = simulator.data.site("right_tcp")
    place(simulator, name, tool.xpos.copy())
    assert simulator.snapshot().object(name).held_by is None
    target[contract.joint_names.index("right_gripper")] = 0.0
    hold = holding(simulator, contract, target)
    dropping = simulator.model.opt.gravity.copy()
    simulator.model.opt.gravity[:] = 0.0  # the object waits in the air for the fingers

    def close() -> tuple[Array, Array]:
        effort, twist = hold()
        dynamics_free = effort - RobotDynamics(robot_only_model(), contract.joint_names).gravity(
            simulator.read().position
        )
        return dynamics_free, twist

    run(simulator, 0.4, close)
    simulator.model.opt.gravity[:] = dropping
    assert simulator.snapshot().object(name).held_by == "right"
    run(simulator, 0.5, hold)
    assert simulator.snapshot().object(name).held_by == "right"


def test_bad_commands_are_refused(simulator: Simulator) -> None:
    with pytest.raises(ValueError, match="expected 15 efforts and 3 velocities"):
        simulator.write(np.zeros(14), STILL)
    with pytest.raises(ValueError, match="must be finite"):
        simulator.write(np.full(15, np.nan), STILL)


def test_a_simulator_without_rendering_says_so(contract: Contract) -> None:
    with pytest.raises(RuntimeError, match="render=False"):
        Simulator(contract, render=False).render("front")
