"""Settings of a training run."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from pi05_training.trainer.error import TrainingError
from pi05_training.trainer.modes import ModeName

ParallelKind = Literal["none", "ddp", "fsdp"]


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; the resolved ones are saved beside every checkpoint."""

    mode: tyro.conf.Positional[ModeName]
    """What is trained; docs/training.md has the table."""
    data_root: Path
    """Dataset (folder layout A or B, LeRobot v3.0, episode files), or a mixture: a YAML file of sources."""
    out: Path
    """Folder that receives step_<N>/ checkpoints, `latest`, metrics.jsonl and TensorBoard's files."""
    steps: int = 2000
    """Optimizer steps."""
    preset: str = "pi05_tiny"
    """Network to start from random weights (pi05_model.config.PRESETS)."""
    cameras: tuple[str, ...] = ()
    """Model keys of the cameras of a new network, for a robot with fewer; by default the preset's."""
    init: Path | None = None
    """Checkpoint to start from, with its statistics and tokenizers; None starts from random weights."""
    fresh_expert: bool = False
    """With init: start the action expert anew (post-training after pre-training)."""
    resume: bool = False
    """Go on from the newest state in `out`; the same command again after an interruption."""
    instruction_json: Path | None = None
    """Instructions of a folder dataset, where they do not lie in it."""
    stats: Path | None = None
    """norm_stats.json (`pi05 stats`); None takes the checkpoint's, the dataset's own file, or computes them."""
    tokenizer: str | None = None
    """Text tokenizer: PaliGemma's file, folder or hub id; None takes the checkpoint's or the project's own."""
    use_fast_tokens: bool = False
    """Train action tokens too."""
    fast_tokenizer_path: Path | None = None
    """Action tokenizer (`pi05 tokenizer fit`); None takes the checkpoint's."""
    alpha: float | None = None
    """Weight of the flow loss; None takes the mode's."""
    insulate: bool = True
    """Keep the flow loss out of the vision-language model."""
    draws: int = 2
    """Noises and flow times per sample; all share the work of one prefix."""
    planner_every: int = 1
    """Steps between two that train the planner: it learns from fewer samples than the action expert."""
    relative: bool = False
    """Say joint targets relative to the state of the observation."""
    clip_actions: float = 1.5
    """Normalised actions are clipped to this: rare, far-off labels would otherwise dominate the squared error."""
    temperature: float | None = None
    """What the checkpoint recommends for the noise that chunks start from (Pi05Policy); None keeps that of `init`, or
    0, which suits demonstrations of a deterministic expert."""
    loss_dimensions: Literal["real", "all"] = "real"
    """Entries of an action that the flow loss averages over: those of the robot (lerobot), or all 32 (openpi)."""

    batch_size: int = 32
    """Samples per optimizer step, over all processes."""
    accumulate: int = 1
    """Parts that each process computes its samples in, to save memory; the gradient is the same."""
    learning_rate: float = 5e-4
    """Peak learning rate."""
    warmup_steps: int = 100
    """Steps of linear warm-up; then cosine decay."""
    final_rate: float = 0.05
    """Learning rate at the end, as a part of the peak."""
    weight_decay: float = 1e-4
    """AdamW weight decay of matrices; vectors have none."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    ema_decay: float = 0.999
    """Decay of the averaged weights that are saved; 0 saves the trained ones."""
    bf16: bool = True
    """Compute in bfloat16 (weights stay float32)."""
    checkpoint_layers: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    compile: bool = False
    """Compile the network (torch.compile)."""
    freeze: tuple[str, ...] = ()
    """Patterns of further parameters that stay as they are, such as "vision.*"."""
    lora_rank: int = 0
    """Train low-rank updates of the linears that `lora` names instead of the weights; 0 trains the weights."""
    lora: tuple[str, ...] = ("vlm.*", "vision.blocks.*")
    """Patterns of the linears that get low-rank updates."""
    augment: bool = True
    """Crop, rotate and recolour images; wrist cameras are only recoloured."""

    holdout: float = 0.02
    """Share of the episodes of each source that is kept for evaluation."""
    evaluate_every: int = 500
    """Steps between evaluations on held-out samples; 0 never."""
    evaluate_samples: int = 64
    """Held-out samples per source."""
    closed_loop_episodes: int = 0
    """Episodes in simulation after every checkpoint, as `pi05 eval` runs them; 0: none."""
    save_every: int = 500
    """Steps between checkpoints."""
    keep: int = 3
    """Newest checkpoints that are kept."""
    log_every: int = 10
    """Steps between log lines."""
    tensorboard: bool = True
    """Write TensorBoard's event files."""
    wandb: str = ""
    """Project of Weights & Biases to log to (needs `pip install wandb`); empty: none."""
    seconds: float = math.inf
    """Wall time after which training ends early, with a checkpoint; the decay of the learning rate follows it."""

    device: str = "cpu"
    """cpu or cuda."""
    parallel: ParallelKind = "none"
    """ddp or fsdp, under torchrun."""
    threads: int = 2
    """CPU threads of torch."""
    workers: int = 1
    """Processes that read and decode; 0 reads in the training process."""
    prefetch: int = 4
    """Portions that each of them reads ahead."""
    seed: int = 0
    """Seed of weights, sampling, augmentation and noise."""

    def __post_init__(self) -> None:
        for name, low in _AT_LEAST.items():
            value = getattr(self, name)
            if not value >= low:
                raise TrainingError(f"{name} is {value}; valid: {low:g} and more")
        for name in ("holdout", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}; valid: 0 and more, below 1")
        if self.init is not None and (self.relative or self.cameras):
            raise TrainingError("--relative and --cameras are of a new network; --init brings its own")
        if self.init is None and self.fresh_expert:
            raise TrainingError("--fresh-expert belongs to --init; without it everything is fresh")


_AT_LEAST = {
    "steps": 1, "batch_size": 1, "accumulate": 1, "draws": 1, "planner_every": 1, "save_every": 1, "log_every": 1,
    "keep": 1, "threads": 1, "prefetch": 1, "workers": 0, "warmup_steps": 0, "evaluate_every": 0, "lora_rank": 0,
    "evaluate_samples": 1, "closed_loop_episodes": 0, "learning_rate": 0.0, "clip_norm": 0.0, "clip_actions": 0.0,
    "weight_decay": 0.0,
}  # fmt: skip
