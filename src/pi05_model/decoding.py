"""What a decoder may say: constraints on sequences of vocabulary ids.

A constraint is walked one token at a time. Its states are plain values, so that one constraint serves every sample of
a batch.
"""

from collections.abc import Hashable, Iterable, Sequence
from typing import Protocol

from pi05_model.tokenizer import EOS_ID

State = Hashable


class Constraint(Protocol):
    """A set of sequences."""

    @property
    def start(self) -> State:
        """State before the first token."""

    def advance(self, state: State, token: int) -> State:
        """Return the state after `token`, one of `options(state)`."""

    def options(self, state: State) -> Sequence[int]:
        """Return the ids that may follow; end of sequence is one of them where the sequence may end."""


class TokenTrie:
    """A list of token sequences, such as the subtasks that a planner may answer with."""

    start: State = ()

    def __init__(self, sequences: Iterable[Sequence[int]]) -> None:
        self._next: dict[State, list[int]] = {}
        for sequence in sequences:
            complete = (*sequence, EOS_ID)
            for i, token in enumerate(complete):
                options = self._next.setdefault(complete[:i], [])
                if token not in options:
                    options.append(token)

    def advance(self, state: State, token: int) -> State:
        """Return the longer beginning."""
        assert isinstance(state, tuple)
        return (*state, token)

    def options(self, state: State) -> Sequence[int]:
        """Return the tokens that may follow; none when `state` is no beginning of any sequence."""
        return self._next.get(state, [])


def forced(constraint: Constraint, state: State) -> list[int] | None:
    """Return the rest of the only sequence that is left, without end of sequence, or None while there is a choice."""
    rest: list[int] = []
    while len(options := constraint.options(state)) == 1:
        if options[0] == EOS_ID:
            return rest
        rest.append(options[0])
        state = constraint.advance(state, options[0])
    return None
