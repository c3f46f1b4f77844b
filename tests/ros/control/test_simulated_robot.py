"""The assembled controller on the real simulator: the whole robot follows chunks, and what it grips stays gripped."""

from collections.abc import Callable

import numpy as np
import pytest

from pi05_ros.contract import load_contract
from pi05_ros.control.assembly import assemble_controller, robot_limits
from pi05_ros.control.chunk import Chunk
from pi05_ros.control.executor import Accepted, State
from pi05_ros.control.pd import PdController
from pi05_ros.sim.description import home_joints
from pi05_ros.sim.simulator import Simulator

CONTRACT = load_contract()
NAMES = CONTRACT.joint_names
GRIPPERS = np.array([name.endswith("gripper") for name in NAMES])
LIFT = NAMES.index("torso_lift")
LATENCY_NS, PERIOD_NS = 100_000_000, 400_000_000

Path = Callable[[np.ndarray], np.ndarray]


@pytest.fixture
def sim() -> Simulator:
    made = Simulator(CONTRACT, render=False)
    made.reset(3)
    return made


def follow(
    sim: Simulator,
    controller: PdController,
    joints: Path,
    twist: Path,
    duration_s: float,
    each: Callable[[], object] = lambda: None,
) -> None:
    """Offer a chunk of the paths every 0.4 s, 0.1 s after its stamp."""
    start_ns = sim.time_ns
    while (now_ns := sim.time_ns) < start_ns + round(duration_s * 1e9):
        since = now_ns - start_ns - LATENCY_NS
        if since >= 0 and since % PERIOD_NS == 0:
            stamp_ns = now_ns - LATENCY_NS
            due_s = (stamp_ns - start_ns) * 1e-9 + CONTRACT.step_s * np.arange(1, CONTRACT.rates.chunk_steps + 1)
            chunk = Chunk(stamp_ns, CONTRACT.names, CONTRACT.from_joint_units(joints(due_s), twist(due_s)))
            assert isinstance(controller.offer(chunk, now_ns), Accepted)
        controller.tick(now_ns)
        each()
        sim.step()


def smooth(t: np.ndarray, duration_s: float) -> np.ndarray:
    x = np.clip(t / duration_s, 0.0, 1.0)
    return (x**3 * (10 - 15 * x + 6 * x**2))[:, None]


def sway_from(start: np.ndarray, grip: np.ndarray) -> Path:
    """Every arm joint swings with 0.25 rad inside its limits, the lift with 40 mm; grippers go to `grip`."""
    limits, _ = robot_limits(CONTRACT)
    amplitude = np.where(GRIPPERS, 0.0, 0.25)
    amplitude[LIFT] = 0.04
    phase = np.arange(len(NAMES))
    middle = np.where(GRIPPERS, grip, np.clip(start, limits.lower + 0.3, limits.upper - 0.3))
    middle[LIFT] = 0.15

    def path(t: np.ndarray) -> np.ndarray:
        ramp = smooth(t, 2.0)
        return start + ramp * (middle - start + amplitude * np.sin(2.5 * t[:, None] + phase))

    return path


def still(t: np.ndarray) -> np.ndarray:
    return np.zeros((len(t), 3))


def drive(t: np.ndarray) -> np.ndarray:
    return smooth(t, 1.0) * np.sin(1.5 * t)[:, None] * np.array([0.15, 0.1, 0.3])


@pytest.mark.parametrize("twist", [still, drive])
def test_the_whole_robot_follows_within_5_mrad(sim: Simulator, twist: Path) -> None:
    controller = assemble_controller(CONTRACT, sim)
    start = sim.read().position
    path = sway_from(start, np.full(len(NAMES), 0.02))
    errors: list[np.ndarray] = []
    follow(
        sim,
        controller,
        path,
        twist,
        6.0,
        lambda: errors.append(sim.read().position - path(np.array([sim.time_ns * 1e-9]))[0]),
    )
    rms = np.sqrt(np.mean(np.square(errors), axis=0)) * 1e3
    told = controller.snapshot()
    print({name: round(float(value), 3) for name, value in zip(NAMES, rms, strict=True)}, told["clamps"])
    assert (rms < 5.0).all(), dict(zip(NAMES, rms, strict=True))
    assert told["latch"] is None and told["holds"] == 0 and told["clamps"]["effort"] == 0


def test_holds_still_for_as_long_as_nothing_is_said(sim: Simulator) -> None:
    controller = assemble_controller(CONTRACT, sim)
    start = sim.read().position
    for _ in range(1000):
        controller.tick(sim.time_ns)
        sim.step()
    assert controller.state is State.IDLE
    np.testing.assert_allclose(sim.read().position, start, atol=1e-3)


def test_a_grasp_survives_motion_hold_and_stop(sim: Simulator) -> None:
    controller = assemble_controller(CONTRACT, sim)
    item = sim.layout.objects[0].name
    joint = sim.model.body(item).jntadr[0]
    place, speed = int(sim.model.jnt_qposadr[joint]), int(sim.model.jnt_dofadr[joint])

    def tcp() -> np.ndarray:
        found: np.ndarray = sim.data.body("left_tcp").xpos
        return found.copy()

    def present() -> None:
        """Keep the object between the fingers, as a hand that gives it."""
        sim.data.qpos[place : place + 3] = tcp()
        sim.data.qpos[place + 3 : place + 7] = sim.data.body("left_tcp").xquat
        sim.data.qvel[speed : speed + 6] = 0.0

    gap: list[float] = []

    def watch() -> None:
        gap.append(float(np.linalg.norm(sim.data.body(item).xpos - tcp())))

    start = sim.read().position
    closed = np.where(np.array(NAMES) == "left_gripper", 0.0, start)
    follow(sim, controller, lambda t: start + smooth(t, 0.4) * (closed - start), still, 1.2, present)
    reading = sim.read()
    assert reading.position[NAMES.index("left_gripper")] > 0.01, "something is between the fingers"
    follow(sim, controller, sway_from(np.where(GRIPPERS, closed, reading.position), closed), drive, 5.0, watch)
    assert controller.latch is None
    for _ in range(1000):  # the last chunk ends: hold, then stop, then reset
        controller.tick(sim.time_ns)
        watch()
        sim.step()
    assert controller.state is State.HOLDING
    controller.stop()
    for _ in range(500):
        controller.tick(sim.time_ns)
        watch()
        sim.step()
    controller.reset()
    for _ in range(500):
        controller.tick(sim.time_ns)
        watch()
        sim.step()
    print(f"gap grew to {max(gap) * 1e3:.1f} mm")
    assert max(gap) < 0.03
    held = {each.name: each.held_by for each in sim.snapshot().objects}
    assert held[item] == "left"


def test_limits_are_the_descriptions() -> None:
    joints, base = robot_limits(CONTRACT)
    inside = (home_joints(CONTRACT) >= joints.lower) & (home_joints(CONTRACT) <= joints.upper)
    assert inside.all()
    assert joints.lower.shape == (len(NAMES),) and base.velocity.shape == (3,)
    np.testing.assert_allclose(joints.upper[GRIPPERS], 0.045)
