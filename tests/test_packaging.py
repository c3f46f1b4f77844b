"""What `pip install` and `colcon build` put where ROS 2 looks for it, tried on a copy of the tree."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pi05_ros.cli import COMMANDS
from pi05_ros.graph import MODULES

ROOT = Path(__file__).resolve().parents[1]
SHARED = ("launch", "urdf", "config", "checkpoints")
FOLDERS = ("resource", "src", "training", *SHARED)
ASK_FOR_SHARE = "from ament_index_python import get_package_share_directory as s; print(s('pi05_ros'))"


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Run a command outside this checkout's environment and return its output; its stderr is shown when it fails."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "AMENT_PREFIX_PATH")}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env={**inherited, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built, so that the build leaves nothing behind in the checkout."""
    copy = tmp_path_factory.mktemp("tree") / "pi05_ros"
    copy.mkdir()
    for name in (*FOLDERS, *(path.name for path in ROOT.iterdir() if path.is_file())):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        elif source.is_file():
            shutil.copy(source, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip builds from the tree."""
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", out, cwd=tree)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def prefix(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel and, by a path entry, the ament index of the test's environment."""
    prefix = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", prefix, cwd=prefix)
    python = prefix / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=prefix)
    import ament_index_python

    packages = Path(run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=prefix).strip())
    (packages / "ament_index_python").symlink_to(Path(ament_index_python.__file__).parent)
    return prefix


def shared_files(root: Path) -> set[str]:
    """Files below the shared folders of a tree, as relative paths."""
    found = (path for folder in SHARED for path in (root / folder).rglob("*"))
    return {path.relative_to(root).as_posix() for path in found if path.is_file() and "__pycache__" not in path.parts}


def assert_installed(prefix: Path, tree: Path) -> None:
    """Check marker, manifest, shared files and executables of an ament prefix."""
    share = prefix / "share" / "pi05_ros"
    assert (prefix / "share/ament_index/resource_index/packages/pi05_ros").is_file()
    assert (share / "package.xml").is_file()
    assert shared_files(share) == shared_files(tree)
    assert (share / "config/contract.yaml").read_bytes() == (tree / "config/contract.yaml").read_bytes()
    for name in MODULES:
        executable = prefix / "lib" / "pi05_ros" / name
        assert executable.is_file(), f"{executable} is missing"
        assert os.access(executable, os.X_OK)


def test_pip_installs_what_ros_looks_for(prefix: Path, tree: Path) -> None:
    assert_installed(prefix, tree)
    share = run(prefix / "bin/python", "-c", ASK_FOR_SHARE, cwd=prefix, AMENT_PREFIX_PATH=str(prefix))
    assert Path(share.strip()) == prefix / "share" / "pi05_ros"


def test_wrapper_starts_the_entry_point(prefix: Path, tmp_path: Path) -> None:
    """`ros2 run` calls lib/pi05_ros/<name>, maybe through a link; it ends up in bin/<name> with all arguments."""
    entry_point = prefix / "bin" / "state_node"
    assert "pi05_ros.nodes.state_node" in entry_point.read_text()
    entry_point.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    link = tmp_path / "state_node"
    link.symlink_to(prefix / "lib" / "pi05_ros" / "state_node")
    assert run(link, "--ros-args", "a b", cwd=tmp_path) == "--ros-args|a b|"


def test_colcon_builds_the_same(tree: Path, tmp_path: Path) -> None:
    pytest.importorskip("colcon_ros", reason="colcon is not installed; `make env` installs it")
    colcon = (sys.executable, "-m", "colcon")
    run(*colcon, "build", "--base-paths", tree, "--build-base", "b", "--install-base", "i", cwd=tmp_path)
    assert_installed(tmp_path / "i" / "pi05_ros", tree)


def test_wheel_holds_every_module_and_asset(wheel: Path, tree: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    for root in (tree / "src", tree / "training"):
        wanted = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.suffix in (".py", ".jinja")}
        wanted |= {path.relative_to(root).as_posix() for path in root.glob("*/assets/**/*") if path.is_file()}
        assert wanted
        assert wanted <= packed


def test_manifest_names_the_package_and_its_build() -> None:
    manifest = ElementTree.parse(ROOT / "package.xml").getroot()
    assert manifest.attrib["format"] == "3"
    assert manifest.findtext("name") == "pi05_ros"
    assert manifest.findtext("export/build_type") == "ament_python"
    assert {"rclpy", "launch_ros", "sensor_msgs"} <= {element.text for element in manifest.iter("exec_depend")}


def test_constraints_pin_versions_and_name_no_place() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert any(line.startswith("torch==") for line in lines)
    for line in lines:
        assert "==" in line.split(";")[0], line
        assert "://" not in line
        assert not line.startswith(("-", "nvidia", "cuda")), line


def test_every_command_exists() -> None:
    for name, command in COMMANDS.items():
        assert callable(command.load()), name
