"""Further merges for a byte-level BPE that exists already.

The `tokenizers` library trains from nothing only. Here the sequences of ids that the old vocabulary gives are written
as characters, a BPE is trained over these, and its merges are appended to the old ones. Merges apply in order, so the
new vocabulary first does exactly what the old one does and then joins further: every old id keeps its meaning.
"""

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache

import tokenizers
from tokenizers import models, trainers

_FIRST = 0xE000
"""Ids are written as characters from here on, clear of the surrogates."""


@lru_cache(maxsize=1)
def _symbols() -> tuple[str, ...]:
    """Return the character by byte of GPT-2's byte-level BPE: printable Latin-1 as it is, the others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return tuple(chr(byte) if byte in printable else chr(next(hidden)) for byte in range(256))


@lru_cache(maxsize=1)
def _bytes() -> dict[str, int]:
    return {symbol: byte for byte, symbol in enumerate(_symbols())}


def symbol_of_byte(byte: int) -> str:
    """Return the character that stands for a byte in vocabularies of byte-level BPE."""
    return _symbols()[byte]


def byte_of_symbol(symbol: str) -> int:
    """Return the byte that a character stands for. Raises KeyError when it stands for none."""
    return _bytes()[symbol]


def extend_bpe(
    backend: tokenizers.Tokenizer, texts: Sequence[str], vocab_size: int, needed: Sequence[int] = ()
) -> tokenizers.Tokenizer:
    """Return a tokenizer with further tokens learned from `texts`.

    Args:
        backend: byte-level BPE; it stays as it is.
        texts: what to learn from.
        vocab_size: tokens of the result, at most.
        needed: bytes that must have a token of their own.
    """
    content = json.loads(backend.to_str())
    vocab, merges = content["model"]["vocab"], content["model"]["merges"]
    for byte in needed:
        vocab.setdefault(symbol_of_byte(byte), max(vocab.values()) + 1)
    base = tokenizers.Tokenizer.from_str(json.dumps(content))
    known = {tuple(pair) for pair in merges}
    for left, right in _learn(base, texts, vocab_size - len(vocab)):
        if len(vocab) >= vocab_size:
            break
        if (left, right) not in known:
            vocab.setdefault(left + right, max(vocab.values()) + 1)
            merges.append([left, right])
            known.add((left, right))
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def _learn(base: tokenizers.Tokenizer, texts: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Return up to `count` pairs of tokens to merge, the most frequent first."""
    tokens = [base.id_to_token(i) or "" for i in range(max(base.get_vocab().values()) + 1)]
    learner = tokenizers.Tokenizer(models.BPE())
    alphabet = [chr(_FIRST + i) for i in range(len(tokens))]
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + max(count, 0),
        min_frequency=2,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=alphabet,
        max_token_length=10_000,
    )
    learner.train_from_iterator(_words(base, texts), trainer=trainer)
    pairs = json.loads(learner.to_str())["model"]["merges"]
    return [(_text(left, tokens), _text(right, tokens)) for left, right in pairs]


def _words(base: tokenizers.Tokenizer, texts: Sequence[str]) -> Iterator[str]:
    """Yield the ids of each stretch within which the tokenizer merges, as characters."""
    for encoding in base.encode_batch(list(texts), add_special_tokens=False):
        word: list[str] = []
        last = None
        for i, where in zip(encoding.ids, encoding.word_ids, strict=True):
            if where != last and word:
                yield "".join(word)
                word = []
            last = where
            word.append(chr(_FIRST + i))
        yield "".join(word)


def _text(written: str, tokens: Sequence[str]) -> str:
    return "".join(tokens[ord(character) - _FIRST] for character in written)
