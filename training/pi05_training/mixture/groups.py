"""Groups of samples (episodes of a robot, lines of a list), which are kept or held out as a whole.

Neighbouring frames of an episode are nearly the same: frames held out of it would measure memory. For the same reason
an episode that several sources draw from (its actions, its labelled frames) is held out of all of them. It is told by
the name of its dataset's folder and its own, so that the choice is the same for every seed, process and machine.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pi05_training.mixture.example import Mask
from pi05_training.mixture.sampling import mix_array

Numbers = NDArray[np.int64]
Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class Groups:
    """G groups: group g is the places [starts[g], stops[g]) of a source, and keys[g] tells it from others."""

    starts: Numbers
    stops: Numbers
    keys: Keys

    @classmethod
    def of_episodes(cls, episodes: Iterable[tuple[int, int, str, str]]) -> "Groups":
        """Return episodes as groups: start, stop, dataset's name, episode's name of each."""
        rows = list(episodes)
        keys = [_key(dataset, episode) for _, _, dataset, episode in rows]
        starts, stops = (np.array([row[k] for row in rows], np.int64) for k in (0, 1))
        return cls(starts, stops, np.array(keys, np.uint64))

    @classmethod
    def of_lines(cls, count: int, dataset: str) -> "Groups":
        """Return the lines of a list, one group each."""
        lines = np.arange(count)
        return cls(lines, lines + 1, mix_array(lines.astype(np.uint64) + np.uint64(_key(dataset, ""))))

    def __len__(self) -> int:
        return len(self.starts)

    def only(self, chosen: Mask) -> "Groups":
        """Return some of them."""
        return Groups(self.starts[chosen], self.stops[chosen], self.keys[chosen])

    def narrowed(self, places: Numbers) -> "Groups":
        """Return groups of the given places alone, in order; a place is then its number among them."""
        starts, stops = np.searchsorted(places, self.starts), np.searchsorted(places, self.stops)
        return Groups(starts, stops, self.keys).only(stops > starts)


def hold_out(sources: Sequence[Groups], share: float) -> Keys:
    """Return the keys of the groups to hold out: a share of every source's, and at least one of two.

    No source is left without a group to train on.

    Raises:
        ValueError: the share is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"a held-out share of {share} is not in [0, 1)")
    held = np.zeros(0, np.uint64)
    if not share:
        return held
    alone = np.concatenate([groups.keys for groups in sources if len(groups) < 2] or [held])
    for groups in sources:
        if len(groups) < 2:
            continue
        wanted = max(1, round(share * len(groups))) - int(np.isin(groups.keys, held).sum())
        free = np.unique(groups.keys[~np.isin(groups.keys, np.concatenate([held, alone]))])
        held = np.concatenate([held, free[: max(0, wanted)]])
    for groups in sources:
        if np.isin(groups.keys, held).all():
            held = held[held != groups.keys.max()]
    return held


def _key(dataset: str, episode: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{dataset}\0{episode}".encode(), digest_size=8).digest(), "little")
