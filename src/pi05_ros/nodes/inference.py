"""What planner_node and action_expert_node share: cameras and state in, a policy, a thread to run it on.

Alone, each node has a `PolicyHost` of its own. Hosted together (policy_process.py) they share one: one set of weights
and one thread. Both take their observations at the stamps of images, so that the policy, which keeps what it computed
from an image by stamp, computes it once for both when they tick together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

from sensor_msgs.msg import CompressedImage, JointState

from pi05_model.observation import Policy
from pi05_ros import topics
from pi05_ros.config import Doc, Range
from pi05_ros.contract import Part
from pi05_ros.health import Status
from pi05_ros.inference import Cadence, Logic, PolicyHost
from pi05_ros.ingest import IngestConfig, ObservationBuffer
from pi05_ros.messages import MessageError, stamp_to_ns, state_from
from pi05_ros.nodes.base import BaseNode, monotonic_ns

NS = 1_000_000_000
# How often a node looks whether a tick is due [s]: bounds how late a tick begins.
POLL_S = 0.005
# A tick that waits longer than this for what it needs says so [s].
PATIENCE_S = 0.5


@dataclass(frozen=True)
class InferenceConfig:
    """Parameters of every node that runs the policy."""

    policy: Annotated[str, Doc("checkpoint folder; empty uses the one that the package ships")] = ""
    image_max_age_s: Annotated[float, Doc("older images are masked [s]"), Range(0.01, 10)] = 0.25
    state_max_age_s: Annotated[float, Doc("with an older state nothing is inferred [s]"), Range(0.01, 10)] = 0.1
    max_delay_s: Annotated[float, Doc("an older observation is not inferred from [s]"), Range(0.05, 10)] = 0.5
    max_text_chars: Annotated[int, Doc("longest task or subtask that is accepted"), Range(1, 4096)] = 512


ConfigT = TypeVar("ConfigT", bound=InferenceConfig)


class InferenceNode(BaseNode[ConfigT]):
    """A node that runs one part of the policy.

    Args:
        name, config_type: see BaseNode.
        host: where the policy lives; None makes one for this node.
        arguments: see BaseNode.
    """

    part: ClassVar[Part]

    def __init__(
        self, name: str, config_type: type[ConfigT], *, host: PolicyHost | None = None, **arguments: Any
    ) -> None:
        super().__init__(name, config_type, **arguments)
        self._host = host or PolicyHost()
        self._policy_path: str | None = None

    def make_logic(self, config: ConfigT, policy: Policy) -> tuple[Logic, Cadence]:
        """Make the part with its publishers and subscriptions, and say when it runs."""
        raise NotImplementedError

    def build(self, config: ConfigT) -> None:
        """Load the policy, check it against the contract, and subscribe."""
        policy = self._host.acquire(config.policy, self.contract)
        self._policy_path = config.policy
        self._max_delay_ns = round(config.max_delay_s * NS)
        cameras = self.contract.cameras_of(self.part)
        self._buffer = ObservationBuffer(
            self.contract, cameras, IngestConfig(config.image_max_age_s, config.state_max_age_s)
        )
        self._logic, self._cadence = self.make_logic(config, policy)
        self._last_stamp_ns = -1
        self._pending_ns: int | None = None
        self._pending_since_ns = 0
        for name in cameras:
            self.subscribe(CompressedImage, topics.camera_image(name), self._on_image(name))
        self.subscribe(JointState, topics.STATE, self._on_state)
        self.every(POLL_S, self._tick)

    def stop(self) -> None:
        """Let a running inference end; nothing is computed or published after this."""
        self._host.worker.cancel(self._logic.name)

    def teardown(self) -> None:
        """Release the policy; the last node that does frees its memory."""
        if self._policy_path is not None:
            self._host.release(self._policy_path)
            self._policy_path = None

    def report(self) -> list[Status]:
        """Tell about the part and about what was left out of observations."""
        return [self._logic.status(), Status("ingest", values={**self._buffer.counts})]

    def _on_image(self, camera: str) -> Callable[[Any], None]:
        def take(message: Any) -> None:
            self._buffer.add_image(camera, stamp_to_ns(message.header.stamp), message.data)

        return take

    def _on_state(self, message: Any) -> None:
        try:
            self._buffer.add_state(stamp_to_ns(message.header.stamp), state_from(message, self.contract))
        except MessageError as error:
            self.health.drop("state: not understood")
            self.health.trouble(topics.STATE, str(error))
        else:
            self.health.fine(topics.STATE)

    def _tick(self) -> None:
        now_ns = self.now_ns()
        if self._cadence.due(now_ns):
            if self._pending_ns is None:
                self._pending_since_ns = monotonic_ns()
            else:
                self.health.drop("ticks without an answer")
            self._pending_ns = self._cadence.tick_ns
        if self._pending_ns is None:
            return
        # A tick stays pending until it can be served: simulated time may stand still until it was.
        stamp_ns, lacks = self._buffer.look_stamp(self._pending_ns)
        if stamp_ns is not None and now_ns - stamp_ns > self._max_delay_ns:
            lacks = f"a fresh observation (the newest is {(now_ns - stamp_ns) / NS:.2f} s old)"
        missing = [*self._logic.waiting_for(), *filter(None, [lacks])]
        if missing or stamp_ns is None:
            if monotonic_ns() - self._pending_since_ns > PATIENCE_S * NS:
                self.health.trouble("waiting for", ", ".join(missing))
            return
        self._pending_ns = None
        if stamp_ns != self._last_stamp_ns:
            self._last_stamp_ns = stamp_ns
            self._host.worker.submit(self._logic.name, self.health, lambda: self._infer(stamp_ns))

    def _infer(self, stamp_ns: int) -> None:
        # On the host's thread: decoding images is part of it.
        if self.now_ns() - stamp_ns > self._max_delay_ns:
            self.health.drop("request too old")
            return
        taken = self._buffer.at(stamp_ns)
        for name in self._buffer.cameras:
            self.health.set(f"camera {name}", f"{taken.missing[name]}; masked" if name in taken.missing else "")
        if taken.observation is None or not taken.observation.images:
            what = "; ".join(f"{source} {reason}" for source, reason in taken.missing.items())
            self.health.drop("unusable observation")
            self.health.trouble("waiting for", f"a state and at least one image ({what})")
            return
        self.health.fine("waiting for")
        self._logic.run(taken.observation)
