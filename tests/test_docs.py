"""What the documents name exists, and what exists is named."""

import re
from pathlib import Path

import pytest

from pi05_ros import topics
from pi05_ros.cli import COMMANDS
from pi05_ros.contract import load_contract
from pi05_ros.control.executor import Reason
from pi05_ros.graph import argument_table

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    for command in re.findall(r"\bpi05 ([a-z]+)\b", page.read_text()):
        assert command in COMMANDS, f"{page.name} shows `pi05 {command}`"


def test_every_topic_is_described() -> None:
    page = (ROOT / "docs" / "topics.md").read_text()
    names = [value for name, value in vars(topics).items() if name.isupper() and not value.startswith("~/")]
    for name in [*names, topics.camera_image("<name>"), topics.camera_raw("<name>")]:
        assert f"`{name}`" in page, name
    for camera in load_contract().cameras:
        assert camera in page


def test_every_launch_argument_is_named() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text()
    for argument in argument_table():
        assert argument.name in page, argument.name


def test_every_refusal_is_explained() -> None:
    page = (ROOT / "docs" / "safety.md").read_text()
    for reason in Reason:
        assert f"`{reason.value}`" in page, reason
