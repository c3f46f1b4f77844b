"""What a training run needs before its first step: data, statistics, tokenizers, network. All checks are here."""

import dataclasses
import hashlib
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pi05_model.action_tokens import ActionTokenizer, load_action_tokenizer
from pi05_model.backbone import Backbone
from pi05_model.build import build
from pi05_model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pi05_model.config import PRESETS, ModelConfig
from pi05_model.normalize import Method, NormStats, load_norm_stats
from pi05_model.preprocess import Preprocessor
from pi05_model.tokenizer import Tokenizer, load_tokenizer
from pi05_model.transforms import relative_actions
from pi05_ros.contract import Contract
from pi05_training.augment import Augmentation
from pi05_training.data.spread import spread
from pi05_training.data.stats import RunningStats
from pi05_training.lora import add_lora
from pi05_training.mixture.high_level import HighLevelSource
from pi05_training.mixture.mixture import Mixture
from pi05_training.mixture.sources import RobotSource
from pi05_training.mixture.spec import open_mixture
from pi05_training.parallel import checkpoint_layers
from pi05_training.trainer.batches import Collator, Portion, Portions, Work
from pi05_training.trainer.config import TrainConfig
from pi05_training.trainer.error import TrainingError
from pi05_training.trainer.modes import EXPERT, MODES, Mode, matches

STATS = "norm_stats.json"
STATS_SAMPLES = 20_000
"""Samples per source that statistics are computed from, where no file gives them."""


@dataclass(frozen=True)
class Prepared:
    """A training run before its first step.

    Attributes:
        config: of the run.
        contract: the robot.
        losses: what is trained, of {"text", "fast", "flow"}.
        alpha: weight of the flow loss.
        mixture: what is trained on.
        held_out: portions that are kept for evaluation.
        preprocessor: statistics and vocabularies.
        collator: examples to batches.
        actions: action tokenizer, where there is one.
        model: the network, its frozen parameters marked, low-rank updates added.
        fingerprints: of the data, by source, and of statistics and tokenizers.
        kept: what the checkpoint to start from says beside its weights: subtasks, temperature.
    """

    config: TrainConfig
    contract: Contract
    losses: frozenset[str]
    alpha: float
    mixture: Mixture
    held_out: tuple[Portion, ...]
    preprocessor: Preprocessor
    collator: Collator
    actions: ActionTokenizer | None
    model: Backbone
    fingerprints: dict[str, str]
    kept: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """Names of the sources, by index."""
        return [source.name for source in self.mixture.sources]

    @property
    def damaged(self) -> list[str]:
        """What is wrong with episodes that were left out."""
        return [why for source in self.mixture.sources if isinstance(source, RobotSource) for why in source.damaged]

    @property
    def settings(self) -> dict[str, Any]:
        """Resolved settings as plain values, with the sizes of the network."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self.config), default=str))
        return {**plain, "alpha": self.alpha, "model": self.model.config.to_dict()}

    def save(self, folder: Path, model: Backbone, step: int) -> None:
        """Write a policy checkpoint of `model` (whole weights, on the CPU) and how it came about."""
        extra = {**self.kept, "names": list(self.contract.names), "mode": self.config.mode, "step": step}
        if self.config.temperature is not None:
            extra["temperature"] = self.config.temperature
        if "text" in self.losses:
            extra["subtasks"] = self.answers
        tokenizer = self.preprocessor.tokenizer
        save_checkpoint(folder, model, self.preprocessor.stats, tokenizer, extra=extra, action_tokenizer=self.actions)
        record = {"settings": self.settings, "data": self.fingerprints, "git": git_revision()}
        (folder / "train_config.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")

    @property
    def answers(self) -> list[str]:
        """What the planner was taught to say about robots, for the trie that constrains it; empty: anything.

        A planner that is taught to say boxes before the subtask cannot be held to a list.
        """
        sources = self.mixture.sources
        if any(isinstance(source, HighLevelSource) for source in sources):
            return []
        robots = [source for source in sources if isinstance(source, RobotSource) and "text" in source.losses]
        return sorted({text for source in robots for text in source.answers()})


def prepare(config: TrainConfig, contract: Contract) -> Prepared:
    """Open the data, and build or load the network.

    Raises:
        TrainingError: the settings contradict each other.
        DatasetError: the data is missing, damaged or does not carry what the mode trains.
        CheckpointError: the checkpoint to start from cannot be loaded.
    """
    torch.manual_seed(config.seed)
    mode = MODES[config.mode]
    loaded = load_checkpoint(config.init) if config.init else None
    shape = _configure(config, contract, loaded)
    losses = _losses(config, mode, shape)
    alpha = _alpha(config, mode, losses)
    whole = open_mixture(
        config.data_root,
        losses=losses,
        seed=config.seed,
        augmentation=Augmentation() if config.augment else None,
        size=shape.image_size,
        horizon=shape.horizon,
        contract=contract,
        instructions=config.instruction_json,
    )
    mixture, held = whole.split(config.holdout)
    shape = _with_control_mode(shape, mixture, loaded)
    tokenizer: Tokenizer = loaded.tokenizer if loaded and not config.tokenizer else load_tokenizer(config.tokenizer)
    actions = _action_tokenizer(config, loaded, "fast" in losses)
    try:
        preprocessor = Preprocessor(shape, _statistics(config, shape, loaded, mixture, actions), tokenizer, actions)
    except ValueError as error:
        raise TrainingError(f"statistics, tokenizers and network do not belong together: {error}") from error
    _check_dimensions(preprocessor, contract)
    collator = Collator(preprocessor, "fast" in losses, config.clip_actions, config.loss_dimensions)
    return Prepared(
        config,
        contract,
        losses,
        alpha,
        mixture,
        _held_out(held, mixture, Portions(held, collator, int("text" in losses)), config) if held else (),
        preprocessor,
        collator,
        actions,
        _network(config, mode, shape, loaded),
        {**fingerprints(mixture), **_belongings(preprocessor, actions)},
        {"temperature": 0.0, **(loaded.extra if loaded else {})},
    )


def fingerprints(mixture: Mixture) -> dict[str, str]:
    """Return what tells one state of the data from another, by source: samples, groups and labels of some of them."""
    found = {}
    for source in mixture.sources:
        sums = [source.labels(i) for i in spread(len(source), 64)]
        total = sum(float(np.sum(label[0]) + np.sum(label[1])) for label in sums if label is not None)
        found[source.name] = f"{len(source)} samples, {source.groups} groups, {total:.6f}"
    return found


def _belongings(preprocessor: Preprocessor, actions: ActionTokenizer | None) -> dict[str, str]:
    """Return what tells one set of statistics and tokenizers from another."""
    stats = [
        [group.q01.tolist(), group.q99.tolist(), group.mean.tolist(), group.std.tolist(), group.method, group.family]
        for _, group in sorted(preprocessor.stats.items())
    ]
    digest = hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16]
    tokens = "" if actions is None else f"{actions.kind} {actions.vocab_size}"
    return {"(statistics)": digest, "(tokenizer)": preprocessor.tokenizer.fingerprint[:16], "(actions)": tokens}


def git_revision() -> str:
    """Return the revision of the working directory's repository, with "+" when it has changes; empty without one."""
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip()


def _configure(config: TrainConfig, contract: Contract, loaded: Checkpoint | None) -> ModelConfig:
    if loaded is not None:
        return dataclasses.replace(loaded.config, insulate=config.insulate)
    if config.preset not in PRESETS:
        raise TrainingError(f"unknown preset {config.preset!r}; presets: {', '.join(PRESETS)}")
    preset = PRESETS[config.preset]
    known = {camera.model_key for camera in contract.cameras.values()}
    cameras = config.cameras or preset.cameras
    if unknown := sorted(set(cameras) - known):
        raise TrainingError(f"cameras {', '.join(unknown)} are not in the contract; it has {', '.join(sorted(known))}")
    return dataclasses.replace(
        preset,
        relative_entries=tuple(int(i) for i in contract.position_index) if config.relative else (),
        insulate=config.insulate,
        horizon=contract.rates.chunk_steps,
        cameras=cameras,
        expert_cameras=tuple(key for key in preset.expert_cameras if key in cameras),
    )


def _with_control_mode(shape: ModelConfig, mixture: Mixture, loaded: Checkpoint | None) -> ModelConfig:
    """Return the configuration that prompts at run time as the first robot of the mixture was prompted in training."""
    robots = [source for source in mixture.sources if isinstance(source, RobotSource)]
    if loaded is not None or not robots:
        return shape
    return dataclasses.replace(shape, control_mode=robots[0].control)


def _losses(config: TrainConfig, mode: Mode, shape: ModelConfig) -> frozenset[str]:
    """Return what a mode trains of a policy: π0 has no text, π0-FAST nothing but action tokens."""
    if mode.fast is False and config.use_fast_tokens:
        raise TrainingError(f"mode {config.mode} trains no action tokens; --use-fast-tokens belongs to another mode")
    if shape.policy == "pi0_fast":
        if not mode.text:
            raise TrainingError("π0-FAST has no action expert; train it with pretrain or hierarchical")
        return frozenset({"fast"})
    if shape.policy == "pi0":
        if not mode.flow:
            raise TrainingError(
                f"π0 says no text, which is all that {config.mode} trains; use hierarchical or action-expert"
            )
        return frozenset({"flow"})
    fast = config.use_fast_tokens if mode.fast is None else mode.fast
    found = frozenset(name for name, on in (("text", mode.text), ("fast", fast), ("flow", mode.flow)) if on)
    if found == {"text"} and config.planner_every != 1:
        raise TrainingError(
            f"--planner-every {config.planner_every} leaves steps with nothing to learn in {config.mode}"
        )
    return found


def _alpha(config: TrainConfig, mode: Mode, losses: frozenset[str]) -> float:
    if "flow" not in losses:
        if config.alpha:
            raise TrainingError(f"nothing with a flow loss is trained, so --alpha {config.alpha} means nothing")
        return 0.0
    alpha = mode.alpha if config.alpha is None else config.alpha
    if alpha < 0 or (alpha == 0 and losses == {"flow"}):
        raise TrainingError(f"--alpha {alpha}: the flow loss is what this run trains; give a positive weight")
    return alpha


def _action_tokenizer(config: TrainConfig, loaded: Checkpoint | None, fast: bool) -> ActionTokenizer | None:
    if config.fast_tokenizer_path is not None:
        return load_action_tokenizer(config.fast_tokenizer_path)
    actions = loaded.action_tokenizer if loaded else None
    if fast and actions is None:
        raise TrainingError(
            "action tokens need a tokenizer: fit one with `pi05 tokenizer fit fast DATA --out DIR` and give "
            "--fast-tokenizer-path DIR"
        )
    return actions


def _statistics(
    config: TrainConfig,
    shape: ModelConfig,
    loaded: Checkpoint | None,
    mixture: Mixture,
    actions: ActionTokenizer | None,
) -> Mapping[str, NormStats]:
    """Return the file that was asked for, else the checkpoint's, else the dataset's, else those of the samples.

    In the latter two cases an action tokenizer's own take the place of the actions': its tokens mean nothing in others.
    """
    method: Method = "mean_std" if shape.policy == "pi0" else "quantile"
    if config.stats is not None:
        return load_norm_stats(config.stats, method=method)
    if loaded is not None:
        return loaded.stats
    robots = [source for source in mixture.sources if isinstance(source, RobotSource)]
    if not robots:
        raise TrainingError("no source has states and actions to compute statistics from; give --stats FILE")
    beside = robots[0].folders[0] / STATS
    if len(robots) == 1 and len(robots[0].folders) == 1 and beside.exists() and not shape.relative_entries:
        found: Mapping[str, NormStats] = load_norm_stats(beside)
    else:
        found = _measure(robots, shape.relative_entries)
    found = {name: dataclasses.replace(stats, method=method) for name, stats in found.items()}
    return found if actions is None or actions.space is None else {**found, "actions": actions.space.stats}


def _measure(sources: list[RobotSource], relative: tuple[int, ...]) -> dict[str, NormStats]:
    """Compute statistics of a share of the samples; robots that lack entries count only where no other has them."""
    states, actions = RunningStats(), RunningStats()
    for source in [s for s in sources if s.masks(0) == (None, None)] or sources:
        for index in spread(len(source), STATS_SAMPLES):
            label = source.labels(index)
            if label is not None:
                states.add(label[0][None])
                actions.add(relative_actions(label[1], label[0], relative).astype(np.float32))
    return {"state": states.result(), "actions": actions.result()}


def _check_dimensions(preprocessor: Preprocessor, contract: Contract) -> None:
    for name in ("state", "actions"):
        if preprocessor.stats[name].dim != contract.dim:
            raise TrainingError(
                f"the statistics of {name} have {preprocessor.stats[name].dim} entries, the contract {contract.dim}: "
                "compute them from this data (`pi05 stats DATASET`) and give --stats"
            )


def _network(config: TrainConfig, mode: Mode, shape: ModelConfig, loaded: Checkpoint | None) -> Backbone:
    model = build(shape, torch.bfloat16 if config.bf16 else torch.float32)
    if loaded is not None:
        weights = loaded.model.state_dict()
        if config.fresh_expert:
            weights = {name: model.state_dict()[name] if matches(name, EXPERT) else w for name, w in weights.items()}
        model.load_state_dict(weights)
    names = [name for name, _ in model.named_parameters()]
    if idle := [pattern for pattern in config.freeze if not any(matches(name, (pattern,)) for name in names)]:
        raise TrainingError(f"--freeze {' '.join(idle)} fits no parameter; there are {', '.join(names[:6])}, …")
    frozen = config.freeze if shape.policy == "pi0_fast" else (*mode.frozen, *config.freeze)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not matches(name, frozen))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError(f"--freeze {' '.join(config.freeze)} leaves nothing to train")
    if config.lora_rank:
        _add_lora(config, model)
    if config.checkpoint_layers:
        checkpoint_layers(model)
    return model


def _add_lora(config: TrainConfig, model: Backbone) -> None:
    """Give low-rank updates to the linears that are trained and match; their own weights stay as they are."""
    trained = {name.rpartition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    chosen = sorted(name for name in trained & linears if matches(name, config.lora))
    if not chosen:
        raise TrainingError(f"--lora {' '.join(config.lora)} names no linear layer that this mode trains")
    add_lora(model, chosen, config.lora_rank)


def _held_out(held: Mixture, kept: Mixture, portions: Portions, config: TrainConfig) -> tuple[Portion, ...]:
    """Return the held-out samples, spread over each source, as portions of at most 16; sources as in `kept`."""
    names = [source.name for source in kept.sources]
    found = []
    for position, source in enumerate(held.sources):
        indices = spread(len(source), config.evaluate_samples)
        for first in range(0, len(indices), 16):
            rows = range(first, min(first + 16, len(indices)))
            portion = portions[Work.of(position, [indices[row] for row in rows], rows)]
            where = torch.full_like(portion.source, names.index(source.name))
            found.append(dataclasses.replace(portion, source=where))
    return tuple(found)
