"""`pi05 checkpoint` as its user meets it: what it prints, what it writes, and its exit status."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pi05_ros.cli import main

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
Run = Callable[..., tuple[int, str]]
SIZES = str(GOLDEN / "sizes.json")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # of the table that rich draws


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function (arguments) -> (exit status, what was printed)."""

    def call(*arguments: object) -> tuple[int, str]:
        status = main(["checkpoint", *map(str, arguments)])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return call


def test_inspect_shows_the_shipped_checkpoint(run: Run) -> None:
    status, text = run("inspect")
    assert status == 0
    for shown in ("pi05_tiny", "4,814,800", "50 steps", "state [18] quantile", "sha256"):
        assert shown in text
    assert run("inspect", ROOT / "checkpoints" / "pi05_tiny") == (status, text)


@pytest.mark.parametrize("policy", ["pi05", "pi0", "pi0_fast"])
def test_inspect_reads_a_folder_of_lerobot(run: Run, policy: str) -> None:
    status, text = run("inspect", GOLDEN / policy, "--sizes", SIZES)
    assert status == 0
    for shown in (
        "lerobot",
        policy,
        "32 wide, 2 layers",
        "256 tokens",
        "state [7]",
        "hardly moving: entries [3]",
        "lacks tokenizer.json",
    ):
        assert shown in text, shown
    assert ("24 wide" in text) == (policy != "pi0_fast")


def test_a_reduced_network_without_its_sizes_says_what_to_give(run: Run) -> None:
    status, text = run("inspect", GOLDEN / "pi05")
    assert status == 1 and "number of heads" in text and "num_attention_heads" in text
    assert text.count("\n") == 1


def test_import_inspect_export_and_back(run: Run, tmp_path: Path) -> None:
    own, out, back = (tmp_path / name for name in ("own", "out", "back"))
    status, text = run("import", GOLDEN / "pi05", own, "--sizes", SIZES, "--horizon", 8, "--relative-entries", 0, 3)
    assert status == 0 and "pi05 of lerobot" in text and "lm_head" in text and "does not run yet" in text
    description = json.loads((own / "config.json").read_text())["config"]
    assert (description["horizon"], description["relative_entries"]) == (8, [0, 3])
    assert (description["state_in_prompt"], description["family"]) == (True, "lerobot")

    status, text = run("inspect", own)
    assert status == 0 and "it lacks tokenizer.json" in text and "8 steps" in text

    status, text = run("export", own, out, "--to", "openpi")
    assert status == 0 and "92 tensors under openpi's names" in text and "no tokenizer" in text
    assert run("import", out, back)[0] == 0
    for name in ("config.json", "norm_stats.json", "model.safetensors"):
        assert (back / name).read_bytes() == (own / name).read_bytes()


def test_the_state_can_be_left_out_of_the_prompt(run: Run, tmp_path: Path) -> None:
    assert run("import", GOLDEN / "pi05", tmp_path / "own", "--sizes", SIZES, "--no-state-in-prompt")[0] == 0
    assert json.loads((tmp_path / "own" / "config.json").read_text())["config"]["state_in_prompt"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "nowhere"), "no checkpoint folder at nowhere"),
        (("import", "nowhere", "out"), "no folder at nowhere"),
        (("import", ROOT / "checkpoints" / "pi05_tiny", "out"), "is a checkpoint of this project already"),
        (
            ("export", ROOT / "checkpoints" / "pi05_tiny", "out"),
            "lerobot has no counterpart for the convolutional stem",
        ),
        (("export", "nowhere", "out"), "no checkpoint folder at nowhere"),
        (("inspect", GOLDEN / "pi05", "--sizes", "README.md"), "README.md: "),
    ],
)
def test_failures_are_one_line_and_write_nothing(
    run: Run, arguments: tuple[object, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("no JSON")
    status, text = run(*arguments)
    assert status == 1 and message in text
    assert text.startswith("pi05 checkpoint: ") and text.count("\n") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md"]
