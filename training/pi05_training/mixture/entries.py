"""Where the numbers of another robot go in the contract's vector: mapped by name, the rest is zero and masked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pi05_training.data.episode import DatasetError, Floats
from pi05_training.mixture.example import Mask

Named = Sequence[str | None] | Mapping[str, str | None]


@dataclass(frozen=True)
class Entries:
    """Where d numbers of a robot go among the D of the contract.

    Attributes:
        dim: D.
        places: int [d], -1 for a number that is left out.
    """

    dim: int
    places: NDArray[np.intp]

    @property
    def mask(self) -> Mask | None:
        """Which of the D entries the robot has; None for all."""
        has = np.isin(np.arange(self.dim), self.places)
        return None if has.all() else has

    def place(self, values: ArrayLike) -> Floats:
        """Return values [..., d] as [..., D], zero where the robot has nothing.

        Raises:
            DatasetError: there are not d of them, or one is not finite.
        """
        given = np.asarray(values, np.float32)
        if given.shape[-1] != len(self.places):
            raise DatasetError(f"{given.shape[-1]} entries, expected {len(self.places)}")
        if not np.isfinite(given).all():
            raise DatasetError(f"values are not finite at {np.argwhere(~np.isfinite(given))[0].tolist()}")
        if len(self.places) == self.dim and (self.places == np.arange(self.dim)).all():
            return given
        placed = np.zeros((*given.shape[:-1], self.dim), np.float32)
        placed[..., self.places[self.places >= 0]] = given[..., self.places >= 0]
        return placed


def match_entries(
    where: str, count: int, names: Sequence[str], ours: Sequence[str], said: Named | None, key: str = "entries"
) -> Entries:
    """Return where the entries of a dataset go.

    Args:
        where: the dataset, for messages.
        count: d, entries that its vectors have.
        names: what it calls them; empty when it does not tell.
        ours: names of the contract.
        said: the mixture's word on it: by place, our name or None to leave an entry out; or by their name.
        key: the mixture's key, for messages.

    Raises:
        DatasetError: they do not fit; says which names there are and what to write.
    """
    how = f"say in the mixture `{key}: [our name or null, …]`, one for each of its {count}; ours: {', '.join(ours)}"
    if isinstance(said, Mapping):
        return Entries(len(ours), _places(where, _by_name(where, said, names, key), ours, key))
    if said is not None:
        if len(said) != count:
            raise DatasetError(f"{where}: {key} lists {len(said)} names, the vector has {count} entries; {how}")
        return Entries(len(ours), _places(where, said, ours, key))
    if len(names) == count and set(names) <= set(ours):
        return Entries(len(ours), _places(where, names, ours, key))
    if count == len(ours) and not names:
        return Entries(len(ours), np.arange(count))
    called = f"called {', '.join(names)}" if names else "without names"
    raise DatasetError(f"{where}: {count} entries {called}, the contract has {len(ours)} others; {how}")


def _by_name(where: str, said: Mapping[str, str | None], names: Sequence[str], key: str) -> list[str | None]:
    unknown = sorted(said.keys() - set(names))
    if unknown:
        raise DatasetError(f"{where}: {key}: no entry {', '.join(unknown)}; it has: {', '.join(names) or 'no names'}")
    return [said.get(name) for name in names]


def _places(where: str, names: Sequence[str | None], ours: Sequence[str], key: str) -> NDArray[np.intp]:
    used = [name for name in names if name is not None]
    wrong = sorted(set(used) - set(ours)) or sorted({name for name in used if used.count(name) > 1})
    if wrong or not used:
        what = f"{', '.join(wrong)} is not ours or is there twice" if wrong else "every entry is left out"
        raise DatasetError(f"{where}: {key}: {what}; ours: {', '.join(ours)}")
    return np.array([-1 if name is None else list(ours).index(name) for name in names], np.intp)
