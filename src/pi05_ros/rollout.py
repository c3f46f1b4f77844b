"""The closed loop in one process: simulator, controller and a brain, without DDS.

The same simulator, controller, JPEG encoding and chunk timing as the ROS graph, stepped as fast as the machine allows:
what collects training data and evaluates policies when wall-clock time does not matter. A chunk takes effect
`latency_s` after the observation it was computed from, as it does on the robot.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pi05_model.observation import Observation, Policy
from pi05_ros.contract import Contract
from pi05_ros.control.assembly import assemble_controller
from pi05_ros.control.chunk import Chunk
from pi05_ros.expert.expert import ScriptedExpert
from pi05_ros.messages import NS, decode_jpeg, encode_jpeg
from pi05_ros.sim.simulator import Simulator
from pi05_ros.sim.tasks import task_success
from pi05_ros.sim.world import WorldState

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RolloutConfig:
    """Timing of an episode, in simulated time.

    Attributes:
        look_period_s: time between two observations.
        looks_per_chunk: a new chunk is computed from every n-th observation.
        looks_per_plan: the planner speaks at every n-th observation.
        latency_s: from the observation until its chunk takes effect.
        time_limit_s: the episode ends here when the task has not succeeded before.
        settle_s: time the robot holds still before the first observation.
    """

    look_period_s: float = 0.2
    looks_per_chunk: int = 2
    looks_per_plan: int = 5
    latency_s: float = 0.1
    time_limit_s: float = 60.0
    settle_s: float = 0.2


@dataclass(frozen=True, slots=True)
class Look:
    """One observation as it travels: JPEG images by camera name, the state vector, and the truth behind it."""

    stamp_ns: int
    jpeg: dict[str, bytes]
    state: Array
    world: WorldState

    def observation(self, contract: Contract) -> Observation:
        """Decode into what a policy sees."""
        images = {contract.cameras[name].model_key: decode_jpeg(blob) for name, blob in self.jpeg.items()}
        return Observation(stamp_ns=self.stamp_ns, images=images, state=self.state)


class Brain(Protocol):
    """Whatever drives the robot."""

    def plan(self, look: Look, task: str) -> str:
        """Return the subtask."""

    def act(self, look: Look, subtask: str) -> Array:
        """Return actions [H, D]."""


@dataclass
class PolicyBrain:
    """A policy as a brain: it sees the observation only."""

    contract: Contract
    policy: Policy

    def plan(self, look: Look, task: str) -> str:
        return self.policy.plan(look.observation(self.contract), task)

    def act(self, look: Look, subtask: str) -> Array:
        return self.policy.act(look.observation(self.contract), subtask).astype(np.float64)


@dataclass
class ExpertBrain:
    """The scripted expert as a brain: it sees the truth only."""

    expert: ScriptedExpert

    def plan(self, look: Look, task: str) -> str:
        return self.expert.choose(look.world, task).text

    def act(self, look: Look, subtask: str) -> Array:
        return self.expert.plan_text(look.world, subtask)


@dataclass
class Outcome:
    """What came of an episode.

    Attributes:
        success: the task's predicate on the simulator's state.
        seconds: simulated duration.
        subtasks: (time [s], text) at each change.
        refused: chunks refused by the controller, by reason.
        stopped: why the controller's software stop latched, which ends the episode; "" if it did not.
        cleared, objects: objects in the bin at the end, and in the scene.
    """

    success: bool = False
    seconds: float = 0.0
    subtasks: list[tuple[float, str]] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    stopped: str = ""
    cleared: int = 0
    objects: int = 0


class Rollout:
    """Runs episodes on one simulator.

    Args:
        contract: the robot's contract.
        simulator: a simulator that renders.
        config: timing.
    """

    def __init__(self, contract: Contract, simulator: Simulator, config: RolloutConfig | None = None) -> None:
        self.contract, self.simulator, self.config = contract, simulator, config or RolloutConfig()
        self._controller = assemble_controller(contract, simulator)

    def run(
        self,
        seed: int,
        task: str,
        brain: Brain,
        on_look: Callable[[Look, str], None] | None = None,
        disturb: Callable[[Array], Array] | None = None,
    ) -> Outcome:
        """Run one episode from a seeded layout.

        Args:
            seed: layout seed.
            task: what is asked for.
            brain: who decides.
            on_look: called with every observation and the subtask in force.
            disturb: changes the actions [H, D] before they are executed (to visit states off the path).
        """
        sim, config = self.simulator, self.config
        sim.reset(seed)
        self._controller.reset(keep_grip=False)
        outcome, subtask = Outcome(), ""
        refused_before = self._refused()
        pending: list[Chunk] = []
        self._advance(config.settle_s, pending)
        start_ns = sim.time_ns
        for count in range(round(config.time_limit_s / config.look_period_s)):
            look = self.look()
            if count % config.looks_per_plan == 0:
                said = brain.plan(look, task)
                if said != subtask:
                    subtask = said
                    outcome.subtasks.append(((look.stamp_ns - start_ns) / NS, subtask))
            if on_look is not None:
                on_look(look, subtask)
            if count % config.looks_per_chunk == 0:
                actions = brain.act(look, subtask)
                actions = actions if disturb is None else disturb(actions)
                pending.append(Chunk(look.stamp_ns, self.contract.names, actions))
            self._advance(config.look_period_s, pending)
            outcome.success = task_success(sim.snapshot(), task)
            outcome.stopped = str(self._controller.latch or "")
            if outcome.success or outcome.stopped:
                break
        world = sim.snapshot()
        outcome.seconds = (sim.time_ns - start_ns) / NS
        outcome.cleared, outcome.objects = sum(item.in_bin for item in world.objects), len(world.objects)
        outcome.refused = dict(self._refused() - refused_before)
        return outcome

    def look(self) -> Look:
        """Take an observation now."""
        sim, contract = self.simulator, self.contract
        quality = contract.image.jpeg_quality
        reading = sim.read()
        return Look(
            stamp_ns=sim.time_ns,
            jpeg={name: encode_jpeg(sim.render(name), quality) for name in contract.cameras},
            state=contract.from_joint_units(reading.position, reading.base_twist),
            world=sim.snapshot(),
        )

    def _refused(self) -> Counter[str]:
        """Return the chunks that the controller has refused since it was made, by reason."""
        return Counter(self._controller.snapshot()["chunks_refused"])

    def _advance(self, seconds: float, pending: list[Chunk]) -> None:
        sim, latency_ns = self.simulator, round(self.config.latency_s * NS)
        end_ns = sim.time_ns + round(seconds * NS)
        while sim.time_ns < end_ns:
            if pending and sim.time_ns >= pending[0].stamp_ns + latency_ns:
                self._controller.offer(pending.pop(0), sim.time_ns)
            self._controller.tick(sim.time_ns)
            sim.step()
