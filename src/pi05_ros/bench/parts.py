"""What the parts cost by themselves: a chunk, a planner tick, a physics step, the simulator with its cameras."""

import time
from collections.abc import Iterator
from itertools import count

import numpy as np

from pi05_model.observation import Observation, Policy
from pi05_ros.bench.figures import Figure, durations_ms, percentile_figures
from pi05_ros.contract import Contract
from pi05_ros.control.assembly import assemble_controller
from pi05_ros.messages import encode_jpeg
from pi05_ros.sim.simulator import Simulator

SUBTASK, TASK = "pick up the red cube with the left arm", "clear the table"


def observations(contract: Contract, seed: int = 0) -> Iterator[Observation]:
    """Yield observations of noise, each with a new stamp, so that nothing is reused from the one before."""
    size = (contract.image.height, contract.image.width, 3)
    noise = np.random.default_rng(seed).integers(0, 255, size).astype(np.uint8)
    images = {camera.model_key: noise for camera in contract.cameras.values()}
    for index in count():
        yield Observation(index, images, np.zeros(contract.dim))


def policy_figures(policy: Policy, contract: Contract, chunks: int = 40, plans: int = 20) -> list[Figure]:
    """Time chunks and planner ticks of a policy on an otherwise idle machine."""
    source = observations(contract)
    act = durations_ms(lambda: policy.act(next(source), SUBTASK), chunks)
    plan = durations_ms(lambda: policy.plan(next(source), TASK), plans)
    return [
        *percentile_figures("chunk", act, "ms", "< 60", "policy alone, new images each time"),
        *percentile_figures("planner tick", plan, "ms", "< 150", "policy alone, new images each time"),
    ]


def simulator_figures(contract: Contract, seconds: float = 5.0) -> list[Figure]:
    """Time physics with the torque loop, and the same with all cameras rendered and encoded.

    Args:
        contract: rates and cameras.
        seconds: simulated length of the second measurement.
    """
    simulator = Simulator(contract)
    simulator.reset(0)
    controller = assemble_controller(contract, simulator)

    def step() -> None:
        controller.tick(simulator.time_ns)
        simulator.step()

    def cameras() -> None:
        for name in contract.cameras:
            encode_jpeg(simulator.render(name), contract.image.jpeg_quality)

    physics_us = [ms * 1e3 for ms in durations_ms(step, 1000, warm_up=100)]
    pictures = durations_ms(cameras, 25)
    steps_per_frame = round(contract.rates.torque_hz / contract.rates.camera_hz)
    begin = time.perf_counter()
    for _ in range(round(seconds * contract.rates.camera_hz)):
        for _ in range(steps_per_frame):
            step()
        cameras()
    factor = seconds / (time.perf_counter() - begin)
    shape = f"{len(contract.cameras)} x {contract.image.width}x{contract.image.height}"
    return [
        *percentile_figures("controller tick + physics step", physics_us, "us", "", "one thread"),
        *percentile_figures("all cameras", pictures, "ms", "", f"{shape}, rendered and JPEG-encoded"),
        Figure("simulator", factor, "x real time", ">= 1", f"physics, torque loop, {shape} at 25 Hz, one thread"),
    ]
