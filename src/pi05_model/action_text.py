"""Action tokens as a part of text: what stands around them, what a decoder may say, and how an answer is read.

π0.5 (FAST targets)   …;\\nAction:␣  | <action tokens> "|" <eos>          "Action: " ends the prompt
π0-FAST               …;\\n          | "Action: " <action tokens> "|" <eos>   everything after the bar is the answer
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pi05_model.action_tokens import ActionTokenizer, Grammar, MalformedActionsError
from pi05_model.config import ModelConfig
from pi05_model.decoding import State
from pi05_model.prompts import FAST_END, FAST_START, fast_answer_has_bos
from pi05_model.tokenizer import BOS_ID, EOS_ID, Tokenizer


class ActionText:
    """Chunks to answers and back, in the vocabulary of a text tokenizer.

    Args:
        config: of the network.
        dim: entries of a real action.
        tokenizer: text to ids.
        actions: normalised chunks to action tokens.

    Raises:
        ValueError: the text vocabulary has no room for the action tokens.
    """

    def __init__(self, config: ModelConfig, dim: int, tokenizer: Tokenizer, actions: ActionTokenizer) -> None:
        if actions.vocab_size > tokenizer.action_count:
            raise ValueError(
                f"the action tokenizer has {actions.vocab_size} tokens, the text tokenizer {tokenizer.name!r} has ids "
                f"for {tokenizer.action_count}: fit one with --vocab-size {tokenizer.action_count} or less"
            )
        self.shape = (config.horizon, dim)
        self._limit, self._text, self._actions = config.max_action_tokens, tokenizer, actions
        self._ids = np.array(tokenizer.action_ids(range(actions.vocab_size)))
        self._before: list[int] = []
        if config.policy == "pi0_fast":
            start = [BOS_ID] if fast_answer_has_bos(config.family) else []
            self._before = [*start, *tokenizer.encode([FAST_START])[0]]
        self._after = tokenizer.encode([FAST_END])[0]

    def answers(self, chunks: ArrayLike) -> list[list[int]]:
        """Return the ids of normalised chunks [B, H, D], without end of sequence."""
        return [
            [*self._before, *self._text.action_ids(tokens), *self._after] for tokens in self._actions.encode(chunks)
        ]

    def read(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the normalised chunk [H, D] of an answer.

        Raises:
            MalformedActionsError: the answer is anything but one whole chunk; the message says what is wrong.
        """
        ids = list(ids)
        begin, end = len(self._before), len(ids) - len(self._after)
        if ids[:begin] != self._before or ids[max(end, begin) :] != self._after:
            said = self._text.decode(ids)
            raise MalformedActionsError(
                f"an answer of {len(ids)} tokens does not stand between {self._text.decode(self._before)!r} and "
                f"{FAST_END!r}: {said[:60]!r}"
            )
        try:
            tokens = self._text.action_tokens(ids[begin:end])
        except ValueError as error:
            raise MalformedActionsError(str(error)) from error
        chunk: NDArray[np.float32] = self._actions.decode([tokens], *self.shape)[0]
        return chunk

    def constraint(self) -> "ActionConstraint":
        """Return what a decoder may say: exactly the answers that `read` understands, within `max_action_tokens`."""
        room = self._limit - len(self._before) - len(self._after) - 1
        return ActionConstraint(self._before, self._actions.grammar(*self.shape, room), self._ids, self._after)


class _Said(NamedTuple):
    """How far an answer is: tokens of the beginning, state of the grammar, tokens of the end."""

    before: int
    chunk: Any
    after: int


class ActionConstraint:
    """Implements `decoding.Constraint`."""

    def __init__(self, before: Sequence[int], grammar: Grammar, ids: NDArray[np.int64], after: Sequence[int]) -> None:
        self._before, self._grammar, self._ids, self._after = list(before), grammar, ids, list(after)
        self._token_of = {int(vocabulary_id): token for token, vocabulary_id in enumerate(ids)}

    @property
    def start(self) -> State:
        """State before the first token."""
        return _Said(0, self._grammar.start, 0)

    def options(self, state: State) -> Sequence[int]:
        """Return the ids that may follow."""
        assert isinstance(state, _Said)
        if state.before < len(self._before):
            return [self._before[state.before]]
        if not self._grammar.complete(state.chunk):
            allowed: list[int] = self._ids[np.flatnonzero(self._grammar.allowed(state.chunk))].tolist()
            return allowed
        return [self._after[state.after]] if state.after < len(self._after) else [EOS_ID]

    def advance(self, state: State, token: int) -> State:
        """Return the state after a token."""
        assert isinstance(state, _Said)
        if state.before < len(self._before):
            return state._replace(before=state.before + 1)
        if not self._grammar.complete(state.chunk):
            return state._replace(chunk=self._grammar.advance(state.chunk, self._token_of[token]))
        return state._replace(after=state.after + 1)
