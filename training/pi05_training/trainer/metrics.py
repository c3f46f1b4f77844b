"""Held-out metrics: what the network does with samples that it was not trained on, by source."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pi05_model.backbone import Backbone
from pi05_model.batch import ModelInput, Text
from pi05_model.engine import Engine
from pi05_model.flow_policy import FlowPolicy
from pi05_model.preprocess import Preprocessor
from pi05_training.trainer.batches import Portion
from pi05_training.trainer.noise import Noise

Sums = dict[str, tuple[float, float]]
"""Name of a metric -> (sum, count), so that portions add up."""


def evaluate(
    model: Backbone, preprocessor: Preprocessor, portions: Sequence[Portion], names: Sequence[str]
) -> dict[str, float]:
    """Measure a network.

    Args:
        model: network, on its device; it is left in the mode it came in.
        preprocessor: of the same network.
        portions: held-out samples.
        names: of the sources, by index.

    Returns:
        By "source/metric": flow (loss with noise that is the same every time), action_mse (normalised, after sampling
        with 10 steps), token_accuracy and subtask_match (share of answers that are right word for word), fast_accuracy.
        A metric without samples is left out.
    """
    training = model.training
    sums: Sums = {}
    with torch.no_grad():
        for portion in portions:
            _add(sums, _losses(model.eval(), portion), portion.source, names)
            _add(sums, _said_alone(model, preprocessor, portion), portion.source, names)
    model.train(training)
    return {name: total / count for name, (total, count) in sorted(sums.items()) if count}


def _losses(model: Backbone, portion: Portion) -> dict[str, tuple[Tensor, Tensor]]:
    """Return teacher-forced metrics by row: (sum, count)."""
    batch = portion.batch.to(model.device)
    noise = Noise(0, 0, (batch.actions.shape[1], batch.actions.shape[2]), draws=1)
    drawn = (
        noise.of(portion.work.rows, max(portion.work.rows) + 1, model.device) if isinstance(model, FlowPolicy) else {}
    )
    rows, counts = model(batch, **drawn), batch.counts()
    found = {"flow": (rows["flow"], counts["flow"])} if "flow" in rows else {}
    if "text" in rows:
        found["token_accuracy"] = (rows["text_hits"], counts["text"])
    if "fast" in rows:
        found["fast_accuracy"] = (rows["fast_hits"], counts["fast"])
    return found


def _said_alone(model: Backbone, preprocessor: Preprocessor, portion: Portion) -> dict[str, tuple[Tensor, Tensor]]:
    """Return metrics of what the network says by itself, by row."""
    batch, engine = portion.batch.to(model.device), Engine(model)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    if isinstance(model, FlowPolicy) and bool(batch.action_mask.any()):
        seen = model.config.expert_camera_indices
        inputs = ModelInput(batch.images[:, seen], batch.image_mask[:, seen], _prompt(batch.expert), state=batch.state)
        generator = torch.Generator().manual_seed(0)
        chunk = engine.sample_actions(inputs, generator=generator)
        errors = (chunk - batch.actions).square() * batch.action_mask
        found["action_mse"] = (errors.sum(dim=(1, 2)), batch.action_mask.sum(dim=(1, 2)))
    if batch.planner is not None and bool(batch.planner.targets.any()):
        answers = engine.generate(ModelInput(batch.images, batch.image_mask, _prompt(batch.planner)))
        asked = batch.planner.targets.any(dim=1)
        right = [said == _answer(batch.planner, row) for row, said in enumerate(answers)]
        found["subtask_match"] = (torch.tensor(right, device=asked.device) & asked, asked)
    return found


def _prompt(text: Text) -> Text:
    """Return a text without its answer."""
    is_prompt = text.valid & ~text.targets
    longest = int(is_prompt.sum(dim=1).max())
    short = is_prompt[:, :longest]
    none = torch.zeros_like(short)
    return Text(text.tokens[:, :longest] * short, short, none, none)


def _answer(text: Text, row: int) -> list[int]:
    """Return the answer's ids, without end of sequence."""
    ids: list[int] = text.tokens[row][text.targets[row]].tolist()
    return ids[:-1]


def _add(sums: Sums, found: dict[str, tuple[Tensor, Tensor]], source: Tensor, names: Sequence[str]) -> None:
    for metric, (total, count) in found.items():
        for index in sorted(set(source.tolist())):
            rows = (source == index).to(total.device)
            key = f"{names[index]}/{metric}"
            before = sums.get(key, (0.0, 0.0))
            sums[key] = (before[0] + float(total[rows].sum()), before[1] + float(count[rows].sum()))
