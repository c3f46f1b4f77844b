"""One way to open a dataset, whatever its layout."""

from pathlib import Path

from pi05_training.data.episode import Dataset, DatasetError
from pi05_training.data.folder import FolderDataset
from pi05_training.samples import EPISODES, EpisodeFiles

_LEROBOT = "meta/info.json"


def open_dataset(
    path: Path | str, instructions: Path | None = None, horizon: int | None = None, skip_damaged: float = 0.0
) -> Dataset:
    """Open a folder dataset (layout A or B), a LeRobotDataset v3.0, or a folder of episode files (`samples`).

    Args:
        path: its folder.
        instructions: instruction JSON of a folder dataset; None looks in the folder.
        horizon: H, rows of a chunk; None takes the contract's, or what episode files hold.
        skip_damaged: share of the runs of a folder dataset that may be damaged and are left out.

    Raises:
        DatasetError: neither, or something is missing; says what.
    """
    root = Path(path)
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; make a dataset with `pi05 convert BAGS… {root}`")
    if (root / _LEROBOT).exists():
        from pi05_training.data.lerobot import LeRobotDataset

        return LeRobotDataset(root) if horizon is None else LeRobotDataset(root, horizon)
    if any(root.glob(EPISODES)):
        return EpisodeFiles(root, horizon)
    return FolderDataset(root, instructions, chunk_steps=horizon, skip_damaged=skip_damaged)
