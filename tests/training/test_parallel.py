"""Several processes have the gradients, steps and memory that one process's arithmetic and the plan say."""

import copy
from pathlib import Path
from typing import Any

import parallel_rig as rig
import pytest
import torch

from pi05_model.build import build
from pi05_model.config import PRESETS
from pi05_training.lora import add_lora
from pi05_training.parallel import (
    Parallel,
    ParallelError,
    assemble,
    checkpoint_layers,
    plan_memory,
    plan_model,
    plan_table,
)

PAIRS = [(kind, name) for kind, names in rig.KINDS.items() for name in names]
# Sums of float32 in another order: 1e-5 of a gradient (the largest are about 8). AdamW divides by a gradient's own
# size, which magnifies that where gradients are tiny: after three steps of 1e-3 the weights agree to 2e-5.
GRADIENTS = {"atol": 1e-5, "rtol": 1e-4}
WEIGHTS = {"atol": 5e-5, "rtol": 1e-4}
# Weights that are gathered in bfloat16 are rounded after the first step, and their gradients in every one.
ROUGH = {"atol": 5e-3, "rtol": 0.02}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    rig.run_processes(folder, "cases")
    return folder


def both(folder: Path, kind: str, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    torch.set_num_threads(1)
    return rig.Run(rig.CASES[name], Parallel.setup()).result(), torch.load(folder / f"{name}-{kind}.pt")


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_two_processes_are_one(two: Path, kind: str, name: str) -> None:
    """Rank 0 has four rows, rank 1 two and two that fill up; all losses, counts and the gradient are global."""
    one, several = both(two, kind, name)
    rough = rig.CASES[name].gather == torch.bfloat16
    assert one["gradients"].keys() == several["gradients"].keys()
    assert any(gradient.abs().max() > 0.01 for gradient in one["gradients"].values())
    torch.testing.assert_close(several["gradients"], one["gradients"], **ROUGH if rough else GRADIENTS)
    for part in ("weights", "averages"):
        torch.testing.assert_close(several[part], one[part], **{"atol": 6e-3, "rtol": 0} if rough else WEIGHTS)
    for step, (before, after) in enumerate(zip(one["metrics"], several["metrics"], strict=True)):
        norms = [metrics.pop("norm") for metrics in (after, before)]
        torch.testing.assert_close(*norms, atol=0, rtol=0.01 if rough else 2e-5)
        torch.testing.assert_close(after, before, atol=1e-6, rtol=2e-3 if rough and step else 2e-5)


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_a_forward_pass_alone_leaves_the_weights_as_they_are(two: Path, kind: str, name: str) -> None:
    found = torch.load(two / f"{name}-{kind}.pt")
    torch.testing.assert_close(found["after"], {k: found[k] for k in ("weights", "averages")}, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["hierarchical", "low_rank", "pi0_fast"])
def test_the_assembled_network_is_plain_and_computes_the_same(two: Path, name: str) -> None:
    case = rig.CASES[name]
    spread = torch.load(two / f"{name}-fsdp.pt")
    model = rig.network(case).requires_grad_(False)
    plain = build(model.config)
    plain.load_state_dict(spread["whole"])
    model.load_state_dict(spread["averages"])
    batch, drawn = rig.global_batch(model.config, case)
    arguments = drawn if "flow" in plain(batch) else {}
    torch.testing.assert_close(plain(batch, **arguments), model(batch, **arguments), atol=1e-3, rtol=1e-5)


def test_processes_that_would_run_different_parts_are_told(two: Path) -> None:
    for rank, value in ((0, False), (1, True)):
        told = (two / f"branches{rank}.txt").read_text()
        assert told.startswith(f"process {rank} of 2: action_tokens is {value}, but not in all processes")


def test_gloos_threads_have_ended_before_the_interpreter_is_torn_down(two: Path) -> None:
    for rank in range(2):
        names = (two / f"threads{rank}.txt").read_text().split()
        assert names
        assert not [name for name in names if "gloo" in name]


def test_each_process_holds_what_the_plan_says(two: Path) -> None:
    for kind, name in PAIRS:
        held = torch.load(two / f"{name}-{kind}.pt")["held"]
        plan = plan_model(rig.network(rig.CASES[name]), 2, kind)  # type: ignore[arg-type]
        # Parameters that got no gradient have no optimizer state yet.
        assert (held["weights"], held["ema"]) == (plan.weights, plan.ema)
        assert 0.75 * plan.optimizer <= held["optimizer"] <= plan.optimizer


@pytest.mark.parametrize("policy", ["pi05", "pi0", "pi0_fast"])
def test_checkpointed_layers_give_the_same_gradients(policy: str) -> None:
    fast = policy == "pi0_fast"
    case = rig.Case(policy, planner=policy == "pi05", fast=fast, flow=not fast, insulate=False)
    plain, again = (rig.Run(case, Parallel.setup()) for _ in range(2))
    names = list(again.module.state_dict())
    layers = checkpoint_layers(again.module)
    config = again.module.config
    assert layers == config.vision.depth + config.vlm.depth + (config.expert.depth if config.expert else 0)
    assert list(again.module.state_dict()) == names
    for run in (plain, again):
        run.backward()
    torch.testing.assert_close(again.gradients(), plain.gradients(), atol=0, rtol=0)


def test_checkpointed_layers_keep_less() -> None:
    case = rig.Case(insulate=False)
    kept = []
    for run in (
        rig.Run(case, Parallel.setup()),
        rig.Run(rig.Case(insulate=False, checkpointed=True), Parallel.setup()),
    ):
        storages: dict[int, int] = {}
        given = [*run.module.parameters(), run.batch.images]
        known = {x.untyped_storage().data_ptr() for x in given}

        def pack(x: torch.Tensor, found: dict[int, int] = storages) -> torch.Tensor:
            found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            rows = run.module(run.batch, **run.drawn)
        kept.append(sum(size for where, size in storages.items() if where not in known))
        assert rows["flow"].requires_grad
    assert kept[1] < 0.7 * kept[0], kept


def test_a_copy_of_a_checkpointed_network_has_layers_of_its_own() -> None:
    run = rig.Run(rig.Case(checkpointed=True), Parallel.setup())
    twin = copy.deepcopy(run.module)
    torch.nn.init.zeros_(run.module.vlm.layers[0].mlp.down.weight)
    losses = [model(run.batch, **run.drawn)["flow"].sum() for model in (twin, rig.network(run.case), run.module)]
    assert losses[0] == losses[1] != losses[2]


def test_clipping_is_torchs() -> None:
    run, other = (rig.Run(rig.CASES["hierarchical"], Parallel.setup()) for _ in range(2))
    for one in (run, other):
        one.backward()
    norm = run.parallel.clip_grad_norm(run.module.parameters(), 0.5)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(other.module.parameters(), 0.5))
    torch.testing.assert_close(run.gradients(), other.gradients())


def test_one_process_needs_no_torchrun() -> None:
    case = rig.Case(insulate=False)
    alone = rig.Run(case, Parallel.setup()).result()
    for kind in ("ddp", "fsdp"):
        with Parallel.setup(kind) as parallel:
            assert (parallel.rank, parallel.world, parallel.main) == (0, 1, True)
            run = rig.Run(case, parallel)
            found = run.result()
            torch.testing.assert_close(found["weights"], alone["weights"], **WEIGHTS)
            model = assemble(parallel, run.module)
            assert model is not None and not any(p.requires_grad for p in model.parameters())
            parallel.barrier()
            assert parallel.broadcast({"step": 3}) == {"step": 3}


def test_sums_keep_shapes_and_types() -> None:
    values = {"count": torch.tensor(3), "losses": torch.tensor([0.5, 2.0], requires_grad=True)}
    found = Parallel.setup().all_sum(values)
    assert found["count"].dtype == torch.int64 and found["losses"].tolist() == [0.5, 2.0]
    assert not found["losses"].requires_grad


def test_starts_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParallelError, match="unknown kind 'dp'; choose one of none, ddp, fsdp"):
        Parallel.setup("dp")  # type: ignore[arg-type]
    with pytest.raises(ParallelError, match="choose cpu or cuda"):
        Parallel.setup(device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ParallelError, match="no CUDA device is visible"):
            Parallel.setup(device="cuda")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ParallelError, match="RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not; start with torchrun"):
        Parallel.setup("ddp")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(ParallelError, match="torchrun started 2 processes; choose ddp or fsdp"):
        Parallel.setup()


def test_plan_of_the_published_size() -> None:
    plan = plan_memory(PRESETS["pi05_base"], world=8)
    assert plan.parameters == plan.trained == pytest.approx(3353.4e6, rel=1e-4)
    for held, parts in ((plan.weights, 1), (plan.gradients, 1), (plan.optimizer, 2), (plan.ema, 1)):
        assert held == pytest.approx(4 * parts * plan.parameters / 8, rel=1e-3)
    assert plan.total < 14 * 2**30
    alone = plan_memory(PRESETS["pi05_base"], kind="none", frozen=("vision.*", "vlm.*", "embed.*"))
    assert alone.weights == 4 * plan.parameters and alone.gathered == 0
    assert alone.trained < 0.2 * alone.parameters and alone.gradients == 4 * alone.trained
    assert "pi05_base: 3353.4 M parameters" in plan_table(PRESETS["pi05_base"], "pi05_base")


def test_plan_of_low_rank_updates() -> None:
    model = build(PRESETS["pi05_small"], device="meta")
    plain = plan_model(model, 4)
    add_lora(model, ("vlm.*", "vision.blocks.*"), rank=16)
    assert plan_model(model, 4).optimizer < 0.6 * plain.optimizer
    with pytest.raises(ValueError, match="0 processes"):
        plan_model(model, 0)
