"""Flow matching: the path between noise and data, its training times, and the solvers.

Time runs from 1 (noise) to 0 (data): x_t = t * noise + (1 - t) * action, target velocity u = noise - action, and a
solver integrates dx/dt = v from t = 1 to t = 0 (openpi; the paper writes it the other way round).
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Solver = Literal["euler", "heun", "rk4"]
Velocity = Callable[[Tensor, float], Tensor]


def sample_time(batch: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None) -> Tensor:
    """Draw training times [B]: 0.001 + 0.999 * Beta(1.5, 1), which favours noisy t (π0, appendix B).

    Beta(a, 1) has the distribution function t**a, so its inverse is exact and needs no gamma variates.
    """
    uniform = torch.rand(batch, device=device, generator=generator)
    return 0.001 + 0.999 * uniform ** (1 / 1.5)


def interpolate(noise: Tensor, actions: Tensor, time_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Return (x_t, target velocity) for noise and actions [B, H, A] and times [B, 1] or, one per step, [B, H]."""
    t = time_BS[..., None]
    return t * noise + (1 - t) * actions, noise - actions


def free_steps(given_B: Tensor, horizon: int) -> Tensor:
    """Return bool [B, H], False for the leading steps of each chunk that are given clean, at flow time 0."""
    return torch.arange(horizon, device=given_B.device) >= given_B[:, None]


def integrate(velocity: Velocity, noise: Tensor, steps: int = 10, solver: Solver = "euler") -> Tensor:
    """Integrate from t = 1 to t = 0 in equal steps.

    Args:
        velocity: v(x, t). The times depend on `steps` and `solver` alone, so what follows from t can be kept.
        noise: x at t = 1.
        steps: number of steps.
        solver: "euler" (order 1), "heun" (2) or "rk4" (4).
    """
    if solver not in _STEPS:
        raise ValueError(f"unknown solver {solver!r}; choose one of {', '.join(_STEPS)}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    step, x = _STEPS[solver], noise
    for i in range(steps):
        x = step(velocity, x, (1 - i / steps, 1 - (2 * i + 1) / (2 * steps), 1 - (i + 1) / steps), -1.0 / steps)
    return x


Times = tuple[float, float, float]


def _euler(velocity: Velocity, x: Tensor, times: Times, dt: float) -> Tensor:
    return x + dt * velocity(x, times[0])


def _heun(velocity: Velocity, x: Tensor, times: Times, dt: float) -> Tensor:
    first = velocity(x, times[0])
    return x + dt / 2 * (first + velocity(x + dt * first, times[2]))


def _rk4(velocity: Velocity, x: Tensor, times: Times, dt: float) -> Tensor:
    k1 = velocity(x, times[0])
    k2 = velocity(x + dt / 2 * k1, times[1])
    k3 = velocity(x + dt / 2 * k2, times[1])
    k4 = velocity(x + dt * k3, times[2])
    return x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


_STEPS: dict[str, Callable[[Velocity, Tensor, Times, float], Tensor]] = {"euler": _euler, "heun": _heun, "rk4": _rk4}
