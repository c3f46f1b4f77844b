"""Which bags a dataset was made of, so that a second conversion does nothing and one that was killed can go on."""

import contextlib
import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pi05_training.data.bag_labels import sidecar_of
from pi05_training.data.bags import METADATA
from pi05_training.data.folder_writer import STAGING, read_json, write_json

FOLDER = "meta/conversion"
_PENDING = f"{STAGING}/journal"
_EDGE_BYTES = 1 << 20


class Journal:
    """The entries of a dataset: in .staging while a bag's episodes are being added, in meta/conversion afterwards.

    An entry holds `fingerprint`, `bag` (where it lay) and `report`.

    Args:
        root: folder of the dataset.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        folders = (root / _PENDING, root / FOLDER)
        self._entries = [read_json(path) for folder in folders for path in sorted(folder.glob("*.json"))]

    def names(self) -> list[str]:
        """Return the names of the bags."""
        return [entry["report"]["name"] for entry in self._entries]

    def reports(self) -> list[dict[str, Any]]:
        """Return the reports of the bags."""
        return [entry["report"] for entry in self._entries]

    def of(self, bag: Path, fingerprint: str) -> dict[str, Any] | None:
        """Return the entry of a bag: the same contents wherever it lies now, or the same place."""
        same = [entry for entry in self._entries if entry["fingerprint"] == fingerprint]
        place = [entry for entry in self._entries if entry["bag"] == str(bag.resolve())]
        return next(iter([*same, *place]), None)

    def announce(self, entry: dict[str, Any]) -> None:
        """Write down what is about to be added."""
        (self._root / _PENDING).mkdir(parents=True, exist_ok=True)
        write_json(self._path(_PENDING, entry), entry)

    def settle(self, entry: dict[str, Any]) -> None:
        """Write down that it was added."""
        pending = self._path(_PENDING, entry)
        if pending.exists():
            (self._root / FOLDER).mkdir(parents=True, exist_ok=True)
            pending.replace(self._path(FOLDER, entry))
            with contextlib.suppress(OSError):  # other bags may still be on their way
                pending.parent.rmdir()
                pending.parent.parent.rmdir()

    def forget(self, entry: dict[str, Any]) -> None:
        """Remove an entry."""
        for folder in (_PENDING, FOLDER):
            self._path(folder, entry).unlink(missing_ok=True)

    def _path(self, folder: str, entry: dict[str, Any]) -> Path:
        return self._root / folder / f"{quote(entry['report']['name'], safe='')}.json"


def bag_digest(path: Path) -> str:
    """Return what tells a bag from another: names and sizes of its files, metadata, labels, and every file's ends."""
    digest = hashlib.blake2b(digest_size=16)
    beside = [labels for labels in [sidecar_of(path)] if labels.exists()]
    for file in [path, *beside] if path.is_file() else sorted(path.iterdir()):
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(_EDGE_BYTES))
            if file.name != METADATA:  # an index at the end (MCAP), or the last pages (db3)
                opened.seek(max(size - _EDGE_BYTES, 0))
                digest.update(opened.read(_EDGE_BYTES))
    return digest.hexdigest()
