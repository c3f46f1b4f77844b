"""Train a policy on labelled samples: planner by cross entropy, action expert by flow matching, in one step.

L = L_text + alpha · L_flow (arXiv 2504.16054, eq. 1), with the action expert reading detached keys and values
(knowledge insulation, arXiv 2505.23705) unless `insulate` is off. Reads folders of `.npz` episodes
(pi05_training.samples); with `watch`, episodes that appear during training are taken in.
"""

import copy
import dataclasses
import json
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pi05_model.batch import Text, TrainBatch
from pi05_model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pi05_model.config import PRESETS, ModelConfig
from pi05_model.normalize import NormStats
from pi05_model.pi05 import Pi05
from pi05_model.preprocess import Preprocessor
from pi05_model.tokenizer import PolicyTokenizer, Tokenizer
from pi05_model.transforms import relative_actions
from pi05_ros.contract import Contract, load_contract
from pi05_training.augment import augment_images
from pi05_training.buffer import Columns, SampleBuffer
from pi05_training.samples import SampleBatch, read_labels, read_samples

Mode = Literal["hierarchical"]
Forward = Callable[..., dict[str, Tensor]]


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; saved beside every checkpoint."""

    data_root: Path
    """Folder with episode_*.npz files."""
    out: Path
    """Folder that receives step_<N>/ checkpoints, `latest` and train.jsonl."""
    steps: int = 2000
    """Optimizer steps."""
    preset: str = "pi05_tiny"
    """Model preset (pi05_model.config.PRESETS)."""
    init: Path | None = None
    """Checkpoint to start from, with its statistics; None starts from random weights."""
    change_actions: bool = False
    """With init: say actions as `relative` tells and normalise them by this data, not as the checkpoint does."""
    batch_size: int = 32
    """Samples per step."""
    learning_rate: float = 5e-4
    """Peak learning rate."""
    warmup_steps: int = 300
    """Steps of linear warm-up; then cosine decay to a twentieth of the peak."""
    weight_decay: float = 1e-4
    """AdamW weight decay of matrices; vectors have none."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    ema_decay: float = 0.999
    """Decay of the averaged weights that are saved."""
    planner_every: int = 4
    """Steps between two that train the planner too: it learns from far fewer samples than the action expert."""
    draws: int = 2
    """Noises and flow times per sample."""
    bf16: bool = True
    """Compute in bfloat16 (weights stay float32)."""
    relative: bool = False
    """Say joint targets relative to the state of the observation."""
    alpha: float = 10.0
    """Weight of the flow-matching loss."""
    insulate: bool = True
    """Keep the flow loss out of the vision-language model."""
    augment: bool = True
    """Vary brightness, contrast and colour of the images."""
    capacity: int = 20000
    """Samples kept in memory (0.6 MB each at 224² and four cameras)."""
    watch: bool = False
    """Take in episodes that appear while training."""
    min_episodes: int = 1
    """Wait for so many episodes before starting (with watch)."""
    clip_actions: float = 1.5
    """Normalised actions are clipped to this: rare, far-off labels (a base that has to turn back) would otherwise
    dominate the squared error."""
    temperature: float = 0.0
    """What the checkpoint recommends for the noise that chunks start from (Pi05Policy); 0 suits demonstrations of a
    deterministic expert."""
    save_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 20
    """Steps between lines of train.jsonl."""
    seconds: float = math.inf
    """Wall time after which training ends early, with a checkpoint; the decay of the learning rate follows it."""
    device: str = "cpu"
    """cpu or cuda."""
    compile: bool = False
    """Compile the network (torch.compile)."""
    threads: int = 2
    """CPU threads of torch."""
    seed: int = 0
    """Seed of weights and sampling."""


class EpisodeSource:
    """The episodes of a folder, each once, in name order."""

    def __init__(self, root: Path, cameras: tuple[str, ...], size: tuple[int, int]) -> None:
        self._root, self._cameras, self._size = root, cameras, size
        self._seen: set[Path] = set()

    @property
    def episodes(self) -> int:
        """Episodes read so far."""
        return len(self._seen)

    def paths(self) -> list[Path]:
        """List the episodes that are there.

        Raises:
            FileNotFoundError: the folder does not exist.
        """
        if not self._root.is_dir():
            raise FileNotFoundError(f"{self._root}: no such folder; collect episodes first")
        return sorted(self._root.glob("episode_*.npz"))

    def new(self) -> Iterator[SampleBatch]:
        """Yield the episodes that have not been read."""
        for path in [path for path in self.paths() if path not in self._seen]:
            self._seen.add(path)
            yield read_samples(path, self._cameras, self._size)

    def watch(self, prepare: Callable[[SampleBatch], Columns], most: int = 8) -> "queue.Queue[Columns]":
        """Read and prepare episodes as they appear, in a thread of its own; return the queue they arrive in."""
        arrived: queue.Queue[Columns] = queue.Queue(most)

        def run() -> None:
            while True:
                for episode in self.new():
                    arrived.put(prepare(episode))
                time.sleep(0.5)

        threading.Thread(target=run, daemon=True, name="episodes").start()
        return arrived


def compute_stats(paths: list[Path], relative_entries: tuple[int, ...]) -> dict[str, NormStats]:
    """Compute the statistics that normalise state and (relative) actions of some episodes."""
    labels = [read_labels(path) for path in paths]
    states = np.concatenate([state for state, _ in labels]).astype(np.float64)
    actions = np.concatenate([relative_actions(actions, state, relative_entries) for state, actions in labels])
    rows = actions.reshape(-1, actions.shape[-1])
    return {"state": NormStats.from_samples(states), "actions": NormStats.from_samples(rows)}


def learning_rate(config: TrainConfig, step: int, elapsed_s: float) -> float:
    """Return the rate at a step: linear warm-up, then cosine from the peak to a twentieth of it."""
    warm = min(1.0, (step + 1) / config.warmup_steps)
    done = max(step / config.steps, elapsed_s / config.seconds)
    return config.learning_rate * warm * (0.05 + 0.95 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done))))


def pack(batch: TrainBatch, planner_tokens: int, expert_tokens: int) -> Columns:
    """Flatten a batch into columns, its texts padded to fixed lengths."""
    assert batch.planner is not None
    columns = {name: getattr(batch, name) for name in ("images", "image_mask", "actions", "action_mask")}
    for part, text, length in (("planner", batch.planner, planner_tokens), ("expert", batch.expert, expert_tokens)):
        for field in dataclasses.fields(text):
            column = getattr(text, field.name)
            columns[f"{part}.{field.name}"] = torch.nn.functional.pad(column, (0, length - column.shape[1]))
    return columns


def unpack(columns: Columns) -> TrainBatch:
    """Undo `pack`."""
    texts = {
        part: Text(**{field.name: columns[f"{part}.{field.name}"] for field in dataclasses.fields(Text)})
        for part in ("planner", "expert")
    }
    images, image_mask, actions, mask = (columns[x] for x in ("images", "image_mask", "actions", "action_mask"))
    return TrainBatch(images, image_mask, texts["planner"], texts["expert"], actions, mask)


class Trainer:
    """One training run."""

    def __init__(self, config: TrainConfig, contract: Contract) -> None:
        torch.manual_seed(config.seed)
        torch.set_num_threads(config.threads)
        self.config, self.contract = config, contract
        self.device = torch.device(config.device)
        loaded = load_checkpoint(config.init) if config.init else None
        self._model_config = self._configure(loaded)
        size = (contract.image.height, contract.image.width)
        self.source = EpisodeSource(config.data_root, self._model_config.cameras, size)
        self.buffer = SampleBuffer(config.capacity, self.device)
        self.stats = compute_stats(self._first_paths(), self._model_config.relative_entries)
        self.tokenizer: Tokenizer = PolicyTokenizer.default()
        self.model = Pi05(self._model_config, torch.bfloat16 if config.bf16 else torch.float32).to(self.device)
        if loaded:
            kept = {"state"} if config.change_actions else {"state", "actions"}
            self.stats |= {name: loaded.stats[name] for name in kept}
            self.tokenizer = loaded.tokenizer
            self.model.load_state_dict(loaded.model.state_dict())
        self.preprocessor = Preprocessor(self._model_config, self.stats, self.tokenizer)
        self._subtasks: set[str] = set()
        for episode in self.source.new():
            self.buffer.add(self._prepare(episode))
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = self._optimizer()

    def run(self) -> Path:
        """Train; return the folder of the last checkpoint.

        Raises:
            FloatingPointError: the loss is not finite (raised before the optimizer step).
        """
        config = self.config
        config.out.mkdir(parents=True, exist_ok=True)
        forward = torch.compile(self.model.losses) if config.compile else self.model.losses
        generator = torch.Generator().manual_seed(config.seed)
        arrivals = self.source.watch(self._prepare) if config.watch else None
        started, saved = time.monotonic(), config.out
        for step in range(config.steps):
            elapsed = time.monotonic() - started
            if elapsed > config.seconds:
                break
            while arrivals is not None and not arrivals.empty():
                self.buffer.add(arrivals.get())
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(config, step, elapsed)
            losses = self._step(forward, self.buffer.draw(config.batch_size, generator), step)
            if step % config.log_every == 0:
                self._log(step, elapsed, losses)
            if (step + 1) % config.save_every == 0:
                saved = self.save(step + 1)
        return self.save(step + 1) if saved.name != f"step_{step + 1}" else saved

    def save(self, step: int) -> Path:
        """Write checkpoint step_<N> of the averaged weights and point `latest` to it."""
        path = self.config.out / f"step_{step}"
        extra = {
            "names": list(self.contract.names),
            "subtasks": sorted(self._subtasks),
            "temperature": self.config.temperature,
            "step": step,
        }
        save_checkpoint(path, self.average, self.stats, self.tokenizer, extra=extra)
        settings = json.dumps(dataclasses.asdict(self.config), indent=1, default=str)
        (path / "train_config.json").write_text(settings + "\n")
        link = self.config.out / ".latest.part"
        link.unlink(missing_ok=True)
        link.symlink_to(path.name)
        link.rename(self.config.out / "latest")
        return path

    def _step(self, forward: Forward, rows: Columns, step: int) -> dict[str, Tensor]:
        config = self.config
        if config.augment:
            rows["images"] = augment_images(rows["images"])
        batch = unpack(rows)
        if step % config.planner_every:
            batch = dataclasses.replace(batch, planner=None)
        losses = forward(batch, alpha=config.alpha, insulate=config.insulate, draws=config.draws)
        if not torch.isfinite(losses["total"]):
            raise FloatingPointError(f"step {step}: the loss is {losses['total'].item()}; lower --learning-rate")
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(losses["total"])
        losses["grad_norm"] = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.optimizer.step()
        self._update_average(step)
        return losses

    def _update_average(self, step: int) -> None:
        decay = min(self.config.ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            ours: list[Tensor] = list(self.average.parameters())
            theirs: list[Tensor] = list(self.model.parameters())
            torch._foreach_lerp_(ours, theirs, 1.0 - decay)

    def _prepare(self, episode: SampleBatch) -> Columns:
        self._subtasks |= {*episode.subtask, *episode.planner_target}
        batch = self.preprocessor.train_batch(
            images=torch.from_numpy(episode.images),
            image_mask=torch.from_numpy(episode.image_mask),
            states=episode.state,
            tasks=episode.task,
            subtasks=episode.planner_target,
            expert_subtasks=episode.subtask,
            actions=episode.actions,
        )
        batch.actions.clamp_(-self.config.clip_actions, self.config.clip_actions)
        prompt, answer = self._model_config.max_prompt_tokens, self._model_config.max_subtask_tokens
        return pack(batch, planner_tokens=prompt + answer, expert_tokens=prompt)

    def _first_paths(self) -> list[Path]:
        while self.config.watch and len(self.source.paths()) < self.config.min_episodes:
            time.sleep(1.0)
        paths = self.source.paths()
        if not paths:
            raise FileNotFoundError(f"{self.config.data_root}: no episode_*.npz files")
        return paths

    def _configure(self, loaded: Checkpoint | None) -> ModelConfig:
        relative = tuple(int(i) for i in self.contract.position_index) if self.config.relative else ()
        if loaded:
            entries = relative if self.config.change_actions else loaded.config.relative_entries
            return dataclasses.replace(loaded.config, relative_entries=entries)
        if self.config.preset not in PRESETS:
            raise ValueError(f"unknown preset {self.config.preset!r}; presets: {', '.join(PRESETS)}")
        return dataclasses.replace(PRESETS[self.config.preset], relative_entries=relative)

    def _optimizer(self) -> torch.optim.AdamW:
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": self.config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.config.learning_rate, betas=(0.9, 0.95))

    def _log(self, step: int, elapsed: float, losses: dict[str, Tensor]) -> None:
        line = {
            "step": step,
            "seconds": round(elapsed, 1),
            "episodes": self.source.episodes,
            "samples": self.buffer.added,
        }
        line |= {name: round(value.item(), 5) for name, value in losses.items()}
        with (self.config.out / "train.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(" ".join(f"{name}={value}" for name, value in line.items()), flush=True)


def train(config: TrainConfig) -> Path:
    """Run a training and return the last checkpoint's folder."""
    return Trainer(config, load_contract()).run()
