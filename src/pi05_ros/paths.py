"""Where the package's data files (config, urdf, launch, checkpoints) lie.

In a checkout they are the repository's own folders, so that an edit takes effect at once; installed, they are
`share/pi05_ros` of the ament prefix or of the virtual environment.
"""

import sys
from functools import cache
from pathlib import Path

PACKAGE = "pi05_ros"


@cache
def share_dir() -> Path:
    """Return the folder that holds config/, urdf/ and launch/.

    Raises:
        FileNotFoundError: neither a checkout nor an installation holds them.
    """
    checkout = Path(__file__).resolve().parents[2]
    candidates = [checkout, *_ament_shares(), Path(sys.prefix) / "share" / PACKAGE]
    for candidate in candidates:
        if (candidate / "config" / "contract.yaml").is_file():
            return candidate
    tried = ", ".join(str(c) for c in candidates)
    raise FileNotFoundError(f"share/{PACKAGE} not found in {tried}; run `pip install .` or source the workspace")


def share_file(relative: str) -> Path:
    """Return the absolute path of a data file such as "config/contract.yaml".

    Raises:
        FileNotFoundError: the file is not part of this installation.
    """
    path = share_dir() / relative
    if not path.exists():
        raise FileNotFoundError(f"{relative} is missing from {share_dir()}")
    return path


def _ament_shares() -> list[Path]:
    try:
        from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
    except ImportError:
        return []
    try:
        return [Path(get_package_share_directory(PACKAGE))]
    except (OSError, PackageNotFoundError):
        return []
