"""What a training run needs before its first step: data, statistics, tokenizers, network. All checks are here."""

import dataclasses
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
from pi05_training.data.stats import RunningStats
from pi05_training.lora import add_lora
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
        mode: what is trained.
        alpha: weight of the flow loss.
        mixture: what is trained on.
        held_out: portions that are kept for evaluation.
        preprocessor: statistics and vocabularies.
        collator: examples to batches.
        actions: action tokenizer, where there is one.
        model: the network, its frozen parameters marked, low-rank updates added.
        fingerprints: of the data, by source.
    """

    config: TrainConfig
    contract: Contract
    mode: Mode
    alpha: float
    mixture: Mixture
    held_out: tuple[Portion, ...]
    preprocessor: Preprocessor
    collator: Collator
    actions: ActionTokenizer | None
    model: Backbone
    fingerprints: dict[str, str]

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
        extra = {
            "names": list(self.contract.names),
            "subtasks": self.answers,
            "temperature": self.config.temperature,
            "mode": self.config.mode,
            "step": step,
        }
        tokenizer = self.preprocessor.tokenizer
        save_checkpoint(folder, model, self.preprocessor.stats, tokenizer, extra=extra, action_tokenizer=self.actions)
        record = {"settings": self.settings, "data": self.fingerprints, "git": git_revision()}
        (folder / "train_config.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")

    @property
    def answers(self) -> list[str]:
        """What the planner was trained to say about robots, for the trie that constrains it; else empty."""
        robots = [source for source in self.mixture.sources if isinstance(source, RobotSource)]
        said = {text for source in robots if "text" in source.losses for text in source.answers()}
        return sorted(said) if self.mode.text else []


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
    fast = _trains_action_tokens(config, mode, shape)
    whole = open_mixture(
        config.data_root,
        losses=_losses(mode, fast, shape),
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
    actions = _action_tokenizer(config, loaded, fast)
    try:
        preprocessor = Preprocessor(shape, _statistics(config, shape, loaded, mixture, actions), tokenizer, actions)
    except ValueError as error:
        raise TrainingError(f"statistics, tokenizers and network do not belong together: {error}") from error
    _check_dimensions(preprocessor, contract)
    collator = Collator(preprocessor, mode, fast, config.clip_actions)
    model = _network(config, mode, shape, loaded)
    alpha = mode.alpha if config.alpha is None else config.alpha
    if not mode.flow and alpha:
        raise TrainingError(
            f"mode {config.mode} has no flow loss; --alpha {alpha} belongs to hierarchical or posttrain"
        )
    return Prepared(
        config,
        contract,
        mode,
        alpha,
        mixture,
        _held_out(held, mixture, collator, config.evaluate_samples),
        preprocessor,
        collator,
        actions,
        model,
        fingerprints(mixture),
    )


def fingerprints(mixture: Mixture) -> dict[str, str]:
    """Return what tells one state of the data from another, by source: samples, groups and labels of some of them."""
    found = {}
    for source in mixture.sources:
        sums = [source.labels(i) for i in _spread(len(source), 64)]
        total = sum(float(np.sum(label[0]) + np.sum(label[1])) for label in sums if label is not None)
        found[source.name] = f"{len(source)} samples, {source.groups} groups, {total:.6f}"
    return found


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


def _trains_action_tokens(config: TrainConfig, mode: Mode, shape: ModelConfig) -> bool:
    if shape.policy == "pi0_fast":
        return True
    if mode.fast is False and config.use_fast_tokens:
        raise TrainingError(f"mode {config.mode} trains no action tokens; --use-fast-tokens belongs to another mode")
    return config.use_fast_tokens if mode.fast is None else mode.fast


def _losses(mode: Mode, fast: bool, shape: ModelConfig) -> set[str]:
    if shape.policy == "pi0_fast":
        return {"fast"}
    if shape.policy == "pi0" and mode.text:
        raise TrainingError("π0 has no planner; train it with `pi05 train action-expert`")
    return {name for name, on in (("text", mode.text), ("fast", fast), ("flow", mode.flow)) if on}


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
    if config.stats is not None:
        return load_norm_stats(config.stats)
    if loaded is not None:
        return loaded.stats
    robots = [source for source in mixture.sources if isinstance(source, RobotSource)]
    if not robots:
        raise TrainingError("no source has states and actions to compute statistics from; give --stats FILE")
    beside = robots[0].folders[0] / STATS
    method: Method = "mean_std" if shape.policy == "pi0" else "quantile"
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
        for index in _spread(len(source), STATS_SAMPLES):
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
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not matches(name, (*mode.frozen, *config.freeze)))
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


def _held_out(held: Mixture | None, kept: Mixture, collator: Collator, count: int) -> tuple[Portion, ...]:
    """Return the held-out samples, spread over each source, as portions of at most 16; sources as in `kept`."""
    if held is None:
        return ()
    names = [source.name for source in kept.sources]
    portions = Portions(held, collator, planner_every=1)
    found = []
    for position, source in enumerate(held.sources):
        indices = _spread(len(source), count)
        for first in range(0, len(indices), 16):
            rows = range(first, min(first + 16, len(indices)))
            portion = portions[Work.of(position, [indices[row] for row in rows], rows)]
            where = torch.full_like(portion.source, names.index(source.name))
            found.append(dataclasses.replace(portion, source=where))
    return tuple(found)


def _spread(count: int, most: int) -> list[int]:
    """Return at most `most` of `count` indices, evenly spread."""
    return sorted({k * count // most for k in range(most)}) if count > most else list(range(count))
