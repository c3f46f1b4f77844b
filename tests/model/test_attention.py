"""Every way to compute attention gives what the formula says."""

import pytest
import torch
from torch import Tensor

from pi05_model.attention import attend


def by_formula(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None], -torch.inf)
    return scores.softmax(dim=-1) @ value


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients(dtype: torch.dtype, training: bool, kv_heads: int, masked: bool) -> None:
    torch.manual_seed(0)
    shapes = ((2, 4, 5, 8), (2, kv_heads, 7, 8), (2, kv_heads, 7, 8))
    given = [torch.randn(shape).to(dtype).requires_grad_(training) for shape in shapes]
    exact = [x.detach().double().requires_grad_(training) for x in given]
    mask = (torch.rand(2, 5, 7) < 0.5).logical_or(torch.eye(5, 7, dtype=torch.bool)) if masked else None
    near = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    found, expected = attend(*given, mask), by_formula(*exact, mask)
    torch.testing.assert_close(found.double(), expected, **near)
    if training:
        direction = torch.randn(found.shape)
        found.backward(direction.to(dtype))
        expected.backward(direction.double())
        for x, y in zip(given, exact, strict=True):
            torch.testing.assert_close(x.grad.double(), y.grad, **near)
