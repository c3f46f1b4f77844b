"""`pi05 tokenizer` from data to a tokenizer folder, and every way in which it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pi05_model.action_tokens import ActionTokenizerError, load_action_tokenizer
from pi05_model.action_tokens.fast import FastTokenizer
from pi05_model.normalize import NormStats, save_norm_stats
from pi05_ros.cli import main as pi05
from pi05_ros.contract import load_contract
from pi05_training.chunks import read_chunks
from pi05_training.data.episode import EpisodeInfo, Frame
from pi05_training.data.folder_writer import FolderWriter
from pi05_training.samples import Sample, write_samples
from pi05_training.tokenize import main

DIM = load_contract().dim
H = 20
SMALL = ["--tokens", "4", "--width", "16", "--layers", "1", "--steps", "20", "--batch-size", "16"]


def chunks(count: int, seed: int = 0, dim: int = DIM) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    start, slope = rng.normal(size=(2, count, 1, dim))
    return (start + slope * np.linspace(0, 1, H)[None, :, None]).astype(np.float32)


@pytest.fixture
def array(tmp_path: Path) -> Path:
    path = tmp_path / "chunks.npy"
    np.save(path, chunks(120))
    return path


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    folder = tmp_path / "samples"
    folder.mkdir()
    for episode in range(3):
        actions = chunks(20, episode)
        rows = [Sample({}, a[0] - 0.1, a, "clear the table", "wait", "wait") for a in actions.astype(np.float64)]
        write_samples(folder / f"episode_{episode:07d}.npz", rows)
    return folder


def test_fit_inspect_adapt_fast(array: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "fast"
    assert main(["fit", "fast", str(array), "--out", str(out), "--vocab-size", "400", "--scale", "20"]) == 0
    printed = capsys.readouterr().out
    assert f"tokenizer in {out}" in printed and load_contract().names[0] in printed
    report = json.loads((out / "report.json").read_text())
    assert (report["learned_from"], report["chunks"], report["held_out"]) == (108, 12, True)
    assert (report["horizon"], report["dim"], report["clipped"]) == (H, DIM, 0)
    tokenizer = load_action_tokenizer(out)
    assert isinstance(tokenizer, FastTokenizer) and tokenizer.scale == 20.0 and tokenizer.vocab_size <= 400
    assert tokenizer.space is not None

    figures = tmp_path / "figures.json"
    assert main(["inspect", str(out), str(array), "--json", str(figures)]) == 0
    content = json.loads(figures.read_text())
    assert content["tokenizer"]["fingerprint"] == tokenizer.space.fingerprint
    assert content["report"]["chunks"] == 120 and content["report"]["rms"] < 0.5 / 20

    other = tmp_path / "other.npy"
    np.save(other, chunks(150, 9).cumsum(axis=1))
    adapted = tmp_path / "adapted"
    assert main(["adapt", str(out), str(other), "--out", str(adapted), "--vocab-size", "600"]) == 0
    assert "before:" in capsys.readouterr().out
    assert 400 < load_action_tokenizer(adapted).vocab_size <= 600


@pytest.mark.parametrize(("kind", "options"), [("fsq", ["--levels", "5", "4"]), ("vq", ["--vocab-size", "32"])])
def test_fit_inspect_adapt_latent(
    kind: str, options: list[str], samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / kind
    assert main(["fit", kind, str(samples), "--out", str(out), *SMALL, *options, "--relative"]) == 0
    tokenizer = load_action_tokenizer(out)
    assert tokenizer.kind == kind and tokenizer.vocab_size == {"fsq": 20, "vq": 32}[kind]
    assert tokenizer.space is not None
    assert tokenizer.space.relative_entries == tuple(int(i) for i in load_contract().position_index)
    assert main(["inspect", str(out), str(samples)]) == 0
    assert main(["adapt", str(out), str(samples), "--out", str(tmp_path / "a"), "--steps", "5", "--relative"]) == 0
    assert "dead" in capsys.readouterr().out
    assert load_action_tokenizer(tmp_path / "a").kind == kind


def test_statistics_of_the_policy_are_kept(array: Path, tmp_path: Path) -> None:
    stats = NormStats.from_samples(chunks(500, 3) * 2)
    save_norm_stats({"state": stats, "actions": stats}, tmp_path / "norm_stats.json")
    for i, source in enumerate((tmp_path, tmp_path / "norm_stats.json")):
        out = tmp_path / f"t{i}"
        main(["fit", "fast", str(array), "--out", str(out), "--vocab-size", "400", "--stats", str(source)])
        space = load_action_tokenizer(out).space
        assert space is not None
        np.testing.assert_allclose(space.stats.q99, stats.q99)


def test_normalised_data_leaves_no_statistics(array: Path, tmp_path: Path) -> None:
    out = tmp_path / "t"
    main(["fit", "fast", str(array), "--out", str(out), "--vocab-size", "400", "--normalised", "--holdout", "0"])
    assert load_action_tokenizer(out).space is None
    assert json.loads((out / "report.json").read_text())["held_out"] is False
    with pytest.raises(ActionTokenizerError, match="keeps no statistics"):
        main(["inspect", str(out), str(array)])
    assert main(["inspect", str(out), str(array), "--normalised"]) == 0


def test_reading_samples_and_arrays(samples: Path, array: Path) -> None:
    every = read_chunks(samples)
    assert every.actions.shape == (60, H, DIM) and every.states is not None and every.states.shape == (60, DIM)
    some = read_chunks(samples, limit=7)
    assert len(some) == 7
    np.testing.assert_array_equal(some.actions[0], every.actions[0])
    np.testing.assert_array_equal(some.actions[6], every.actions[51])
    assert read_chunks(array, limit=1000).states is None


def test_fit_on_a_dataset(tmp_path: Path) -> None:
    contract = load_contract()
    writer = FolderWriter(tmp_path / "set", contract).episode(EpisodeInfo("one", "clear the table", "success", 50.0))
    path = chunks(1, 4)[0].repeat(6, axis=0)
    for k, action in enumerate(path):
        writer.add(Frame(1000 + k * round(contract.step_s * 1e9), {}, action - 0.5, action, "wait"))
    writer.close()
    data = read_chunks(tmp_path / "set")
    assert data.actions.shape == (len(path), contract.rates.chunk_steps, DIM) and data.states is not None
    np.testing.assert_array_equal(data.actions[0], path[: contract.rates.chunk_steps])
    np.testing.assert_array_equal(data.states[7], path[7] - 0.5)
    out = tmp_path / "t"
    assert main(["fit", "fast", str(tmp_path / "set"), "--out", str(out), "--relative", "--max-chunks", "50"]) == 0
    assert json.loads((out / "report.json").read_text())["learned_from"] == 45
    assert pi05(["tokenizer", "inspect", str(out), str(tmp_path)]) == 1  # no dataset


def test_data_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    for bad, message in (
        (np.zeros((3, 4)), r"expected numbers \[chunks, steps, entries\], found float64 \[3, 4\]"),
        (np.zeros((2, 3, 4), dtype="U1"), "expected numbers"),
        (np.zeros((0, 3, 4)), "no chunks"),
        (np.full((2, 3, 4), np.nan), "chunk 0, step 0, entry 0 is not finite"),
    ):
        np.save(path, bad)
        with pytest.raises(ActionTokenizerError, match=message):
            read_chunks(path)
    path.write_bytes(b"junk")
    with pytest.raises(ActionTokenizerError, match=r"is not an \.npy file"):
        read_chunks(path)
    with pytest.raises(FileNotFoundError, match=r"does not exist; give an \.npy file"):
        read_chunks(tmp_path / "nothing")


def test_samples_of_different_sizes(samples: Path) -> None:
    longer = np.zeros((30, DIM))
    write_samples(samples / "episode_9.npz", [Sample({}, longer[0], longer, "a", "b", "c")])
    with pytest.raises(ActionTokenizerError, match=r"chunks of different sizes: \[20, 18\] in .*, \[30, 18\] in"):
        read_chunks(samples)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "fast", "DATA", "--out", "OUT", "--steps", "5"], "--steps is for fsq and vq, not for fast"),
        (["fit", "fsq", "DATA", "--out", "OUT", "--scale", "5"], "--scale is for fast, not for fsq"),
        (["fit", "fsq", "DATA", "--out", "OUT", "--vocab-size", "9"], "--vocab-size is for fast and vq, not for fsq"),
        (["fit", "vq", "DATA", "--out", "OUT", "--levels", "5"], "--levels is for fsq, not for vq"),
        (["fit", "fast", "DATA", "--out", "OUT", "--vocab-size", "20"], "a vocabulary of 20 tokens is too small"),
        (["fit", "fast", "DATA", "--out", "OUT", "--holdout", "1"], "--holdout must be in [0, 1), got 1.0"),
        (["fit", "fast", "DATA", "--out", "OUT", "--relative"], "relative entries need the state"),
        (["fit", "fast", "DATA", "--out", "HERE"], "exists already: give --out a new folder"),
        (["fit", "fast", "HERE/none.npy", "--out", "OUT"], "does not exist"),
        (["adapt", "HERE", "DATA", "--out", "OUT"], "holds no action tokenizer"),
        (["inspect", "HERE"], "holds no action tokenizer"),
    ],
)
def test_refusals_are_one_line(
    arguments: list[str], message: str, array: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    places = {"DATA": str(array), "OUT": str(out), "HERE": str(tmp_path)}
    given = [places.get(a, a.replace("HERE", str(tmp_path))) for a in arguments]
    assert pi05(["tokenizer", *given]) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("pi05 tokenizer: ")
    assert not out.exists()


def test_data_of_another_size_is_refused(array: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "fsq", str(array), "--out", str(tmp_path / "t"), *SMALL])
    longer, wider = tmp_path / "longer.npy", tmp_path / "wider.npy"
    np.save(longer, np.concatenate([chunks(5), chunks(5)], axis=1))
    np.save(wider, chunks(5, dim=DIM + 1))
    for data, message in ((longer, "must have the shape [batch, 20, 18]"), (wider, "actions have 19 entries")):
        assert pi05(["tokenizer", "inspect", str(tmp_path / "t"), str(data)]) == 1
        assert message in capsys.readouterr().err
    assert pi05(["tokenizer", "adapt", str(tmp_path / "t"), str(array), "--out", "x", "--vocab-size", "50"]) == 1
    assert "--vocab-size is for fast and vq" in capsys.readouterr().err


def test_an_unknown_kind_lists_the_known_ones(array: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "zip", str(array), "--out", "x"])
    printed = capsys.readouterr()
    assert "fast" in printed.out + printed.err and "zip" in printed.out + printed.err
