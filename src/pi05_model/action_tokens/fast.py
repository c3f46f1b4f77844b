"""FAST: discrete cosine transform, quantisation, byte-pair encoding (arXiv 2501.09747).

    chunk [H, D] --DCT-II over time, orthonormal--> coefficients --· scale, round--> integers, row by row (low
    frequencies first, all entries of one frequency together) --minus min_token--> characters --byte-level BPE--> ids

The files are those of `physical-intelligence/fast` (tokenizer.json, processor_config.json, …), and for coefficients
that the vocabulary can spell the ids are those of its code. What differs is where that code loses actions in silence:

- A coefficient that the vocabulary cannot spell is clipped to the nearest that it can, and `count_clipped` counts them.
  (There: bytes without a token are dropped, so that the chunk no longer decodes, or the tokenizer raises.)
- A sequence that does not spell exactly H·D coefficients is an error. (There: zeros.)
- A new vocabulary holds every byte that its range needs, whether or not the data had it, and no unused characters.
"""

import json
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import ArrayLike, NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

from pi05_model.action_tokens.extend import byte_of_symbol, extend_bpe, symbol_of_byte
from pi05_model.action_tokens.grammar import ByteGrammar, ByteVocabulary
from pi05_model.action_tokens.protocol import (
    ActionSpace,
    ActionTokenizerError,
    Chunks,
    MalformedActionsError,
    check_chunks,
)

Codes = NDArray[np.int64]

SCALE, VOCAB_SIZE = 10.0, 1024
MARGIN = 0.25
"""How far a new tokenizer's range reaches past the coefficients of its data, each side, as a part of their span."""

_LAST_CODE = 0xD7FF
"""Code points after it are surrogates, which no text may hold."""

_CLASS = "physical-intelligence/fast--processing_action_tokenizer.UniversalActionProcessor"
_OWN_FILE = "action_tokenizer.json"


class FastTokenizer:
    """The FAST tokenizer.

    Args:
        backend: byte-level BPE over characters; character c stands for the coefficient c + min_token.
        scale: coefficients are multiplied by it before they are rounded: error against tokens.
        min_token: smallest quantised coefficient.
        max_token: largest; None means what the vocabulary says (`_last_listed`).
        space: what the chunks mean in physical units.
    """

    kind = "fast"

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        scale: float,
        min_token: int,
        max_token: int | None = None,
        space: ActionSpace | None = None,
    ) -> None:
        if not np.isfinite(scale) or scale <= 0:
            raise ActionTokenizerError(f"scale must be above 0, got {scale}")
        self._backend, self.scale, self.min_token, self.space = backend, float(scale), int(min_token), space
        vocab = backend.get_vocab()
        last = _last_listed(vocab) if max_token is None else max_token - self.min_token
        self._codes = _spellable(vocab, min(last, _LAST_CODE))
        self.vocab_size = max(vocab.values()) + 1
        self._grammars: dict[tuple[int, int | None], ByteGrammar] = {}

    @property
    def max_token(self) -> int:
        """Largest quantised coefficient."""
        return int(self._codes[-1]) + self.min_token

    @classmethod
    def fit(
        cls,
        chunks: ArrayLike,
        scale: float = SCALE,
        vocab_size: int = VOCAB_SIZE,
        space: ActionSpace | None = None,
    ) -> "FastTokenizer":
        """Learn a vocabulary from normalised chunks [N, H, D].

        Raises:
            ActionTokenizerError: wrong shape or values, no chunks, or the vocabulary is too small for the bytes of the
                range.
        """
        x = _some(chunks)
        quantised = np.rint(dct(x) * scale).astype(np.int64)
        low, high = int(quantised.min()), int(quantised.max())
        margin = int(np.ceil(MARGIN * (high - low)))
        min_token, max_token = low - margin, high + margin
        if max_token - min_token > _LAST_CODE:
            raise ActionTokenizerError(
                f"coefficients span {high - low}, at most {_LAST_CODE} can be told apart: normalise the chunks to "
                f"about [-1, 1] (they reach {np.abs(x).max():.4g}) or lower the scale of {scale:g}"
            )
        backend = _train(quantised - min_token, max_token - min_token, vocab_size)
        return cls(backend, scale, min_token, max_token, space)

    def adapt(self, chunks: ArrayLike, vocab_size: int, space: ActionSpace | None = None) -> "FastTokenizer":
        """Learn further tokens from the chunks of another domain; every id keeps its meaning.

        A network that knows the old tokens can go on from there. The scale and the smallest coefficient stay, too,
        since they are what the tokens mean; chunks that reach below it are clipped (`count_clipped`).

        Raises:
            ActionTokenizerError: `vocab_size` leaves no room for further tokens, or there are no chunks.
        """
        x = _some(chunks)
        if vocab_size <= self.vocab_size:
            raise ActionTokenizerError(
                f"the tokenizer has {self.vocab_size} tokens already, vocab_size is {vocab_size}: "
                "give more, or fit a new tokenizer (which changes what the ids mean)"
            )
        high = int(np.rint(dct(x) * self.scale).max())
        top = max(self.max_token, high + int(np.ceil(MARGIN * (high - self.min_token))) if high > self.max_token else 0)
        texts = self._spell(np.clip(np.rint(dct(x) * self.scale).astype(np.int64) - self.min_token, 0, _LAST_CODE))
        backend = extend_bpe(
            self._backend, texts, vocab_size, needed=_bytes_up_to(min(top - self.min_token, _LAST_CODE))
        )
        return FastTokenizer(backend, self.scale, self.min_token, top, space)

    def encode(self, chunks: ArrayLike) -> list[list[int]]:
        """Return the ids of normalised chunks [B, H, D]; coefficients out of range are clipped (`count_clipped`)."""
        texts = self._spell(self._clip(self._quantise(check_chunks(chunks))))
        return [encoding.ids for encoding in self._backend.encode_batch(texts, add_special_tokens=False)]

    def count_clipped(self, chunks: ArrayLike) -> Codes:
        """Return how many coefficients of each normalised chunk [B, H, D] are out of range, int [B]."""
        codes = self._quantise(check_chunks(chunks))
        clipped: Codes = np.count_nonzero(self._clip(codes) != codes, axis=(1, 2))
        return clipped

    def decode(self, tokens: Sequence[Sequence[int]], horizon: int, dim: int) -> Chunks:
        """Return normalised chunks float32 [B, horizon, dim].

        The error of each chunk against what was encoded, summed over time, is at most sqrt(horizon) · 0.5 / scale for
        every entry (L2), as long as nothing was clipped.

        Raises:
            MalformedActionsError: a row has an unknown id, is not text, or spells another number of coefficients.
        """
        if horizon < 1 or dim < 1:
            raise ActionTokenizerError(f"horizon and dim must be positive, got {horizon} and {dim}")
        codes = [self._read(row, ids, horizon * dim) for row, ids in enumerate(tokens)]
        quantised = np.array(codes, dtype=np.float64).reshape(len(codes), horizon, dim) + self.min_token
        return inverse_dct(quantised / self.scale).astype(np.float32)

    def grammar(self, horizon: int, dim: int, max_tokens: int | None = None) -> ByteGrammar:
        """Return the rules for constrained decoding of one chunk; made once for each size.

        Raises:
            ActionTokenizerError: no chunk can be said in `max_tokens`.
        """
        key = (horizon * dim, max_tokens)
        if key not in self._grammars:
            self._grammars[key] = ByteGrammar(self._vocabulary, *key)
        return self._grammars[key]

    def save(self, folder: Path | str) -> None:
        """Write the files of `physical-intelligence/fast`, and beside them what this project adds.

        Its code is not ours to copy: processor_config.json refers to it by the name of its repository.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / "tokenizer.json"))
        tokenizer = {
            "added_tokens_decoder": {},
            "clean_up_tokenization_spaces": False,
            "processor_class": "UniversalActionProcessor",
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        processor = {
            "action_dim": None,
            "auto_map": {"AutoProcessor": _CLASS},
            "min_token": self.min_token,
            "processor_class": "UniversalActionProcessor",
            "scale": int(self.scale) if self.scale.is_integer() else self.scale,
            "time_horizon": None,
            "vocab_size": self.vocab_size,
        }
        own = {
            "kind": self.kind,
            "max_token": self.max_token,
            "relative_entries": list(self.space.relative_entries) if self.space else [],
        }
        _write(folder / "tokenizer_config.json", tokenizer)
        _write(folder / "special_tokens_map.json", {})
        _write(folder / "processor_config.json", processor)
        _write(folder / _OWN_FILE, own)
        if self.space is not None:
            self.space.save(folder)

    @classmethod
    def load(cls, folder: Path | str) -> "FastTokenizer":
        """Read a folder written by `save` or published by others (tokenizer.json and processor_config.json).

        Raises:
            ActionTokenizerError: a file is missing, damaged or not a byte-level BPE; the message names it.
        """
        folder = Path(folder)
        processor = _read_json(folder / "processor_config.json")
        own = _read_json(folder / _OWN_FILE) if (folder / _OWN_FILE).exists() else {}
        missing = [key for key in ("scale", "min_token") if not isinstance(processor.get(key), int | float)]
        if missing:
            raise ActionTokenizerError(
                f"{folder / 'processor_config.json'}: {', '.join(missing)} missing or not a number"
            )
        space = ActionSpace.load(folder, own.get("relative_entries", ()))
        return cls(_load_backend(folder), processor["scale"], processor["min_token"], own.get("max_token"), space)

    @cached_property
    def _token_bytes(self) -> list[bytes | None]:
        """Bytes by id. A character that stands for no byte is written as it is (as the library's decoder does)."""
        special = set(self._backend.get_added_tokens_decoder())
        values: list[bytes | None] = [None] * self.vocab_size
        for token, i in self._backend.get_vocab().items():
            if i not in special:
                values[i] = _bytes_of(token)
        return values

    @cached_property
    def _vocabulary(self) -> ByteVocabulary:
        return ByteVocabulary(self._token_bytes, [chr(code) for code in self._codes])

    def _quantise(self, x: NDArray[np.float64]) -> Codes:
        # float64 may hold more than an integer can; what is that far out is clipped anyway.
        codes: Codes = np.clip(np.rint(dct(x) * self.scale) - self.min_token, -(2**62), 2**62).astype(np.int64)
        return codes

    def _clip(self, codes: Codes) -> Codes:
        """Return the nearest codes that the vocabulary can spell."""
        above = np.searchsorted(self._codes, codes).clip(1, len(self._codes) - 1)
        lower, upper = self._codes[above - 1], self._codes[above]
        nearest: Codes = np.where(codes - lower <= upper - codes, lower, upper)
        return nearest

    @staticmethod
    def _spell(codes: Codes) -> list[str]:
        return ["".join(map(chr, row.ravel())) for row in codes]

    def _read(self, row: int, ids: Sequence[int], count: int) -> list[int]:
        """Return the codes that a row of ids spells."""
        parts = [self._token_bytes[i] if 0 <= i < self.vocab_size else None for i in map(int, ids)]
        for i, part in zip(ids, parts, strict=True):
            if part is None:
                raise MalformedActionsError(f"row {row}: {int(i)} is no action token (0 … {self.vocab_size - 1})")
        data = b"".join(part for part in parts if part is not None)
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise MalformedActionsError(
                f"row {row}: invalid UTF-8 at byte {error.start} of {len(data)} ({error.reason})"
            ) from error
        if len(text) != count:
            much = "few" if len(text) < count else "many"
            raise MalformedActionsError(f"row {row}: too {much} coefficients, {len(text)} instead of {count}")
        codes = [ord(character) for character in text]
        if max(codes) > self._codes[-1]:
            largest = max(codes) + self.min_token
            raise MalformedActionsError(f"row {row}: coefficient {largest} is out of range (at most {self.max_token})")
        return codes


def dct(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the orthonormal DCT-II over time of chunks [B, H, D]."""
    coefficients: NDArray[np.float64] = _basis(x.shape[1]) @ x
    return coefficients


def inverse_dct(coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
    """Invert `dct`."""
    x: NDArray[np.float64] = _basis(coefficients.shape[1]).T @ coefficients
    return x


@lru_cache(maxsize=8)
def _basis(horizon: int) -> NDArray[np.float64]:
    """Return the orthonormal basis [frequency, time]."""
    k, h = np.arange(horizon)[:, None], np.arange(horizon)[None]
    basis: NDArray[np.float64] = np.sqrt(2 / horizon) * np.cos(np.pi * k * (2 * h + 1) / (2 * horizon))
    basis[0] /= np.sqrt(2)
    return basis


def _train(codes: Codes, largest: int, vocab_size: int) -> tokenizers.Tokenizer:
    """Learn a byte-level BPE for codes [N, H, D] of 0 … largest."""
    alphabet = [symbol_of_byte(byte) for byte in _bytes_up_to(largest)]
    if vocab_size <= len(alphabet):
        raise ActionTokenizerError(
            f"a vocabulary of {vocab_size} tokens is too small: {len(alphabet)} bytes are needed for coefficients that "
            f"span {largest}; give more than that, or lower the scale"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    # Without the split into words and numbers that is meant for English, tokens may hold any run of coefficients.
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=alphabet,
        max_token_length=10_000,
    )
    backend.train_from_iterator(("".join(map(chr, row.ravel())) for row in codes), trainer=trainer, length=len(codes))
    return backend


def _bytes_up_to(largest: int) -> list[int]:
    """Return the bytes that UTF-8 needs for the characters 0 … largest."""
    return sorted({byte for code in range(largest + 1) for byte in chr(code).encode()})


def _last_listed(vocab: dict[str, int]) -> int:
    """Return the last code of the range that a published vocabulary was fitted for.

    Its files do not say, but its trainer puts every character of the range into the vocabulary, as itself and not as
    its bytes. Where none is there, any code will do.
    """
    listed = next(code for code in range(_LAST_CODE + 2) if chr(code) not in vocab) - 1
    return listed if listed > 0 else _LAST_CODE


def _spellable(vocab: dict[str, int], last: int) -> Codes:
    """Return the codes 0 … last all of whose bytes have a token."""
    known = [symbol_of_byte(byte) in vocab for byte in range(256)]
    codes = [code for code in range(last + 1) if all(known[byte] for byte in chr(code).encode())]
    if len(codes) < 2:
        raise ActionTokenizerError(
            "the vocabulary lacks the bytes of its own range: it is not a byte-level BPE of FAST"
        )
    return np.array(codes, dtype=np.int64)


def _bytes_of(token: str) -> bytes:
    try:
        return bytes(byte_of_symbol(symbol) for symbol in token)
    except KeyError:
        return token.encode()


def _some(chunks: ArrayLike) -> NDArray[np.float64]:
    x = check_chunks(chunks)
    if not len(x):
        raise ActionTokenizerError("there are no chunks to learn from")
    return x


def _load_backend(folder: Path) -> tokenizers.Tokenizer:
    # Newer transformers write the tokenizer of a processor into a folder of its own.
    candidates = [folder / "tokenizer.json", folder / "bpe_tokenizer" / "tokenizer.json"]
    path = next((path for path in candidates if path.exists()), None)
    if path is None:
        raise ActionTokenizerError(f"{candidates[0]} is missing")
    content = _read_json(path)
    if (content.get("decoder") or {}).get("type") != "ByteLevel" or (content.get("model") or {}).get("type") != "BPE":
        raise ActionTokenizerError(f"{path} is not a byte-level BPE")
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises plain Exception
        raise ActionTokenizerError(f"{path}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ActionTokenizerError(f"{path} is missing") from error
    except ValueError as error:
        raise ActionTokenizerError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ActionTokenizerError(f"{path} does not hold an object")
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
