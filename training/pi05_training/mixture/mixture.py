"""A mixture of sources: which example each row of a training draws, and the example itself.

Everything is a function of (mixture, seed, row): two processes, or one that was interrupted, see the same. A row is
the number of a draw over the whole training; ranks take different rows of one global batch.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from pi05_model.images import resize_with_pad
from pi05_model.observation import Image
from pi05_model.prompts import Box, answer_text, box_text
from pi05_training.augment import Augmentation, Change
from pi05_training.data.episode import DatasetError
from pi05_training.mixture.boxes import fit_boxes, move_boxes
from pi05_training.mixture.example import Example, Reading
from pi05_training.mixture.groups import hold_out
from pi05_training.mixture.report import DrawReport, SourceDraws
from pi05_training.mixture.sampling import Draw, Schedule, hash_key
from pi05_training.mixture.sources import MOST_DAMAGED, Source

__all__ = ["Draw", "DrawReport", "Mixture", "SourceDraws"]

_SUBSTITUTES = 20
_SLOTS = 65


class Mixture:
    """Several sources, drawn by weight. Can be pickled and goes to the workers of a DataLoader.

    Args:
        sources: at least one, none empty.
        seed: of order and augmentation.
        augmentation: how images vary; None leaves them as they are (evaluation).
        size: edge of the square that images are fitted to [px]; the network's.
        left_out: what was asked for and is not in it, for the report.

    Attributes:
        sources, seed, augmentation, size, left_out: as given.

    Raises:
        ValueError: there is no source, two have one name, or one is empty or has no weight; names it.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        seed: int = 0,
        augmentation: Augmentation | None = None,
        size: int = 224,
        left_out: Sequence[str] = (),
    ) -> None:
        _check(sources)
        self.sources = tuple(sources)
        self.seed, self.augmentation, self.size = seed, augmentation, size
        self.left_out = tuple(left_out)
        self._schedule = Schedule([s.weight for s in sources], [len(s) for s in sources], seed)
        # Samples read and found damaged, by process: shared with the workers, one row each, so that nobody waits.
        self._seen = torch.zeros(_SLOTS, len(sources), 2, dtype=torch.int64)
        self._seen.share_memory_()  # type: ignore[no-untyped-call]

    def plan(self, batch_size: int, start: int = 0) -> Iterator[list[Draw]]:
        """Yield the global batches of the steps start, start + 1, … without end.

        Raises:
            ValueError: the batch size is not positive, or the step negative.
        """
        if batch_size < 1 or start < 0:
            raise ValueError(f"a batch of {batch_size} from step {start}: expected at least 1, from step 0 on")
        draws = self._schedule.draws(batch_size * start)
        while True:
            yield [next(draws) for _ in range(batch_size)]

    def example(self, draw: Draw) -> Example:
        """Return the example of a draw. A damaged sample is replaced by another of its source, always the same.

        Raises:
            DatasetError: more than 1 % of a source's samples are damaged, or 20 in a row; names one.
        """
        source, index = self.sources[draw.source], draw.index
        for attempt in range(1, _SUBSTITUTES + 1):
            try:
                reading = source.read(index)
            except (OSError, ValueError) as error:  # DatasetError, or what a file that changed under a map raises
                self._count(draw.source, damaged=1)
                self._check_damage(draw.source, error, attempt == _SUBSTITUTES)
                index = hash_key(self.seed, 4, draw.row, attempt) % len(source)
            else:
                self._count(draw.source)
                break
        return self._finish(reading, draw, source.losses)

    def split(self, share: float) -> tuple["Mixture", "Mixture | None"]:
        """Return the mixture without, and of, a held-out share of every source's episodes (`groups.hold_out`).

        What is held out is not augmented. A source of one episode holds nothing out.

        Raises:
            ValueError: the share is not in [0, 1).
        """
        held_keys = hold_out([source.members for source in self.sources], share)
        parts = [source.split(held_keys) for source in self.sources]
        kept = [part for part, _ in parts if part is not None]
        held = [part for _, part in parts if part is not None]
        ours = Mixture(kept, self.seed, self.augmentation, self.size, self.left_out)
        return ours, Mixture(held, self.seed, None, self.size) if held else None

    def drawn(self, batch_size: int, steps: int, start: int = 0) -> DrawReport:
        """Report what the steps start … start + steps - 1 draw of each source, against the weights.

        Damaged samples are those that this process and its workers have met so far.
        """
        first, last = batch_size * start, batch_size * (start + steps)
        counts = self._schedule.counts(last) - self._schedule.counts(first)
        damaged = self._seen.sum(dim=0)[:, 1].tolist()
        total = sum(source.weight for source in self.sources)
        return DrawReport(
            tuple(
                SourceDraws(s.name, s.weight / total, int(n), len(s), s.groups, tuple(sorted(s.losses)), bad)
                for s, n, bad in zip(self.sources, counts, damaged, strict=True)
            ),
            self.left_out,
        )

    def _finish(self, reading: Reading, draw: Draw, losses: frozenset[str]) -> Example:
        boxes, changes = reading.boxes, self._changes(reading, draw.row)
        if boxes:
            boxes = fit_boxes(boxes, reading.images[reading.box_camera].shape[:2])
            change = changes.get(reading.box_camera)
            if change is not None:
                moved = move_boxes(boxes, change)
                if moved is None:
                    changes[reading.box_camera] = change.without_motion()
                boxes = boxes if moved is None else moved
        images = {key: self._fit(image) for key, image in reading.images.items()}
        return Example(
            images={key: changes[key].apply(image) if key in changes else image for key, image in images.items()},
            state=reading.state,
            actions=reading.actions,
            action_is_pad=reading.action_is_pad,
            prompt=reading.prompt,
            answer=_answer(reading.answer, boxes),
            subtask=reading.subtask,
            control=reading.control,
            source=draw.source,
            losses=reading.losses(losses),
            action_mask=reading.action_mask,
            state_mask=reading.state_mask,
        )

    def _changes(self, reading: Reading, row: int) -> dict[str, Change]:
        if self.augmentation is None:
            return {}
        return {key: self.augmentation.draw(key, self.seed, row) for key in reading.images}

    def _fit(self, image: Image) -> Image:
        if image.shape[:2] == (self.size, self.size):
            return image
        chw = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        fitted: NDArray[np.uint8] = resize_with_pad(chw, self.size).permute(1, 2, 0).contiguous().numpy()
        return fitted

    def _count(self, source: int, damaged: int = 0) -> None:
        worker = get_worker_info()
        slot = 0 if worker is None else 1 + worker.id % (_SLOTS - 1)
        seen = self._seen.numpy()  # the same memory; indexing a tensor takes ten times as long
        seen[slot, source] += (1, damaged)

    def _check_damage(self, source: int, error: Exception, last: bool) -> None:
        seen, damaged = self._seen.sum(dim=0)[source].tolist()
        # One sample more than chance explains (three standard deviations), so that few draws do not stop a training.
        expected = MOST_DAMAGED * seen
        if last or damaged > expected + 3 * math.sqrt(expected) + 1:
            raise DatasetError(
                f"source {self.sources[source].name}: {damaged} of {seen} samples are damaged, more than "
                f"{MOST_DAMAGED:.0%}: {error}"
            ) from error


def _answer(said: str | None, boxes: tuple[Box, ...]) -> str | None:
    if not boxes:
        return said
    return answer_text(said, boxes) if said else " ; ".join(map(box_text, boxes))


def _check(sources: Sequence[Source]) -> None:
    names = [source.name for source in sources]
    if not sources or len(set(names)) < len(names):
        raise ValueError(f"sources {names}: at least one is needed, and each needs a name of its own")
    for source in sources:
        if not len(source):
            raise ValueError(f"source {source.name} is empty")
        if not 0 < source.weight < math.inf:
            raise ValueError(f"source {source.name}: weight {source.weight} is not positive")
