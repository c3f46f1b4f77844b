"""What every action tokenizer offers: chunks of actions to token ids and back.

Chunks are normalised (about [-1, 1], see `ActionSpace`); token ids count from 0 and are mapped into the network's
vocabulary by the text tokenizer. Decoding gives a chunk or an error that names what is wrong: a policy that answers
nonsense must not move the robot as if it had answered zeros.
"""

import hashlib
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pi05_model.normalize import NormStats, load_norm_stats, save_norm_stats
from pi05_model.transforms import relative_actions

Chunks = NDArray[np.float32]
Mask = NDArray[np.bool_]

STATS_FILE, STATS_KEY = "norm_stats.json", "actions"


class ActionTokenizerError(ValueError):
    """A tokenizer cannot be fitted, saved or loaded, or does not belong to the data."""


class MalformedActionsError(ValueError):
    """Token ids that do not decode to a chunk; the message names the row and what is wrong."""


class Grammar(Protocol):
    """Which tokens may follow, so that every sequence that a constrained decoder can emit decodes.

    States are immutable and hashable; one grammar serves any number of sequences at once. Once `complete`, nothing more
    is allowed: the caller then emits its own end of sequence.
    """

    @property
    def start(self) -> Hashable:
        """The state before the first token."""

    def advance(self, state: Any, token: int) -> Hashable:
        """Return the state after `token`. Raises MalformedActionsError when it is not allowed."""

    def allowed(self, state: Any) -> Mask:
        """Return which tokens may follow, bool [vocab_size]."""

    def complete(self, state: Any) -> bool:
        """Return whether the tokens so far decode to a whole chunk."""


@dataclass(frozen=True)
class ActionSpace:
    """What normalised chunks mean in physical units; a tokenizer belongs to the one that it was fitted in.

    Attributes:
        stats: of the actions, after `relative_entries` were taken relative.
        relative_entries: entries that are said relative to the state of the observation.
    """

    stats: NormStats
    relative_entries: tuple[int, ...] = ()

    @classmethod
    def measure(
        cls, actions: ArrayLike, states: ArrayLike | None, relative_entries: Sequence[int] = ()
    ) -> "ActionSpace":
        """Compute the statistics of chunks [N, H, D] in physical units, with their states [N, D]."""
        entries = tuple(relative_entries)
        return cls(NormStats.from_samples(_relative(actions, states, entries)), entries)

    def normalise(self, actions: ArrayLike, states: ArrayLike | None = None) -> Chunks:
        """Map chunks [N, H, D] in physical units to about [-1, 1].

        Raises:
            ActionTokenizerError: the chunks have another width, or states are needed and missing.
        """
        relative = _relative(actions, states, self.relative_entries)
        if relative.shape[-1] != self.stats.dim:
            raise ActionTokenizerError(f"actions have {relative.shape[-1]} entries, the statistics {self.stats.dim}")
        return self.stats.normalise(relative).astype(np.float32)

    @property
    def fingerprint(self) -> str:
        """sha256 of what `normalise` depends on."""
        numbers = [self.bounds.tolist(), list(self.relative_entries)]
        return hashlib.sha256(json.dumps(numbers).encode()).hexdigest()

    @property
    def bounds(self) -> NDArray[np.float64]:
        """What -1 and 1 stand for in physical units, [D, 2]."""
        return np.stack([self.stats.unnormalise(np.full(self.stats.dim, sign)) for sign in (-1.0, 1.0)], axis=-1)

    def check(self, other: "ActionSpace") -> None:
        """Raise when a chunk normalised in the other space means something else here.

        Raises:
            ActionTokenizerError: names the first entry that differs and both of its ranges.
        """
        if self.relative_entries != other.relative_entries:
            raise ActionTokenizerError(
                f"the tokenizer was fitted with relative entries {list(self.relative_entries)}, the data has "
                f"{list(other.relative_entries)}: fit or adapt a tokenizer on this data"
            )
        if self.stats.dim != other.stats.dim:
            raise ActionTokenizerError(f"the tokenizer has {self.stats.dim} entries, the data {other.stats.dim}")
        ours, theirs = self.bounds, other.bounds
        differs = np.flatnonzero((np.abs(ours - theirs) > 1e-4 * np.diff(ours)).any(axis=-1))
        if len(differs):
            i = int(differs[0])
            raise ActionTokenizerError(
                f"the tokenizer and the data are normalised differently: entry {i} spans {_span(ours[i])} in the "
                f"tokenizer and {_span(theirs[i])} in the data ({len(differs)} entries differ): use the tokenizer's "
                "statistics, or fit or adapt a tokenizer on this data"
            )

    def save(self, folder: Path) -> None:
        """Write norm_stats.json."""
        save_norm_stats({STATS_KEY: self.stats}, folder / STATS_FILE)

    @classmethod
    def load(cls, folder: Path, relative_entries: Sequence[int]) -> "ActionSpace | None":
        """Read norm_stats.json of a tokenizer; None when it was saved without statistics."""
        path = folder / STATS_FILE
        if not path.exists():
            return None
        return cls(load_action_stats(path), tuple(int(i) for i in relative_entries))


class ActionTokenizer(Protocol):
    """Chunks of actions to token ids and back."""

    @property
    def kind(self) -> str:
        """ "fast", "fsq" or "vq"."""

    @property
    def vocab_size(self) -> int:
        """Ids are 0 ... vocab_size - 1."""

    @property
    def space(self) -> ActionSpace | None:
        """What the normalised chunks mean; None when nobody said (published files do not)."""

    def encode(self, chunks: ArrayLike) -> list[list[int]]:
        """Return the ids of normalised chunks [B, H, D].

        Raises:
            ActionTokenizerError: wrong shape, or values that are not finite.
        """

    def decode(self, tokens: Sequence[Sequence[int]], horizon: int, dim: int) -> Chunks:
        """Return normalised chunks float32 [B, H, D].

        Raises:
            MalformedActionsError: a row does not decode to exactly [horizon, dim].
        """

    def grammar(self, horizon: int, dim: int, max_tokens: int | None = None) -> Grammar:
        """Return the rules for constrained decoding of one chunk, in at most `max_tokens` tokens."""

    def save(self, folder: Path | str) -> None:
        """Write what `load_action_tokenizer` reads."""


def check_chunks(chunks: ArrayLike, horizon: int | None = None, dim: int | None = None) -> NDArray[np.float64]:
    """Return chunks as float64 [B, H, D] after checking them.

    Raises:
        ActionTokenizerError: not three-dimensional, of another horizon or width than the tokenizer's, or not finite.
    """
    x = np.asarray(chunks, dtype=np.float64)
    expected = f"[batch, {horizon or 'horizon'}, {dim or 'dim'}]"
    if x.ndim != 3 or 0 in x.shape[1:] or x.shape[1] != (horizon or x.shape[1]) or x.shape[2] != (dim or x.shape[2]):
        raise ActionTokenizerError(f"chunks must have the shape {expected}, got {list(x.shape)}")
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        row, step, entry = (int(i) for i in bad[0])
        raise ActionTokenizerError(
            f"chunk {row}, step {step}, entry {entry} is {x[row, step, entry]}: values must be finite"
        )
    return x


def check_space(tokenizer: ActionTokenizer, stats: NormStats, relative_entries: Sequence[int] = ()) -> None:
    """Check that a tokenizer belongs to actions that are normalised with `stats`.

    Raises:
        ActionTokenizerError: it does not. A tokenizer without statistics (published files) belongs to any.
    """
    if tokenizer.space is not None:
        tokenizer.space.check(ActionSpace(stats, tuple(relative_entries)))


def load_action_stats(path: Path) -> NormStats:
    """Read the statistics of the actions from a norm_stats.json.

    Raises:
        FileNotFoundError: the file is missing.
        ActionTokenizerError: it is damaged, or has no actions.
    """
    try:
        groups = load_norm_stats(path)
    except (ValueError, TypeError, AttributeError) as error:
        raise ActionTokenizerError(f"{path} holds no statistics: {error}") from error
    if STATS_KEY not in groups:
        raise ActionTokenizerError(
            f"{path} has no statistics of {STATS_KEY!r}, only of {', '.join(groups) or 'nothing'}"
        )
    return groups[STATS_KEY]


def _relative(actions: ArrayLike, states: ArrayLike | None, entries: tuple[int, ...]) -> NDArray[np.float64]:
    x = check_chunks(actions)
    if not entries:
        return x
    if states is None:
        raise ActionTokenizerError("relative entries need the state of each chunk, and this data has none")
    return relative_actions(x, states, entries)


def _span(bounds: NDArray[np.float64]) -> str:
    return f"{bounds[0]:.4g} … {bounds[1]:.4g}"
