"""Low-rank updates: nothing changes at first, merged is the same, and only they are trained."""

import copy
from pathlib import Path

import parallel_rig as rig
import pytest
import torch
from torch import Tensor, nn

from pi05_model.backbone import Backbone
from pi05_model.layers import HeadLinear, Linear
from pi05_training.lora import (
    LoraError,
    LowRank,
    add_lora,
    fold,
    folded,
    is_adapter,
    load_adapters,
    merged_state,
    save_adapters,
)
from pi05_training.optim import adamw, ema_decay, learning_rate, parameter_groups

PATTERNS = ("vlm.layers.*.attention.*", "expert.*.mlp.*", "expert.*.dense", "action_in", "vision.projector")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def network(updated: bool = True, trained: bool = True) -> Backbone:
    """Return a network; with `trained`, its updates are not zero."""
    model = rig.network(rig.Case())
    for name in add_lora(model, PATTERNS, rank=4, alpha=8.0) if updated else ():
        if trained:
            nn.init.normal_(model.get_submodule(name).lora_b, std=0.2)
    return model


def losses(model: nn.Module) -> dict[str, Tensor]:
    batch, drawn = rig.global_batch(rig.PRESETS["pi05_debug"], rig.Case())
    with torch.no_grad():
        return dict(model(batch, **drawn))


def test_a_new_update_changes_nothing() -> None:
    plain, updated = network(updated=False), network(trained=False)
    torch.testing.assert_close(losses(updated), losses(plain), atol=0, rtol=0)
    assert set(plain.state_dict()) == {name for name in updated.state_dict() if not is_adapter(name)}


def test_patterns_choose_layers_of_every_kind() -> None:
    model = rig.network(rig.Case())
    names = add_lora(model, PATTERNS, rank=2)
    assert {"vlm.layers.1.attention.qkv", "expert.layers.0.mlp.down", "expert.norm.dense", "action_in"} <= set(names)
    assert not any(name.startswith("vlm") and ".mlp." in name for name in names)
    assert isinstance(model.vlm.layers[0].attention.out, Linear) and isinstance(model.action_in, HeadLinear)
    layers = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2, bias=False))
    assert add_lora(layers, ("*",), rank=1) == ["0", "2"]
    assert layers(torch.ones(1, 3)).shape == (1, 2)


def test_only_updates_of_chosen_layers_learn_and_they_do() -> None:
    model = network(trained=False)
    chosen = {name for name, layer in model.named_modules() if isinstance(layer, LowRank)}
    before = copy.deepcopy(model.state_dict())
    batch, drawn = rig.global_batch(model.config, rig.Case())
    optimizer = adamw(model, 3e-3, 0.0)
    for _ in range(2):  # the first step moves lora_b alone: lora_a has no gradient while lora_b is zero
        rows = model(batch, **drawn)
        (rows["flow"].sum() + rows["text"].sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    for name in chosen:
        assert {f"{name}.lora_a", f"{name}.lora_b"} <= moved
        assert f"{name}.weight" not in moved and f"{name}.bias" not in moved
    assert "embed.weight" in moved and "vlm.layers.0.mlp.down.weight" in moved, "other layers stay trainable"


def test_merged_is_the_same_network() -> None:
    model = network()
    expected, names = losses(model), set(network(updated=False).state_dict())
    assert not torch.allclose(expected["flow"], losses(network(updated=False))["flow"], rtol=1e-2)
    plain = network(updated=False)
    plain.load_state_dict(merged_state(model, model.state_dict()))
    torch.testing.assert_close(losses(plain), expected, atol=1e-3, rtol=1e-5)
    weights = copy.deepcopy(model.state_dict())
    with folded(model):
        torch.testing.assert_close(losses(model), losses(plain), atol=0, rtol=0)
    torch.testing.assert_close(model.state_dict(), weights, atol=0, rtol=0)
    torch.testing.assert_close(losses(model), expected, atol=0, rtol=0)
    fold(model)
    assert set(model.state_dict()) == names and all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), atol=0, rtol=0)


@pytest.mark.parametrize("kind", [Linear, HeadLinear, nn.Linear])
def test_against_the_formula(kind: type[nn.Linear]) -> None:
    torch.manual_seed(0)
    holder = nn.ModuleDict({"x": kind(6, 5)})
    weight, bias = holder["x"].weight.detach().clone(), holder["x"].bias.detach().clone()
    add_lora(holder, ("x",), rank=2, alpha=3.0)
    layer, given = holder["x"], torch.randn(7, 6)
    nn.init.normal_(layer.lora_b)
    expected = given @ weight.T + bias + 1.5 * given @ layer.lora_a.T @ layer.lora_b.T
    torch.testing.assert_close(layer(given), expected)
    if kind is Linear:  # follows its input
        half = layer(given.bfloat16())
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), expected, atol=0.1, rtol=0.05)
    if kind is HeadLinear:
        assert layer(given.bfloat16()).dtype == torch.float32
    layer(given).sum().backward()
    assert layer.weight.grad is None and layer.lora_a.grad.abs().min() > 0


def test_updates_travel_alone(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "lora.safetensors"
    save_adapters(path, model)
    assert path.stat().st_size < 0.5 * 4 * sum(p.numel() for p in model.parameters())
    other = network(updated=False)
    assert set(load_adapters(path, other)) == {n for n, x in model.named_modules() if isinstance(x, LowRank)}
    torch.testing.assert_close(losses(other), losses(model), atol=0, rtol=0)
    averages = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    save_adapters(path, model, averages)
    third = network(updated=False)
    load_adapters(path, third)
    assert third.action_in.lora_b.abs().max() == 0


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = network(updated=False)
    with pytest.raises(LoraError, match="rank is 0"):
        add_lora(model, ("action_in",), rank=0)
    with pytest.raises(LoraError, match=r"no linear layer is called 'vlm\.attention'; there are vision\.embed\.proj"):
        add_lora(model, ("action_in", "vlm.attention"), rank=2)
    assert not any(isinstance(layer, LowRank) for layer in model.modules()), "nothing is half done"
    with pytest.raises(LoraError, match="no low-rank updates; call add_lora"):
        save_adapters(tmp_path / "x", model)
    add_lora(model, ("action_in",), rank=2)
    with pytest.raises(LoraError, match="action_in has a low-rank update already"):
        add_lora(model, ("action_*",), rank=2)
    save_adapters(tmp_path / "x", model)
    with pytest.raises(LoraError, match="no linear layer action_in of 32 -> 32"):
        load_adapters(tmp_path / "x", nn.Linear(2, 2))
    (tmp_path / "y").write_text("nothing")
    with pytest.raises(LoraError, match="cannot be read"):
        load_adapters(tmp_path / "y", network(updated=False))


def test_groups_decay_matrices_alone() -> None:
    model = network()
    model.vision.requires_grad_(False)
    decayed, plain = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert {"embed.weight", "action_in.lora_a", "expert.layers.0.mlp.down.lora_b"} <= set(decayed["param_names"])
    assert "vlm.norm.weight" in plain["param_names"] and "action_out.bias" in plain["param_names"]
    assert all(p.ndim >= 2 for p in decayed["params"]) and all(p.ndim < 2 for p in plain["params"])
    names = {*decayed["param_names"], *plain["param_names"]}
    assert names == {name for name, p in model.named_parameters() if p.requires_grad}
    with pytest.raises(ValueError, match="no parameter is trainable"):
        adamw(nn.Linear(2, 2).requires_grad_(False), 1e-3, 0.0)


def test_learning_rate() -> None:
    rates = [learning_rate(1e-3, 0.05, 10, step, step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(1e-4) and max(rates) == rates[9] == pytest.approx(1e-3, rel=0.03)
    assert rates[100] == pytest.approx(5e-5) and learning_rate(1.0, 0.05, 0, 0, 0.0) == 1.0
    assert rates[9:] == sorted(rates[9:], reverse=True) and rates[:10] == sorted(rates[:10])
    assert rates[50] == pytest.approx(1e-3 * (0.05 + 0.95 * 0.5))
    assert learning_rate(1.0, 0.1, 0, 5, 7.0) == pytest.approx(0.1), "beyond the end it stays"


def test_ema_decay() -> None:
    assert ema_decay(0.999, 0) == 0.1 and ema_decay(0.999, 10**6) == 0.999
    assert ema_decay(0.0, 5) == 0.0
