"""Normalisation statistics in the files of lerobot and openpi, and how a checkpoint without them is completed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_rig import (
    DIM,
    GOLDEN,
    POLICIES,
    change_weights,
    choices,
    golden,
    some_stats,
)
from safetensors.torch import load_file, save_file

from pi05_model.checkpoint import CheckpointError, load_checkpoint, load_network
from pi05_model.interchange.foreign import read_foreign
from pi05_model.interchange.importer import import_checkpoint
from pi05_model.prompts import PolicyName
from pi05_model.tokenizer import PolicyTokenizer


@pytest.mark.parametrize("policy", POLICIES)
def test_normalisation_is_lerobots(policy: str) -> None:
    stats = read_foreign(GOLDEN / policy, choices()).stats
    expected = {
        name: tensor.double().numpy() for name, tensor in load_file(GOLDEN / policy / "normalised.safetensors").items()
    }
    assert stats is not None and stats["actions"].count == 1234
    for name in ("state", "actions"):
        moving = [0, 1, 2, 4, 5, 6]  # entry 3 is divided by 1e-8, where float32 has no digits left
        np.testing.assert_allclose(
            stats[name].normalise(expected["values"])[:, moving], expected[name][:, moving], rtol=2e-6, atol=2e-6
        )
    np.testing.assert_allclose(
        stats["actions"].unnormalise(expected["values"]), expected["unnormalised"], rtol=2e-6, atol=2e-6
    )


@pytest.mark.parametrize("mode", ["MEAN_STD", "MIN_MAX", "QUANTILES", "IDENTITY", "QUANTILE10"])
def test_every_mode_of_lerobot_is_the_same_map(mode: str, tmp_path: Path) -> None:
    folder = golden("pi05", tmp_path)
    for name in ("policy_preprocessor", "policy_postprocessor"):
        pipeline = json.loads((folder / f"{name}.json").read_text())
        for step in pipeline["steps"]:
            if "norm_map" in step["config"]:
                step["config"]["norm_map"] = {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode}
                file = folder / step["state_file"]
                state = load_file(file)
                state |= {"action.q10": state["action.q01"] + 0.01, "action.q90": state["action.q99"] + 0.03}
                state |= {f"observation.state.{q}": state[f"action.{q}"].clone() for q in ("q10", "q90")}
                save_file(state, file)
        (folder / f"{name}.json").write_text(json.dumps(pipeline))
    stats = read_foreign(folder, choices()).stats
    assert stats is not None
    a = {
        key.removeprefix("action."): value.double().numpy() for key, value in state.items() if key.startswith("action.")
    }
    x = np.random.default_rng(1).normal(size=(5, DIM))
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = {
            "MEAN_STD": (x - a["mean"]) / (a["std"] + 1e-8),
            "MIN_MAX": 2 * (x - a["min"]) / (a["max"] - a["min"]) - 1,
            "QUANTILES": 2 * (x - a["q01"]) / (a["q99"] - a["q01"]) - 1,
            "QUANTILE10": 2 * (x - a["q10"]) / (a["q90"] - a["q10"]) - 1,
            "IDENTITY": x,
        }[mode]
    moving = [0, 1, 2, 4, 5, 6]
    np.testing.assert_allclose(stats["actions"].normalise(x)[:, moving], expected[:, moving], rtol=1e-9)


def test_an_unknown_mode_and_a_missing_state_file_are_named(tmp_path: Path) -> None:
    folder = golden("pi05", tmp_path)
    file = folder / "policy_postprocessor.json"
    file.write_text(file.read_text().replace("QUANTILES", "LOG"))
    with pytest.raises(CheckpointError, match="normalisation LOG is unknown"):
        read_foreign(folder, choices())
    (folder / "policy_postprocessor_step_0_unnormalizer_processor.safetensors").unlink()
    with pytest.raises(CheckpointError, match="its state file is missing"):
        read_foreign(folder, choices())


def test_statistics_among_the_weights_of_an_old_lerobot(tmp_path: Path) -> None:
    folder = golden("pi0", tmp_path)
    for file in folder.glob("policy_*"):
        file.unlink()
    buffers = {
        f"{prefix}.{kind}": torch.randn(DIM).abs() + 0.5
        for prefix in ("normalize_inputs.buffer_observation_state", "unnormalize_outputs.buffer_action")
        for kind in ("mean", "std")
    }
    change_weights(folder, lambda weights: weights | buffers)
    stats = import_checkpoint(folder, tmp_path / "own", choices()).source.stats
    assert stats is not None
    for name, prefix in (
        ("state", "normalize_inputs.buffer_observation_state"),
        ("actions", "unnormalize_outputs.buffer_action"),
    ):
        assert (stats[name].family, stats[name].method) == ("lerobot", "mean_std")
        np.testing.assert_array_equal(stats[name].mean, buffers[f"{prefix}.mean"].double().numpy())
        np.testing.assert_array_equal(stats[name].std, buffers[f"{prefix}.std"].double().numpy())


def openpi_folder(policy: str, folder: Path, robots: tuple[str, ...], padded: int = 0) -> Path:
    """Return a golden network as openpi lays it out; statistics hold mean, std and quantiles alone."""
    target = golden(policy, folder)
    for file in [*target.glob("policy_*"), target / "config.json"]:
        file.unlink()
    change_weights(target, lambda weights: {name.removeprefix("model."): t for name, t in weights.items()})
    precision = {"action_dim": 32, "action_horizon": 10, "precision": "float32"}
    (target / "config.json").write_text(json.dumps(precision))
    for robot in robots:
        groups = {}
        for name, stats in some_stats("mean_std").items():
            arrays = {key: [*getattr(stats, key).tolist(), *[0.0] * padded] for key in ("mean", "std", "q01", "q99")}
            groups[name] = arrays if policy == "pi05" else arrays | {"q01": None, "q99": None}
        (target / "assets" / robot).mkdir(parents=True)
        (target / "assets" / robot / "norm_stats.json").write_text(json.dumps({"norm_stats": groups}))
    return target


@pytest.mark.parametrize("policy", ["pi05", "pi0"])
def test_statistics_of_openpi(policy: PolicyName, tmp_path: Path) -> None:
    folder = openpi_folder(policy, tmp_path, ("trossen",), padded=25)
    stats = read_foreign(folder, choices(action_dim=DIM)).stats
    assert stats is not None and stats["actions"].dim == DIM
    of, x = some_stats("mean_std")["actions"], np.random.default_rng(0).normal(size=(4, DIM))
    quantile = (x - of.q01) / (of.q99 - of.q01 + 1e-6) * 2 - 1
    expected = quantile if policy == "pi05" else (x - of.mean) / (of.std + 1e-6)
    np.testing.assert_allclose(stats["actions"].normalise(x), expected, rtol=1e-9)
    whole = read_foreign(folder, choices()).stats
    assert whole is not None and whole["state"].dim == 32


def test_statistics_of_several_robots_want_a_choice(tmp_path: Path) -> None:
    folder = openpi_folder("pi05", tmp_path, ("droid", "franka/left"))
    with pytest.raises(CheckpointError, match=r"choose an asset id of droid, franka/left"):
        read_foreign(folder, choices())
    with pytest.raises(CheckpointError, match=r"no statistics of 'ur5'.*droid.*franka/left"):
        read_foreign(folder, choices(asset_id="ur5"))
    assert read_foreign(folder, choices(asset_id="franka/left")).stats is not None


def test_statistics_and_tokenizer_from_elsewhere_complete_a_checkpoint(
    tmp_path: Path, tokenizer: PolicyTokenizer
) -> None:
    bare = openpi_folder("pi05", tmp_path, ())
    imported = import_checkpoint(bare, tmp_path / "bare", choices())
    assert [line.split()[0] for line in imported.missing] == ["norm_stats.json", "tokenizer.json"]
    load_network(tmp_path / "bare")
    with pytest.raises(CheckpointError, match=r"lacks norm_stats\.json, tokenizer\.json"):
        load_checkpoint(tmp_path / "bare")
    stats = openpi_folder("pi05", tmp_path / "other", ("x",)) / "assets" / "x" / "norm_stats.json"
    (tmp_path / "words.json").write_text(tokenizer.to_json())
    with pytest.raises(CheckpointError, match="the tokenizer has 5120 ids, the network 256"):
        import_checkpoint(bare, tmp_path / "small", choices(stats=stats, tokenizer=tmp_path / "words.json"))
    with pytest.raises(CheckpointError, match=r"tokenizer: .*nowhere"):
        import_checkpoint(bare, tmp_path / "small", choices(tokenizer=tmp_path / "nowhere"))
    assert not (tmp_path / "small").exists()
