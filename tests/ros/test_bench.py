"""`pi05 bench`: that it measures, writes what it measured, and says what is wrong. No test looks at a duration."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pi05_ros.bench.comparison import SIZES, Comparison
from pi05_ros.bench.figures import Figure, report
from pi05_ros.bench.peer_lerobot import reduced_policy
from pi05_ros.bench.side import BenchError, Side, draw_inputs
from pi05_ros.cli import main

DEBUG = SIZES["debug"]
CPUS = [min(os.sched_getaffinity(0))]
QUICK = ["bench", "model", "--preset", "debug", "--repeats", "1", "--steps", "2", "--threads", "1", "--no-base"]
SECOND = Path(__file__).with_name("second_side.py")


@pytest.fixture
def own() -> Iterator[Side]:
    with Side.own(CPUS) as side:
        yield side


def test_model_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep" / "model.json"
    assert main([*QUICK, "--json", str(path)]) == 0
    stored = json.loads(path.read_text())
    names = [figure["name"] for figure in stored["figures"]]
    assert stored["name"] == "model"
    for what in ("chunk, prompt of 100, ours", "training step, ours", "training step, insulated", "planner tick"):
        assert f"debug: {what}" in names
    assert all(figure["value"] > 0 for figure in stored["figures"])
    assert not any("lerobot" in name for name in names)
    assert str(path) in capsys.readouterr().out


def test_two_sides_share_weights_and_take_turns(own: Side, tmp_path: Path) -> None:
    with Side("second", [sys.executable, str(SECOND)], CPUS) as second:
        parts = Comparison("debug", [own, second], repeats=2, steps=2, folder=tmp_path).figures()
        figures = {figure.name.removeprefix("debug: "): figure for part in parts for figure in part}
    assert figures["chunks differ by"].met and figures["losses differ by"].met
    for what in ("chunk, prompt of 100", "training step", "chunk in bfloat16"):
        ratio = figures[f"{what}, second"].value / figures[f"{what}, ours"].value
        assert figures[f"{what}, times faster"].value == pytest.approx(ratio)


def test_acting_and_training_networks_agree(own: Side, tmp_path: Path) -> None:
    draw_inputs(tmp_path / "inputs.pt", DEBUG, batch=1, prompt_tokens=20)
    chunks = []
    for act in (True, False):
        own.call("build", config=DEBUG.to_dict(), dtype="float32", weights="", act=act)
        own.call("inputs", path=str(tmp_path / "inputs.pt"))
        own.call("sample", steps=2, save=str(tmp_path / "chunk.pt"))
        chunks.append(torch.load(tmp_path / "chunk.pt", weights_only=True))
    assert chunks[0].shape == (1, DEBUG.horizon, DEBUG.max_action_dim)
    torch.testing.assert_close(chunks[0], chunks[1], atol=1e-5, rtol=0)
    assert own.call("train")["loss"] == pytest.approx(own.call("train", insulate=True)["loss"], abs=1e-5)


def test_inputs_are_padded_and_repeatable(tmp_path: Path) -> None:
    given = []
    for index in range(2):
        draw_inputs(tmp_path / f"{index}.pt", DEBUG, batch=2, prompt_tokens=7)
        given.append(torch.load(tmp_path / f"{index}.pt", weights_only=True))
    assert all(torch.equal(given[0][key], given[1][key]) for key in given[0])
    assert given[0]["token_mask"].sum(dim=1).tolist() == [7, 7]
    assert given[0]["tokens"].max() < DEBUG.vocab_size
    assert not given[0]["actions"][..., int(given[0]["action_dim"]) :].any()


def test_a_peer_without_lerobot_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--peer-python", sys.executable]) == 1
    assert "lerobot failed at 'build': ModuleNotFoundError: No module named 'lerobot'" in capsys.readouterr().err


def test_a_peer_that_dies_leaves_its_last_words(tmp_path: Path) -> None:
    script = tmp_path / "dies.py"
    script.write_text("import sys; sys.exit('out of luck')")
    with (
        Side("peer", [sys.executable, str(script)], CPUS) as side,
        pytest.raises(BenchError, match=r"peer ended with status 1 during 'memory'(.|\n)*out of luck"),
    ):
        side.call("memory")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--threads", "0"], "--threads is 0; this process may use 1 to"),
        (["--repeats", "0"], "--repeats is 0"),
        (["--peer-python", "/no/such/python"], "/no/such/python"),
    ],
)
def test_what_is_wrong_is_said(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, *flags]) == 1
    assert message in capsys.readouterr().err


def test_a_failed_benchmark_shows_what_it_has_and_stores_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def parts() -> Iterator[list[Figure]]:
        yield [Figure("measured", 1.5, "ms")]
        raise BenchError("no more")

    with pytest.raises(BenchError, match="no more"):
        report("model", parts(), tmp_path / "model.json")
    assert "measured" in capsys.readouterr().out
    assert not (tmp_path / "model.json").exists()


def test_benchmarks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    shown = capsys.readouterr().out
    assert "stack" in shown and "model" in shown


def test_sizes_that_lerobot_cannot_have() -> None:
    heads = replace(DEBUG, vlm=replace(DEBUG.vlm, heads=4), expert=replace(DEBUG.expert, heads=4))
    with pytest.raises(ValueError, match=r"vlm has 4 heads; lerobot 0.6.1 has 8"):
        reduced_policy(heads.to_dict(), "float32")
    patches = replace(DEBUG, vision=replace(DEBUG.vision, patch=28))
    with pytest.raises(ValueError, match="patches of 14 pixels"):
        reduced_policy(patches.to_dict(), "float32")
