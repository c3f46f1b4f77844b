"""The path, the training times, and the orders of the solvers."""

import math

import pytest
import torch

from pi05_model.flow import Solver, free_steps, integrate, interpolate, sample_time


def error(solver: Solver, steps: int) -> float:
    """Solve dx/dt = (1 + 2t) x from t = 1 to 0 and compare with the exact solution."""
    x1 = torch.ones(1, 1, 1, dtype=torch.float64)
    x0 = integrate(lambda x, t: (1 + 2 * t) * x, x1, steps, solver)
    return abs(x0.item() - math.exp(-2))


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_order_of_convergence(solver: Solver, order: int) -> None:
    measured = math.log2(error(solver, 32) / error(solver, 64))
    assert measured == pytest.approx(order, abs=0.15)


def test_straight_path_needs_one_step() -> None:
    noise, actions = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    _, velocity = interpolate(noise, actions, torch.rand(2, 1))
    torch.testing.assert_close(integrate(lambda x, t: velocity, noise, steps=1), actions)


def test_ends_of_the_path() -> None:
    noise, actions = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    assert torch.equal(interpolate(noise, actions, torch.ones(2, 1))[0], noise)
    assert torch.equal(interpolate(noise, actions, torch.zeros(2, 5))[0], actions)


def test_steps_with_times_of_their_own() -> None:
    noise, actions = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    free = free_steps(torch.tensor([0, 2]), 5)
    assert free[0].all() and free[1].tolist() == [False, False, True, True, True]
    noisy, _ = interpolate(noise, actions, torch.where(free, torch.tensor([[0.3], [0.8]]), 0.0))
    assert torch.equal(noisy[1, :2], actions[1, :2]) and not torch.equal(noisy[1, 2:], actions[1, 2:])


def test_training_times_follow_beta() -> None:
    time = sample_time(200_000, generator=torch.Generator().manual_seed(0))
    assert time.min() >= 0.001 and time.max() <= 1
    u = (time.double() - 0.001) / 0.999
    for q in (0.1, 0.3, 0.5, 0.7, 0.9):
        # Beta(1.5, 1) has the distribution function u^1.5.
        assert (u <= q).double().mean().item() == pytest.approx(q**1.5, abs=5e-3)


@pytest.mark.parametrize(("steps", "solver"), [(0, "euler"), (10, "leapfrog")])
def test_impossible_solvers_are_refused(steps: int, solver: Solver) -> None:
    with pytest.raises(ValueError, match=r"steps must be|choose one of euler, heun, rk4"):
        integrate(lambda x, t: x, torch.zeros(1, 1, 1), steps, solver)
