"""A run goes on from its state as if nothing had happened: exactly, on other numbers of processes, after kill -9."""

import json
import sys
from pathlib import Path

import parallel_rig as rig
import pytest
import torch

from pi05_training.optim import Ema, adamw
from pi05_training.parallel import Parallel
from pi05_training.state import (
    Meta,
    Retention,
    StateError,
    compare_config,
    latest_step,
    load_state,
    read_meta,
    save_state,
    steps_of,
    writing_step,
)

CASE, KEEP = rig.CASES["hierarchical"], Retention()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def new_run() -> rig.Run:
    return rig.Run(CASE, Parallel.setup())


def small(out: Path, step: int, keep: Retention = KEEP, value: float = 1.0) -> None:
    """Save a state of two tensors."""
    parallel, model = Parallel.setup(), torch.nn.Linear(2, 3)
    torch.nn.init.constant_(model.weight, value)
    with writing_step(out, step, parallel, keep) as folder:
        save_state(folder, parallel, Meta(step), model, adamw(model, 1e-3, 0.0))


def weight(out: Path) -> float:
    folder, model = latest_step(out), torch.nn.Linear(2, 3)
    assert folder is not None
    load_state(folder, Parallel.setup(), model, adamw(model, 1e-3, 0.0))
    (value,) = model.weight.unique().tolist()
    return value


def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    run, out = new_run(), tmp_path / "run"
    for _ in range(2):
        run.step()
    meta = Meta(2, {"batch_size": 6}, {"table": "ab12"}, {"seconds": 3.5})
    with writing_step(out, 2, run.parallel) as folder:
        save_state(folder, run.parallel, meta, run.module, run.optimizer, run.ema)
    again = new_run()
    folder = latest_step(out)
    assert folder == out / "step_2" and (out / "latest").resolve() == folder.resolve()
    assert again.load(folder) == meta == read_meta(folder)
    metrics = [[one.step() for _ in range(2)] for one in (run, again)]
    torch.testing.assert_close(metrics[1], metrics[0], atol=0, rtol=0)
    torch.testing.assert_close(again.weights(), run.weights(), atol=0, rtol=0)


def test_parameters_that_no_step_reached_have_no_moments_afterwards_either(tmp_path: Path) -> None:
    """The planner's first step may come after the state: AdamW's bias correction then has to start at one."""
    runs = [rig.Run(rig.Case(planner=False), Parallel.setup()) for _ in range(2)]
    runs[0].step()  # insulated: the vision-language model gets no gradient
    runs[0].save(tmp_path, 1)
    runs[1].load(tmp_path / "step_1")
    reached = {name for name, p in runs[0].module.named_parameters() if p in runs[0].optimizer.state}
    assert reached and not any(name.startswith(("vision.", "vlm.", "embed.")) for name in reached)
    assert {n for n, p in runs[1].module.named_parameters() if p in runs[1].optimizer.state} == reached
    for run in runs:
        run.case = CASE
        run.batch, run.drawn = rig.global_batch(run.module.config, CASE)
        run.step()
    torch.testing.assert_close(runs[1].weights(), runs[0].weights(), atol=0, rtol=0)


@pytest.fixture(scope="module")
def across(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, torch.Tensor]]]:
    """One process makes a step; two go on with FSDP and with DDP; one would have come to these weights."""
    folder, run = tmp_path_factory.mktemp("across"), new_run()
    run.step()
    run.save(folder / "one", 1)
    rig.run_processes(folder, "states")
    for _ in range(2):
        run.step()
    return folder, run.weights()


@pytest.mark.parametrize("kind", ["fsdp", "ddp"])
def test_states_move_between_one_and_two_processes(across: tuple, kind: str) -> None:
    folder, expected = across
    found = torch.load(folder / f"{kind}.pt")
    # One to two: the steps of two processes add in another order (see test_parallel).
    torch.testing.assert_close(found["saved"], expected, atol=5e-5, rtol=1e-4)
    # DDP to FSDP and back, on two processes, and two to one: exact.
    torch.testing.assert_close(found["crossed"], found["saved"], atol=0, rtol=0)
    one = new_run()
    assert one.load(latest_step(folder / kind)).step == 3
    torch.testing.assert_close(one.weights(), found["saved"], atol=0, rtol=0)
    # The optimizer, too: the fourth step is the one that a run in one process makes.
    reference = new_run()
    for run, steps in ((one, 1), (reference, 4)):
        for _ in range(steps):
            run.step()
    torch.testing.assert_close(one.weights(), reference.weights(), atol=5e-5, rtol=1e-4)


def test_kill_while_writing_leaves_the_state_before(tmp_path: Path) -> None:
    rig.start([sys.executable], tmp_path, "kills")
    kills = torch.load(tmp_path / "kills.pt")
    assert len(kills) == 6 and any(kill["left"] for kill in kills)
    for kill in kills:
        assert kill["values"] == {float(kill["step"])}, "weights and averages of one and the same step"
        assert kill["link"] in (f"step_{kill['step']}", f"step_{kill['step'] - 1}")
        assert f"step_{kill['step'] + 1}" in kill["after"]
        assert not [name for name in kill["after"] if name.startswith(".")], "leftovers are removed by the next save"


def test_a_failed_save_changes_nothing(tmp_path: Path) -> None:
    small(tmp_path, 1)
    with pytest.raises(OSError, match="disk full"), writing_step(tmp_path, 2, Parallel.setup()) as folder:
        (folder / "half").write_text("…")
        raise OSError("disk full")
    assert list(steps_of(tmp_path)) == [1] and latest_step(tmp_path) == tmp_path / "step_1"
    small(tmp_path, 2)
    assert not (tmp_path / "step_2" / "half").exists()


def test_a_step_may_be_written_again(tmp_path: Path) -> None:
    small(tmp_path, 1, value=1.0)
    small(tmp_path, 1, value=2.0)
    assert weight(tmp_path) == 2.0
    # Killed between taking the old one away and putting the new one there.
    (tmp_path / "step_1").rename(tmp_path / ".step_1.old")
    small(tmp_path, 2, value=3.0)
    assert sorted(steps_of(tmp_path)) == [1, 2] and weight(tmp_path) == 3.0


def test_retention(tmp_path: Path) -> None:
    for step in (100, 200, 250, 300, 350):
        small(tmp_path, step, Retention(last=2, every=200))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_200", "step_300", "step_350"]
    with pytest.raises(ValueError, match="last >= 1"):
        Retention(last=0)


def test_other_networks_are_refused_by_name(tmp_path: Path) -> None:
    run = new_run()
    run.step()
    run.save(tmp_path, 1)
    before = run.weights()
    lora = rig.Run(rig.Case(lora=True), Parallel.setup())
    with pytest.raises(StateError, match=r"another run: model\.vision\.blocks\.0\.qkv\.lora_a is missing"):
        lora.load(tmp_path / "step_1")
    frozen = rig.Run(rig.Case(frozen=("expert.",)), Parallel.setup())
    with pytest.raises(StateError, match=r"ema\.expert\.layers\.0.* is not in this run"):
        frozen.load(tmp_path / "step_1")
    wide = torch.nn.Linear(2, 4)
    small(tmp_path / "small", 1)
    with pytest.raises(StateError, match=r"model\.weight is \(3, 2\), here \(4, 2\)"):
        load_state(tmp_path / "small" / "step_1", Parallel.setup(), wide, adamw(wide, 1e-3, 0.0))
    torch.testing.assert_close(run.weights(), before, atol=0, rtol=0)


def test_damage_is_named(tmp_path: Path) -> None:
    assert latest_step(tmp_path / "nothing") is None
    with pytest.raises(StateError, match="holds no training state"):
        read_meta(tmp_path)
    small(tmp_path, 1)
    state = tmp_path / "step_1" / "state"
    model = torch.nn.Linear(2, 3)
    optimizer = adamw(model, 1e-3, 0.0)
    (data,) = state.glob("*.distcp")
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(StateError, match=r"is damaged: .*resume from an older step"):
        load_state(tmp_path / "step_1", Parallel.setup(), model, optimizer)
    (state / ".metadata").write_bytes(b"nonsense")
    with pytest.raises(StateError, match=r"\.metadata cannot be read"):
        load_state(tmp_path / "step_1", Parallel.setup(), model, optimizer)
    meta = json.loads((state / "meta.json").read_text())
    (state / "meta.json").write_text(json.dumps(meta | {"format": "other/2"}))
    with pytest.raises(StateError, match=r"format 'other/2'; this version reads 'pi05_state/1'"):
        read_meta(tmp_path / "step_1")
    (state / "meta.json").write_text("{")
    with pytest.raises(StateError, match="is damaged"):
        read_meta(tmp_path / "step_1")


def test_what_differs_between_configurations() -> None:
    saved = {"batch_size": 32, "data": {"root": Path("a"), "weights": (1, 2)}, "steps": 100, "old": 1}
    now = {"batch_size": 64, "data": {"root": "a", "weights": [1, 3]}, "steps": 200, "new": None}
    found = [str(one) for one in compare_config(saved, now, ignore=("steps",))]
    assert found == [
        "batch_size: saved 32, now 64",
        "data.weights: saved [1, 2], now [1, 3]",
        "new: saved null, now null",
        "old: saved 1, now null",
    ]
    assert compare_config(saved, saved) == [] == compare_config(saved, now, ignore=(*saved, "new"))


def test_averages() -> None:
    run = new_run()
    before = {name: p.detach().clone() for name, p in run.module.named_parameters()}
    run.optimizer.param_groups[0]["lr"] = 0.1
    run.step()  # averages with decay 0.9
    after = dict(run.module.named_parameters())
    for name, average in run.ema.values.items():
        torch.testing.assert_close(average, 0.9 * before[name] + 0.1 * after[name], atol=1e-7, rtol=1e-6)
    trained = run.weights()["weights"]
    with run.ema.applied():
        assert all(torch.equal(p, run.ema.values[name]) for name, p in run.module.named_parameters())
    torch.testing.assert_close(run.weights()["weights"], trained, atol=0, rtol=0)
    other = Ema(run.module)
    other.load(run.ema.values)
    assert all(torch.equal(other.values[name], value) for name, value in run.ema.values.items())
    with pytest.raises(ValueError, match=r"other parameters: action_in\.bias"):
        other.load({name: value for name, value in run.ema.values.items() if name != "action_in.bias"})
