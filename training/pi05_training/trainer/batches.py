"""From examples of a mixture to the batches of a training step, in worker processes that run ahead of it."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pi05_model.batch import TrainBatch
from pi05_model.images import resize_with_pad
from pi05_model.preprocess import Preprocessor
from pi05_training.mixture.example import Example
from pi05_training.mixture.mixture import Draw, Mixture
from pi05_training.trainer.error import TrainingError


@dataclass(frozen=True)
class Work:
    """What one process has to do in one accumulation step.

    Attributes:
        step: optimizer step.
        rows: places of the draws in the global batch of the step.
        draws: which examples.
    """

    step: int
    rows: tuple[int, ...]
    draws: tuple[Draw, ...]

    @classmethod
    def of(cls, source: int, indices: Sequence[int], rows: Sequence[int]) -> "Work":
        """Return work on certain samples of a source, outside of any training step."""
        draws = (Draw(source, index, row) for index, row in zip(indices, rows, strict=True))
        return cls(0, tuple(rows), tuple(draws))


@dataclass(frozen=True)
class Portion:
    """A batch of examples, ready for the network.

    Attributes:
        work: where it came from.
        batch: for `Backbone.row_losses`.
        source: int64 [B], index of each row's source in the mixture.
    """

    work: Work
    batch: TrainBatch
    source: Tensor


class Collator:
    """Turns examples into a `TrainBatch`.

    Args:
        preprocessor: of the network that is trained.
        fast: whether action tokens are trained.
        clip: normalised actions are clipped to this: rare, far-off labels would dominate the squared error.
        dimensions: which entries of an action the flow loss averages over.
    """

    def __init__(
        self, preprocessor: Preprocessor, fast: bool, clip: float, dimensions: Literal["real", "all"] = "real"
    ) -> None:
        self._preprocessor, self._fast, self._clip, self._dimensions = preprocessor, fast, clip, dimensions

    def __call__(self, examples: Sequence[Example], planner: bool) -> TrainBatch:
        """Return the batch of some examples.

        Args:
            examples: what to learn from.
            planner: include the planner's prompts.
        """
        config = self._preprocessor.config
        dim = self._preprocessor.action_dim
        images, image_mask = self._images(examples)
        has_actions = [x.actions is not None and bool({"flow", "fast"} & x.losses) for x in examples]
        nothing = np.zeros((config.horizon, dim))
        entries = [
            np.full(dim, has) if x.action_mask is None else np.asarray(x.action_mask) & has
            for x, has in zip(examples, has_actions, strict=True)
        ]
        batch = self._preprocessor.train_batch(
            images,
            image_mask,
            [self._state(x) for x in examples],
            [x.prompt for x in examples] if planner else None,
            [x.answer if "text" in x.losses else None for x in examples],
            np.stack([nothing if x.actions is None else x.actions for x in examples]),
            np.stack([_pad_mask(x, config.horizon) for x in examples]),
            [x.subtask or x.prompt for x in examples],
            action_tokens=[
                self._fast and has and "fast" in x.losses for x, has in zip(examples, has_actions, strict=True)
            ],
            action_mask=np.stack(entries),
            controls=[x.control or config.control_mode for x in examples],
            loss_dimensions=self._dimensions,
            clip=self._clip,
        )
        flows = torch.tensor(["flow" in x.losses for x in examples])
        batch.action_mask.logical_and_(flows[:, None, None])
        # Whether the VLM reads action tokens must not depend on the rows: all processes take the same branches.
        return dataclasses.replace(batch, action_tokens=self._fast)

    def _state(self, example: Example) -> NDArray[np.float64] | None:
        """Return the state; entries that the robot lacks stand in the middle of the statistics (0 normalised)."""
        if example.state is None or example.state_mask is None:
            return None if example.state is None else example.state.astype(np.float64)
        stats = self._preprocessor.stats["state"]
        return np.where(example.state_mask, example.state, stats.unnormalise(np.zeros(stats.dim)))

    def _images(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        config = self._preprocessor.config
        size = config.image_size
        images = torch.zeros(len(examples), len(config.cameras), 3, size, size, dtype=torch.uint8)
        mask = torch.zeros(images.shape[:2], dtype=torch.bool)
        for row, example in enumerate(examples):
            for column, key in enumerate(config.cameras):
                if key in example.images:
                    pixels = torch.from_numpy(np.ascontiguousarray(example.images[key])).permute(2, 0, 1)
                    images[row, column], mask[row, column] = resize_with_pad(pixels, size), True
        return images, mask


def _pad_mask(example: Example, horizon: int) -> NDArray[np.bool_]:
    return np.zeros(horizon, bool) if example.action_is_pad is None else example.action_is_pad


class Portions(Dataset[Portion]):
    """What a worker computes: the portion of some work. Picklable.

    Args:
        mixture, collator: where examples come from and what they become.
        planner_every: steps between two that train the planner; 0 for never.
        trim: leave out padding that no sample of a batch needs; without, all batches have one shape (torch.compile).
    """

    def __init__(self, mixture: Mixture, collator: Collator, planner_every: int, trim: bool = True) -> None:
        self._mixture, self._collator, self._every, self._trim = mixture, collator, planner_every, trim

    def __getitem__(self, work: Work) -> Portion:
        examples = [self._mixture.example(draw) for draw in work.draws]
        batch = self._collator(examples, planner=bool(self._every) and work.step % self._every == 0)
        batch = batch.trimmed() if self._trim else batch
        return Portion(work, batch, torch.tensor([example.source for example in examples]))


def schedule(
    mixture: Mixture, batch_size: int, accumulate: int, start: int, steps: int, rank: int = 0, world: int = 1
) -> Iterator[Work]:
    """Yield the work of one process, `accumulate` portions a step; all processes together do each draw once.

    Raises:
        TrainingError: the batch cannot be shared out evenly.
    """
    if batch_size % (accumulate * world):
        raise TrainingError(
            f"batch size {batch_size} is not a multiple of {accumulate} accumulation steps x {world} processes"
        )
    portion = batch_size // (accumulate * world)
    for step, draws in zip(range(start, steps), mixture.plan(batch_size, start), strict=False):
        mine = range(rank, batch_size, world)
        for first in range(0, len(mine), portion):
            rows = mine[first : first + portion]
            yield Work(step, tuple(rows), tuple(draws[row] for row in rows))


def load(portions: Portions, work: Iterable[Work], workers: int, prefetch: int) -> Iterator[Portion]:
    """Compute portions in order, in `workers` processes that run `prefetch` portions each ahead (0: in this one)."""
    loader = DataLoader(
        portions,
        batch_size=None,
        sampler=work,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        worker_init_fn=_quiet,
        multiprocessing_context="forkserver" if workers else None,
    )
    return iter(loader)


def _quiet(_: int) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
