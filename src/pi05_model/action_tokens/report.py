"""What a tokenizer does to chunks: how far off they come back, and in how few tokens."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pi05_model.action_tokens.fast import FastTokenizer
from pi05_model.action_tokens.protocol import ActionTokenizer, ActionTokenizerError, check_chunks

_BATCH = 512
_FLOAT_BITS = 32
_PERCENTILES = (0, 50, 99, 100)


@dataclass(frozen=True)
class Reconstruction:
    """Errors by entry, [D] each: root mean square and largest, over all steps of all chunks."""

    rms: list[float]
    max: list[float]


@dataclass(frozen=True)
class Report:
    """What a tokenizer does to a set of chunks.

    Attributes:
        kind, vocab_size: of the tokenizer.
        chunks, horizon, dim: what was measured.
        tokens_mean: tokens per chunk.
        tokens: smallest, median, 99th percentile and largest number.
        values_per_token: H · D numbers a chunk, over the mean number of tokens.
        bits_per_chunk: mean tokens · log2(vocabulary).
        compression: float32 bits over `bits_per_chunk`.
        codes_used: ids that occur.
        dead_codes: ids that do not.
        perplexity: 2^entropy of the ids: how many equally frequent ones would say as much.
        clipped: FAST coefficients out of range.
        normalised: errors in normalised units, rms over everything first.
        physical: errors in rad, m, m/s or fraction; None without statistics.
    """

    kind: str
    vocab_size: int
    chunks: int
    horizon: int
    dim: int
    tokens_mean: float
    tokens: dict[str, int]
    values_per_token: float
    bits_per_chunk: float
    compression: float
    codes_used: int
    dead_codes: int
    perplexity: float
    clipped: int
    rms: float
    normalised: Reconstruction
    physical: Reconstruction | None

    def as_dict(self) -> dict[str, Any]:
        """Return what `json.dump` takes."""
        return asdict(self)


def measure(tokenizer: ActionTokenizer, chunks: ArrayLike) -> Report:
    """Encode and decode normalised chunks [N, H, D] and compare.

    Raises:
        ActionTokenizerError: there are no chunks, or they do not fit the tokenizer.
    """
    x = check_chunks(chunks)
    count, horizon, dim = x.shape
    if not count:
        raise ActionTokenizerError("there are no chunks to measure")
    uses = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    lengths: list[int] = []
    squares, largest = np.zeros(dim), np.zeros(dim)
    for begin in range(0, count, _BATCH):
        part = x[begin : begin + _BATCH]
        ids = tokenizer.encode(part)
        error = np.abs(tokenizer.decode(ids, horizon, dim) - part)
        squares += np.square(error).sum(axis=(0, 1))
        largest = np.maximum(largest, error.max(axis=(0, 1)))
        lengths += [len(row) for row in ids]
        uses += np.bincount(np.concatenate([np.array(row, dtype=np.int64) for row in ids]), minlength=len(uses))
    rms = np.sqrt(squares / (count * horizon))
    mean = float(np.mean(lengths))
    bits = mean * float(np.log2(tokenizer.vocab_size))
    return Report(
        kind=tokenizer.kind,
        vocab_size=tokenizer.vocab_size,
        chunks=count,
        horizon=horizon,
        dim=dim,
        tokens_mean=mean,
        tokens={f"p{p}": int(np.percentile(lengths, p, method="nearest")) for p in _PERCENTILES},
        values_per_token=horizon * dim / mean,
        bits_per_chunk=bits,
        compression=horizon * dim * _FLOAT_BITS / bits,
        codes_used=int(np.count_nonzero(uses)),
        dead_codes=int(np.count_nonzero(uses == 0)),
        perplexity=_perplexity(uses),
        clipped=int(tokenizer.count_clipped(x).sum()) if isinstance(tokenizer, FastTokenizer) else 0,
        rms=float(np.sqrt(np.mean(np.square(rms)))),
        normalised=Reconstruction(rms.tolist(), largest.tolist()),
        physical=_physical(tokenizer, rms, largest),
    )


def _physical(
    tokenizer: ActionTokenizer, rms: NDArray[np.float64], largest: NDArray[np.float64]
) -> Reconstruction | None:
    if tokenizer.space is None:
        return None
    unit = np.diff(tokenizer.space.bounds)[:, 0] / 2
    return Reconstruction((rms * unit).tolist(), (largest * unit).tolist())


def _perplexity(uses: NDArray[np.int64]) -> float:
    p = uses[uses > 0] / uses.sum()
    return float(2 ** -(p * np.log2(p)).sum())
