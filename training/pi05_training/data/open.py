"""One way to open a dataset, whatever its layout."""

from pathlib import Path

from pi05_training.data.episode import Dataset, DatasetError
from pi05_training.data.folder import FolderDataset

_LEROBOT = "meta/info.json"


def open_dataset(path: Path | str, instructions: Path | None = None) -> Dataset:
    """Open a folder dataset (layout A or B) or a LeRobotDataset v3.0.

    Args:
        path: its folder.
        instructions: instruction JSON of a folder dataset; None looks in the folder.

    Raises:
        DatasetError: neither, or something is missing; says what.
    """
    root = Path(path)
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; make a dataset with `pi05 convert BAGS… {root}`")
    if (root / _LEROBOT).exists():
        from pi05_training.data.lerobot import LeRobotDataset

        return LeRobotDataset(root)
    return FolderDataset(root, instructions)
