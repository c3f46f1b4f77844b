"""Truth tables of the attention rule."""

import pytest
import torch

from pi05_model.masks import block_mask, positions, suffix_mask


def table(rows: list[str]) -> torch.Tensor:
    return torch.tensor([[c == "1" for c in row] for row in rows])


def flags(text: str) -> torch.Tensor:
    return torch.tensor([[c == "1" for c in text]])


@pytest.mark.parametrize(
    ("starts", "valid", "expected"),
    [
        ("0000", "1111", ["1111", "1111", "1111", "1111"]),
        ("0011", "1111", ["1100", "1100", "1110", "1111"]),
        ("0010", "1111", ["1100", "1100", "1111", "1111"]),
        ("1111", "1111", ["1000", "1100", "1110", "1111"]),
        # Padding in the middle is seen by nobody and sees itself alone.
        ("0001", "1011", ["1010", "0100", "1010", "1011"]),
        # π0: a state token that the actions see, and that does not see them.
        ("00110", "11111", ["11000", "11000", "11100", "11111", "11111"]),
    ],
)
def test_block_mask(starts: str, valid: str, expected: list[str]) -> None:
    assert torch.equal(block_mask(flags(starts), flags(valid))[0], table(expected))


def test_suffix_rows_are_those_of_the_whole_sequence() -> None:
    prefix_valid, starts, valid = flags("1101"), flags("0000100"), flags("1101111")
    whole = block_mask(starts, valid)
    suffix = suffix_mask(prefix_valid, torch.zeros(1, 3, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool))
    assert torch.equal(suffix, whole[:, 4:])


def test_padding_takes_no_position() -> None:
    assert positions(flags("11011")).tolist() == [[0, 1, 1, 2, 3]]
