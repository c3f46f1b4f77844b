"""Install pi05_ros under pip (wheel, editable) and under colcon (ament_python).

Both put the ament index marker, share/pi05_ros and lib/pi05_ros/<executable> where ROS 2 looks for them. Name, version
and licence come from package.xml.
"""

import ast
import sys
from pathlib import Path
from xml.etree import ElementTree

from setuptools import Distribution, find_packages, setup

PACKAGE = "pi05_ros"
MANIFEST = ElementTree.parse("package.xml").getroot()


def executables() -> dict[str, str]:
    """Return executable -> module from graph.py, which starts them by these names, without importing the package."""
    tree = ast.parse(Path("src/pi05_ros/graph.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODULES":
            return ast.literal_eval(node.value)
    raise LookupError("src/pi05_ros/graph.py defines no MODULES")


EXECUTABLES = executables()
PROGRAMS = {"pi05": "pi05_ros.cli", **EXECUTABLES}

# Folders that are installed as they stand into share/pi05_ros.
SHARED = ("launch", "urdf", "config", "checkpoints")


def text(tag: str) -> str:
    """Return the text of an element of package.xml."""
    return MANIFEST.findtext(tag, "").strip()


def shared_files(folder: str) -> list[tuple[str, list[str]]]:
    """Return data_files entries for every file below a folder, its layout kept."""
    files = sorted(p for p in Path(folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    parents = sorted({p.parent for p in files})
    return [(f"share/{PACKAGE}/{parent}", [str(p) for p in files if p.parent == parent]) for parent in parents]


def wheel_wrappers() -> list[tuple[str, list[str]]]:
    """Write lib/pi05_ros/<executable> for pip, whose entry points land in bin/ where `ros2 run` does not look.

    Only wheel builds (pip) take this path: under colcon setup.cfg moves the entry points themselves.
    """
    if not {"bdist_wheel", "editable_wheel"} & set(sys.argv):
        return []
    out = Path("build", "ament_scripts")
    out.mkdir(parents=True, exist_ok=True)
    for name in EXECUTABLES:
        script = out / name
        script.write_text(f'#!/bin/sh\nexec "$(dirname "$(readlink -f "$0")")/../../bin/{name}" "$@"\n')
        script.chmod(0o755)
    return [(f"lib/{PACKAGE}", [str(out / name) for name in EXECUTABLES])]


class AmentDistribution(Distribution):
    """A distribution whose data_files survive `pip install -e`.

    editable_wheel asks has_data before it runs install_data; setuptools has no such method and drops the files.
    """

    def has_data(self) -> bool:
        """Return whether there are data_files."""
        return bool(self.data_files)


setup(
    distclass=AmentDistribution,
    name=text("name"),
    version=text("version"),
    description=text("description"),
    license=text("license"),
    maintainer=text("maintainer"),
    maintainer_email=MANIFEST.find("maintainer").attrib["email"],
    python_requires=">=3.10",
    package_dir={"": "src", "pi05_training": "training/pi05_training"},
    packages=find_packages("src") + find_packages("training"),
    package_data={"pi05_model": ["assets/*", "assets/*/*"], "pi05_ros": ["report/*.jinja"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        *(entry for folder in SHARED for entry in shared_files(folder)),
        *wheel_wrappers(),
    ],
    install_requires=[
        "av",
        "jinja2",
        "matplotlib",
        "mcap",
        "mujoco",
        "numpy",
        "opencv-python",
        "pillow",
        "psutil",
        "pyarrow",
        "pydantic",
        "pyyaml",
        "rich",
        "ros-ament-index-python",
        "rosbags",
        "safetensors",
        "sentencepiece",
        "tensorboard",
        "tokenizers",
        "torch",
        "transformers",
        "tyro",
        "zstandard",
        "xacro",
    ],
    extras_require={
        # On a machine without ROS 2; one that has it brings its own rclpy.
        "ros": ["ros-rclpy[fastrtps]", "ros-common-interfaces"],
        # `pi05 convert --engine ray`.
        "ray": ["ray"],
        "dev": [
            "colcon-ros",
            "hypothesis",
            "mypy",
            "pytest",
            "pytest-timeout",
            "ruff",
            "types-psutil",
            "types-PyYAML",
        ],
    },
    entry_points={"console_scripts": [f"{name} = {module}:main" for name, module in PROGRAMS.items()]},
    zip_safe=False,
)
