"""A simulator that all tests of this folder share; each test resets it."""

from collections.abc import Iterator

import pytest

from pi05_ros.contract import Contract, load_contract
from pi05_ros.sim.simulator import Simulator


@pytest.fixture(scope="session")
def contract() -> Contract:
    return load_contract()


@pytest.fixture(scope="session")
def shared_simulator(contract: Contract) -> Iterator[Simulator]:
    simulator = Simulator(contract)
    yield simulator
    simulator.close()


@pytest.fixture
def simulator(shared_simulator: Simulator) -> Simulator:
    shared_simulator.reset(0)
    return shared_simulator
