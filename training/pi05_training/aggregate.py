"""Labelled episodes from the simulator, by many processes: demonstrations first, then dataset aggregation.

Every observation is labelled by the scripted expert, whoever drives. At first the expert drives, with disturbances
that it must recover from; once a checkpoint appears, the policy drives part of the episodes, so that the data covers
the states the policy really reaches (DAgger, arXiv 1011.0686). Some labels answer for another subtask than the one in
force, so that the action expert has to listen.
"""

import multiprocessing
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pi05_ros.contract import Contract, load_contract
from pi05_ros.expert.expert import ScriptedExpert, pickable
from pi05_ros.rollout import Brain, ExpertBrain, Look, PolicyBrain, Rollout, RolloutConfig
from pi05_ros.sim.scene import SceneConfig
from pi05_ros.sim.tasks import CLEAR_TABLE, Subtask, put_text
from pi05_ros.sim.world import WorldState
from pi05_training.samples import Sample, write_samples

Array = NDArray[np.float64]


@dataclass(frozen=True)
class AggregateConfig:
    """Settings of a collection run."""

    out: Path
    """Folder that receives one file per episode."""
    episodes: int = 100
    """Number of episodes over all workers."""
    workers: int = 2
    """Number of processes."""
    seed: int = 0
    """Seed of the first episode; episode i uses seed + i."""
    policy: Path | None = None
    """Folder in which checkpoints appear; its `latest` is loaded when it changes. None: the expert drives."""
    policy_share: float = 0.7
    """Share of the episodes that the policy drives once there is one."""
    language_share: float = 0.3
    """Share of the episodes whose task names one object."""
    other_label_share: float = 0.2
    """Share of the labels that answer for a subtask drawn at random."""
    joint_noise: float = 0.02
    """Standard deviation of the arms' starting posture [rad]."""
    time_limit_s: float = 30.0
    """Simulated length after which an episode ends."""
    seconds: float = float("inf")
    """Wall time after which workers stop."""


def collect(config: AggregateConfig) -> int:
    """Collect until the episodes or the time are used up; return how many episode files were written."""
    config.out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    counter = context.Value("i", 0)
    workers = [context.Process(target=_work, args=(config, counter), daemon=True) for _ in range(config.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise RuntimeError("a collecting process failed; its message is above")
    return len(list(config.out.glob("episode_*.npz")))


def _work(config: AggregateConfig, counter: "multiprocessing.sharedctypes.Synchronized[int]") -> None:
    os.environ.setdefault("MUJOCO_GL", "egl")
    started = time.monotonic()
    collector = EpisodeCollector(config)
    while time.monotonic() - started < config.seconds:
        with counter.get_lock():
            index = counter.value
            counter.value += 1
        if index >= config.episodes:
            return
        collector.collect(config.seed + index)


class EpisodeCollector:
    """Runs and labels episodes in this process.

    Attributes:
        rollout: the closed loop it uses.
    """

    def __init__(self, config: AggregateConfig) -> None:
        from pi05_ros.sim.simulator import Simulator

        self._config = config
        self._contract = load_contract()
        self._expert = ScriptedExpert(self._contract)
        rollout_config = RolloutConfig(time_limit_s=config.time_limit_s)
        simulator = Simulator(self._contract, SceneConfig(joint_noise=config.joint_noise))
        self.rollout = Rollout(self._contract, simulator, rollout_config)
        self._brain: Brain = ExpertBrain(self._expert)
        self._loaded: Path | None = None

    def collect(self, seed: int) -> Path:
        """Run the episode of a seed, write its samples and return the file."""
        rng = random.Random(seed)
        brain = self._choose_brain(rng)
        labeller = Labeller(self._contract, self._expert, self._config, rng)
        disturb = Disturbance(self._contract, seed) if rng.random() < 0.7 else None
        task = self._choose_task(seed, rng)
        labeller.task = task
        outcome = self.rollout.run(seed, task, brain, labeller, disturb)
        who = "policy" if brain is self._brain and self._loaded else "expert"
        path = self._config.out / f"episode_{seed:07d}_{who}_{int(outcome.success)}.npz"
        write_samples(path, labeller.samples)
        return path

    def _choose_task(self, seed: int, rng: random.Random) -> str:
        if rng.random() >= self._config.language_share:
            return CLEAR_TABLE
        self.rollout.simulator.reset(seed)
        return put_text(rng.choice(self.rollout.simulator.snapshot().objects).name)

    def _choose_brain(self, rng: random.Random) -> Brain:
        latest = self._config.policy / "latest" if self._config.policy else None
        if latest is None or not latest.exists() or rng.random() >= self._config.policy_share:
            return ExpertBrain(self._expert)
        if latest.resolve() != self._loaded:
            from pi05_model.policy import Pi05Policy

            self._loaded = latest.resolve()
            self._brain = PolicyBrain(self._contract, Pi05Policy.load(self._loaded, threads=1))
        return self._brain


class Labeller:
    """Turns observations into samples; called by the rollout with every look."""

    def __init__(self, contract: Contract, expert: ScriptedExpert, config: AggregateConfig, rng: random.Random) -> None:
        self._contract, self._expert, self._config, self._rng = contract, expert, config, rng
        self.samples: list[Sample] = []
        self.task = ""

    def __call__(self, look: Look, subtask_in_force: str) -> None:
        right = self._expert.choose(look.world, self.task)
        subtask = self._pick_subtask(look.world, right, subtask_in_force)
        self.samples.append(
            Sample(
                images={self._contract.cameras[name].model_key: blob for name, blob in look.jpeg.items()},
                state=look.state,
                actions=self._expert.plan_subtask(look.world, subtask),
                task=self.task,
                subtask=subtask.text,
                planner_target=right.text,
            )
        )

    def _pick_subtask(self, world: WorldState, right: Subtask, in_force: str) -> Subtask:
        draw = self._rng.random()
        if draw < self._config.other_label_share:
            return self._rng.choice(possible_subtasks(world, right))
        if draw < 0.5 and in_force:
            return _parse_or(in_force, world, right)
        return right


def possible_subtasks(world: WorldState, right: Subtask) -> list[Subtask]:
    """List the subtasks that make sense in a world: what is in a hand goes first, any object left can be picked."""
    if right.verb in ("put", "drive"):
        return [right]
    return [*pickable(world, CLEAR_TABLE), Subtask("wait")]


def _parse_or(text: str, world: WorldState, otherwise: Subtask) -> Subtask:
    try:
        subtask = Subtask.parse(text)
        if subtask.object_name:
            world.object(subtask.object_name)
    except (ValueError, KeyError):
        return otherwise
    return subtask


class Disturbance:
    """Bends some chunks away from the plan: a smooth offset of the joints, or of the base's velocity.

    The labels stay the expert's own; only what is executed changes.
    """

    def __init__(self, contract: Contract, seed: int, probability: float = 0.25) -> None:
        self._contract, self._probability = contract, probability
        self._rng = np.random.default_rng([seed, 1])

    def __call__(self, actions: Array) -> Array:
        if self._rng.random() > self._probability:
            return actions
        ramp = np.sin(np.linspace(0.0, np.pi / 2, 20))
        shape = np.concatenate([ramp, np.ones(max(0, len(actions) - 20))])[: len(actions), None]
        offset = np.zeros(self._contract.dim)
        for side in ("left", "right"):
            offset[self._contract.slice(f"{side}_arm")] = self._rng.normal(0.0, 0.05, 6)
        bent: Array = actions + shape * offset
        moving = np.abs(actions[:, self._contract.base_index]).max() > 0.02
        bent[:, self._contract.base_index] += moving * shape * self._rng.normal(0.0, [0.06, 0.06, 0.1])
        return bent


if __name__ == "__main__":
    import tyro

    print(f"{collect(tyro.cli(AggregateConfig))} episodes")
