"""Each mode trains what it says and leaves the rest alone, down to the number."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pi05_model.batch import TrainBatch
from pi05_model.checkpoint import load_checkpoint
from pi05_model.flow_policy import FlowPolicy, combine
from pi05_ros.contract import load_contract
from pi05_training.parallel import Parallel
from pi05_training.trainer.batches import Portions, schedule
from pi05_training.trainer.config import TrainConfig
from pi05_training.trainer.error import TrainingError
from pi05_training.trainer.loop import Trainer
from pi05_training.trainer.modes import MODES
from pi05_training.trainer.noise import Noise
from pi05_training.trainer.prepare import Prepared, prepare

VLM, EXPERT = ("vision.", "embed.", "vlm."), ("expert.", "action_", "time_")


def of_mode(settings: TrainConfig, mode: str, fast: Path) -> TrainConfig:
    tokens = MODES[mode].fast is not False
    return dataclasses.replace(
        settings,
        mode=mode,
        use_fast_tokens=tokens and mode != "hierarchical",
        fast_tokenizer_path=fast if tokens else None,
    )


def first_batch(prepared: Prepared) -> TrainBatch:
    work = next(schedule(prepared.mixture, 2, 1, 0, 1))
    return Portions(prepared.mixture, prepared.collator, 1)[work].batch


@pytest.mark.parametrize("mode", sorted(MODES))
def test_a_mode_trains_its_part(settings: TrainConfig, fast: Path, mode: str) -> None:
    config = dataclasses.replace(of_mode(settings, mode, fast), steps=60, ema_decay=0.0, log_every=1)
    prepared = prepare(config, load_contract())
    before = {name: tensor.clone() for name, tensor in prepared.model.state_dict().items()}
    folder = Trainer(prepared, Parallel.setup()).run()
    after = load_checkpoint(folder).model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    if mode in ("planner", "pretrain"):
        assert not [name for name in moved if name.startswith(EXPERT)]
        assert {"vision.position", "embed.weight", "vlm.norm.weight", "vlm.layers.1.mlp.down.weight"} <= moved
    elif mode == "action-expert":
        assert not [name for name in moved if name.startswith(VLM)]
        assert {name for name in before if name.startswith(EXPERT)} == moved
    else:
        assert moved == set(before)
    lines = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    first, last = (sum(line["total"] for line in part) for part in (lines[:5], lines[-5:]))
    assert last < 0.9 * first
    for name, trained in (("text", MODES[mode].text), ("flow", MODES[mode].flow), ("fast", config.use_fast_tokens)):
        assert (lines[0].get(name, 0) > 0) == trained, name


@pytest.mark.parametrize("mode", sorted(MODES))
def test_losses_against_a_sum_written_by_hand(settings: TrainConfig, fast: Path, mode: str) -> None:
    """Sample by sample, without padding, with every step of the formula in sight."""
    config = dataclasses.replace(of_mode(settings, mode, fast), draws=1)
    prepared = prepare(config, load_contract())
    model, batch = prepared.model, first_batch(prepared)
    assert isinstance(model, FlowPolicy)
    for name, parameter in model.named_parameters():
        if ".dense." in name:
            torch.nn.init.normal_(parameter, std=0.2)
    noise = Noise(0, 0, (50, 32), 1).of((0, 1), 2, torch.device("cpu"))
    with torch.no_grad():
        counts = {name: rows.sum() for name, rows in batch.counts().items()}
        found = combine(model.row_losses(batch, flow=prepared.alpha != 0, **noise), counts, prepared.alpha)
        text, fast_loss, flow = by_hand(model, batch, noise, prepared)
    expected = text + fast_loss + prepared.alpha * flow
    torch.testing.assert_close(found["total"], expected, atol=1e-4, rtol=1e-4)


def by_hand(
    model: FlowPolicy, batch: TrainBatch, noise: dict[str, torch.Tensor], prepared: Prepared
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    sums, counts = torch.zeros(3), torch.zeros(3)
    seen = model.config.expert_camera_indices
    for row in range(len(batch.actions)):
        features = model.encode_images(batch.images[row : row + 1])
        texts = [(batch.planner, features, batch.image_mask[row : row + 1])] if "text" in prepared.losses else [None]
        texts.append((batch.expert, features[:, seen], batch.image_mask[row : row + 1, seen]))
        for k, given in enumerate(texts):
            if given is None:
                continue
            text, pictures, mask = given
            real = text.valid[row]
            short = type(text)(*(getattr(text, f.name)[row : row + 1, real] for f in dataclasses.fields(text)))
            prefix = model.embed_prefix(pictures, mask, short)
            hidden, cache = model.run_prefix(prefix)
            answer = short.targets[0].nonzero()[:, 0]
            images = hidden.shape[1] - short.tokens.shape[1]
            for place in answer.tolist():
                logits = model.logits(hidden[0, images + place - 1])
                sums[k] += F.cross_entropy(logits[None], short.tokens[0, place][None])
                counts[k] += 1
        if prepared.alpha:
            t = noise["time"][row]
            a, e = batch.actions[row], noise["noise"][row]
            past, place = model.context(cache, prefix.prompt)
            v = model.velocity((t * e + (1 - t) * a)[None], model.step(t[None, None]), past, place)[0]
            for step in range(50):
                for entry in range(18):
                    if batch.action_mask[row, step, entry]:
                        sums[2] += (v[step, entry] - (e - a)[step, entry]) ** 2
                        counts[2] += 1
    text, fast, flow = sums / counts.clamp(min=1)
    return text, fast, flow


def test_padding_counts_for_nothing(settings: TrainConfig, fast: Path) -> None:
    prepared = prepare(of_mode(settings, "posttrain", fast), load_contract())
    model, batch = prepared.model, first_batch(prepared)
    assert isinstance(model, FlowPolicy) and batch.planner is not None
    for name, parameter in model.named_parameters():
        if ".dense." in name:
            torch.nn.init.normal_(parameter, std=0.2)
    noise = Noise(0, 0, (50, 32), 1).of((0, 1), 2, torch.device("cpu"))
    batch.action_mask[:, 30:] = False
    texts = {}
    for name in ("planner", "expert"):
        text = getattr(batch, name)
        assert not text.valid.all()
        texts[name] = dataclasses.replace(text, tokens=torch.where(text.valid, text.tokens, 77))
    # The same noisy chunk, made of other actions where they do not count: only the targets there differ.
    t = noise["time"][:, None, None]
    moved = torch.where(batch.action_mask, 0.0, 3.0)
    changed = dataclasses.replace(batch, actions=batch.actions + moved, **texts)
    other = {**noise, "noise": noise["noise"] - moved * (1 - t) / t}
    with torch.no_grad():
        rows, others = model.row_losses(batch, **noise), model.row_losses(changed, **other)
        counted = dataclasses.replace(changed, action_mask=torch.ones_like(batch.action_mask))
        everything = model.row_losses(counted, **other)
    for name in rows:
        torch.testing.assert_close(rows[name], others[name], atol=1e-4, rtol=1e-4)
    assert (everything["flow"] > 1.1 * rows["flow"]).all()
    assert batch.counts()["flow"].tolist() == [30 * 18, 30 * 18]


@pytest.mark.parametrize(
    ("policy", "mode", "losses"),
    [
        ("pi05", "hierarchical", {"text", "flow"}),
        ("pi05", "action-expert", {"flow"}),
        ("pi0", "hierarchical", {"flow"}),
        ("pi0", "action-expert", {"flow"}),
        ("pi0_fast", "hierarchical", {"fast"}),
        ("pi0_fast", "pretrain", {"fast"}),
    ],
)
def test_every_policy_trains_and_is_measured(
    settings: TrainConfig, fast: Path, policy: str, mode: str, losses: set[str]
) -> None:
    config = dataclasses.replace(
        settings,
        mode=mode,
        preset=f"{policy}_debug",
        fast_tokenizer_path=fast if policy == "pi0_fast" else None,
        steps=2,
        holdout=0.5,
        evaluate_every=2,
        evaluate_samples=2,
        log_every=1,
    )
    prepared = prepare(config, load_contract())
    assert prepared.losses == losses
    folder = Trainer(prepared, Parallel.setup()).run()
    lines = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert {name for name in ("text", "fast", "flow") if name in lines[0]} == losses
    measured = {name.removeprefix("held_out/MM/") for line in lines for name in line if name.startswith("held_out/")}
    assert {"text": "subtask_match", "fast": "fast_accuracy", "flow": "action_mse"}[min(losses)] in measured
    assert load_checkpoint(folder).config.policy == policy


@pytest.mark.parametrize(
    ("policy", "mode", "message"),
    [
        ("pi0", "planner", "π0 says no text"),
        ("pi0", "pretrain", "π0 says no text"),
        ("pi0_fast", "action-expert", "π0-FAST has no action expert"),
    ],
)
def test_what_a_policy_does_not_have_is_not_trained(
    settings: TrainConfig, policy: str, mode: str, message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        prepare(dataclasses.replace(settings, mode=mode, preset=f"{policy}_debug"), load_contract())
