"""Sources of a mixture: where examples come from and what can be learned from them.

A source consists of groups (episodes of a robot, lines of a list), which are kept or held out as a whole (`groups`).
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from pi05_model.prompts import ControlMode
from pi05_ros.contract import Contract
from pi05_training.data.episode import Dataset, DatasetError, Floats, Sample
from pi05_training.data.open import open_dataset
from pi05_training.mixture.entries import Entries, Named, match_entries
from pi05_training.mixture.episodes import Episode, answers_of, entry_names, episodes_of, frame_rate, says_subtasks
from pi05_training.mixture.example import Mask, Reading
from pi05_training.mixture.groups import Groups, Keys
from pi05_training.samples import LabelledSample

MOST_DAMAGED = 0.01
"""Share of damaged samples, and of damaged runs of a dataset, above which training stops."""


class Source(ABC):
    """One source.

    Attributes:
        name: such as "MM".
        weight: its share of the draws, relative to the other sources'.
        losses: of {"text", "fast", "flow"}.
        members: its groups.
    """

    def __init__(self, name: str, weight: float, losses: frozenset[str], members: Groups) -> None:
        self.name, self.weight, self.losses = name, weight, losses
        self._keep(members)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def groups(self) -> int:
        """Number of episodes or lines."""
        return len(self.members)

    def read(self, index: int) -> Reading:
        """Return a sample.

        Raises:
            IndexError: there is no such sample.
            DatasetError: it is damaged.
        """
        return self._read(self._place(index))

    def labels(self, index: int) -> tuple[Floats, Floats] | None:
        """Return state [D] and actions [H, D] of a sample without touching its images; None without a robot."""
        return self._labels(self._place(index))

    def masks(self, index: int) -> tuple[Mask | None, Mask | None]:
        """Return which entries [D] of the state and of the action the robot of a sample has; None: all."""
        return self._masks(self._place(index))

    def split(self, held: Keys) -> tuple[Self | None, Self | None]:
        """Return what is left and what is held out, when the groups of some keys are; None for an empty part."""
        out = np.isin(self.members.keys, held)
        parts = [self._only(self.members.only(chosen)) if chosen.any() else None for chosen in (~out, out)]
        return parts[0], parts[1]

    @abstractmethod
    def _read(self, place: int) -> Reading: ...

    def _labels(self, place: int) -> tuple[Floats, Floats] | None:
        return None

    def _masks(self, place: int) -> tuple[Mask | None, Mask | None]:
        return None, None

    def _only(self, members: Groups) -> Self:
        other = copy.copy(self)
        other._keep(members)
        return other

    def _keep(self, members: Groups) -> None:
        self.members = members
        self._ends = np.cumsum(members.stops - members.starts)

    def _place(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: no sample {index}; it has {len(self)}")
        group = int(np.searchsorted(self._ends, index, side="right"))
        return int(self.members.stops[group] - self._ends[group] + index)


@dataclass(frozen=True)
class RobotOptions:
    """What a mixture says about the data of a robot.

    Attributes:
        control: what the actions are targets of.
        entries, action_entries: where the entries of state and action go (`match_entries`); without the second the
            first holds for both.
        cameras: model key by the name under which the dataset gives a camera; None takes those that are known.
        outcome: take only episodes that ended so.
        max_episode_s: take only episodes that are not longer [s].
        fps: rate of the dataset [Hz]; None expects the contract's.
        instructions: instruction JSON of a folder dataset; None looks in the folder.
    """

    control: ControlMode | None = None
    entries: Named | None = None
    action_entries: Named | None = None
    cameras: Mapping[str, str] | None = None
    outcome: Literal["success", "failure"] | None = None
    max_episode_s: float | None = None
    fps: float | None = None
    instructions: Path | None = None


@dataclass(frozen=True)
class Part:
    """One dataset of a source. Its first sample is number `start` of the source."""

    path: Path
    dataset: Dataset
    start: int
    state: Entries
    action: Entries
    state_mask: Mask | None
    action_mask: Mask | None


class RobotSource(Source):
    """Demonstrations of a robot: datasets of any layout (`open_dataset`).

    Args:
        name, weight, losses: of `Source`.
        folders: the datasets.
        contract: the robot that is trained for; other robots' numbers are mapped into its vector.
        horizon: H, rows of a chunk.
        options: see `RobotOptions`.

    Attributes:
        folders: the datasets.

    Raises:
        DatasetError: a dataset is missing, empty, damaged, of another rate or of entries without a place, has no
            subtasks though text is asked, or no episode is left.
    """

    def __init__(
        self,
        name: str,
        weight: float,
        losses: frozenset[str],
        folders: Sequence[Path],
        contract: Contract,
        horizon: int,
        options: RobotOptions | None = None,
    ) -> None:
        self._options = options = options or RobotOptions()
        self._contract, self._horizon = contract, horizon
        self.folders = tuple(folders)
        self._known_cameras = {camera.model_key for camera in contract.cameras.values()}
        self._parts: list[Part] = []
        for folder in folders:
            self._parts.append(self._open(folder))
        episodes = (
            (part.start + episode.start, part.start + episode.stop, part.path.resolve().name, episode.name)
            for part in self._parts
            for episode in self._chosen(part.dataset)
        )
        super().__init__(name, weight, losses, Groups.of_episodes(episodes))
        self._check()

    def _open(self, folder: Path) -> Part:
        options, ours = self._options, self._contract.names
        dataset = open_dataset(folder, options.instructions, self._horizon, MOST_DAMAGED)
        if not len(dataset):
            raise DatasetError(f"{folder}: no samples in it")
        expected, found = options.fps or self._contract.rates.action_hz, frame_rate(dataset)
        if found is not None and abs(found - expected) > 1e-6:
            raise DatasetError(
                f"{folder}: {found:g} frames per second, {expected:g} are expected; to train on it as it is, say "
                f"`fps: {found:g}` in the mixture"
            )
        (state, actions), names = dataset.labels(0), entry_names(dataset)
        other = options.action_entries
        if other is None and len(actions[0]) == len(state):
            other = options.entries
        of_state = match_entries(str(folder), len(state), names, ours, options.entries)
        same = names if len(actions[0]) == len(state) else ()
        of_action = match_entries(str(folder), len(actions[0]), same, ours, other, "action_entries")
        start = self._parts[-1].start + len(self._parts[-1].dataset) if self._parts else 0
        return Part(folder, dataset, start, of_state, of_action, of_state.mask, of_action.mask)

    def _chosen(self, dataset: Dataset) -> list[Episode]:
        options, rate = self._options, self._options.fps or self._contract.rates.action_hz
        longest = float("inf") if options.max_episode_s is None else options.max_episode_s * rate
        return [
            episode
            for episode in episodes_of(dataset)
            if options.outcome in (None, episode.outcome) and episode.stop - episode.start <= longest
        ]

    def _check(self) -> None:
        where = ", ".join(map(str, self.folders))
        if not len(self):
            wanted = f"outcome {self._options.outcome}, max_episode_s {self._options.max_episode_s}"
            raise DatasetError(f"source {self.name} ({where}): no episode is left with {wanted}")
        if "text" in self.losses and not self._says_subtasks():
            raise DatasetError(
                f"source {self.name} ({where}): its episodes have no subtasks, which the planner would learn to say; "
                "label them (`pi05 label`), or take text out of the source's losses: `losses: [fast, flow]`"
            )
        read_some(self)

    @property
    def damaged(self) -> tuple[str, ...]:
        """What is wrong with runs that were left out."""
        return tuple(why for part in self._parts for why in getattr(part.dataset, "damaged", ()))

    @property
    def control(self) -> ControlMode | None:
        """What the actions are targets of, as the prompts say."""
        return self._options.control

    def answers(self) -> set[str]:
        """Return what the planner is taught to say: the subtasks of all episodes."""
        return {answer for part in self._parts for answer in answers_of(part.dataset)}

    def _says_subtasks(self) -> bool:
        return any(says_subtasks(part.dataset) for part in self._parts)

    def _read(self, place: int) -> Reading:
        part, index = self._part(place)
        sample = part.dataset[index]
        try:
            state, actions = part.state.place(sample.state), part.action.place(sample.actions)
        except DatasetError as error:
            raise DatasetError(f"{part.path}: episode {sample.episode}, frame {sample.frame}: {error}") from error
        task = sample.task or sample.subtask
        if not task.strip():
            raise DatasetError(f"{part.path}: episode {sample.episode}, frame {sample.frame}: neither task nor subtask")
        answer = sample.answer if isinstance(sample, LabelledSample) else sample.subtask
        return Reading(
            prompt=task,
            images=self._images(part, sample),
            state=state,
            actions=actions,
            action_is_pad=sample.action_is_pad,
            answer=answer or None,
            subtask=sample.subtask or task,
            control=self._options.control,
            action_mask=part.action_mask,
            state_mask=part.state_mask,
        )

    def _images(self, part: Part, sample: Sample) -> dict[str, NDArray[np.uint8]]:
        if self._options.cameras is None:
            chosen = {key: image for key, image in sample.images.items() if key in self._known_cameras}
        else:
            named = self._options.cameras
            chosen = {named[key]: image for key, image in sample.images.items() if key in named}
        if sample.images and not chosen:
            raise DatasetError(
                f"{part.path}: cameras {', '.join(sample.images)}, none of which the policy knows; say in the mixture "
                f"`cameras: {{theirs: ours}}`; ours: {', '.join(sorted(self._known_cameras))}"
            )
        return chosen

    def _labels(self, place: int) -> tuple[Floats, Floats]:
        part, index = self._part(place)
        state, actions = part.dataset.labels(index)
        return part.state.place(state), part.action.place(actions)

    def _masks(self, place: int) -> tuple[Mask | None, Mask | None]:
        part, _ = self._part(place)
        return part.state_mask, part.action_mask

    def _part(self, place: int) -> tuple[Part, int]:
        part = next(part for part in reversed(self._parts) if part.start <= place)
        return part, place - part.start


def read_some(source: Source, most: int = 4) -> None:
    """Read a few samples spread over a source, so that what is wrong with all of it is said before training.

    Raises:
        DatasetError: none of them can be read.
    """
    failed: DatasetError | None = None
    for index in sorted({k * len(source) // most for k in range(most)}):
        try:
            source.read(index)
            return
        except DatasetError as error:
            failed = failed or error
    assert failed is not None
    raise failed
