"""Noise is a function of seed, step and place in the global batch, and of nothing else."""

import pytest
import torch

from pi05_training.trainer.noise import Noise

CPU = torch.device("cpu")
SHAPE = (5, 3)


def test_a_row_meets_the_same_noise_however_the_batch_is_shared_out() -> None:
    noise = Noise(seed=1, step=7, shape=SHAPE, draws=2)
    whole, odd = noise.of(range(8), 8, CPU), noise.of((1, 3, 5, 7), 8, CPU)
    assert whole["noise"].shape == (16, *SHAPE) and whole["time"].shape == (16,) and whole["draws"] == 2
    for name in ("noise", "time"):
        of_all, of_odd = whole[name].unflatten(0, (2, 8)), odd[name].unflatten(0, (2, 4))
        assert torch.equal(of_all[:, 1::2], of_odd)


@pytest.mark.parametrize("other", [Noise(1, 8, SHAPE, 2), Noise(2, 7, SHAPE, 2)])
def test_another_step_or_seed_has_other_noise(other: Noise) -> None:
    given, found = (noise.of(range(4), 4, CPU) for noise in (Noise(1, 7, SHAPE, 2), other))
    for name in ("noise", "time"):
        assert not torch.isclose(given[name], found[name]).any()
