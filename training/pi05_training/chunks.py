"""Chunks of actions from wherever they lie: an array, a folder of samples, or a dataset."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pi05_model.action_tokens import ActionTokenizerError
from pi05_training.data.spread import spread
from pi05_training.samples import read_labels

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ChunkSet:
    """Chunks in the order of their episodes.

    Attributes:
        actions: [N, H, D].
        states: [N, D] of their observations; None when the data has none.
    """

    actions: Floats
    states: Floats | None

    def __len__(self) -> int:
        return len(self.actions)

    def __getitem__(self, chosen: slice) -> "ChunkSet":
        return ChunkSet(self.actions[chosen], None if self.states is None else self.states[chosen])


def read_chunks(path: Path, limit: int = 0) -> ChunkSet:
    """Read chunks in physical units.

    Args:
        path: an .npy file [N, H, D]; a folder of episode_*.npz samples; or a dataset (pi05_training.data).
        limit: read at most so many, evenly spread; 0 reads all.

    Raises:
        FileNotFoundError: there is nothing.
        ActionTokenizerError: it holds no chunks, or chunks of different sizes, or numbers that are not finite.
        DatasetError: a dataset is damaged.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; give an .npy file [chunks, steps, entries], samples or a dataset"
        )
    if path.is_file():
        chunks = _read_array(path, limit)
    elif any(path.glob("episode_*.npz")):
        chunks = _read_samples(path, limit)
    else:
        chunks = _read_dataset(path, limit)
    if not len(chunks):
        raise ActionTokenizerError(f"{path}: no chunks")
    if not np.isfinite(chunks.actions).all():
        row, step, entry = (int(i) for i in np.argwhere(~np.isfinite(chunks.actions))[0])
        raise ActionTokenizerError(f"{path}: chunk {row}, step {step}, entry {entry} is not finite")
    return chunks


def _read_array(path: Path, limit: int) -> ChunkSet:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ActionTokenizerError(f"{path} is not an .npy file: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 3 or array.dtype.kind not in "fiu":
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
        raise ActionTokenizerError(f"{path}: expected numbers [chunks, steps, entries], found {found}")
    return ChunkSet(np.asarray(array[spread(len(array), limit or None)], np.float32), None)


def _read_samples(folder: Path, limit: int) -> ChunkSet:
    labels = {path: read_labels(path) for path in sorted(folder.glob("episode_*.npz"))}
    shapes = {actions.shape[1:]: path for path, (_, actions) in labels.items()}
    if len(shapes) > 1:
        listed = ", ".join(f"{list(shape)} in {path.name}" for shape, path in shapes.items())
        raise ActionTokenizerError(f"{folder}: chunks of different sizes: {listed}")
    states = np.concatenate([states for states, _ in labels.values()])
    actions = np.concatenate([actions for _, actions in labels.values()])
    chosen = spread(len(actions), limit or None)
    return ChunkSet(actions[chosen], states[chosen])


def _read_dataset(folder: Path, limit: int) -> ChunkSet:
    from pi05_training.data.open import open_dataset  # imports what reads videos and tables

    dataset = open_dataset(folder)
    labels = [dataset.labels(int(i)) for i in spread(len(dataset), limit or None)]
    if not labels:
        raise ActionTokenizerError(f"{folder}: no chunks")
    return ChunkSet(np.stack([actions for _, actions in labels]), np.stack([state for state, _ in labels]))
