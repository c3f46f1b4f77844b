"""Rules for constrained decoding of action tokens.

FAST writes each quantised DCT coefficient as one character, in UTF-8 bytes, and a byte-level BPE token is any run of
bytes: it may end inside a character, and hold many. `ByteGrammar` therefore counts whole characters and keeps the
bytes of an unfinished one in its state. With a budget of tokens it also leaves out whatever could no longer be finished
in time, so that a decoder that stops at its limit has a whole chunk too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pi05_model.action_tokens.protocol import ActionTokenizerError, MalformedActionsError, Mask

Counts = NDArray[np.int64]

_NEVER = 1 << 30
"""Tokens needed where there is no way at all."""


class ByteState(NamedTuple):
    """How far a sequence is: whole characters, bytes of an unfinished one, tokens."""

    characters: int
    pending: bytes
    tokens: int


@dataclass(frozen=True)
class Step:
    """What every token does after some pending bytes.

    Attributes:
        valid: bool [V], the bytes so far can be continued to an alphabet of characters.
        characters: int [V], characters that it completes.
        pending: bytes that it leaves unfinished, by token.
        unfinished: bool [V], whether there are such bytes.
        groups: tokens by the bytes that they leave, int [n] each.
    """

    valid: Mask
    characters: Counts
    pending: list[bytes]
    unfinished: Mask
    groups: dict[bytes, Counts]


class ByteVocabulary:
    """The bytes of every token, and the characters that they may spell.

    Args:
        tokens: bytes by token id; None for an id that must not be used.
        characters: what may be spelt; every byte of each must also be a token of its own.
    """

    def __init__(self, tokens: Sequence[bytes | None], characters: Sequence[str]) -> None:
        self.tokens = tuple(tokens)
        self._characters = frozenset(characters)
        encoded = [character.encode() for character in characters]
        self.shortest = min(len(code) for code in encoded)
        """Tokens that some character needs when its bytes are written one by one."""
        self._prefixes = frozenset(code[:n] for code in encoded for n in range(len(code)))
        self._steps: dict[bytes, Step] = {}

    def step(self, pending: bytes) -> Step:
        """Return what tokens do after `pending`; computed once."""
        if pending not in self._steps:
            self._steps[pending] = self._compute(pending)
        return self._steps[pending]

    def _compute(self, pending: bytes) -> Step:
        ends = [self._follow(pending + token) if token else None for token in self.tokens]
        groups: dict[bytes, list[int]] = {}
        for token, end in enumerate(ends):
            if end is not None:
                groups.setdefault(end[1], []).append(token)
        return Step(
            valid=np.array([end is not None for end in ends], dtype=bool),
            characters=np.array([end[0] if end else 0 for end in ends], dtype=np.int64),
            pending=[end[1] if end else b"" for end in ends],
            unfinished=np.array([bool(end and end[1]) for end in ends], dtype=bool),
            groups={rest: np.array(tokens, dtype=np.int64) for rest, tokens in groups.items()},
        )

    def _follow(self, data: bytes) -> tuple[int, bytes] | None:
        """Split into whole characters and the rest, or None when that cannot be text of this alphabet."""
        cut = len(data) - _unfinished(data)
        try:
            text = data[:cut].decode()
        except UnicodeDecodeError:
            return None
        known = self._characters.issuperset(text) and data[cut:] in self._prefixes
        return (len(text), data[cut:]) if known else None


@dataclass(frozen=True)
class ByteGrammar:
    """Sequences of byte tokens that spell exactly `length` characters in at most `max_tokens` tokens."""

    vocabulary: ByteVocabulary
    length: int
    max_tokens: int | None = None
    _needed: dict[bytes, Counts] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ActionTokenizerError(f"a chunk has at least one coefficient, got {self.length}")
        if self.max_tokens is not None and self.max_tokens < self.needed(b"")[self.length]:
            shortest = int(self.needed(b"")[self.length])
            raise ActionTokenizerError(
                f"a chunk of {self.length} coefficients needs {shortest} tokens, allowed are {self.max_tokens}"
            )

    @property
    def start(self) -> ByteState:
        """The state before the first token."""
        return ByteState(0, b"", 0)

    def advance(self, state: ByteState, token: int) -> ByteState:
        """Return the state after `token`. Raises MalformedActionsError when it is not allowed."""
        if not 0 <= token < len(self.vocabulary.tokens) or not self.allowed(state)[token]:
            raise MalformedActionsError(
                f"token {token} cannot follow after {state.characters} of {self.length} coefficients"
            )
        step = self.vocabulary.step(state.pending)
        return ByteState(
            state.characters + int(step.characters[token]),
            step.pending[token],
            state.tokens + 1 if self.max_tokens else 0,
        )

    def allowed(self, state: ByteState) -> Mask:
        """Return which tokens may follow, bool [V]."""
        step = self.vocabulary.step(state.pending)
        left = self.length - state.characters - step.characters
        allowed = step.valid & (left >= step.unfinished)
        if self.max_tokens is None:
            return allowed
        return allowed & (self._to_finish(step, left) < self.max_tokens - state.tokens)

    def complete(self, state: ByteState) -> bool:
        """Return whether the tokens so far spell exactly `length` characters."""
        return state.characters == self.length and not state.pending

    def needed(self, pending: bytes) -> Counts:
        """Return with how few tokens 0 ... `length` characters can be spelt after `pending`, int [length + 1]."""
        if pending not in self._needed:
            self._needed[pending] = self._count_needed(pending)
        return self._needed[pending]

    def _count_needed(self, pending: bytes) -> Counts:
        step = self.vocabulary.step(pending)
        needed = np.full(self.length + 1, _NEVER, dtype=np.int64)
        if not pending:
            whole = np.unique(step.characters[step.groups.get(b"", [])])
            needed[0] = 0
            for i in range(1, self.length + 1):
                by_whole = 1 + needed[i - whole[whole <= i]].min(initial=_NEVER)
                needed[i] = min(by_whole, self.vocabulary.shortest + needed[i - 1])
            return needed
        for rest, tokens in step.groups.items():
            # Only ways that end the character or write more of it: they cannot go round in circles.
            for count in np.unique(step.characters[tokens]):
                if count <= self.length and (not rest or (count == 0 and len(rest) > len(pending))):
                    after = self.needed(rest)[: self.length + 1 - count]
                    np.minimum(needed[count:], 1 + after, out=needed[count:])
        return needed

    def _to_finish(self, step: Step, left: Counts) -> Counts:
        """Return how many tokens are needed after each token of `step` for the `left` characters, int [V]."""
        counts = np.full(len(left), _NEVER, dtype=np.int64)
        for rest, tokens in step.groups.items():
            fitting = tokens[left[tokens] >= 0]
            counts[fitting] = self.needed(rest)[left[fitting]]
        return counts


@dataclass(frozen=True)
class FixedGrammar:
    """Sequences of exactly `length` tokens, any of them. The state is how many there are."""

    vocab_size: int
    length: int

    @property
    def start(self) -> int:
        """The state before the first token."""
        return 0

    def advance(self, state: int, token: int) -> int:
        """Return the state after `token`. Raises MalformedActionsError when it is not allowed."""
        if state >= self.length or not 0 <= token < self.vocab_size:
            raise MalformedActionsError(
                f"token {token} cannot follow after {state} tokens: a chunk has {self.length} of them, "
                f"0 … {self.vocab_size - 1}"
            )
        return state + 1

    def allowed(self, state: int) -> Mask:
        """Return which tokens may follow, bool [V]."""
        return np.full(self.vocab_size, state < self.length)

    def complete(self, state: int) -> bool:
        """Return whether the tokens so far are a whole chunk."""
        return state == self.length


def _unfinished(data: bytes) -> int:
    """Return how many bytes at the end begin a UTF-8 character without ending it."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if back < length else 0
        if byte < 0x80:
            return 0
    return 0
