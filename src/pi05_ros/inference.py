"""When and on what the policy is asked, and what happens with its answers. Free of rclpy.

`Planner` and `Expert` judge what goes in and comes out of a policy; `Worker` runs them on a thread of its own, so that
the node's callbacks stay free; `Cadence` says when.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from pi05_model.observation import Observation, Policy
from pi05_ros.config import ConfigError
from pi05_ros.contract import Contract
from pi05_ros.control.chunk import Chunk
from pi05_ros.graph import EMBEDDED_POLICY
from pi05_ros.health import Health, Level, Status
from pi05_ros.paths import share_file

NS = 1_000_000_000


def check_policy(policy: Policy, contract: Contract, source: str) -> None:
    """Check that a policy's actions fit the robot.

    Raises:
        ConfigError: names both sizes.
    """
    needed = (contract.rates.chunk_steps, contract.dim)
    if tuple(policy.action_shape) != needed:
        steps, dim = policy.action_shape
        raise ConfigError(
            f"policy {source or '(embedded)'} gives chunks of {steps} steps x {dim} entries, but the contract of "
            f"{contract.robot} needs {needed[0]} x {needed[1]}; train or import a policy for this contract"
        )


class Cadence:
    """Fires once in every period of a clock, as soon as the clock enters it: ticks fall on multiples of the period.

    Two cadences of one clock whose periods divide each other so tick together, whenever they were started.

    Args:
        period_s: time between two ticks.
    """

    def __init__(self, period_s: float) -> None:
        self._period_ns = round(period_s * NS)
        self._last: int | None = None

    def due(self, now_ns: int) -> bool:
        """Return whether a tick is due; a clock that jumped back (a simulator that was reset) ticks at once."""
        current = now_ns // self._period_ns
        due = current != self._last
        self._last = current
        return due

    @property
    def tick_ns(self) -> int:
        """Time of the last tick, a multiple of the period."""
        return (self._last or 0) * self._period_ns


class Latency:
    """The last durations of something [ms], and their percentiles.

    Args:
        size: how many are remembered.
    """

    def __init__(self, size: int = 1000) -> None:
        self._ms: deque[float] = deque(maxlen=size)
        self._count = 0

    def add(self, seconds: float) -> None:
        """Add one duration [s]."""
        self._ms.append(seconds * 1e3)
        self._count += 1

    def values(self) -> dict[str, float | int]:
        """Return inference_ms.p50, .p99 and .max, and inference_count; only the count before the first duration."""
        kept = list(self._ms)
        if not kept:
            return {"inference_count": 0}
        p50, p99, most = (float(v) for v in np.percentile(kept, [50, 99, 100]))
        figures = {"inference_ms.p50": p50, "inference_ms.p99": p99, "inference_ms.max": most}
        return {**figures, "inference_count": self._count}


class Planner:
    """Turns a task into subtasks.

    A subtask is said when it changes, and once for every new task even if it is the same. An empty task takes the
    subtask back by saying "". A task that is too long is refused and changes nothing.

    Args:
        policy: who plans.
        say: takes a subtask.
        health: where trouble is told.
        max_chars: longest task.
    """

    name = "planner"

    def __init__(self, policy: Policy, say: Callable[[str], None], health: Health, max_chars: int) -> None:
        self._policy, self._say, self._health, self._max_chars = policy, say, health, max_chars
        self._task, self._said = "", ""
        self._task_is_new = False
        self._lock = threading.Lock()
        self.latency = Latency()

    def set_task(self, text: str) -> None:
        """Take a new task."""
        task = accept_text("task", text, self._max_chars, self._health)
        if task is None:
            return
        with self._lock:
            self._task_is_new = self._task_is_new or task != self._task
            self._task = task
            take_back = not task and bool(self._said)
            if take_back:
                self._said = ""
                self._say("")

    def waiting_for(self) -> list[str]:
        """Return what is still missing besides the observation."""
        return [] if self._task else ["a task"]

    def run(self, observation: Observation) -> None:
        """Plan once."""
        with self._lock:
            task = self._task
        if not task:
            return
        begin = time.perf_counter()
        subtask = " ".join(self._policy.plan(observation, task).split())
        self.latency.add(time.perf_counter() - begin)
        with self._lock:
            if task != self._task:
                return  # the answer to a question that is no longer asked
            news = subtask != self._said or self._task_is_new
            self._said, self._task_is_new = subtask, False
            if news:
                self._say(subtask)

    def say_again(self) -> None:
        """Say the next subtask even if it is the same, as after a pause."""
        with self._lock:
            self._task_is_new = True

    def status(self) -> Status:
        """Return the entry for /diagnostics."""
        return Status(self.name, values={"task": self._task, "subtask": self._said, **self.latency.values()})


class Expert:
    """Turns a subtask into action chunks.

    Args:
        policy: who acts.
        contract: the robot.
        send: takes a chunk that is finite and of the right shape.
        health: where trouble is told.
        max_chars: longest subtask.
    """

    name = "action_expert"

    def __init__(
        self, policy: Policy, contract: Contract, send: Callable[[Chunk], None], health: Health, max_chars: int
    ) -> None:
        self._policy, self._contract, self._send, self._health = policy, contract, send, health
        self._max_chars, self._subtask = max_chars, ""
        self._sent = 0
        self.latency = Latency()

    def set_subtask(self, text: str) -> None:
        """Take a new subtask; an empty one ends the chunks, and the controller holds."""
        subtask = accept_text("subtask", text, self._max_chars, self._health)
        if subtask is not None:
            self._subtask = subtask

    def waiting_for(self) -> list[str]:
        """Return what is still missing besides the observation."""
        return [] if self._subtask else ["a subtask"]

    def run(self, observation: Observation) -> None:
        """Compute a chunk and send it, unless it is not finite: then count it and say so."""
        subtask = self._subtask
        if not subtask:
            return
        begin = time.perf_counter()
        actions = np.asarray(self._policy.act(observation, subtask), dtype=np.float64)
        self.latency.add(time.perf_counter() - begin)
        needed = (self._contract.rates.chunk_steps, self._contract.dim)
        if actions.shape != needed:
            self._health.drop("chunk: wrong shape")
            self._health.trouble("chunk", f"policy gave {list(actions.shape)}, not {list(needed)}", Level.ERROR)
        elif not np.isfinite(actions).all():
            self._health.drop("chunk: not finite")
            bad = [self._contract.names[i] for i in np.flatnonzero(~np.isfinite(actions).all(axis=0))]
            self._health.trouble("chunk", f"policy gave values that are not finite for {', '.join(bad)}", Level.ERROR)
        elif subtask == self._subtask:
            self._health.fine("chunk")
            self._sent += 1
            self._send(Chunk(observation.stamp_ns, self._contract.names, actions))
        else:
            self._health.drop("chunk: for an old subtask")

    def status(self) -> Status:
        """Return the entry for /diagnostics."""
        return Status(self.name, values={"subtask": self._subtask, "chunks": self._sent, **self.latency.values()})


def accept_text(what: str, text: str, max_chars: int, health: Health) -> str | None:
    """Return a text on one line without surrounding blanks, or None when it is too long (counted and told)."""
    if len(text) > max_chars:
        health.drop(f"{what}: too long")
        health.trouble(
            what, f"refused: {len(text)} characters, at most {max_chars} are allowed (it begins {text[:40]!r})"
        )
        return None
    health.fine(what)
    return " ".join(text.split())


class Logic(Protocol):
    """One part of the policy, as a node runs it: `Planner` or `Expert`."""

    name: str

    def run(self, observation: Observation) -> None:
        """Infer once."""

    def waiting_for(self) -> list[str]:
        """Return what is missing besides the observation."""

    def status(self) -> Status:
        """Return the entry for /diagnostics."""


class Worker:
    """A thread with one slot per job name: a request that comes before the last one was taken replaces it.

    The thread starts with the first request.
    """

    # The robot moves by the expert; a plan can wait.
    urgency = ("action_expert", "planner")

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._slots: dict[str, tuple[Health, Callable[[], None]]] = {}
        self._running = ""
        self._stopping = False
        self._thread: threading.Thread | None = None

    def submit(self, name: str, health: Health, job: Callable[[], None]) -> None:
        """Ask for a job; its exceptions, and requests it replaces, are told and counted in `health`."""
        with self._wake:
            if name in self._slots:
                health.drop("request overtaken")
            self._slots[name] = (health, job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
                self._thread.start()
            self._wake.notify_all()

    def cancel(self, name: str) -> None:
        """Drop a request that was not begun, and wait for the one that was."""
        with self._wake:
            self._slots.pop(name, None)
            self._wake.wait_for(lambda: self._running != name)

    def close(self) -> None:
        """Drop what was not begun, wait for what was, and end the thread. The next request starts a new one."""
        with self._wake:
            thread, self._thread = self._thread, None
            self._slots.clear()
            self._stopping = True
            self._wake.notify_all()
        if thread is not None:
            thread.join()
        self._stopping = False

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopping or self._slots)
                if self._stopping:
                    return
                name = min(self._slots, key=self.urgency.index)
                health, job = self._slots.pop(name)
                self._running = name
            try:
                job()
            except Exception as error:
                # Whatever a policy raises, the robot goes on holding and the next request is tried.
                health.drop("inference failed")
                health.trouble("inference", f"{type(error).__name__}: {error}", Level.ERROR)
            else:
                health.fine("inference")
            with self._wake:
                self._running = ""
                self._wake.notify_all()


def load_policy(path: str) -> Policy:
    """Load a checkpoint folder; "" is the one that the package ships.

    Raises:
        ConfigError: there is no such checkpoint, or it cannot be read; names it.
    """
    try:
        folder = Path(path) if path else share_file(EMBEDDED_POLICY)
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}")
        from pi05_model.policy import Pi05Policy  # torch takes seconds to import

        policy = Pi05Policy.load(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"policy: {path or EMBEDDED_POLICY}: cannot be loaded: {error}") from error
    policy.warm_up()
    return policy


class PolicyHost:
    """The policies of one process, each loaded once, and the one thread that runs them (they are not thread-safe).

    Args:
        load: loads a policy by its path.
    """

    def __init__(self, load: Callable[[str], Policy] = load_policy) -> None:
        self._load = load
        self._policies: dict[str, tuple[Policy, int]] = {}
        self.worker = Worker()

    def acquire(self, path: str, contract: Contract) -> Policy:
        """Return the policy at a path, loading it unless another node has.

        Raises:
            ConfigError: it cannot be loaded, or does not fit the contract.
        """
        policy, users = self._policies.get(path) or (self._load(path), 0)
        check_policy(policy, contract, path)
        self._policies[path] = (policy, users + 1)
        return policy

    def release(self, path: str) -> None:
        """Give a policy back; the last user's call forgets it, and ends the thread when nothing is left to run."""
        policy, users = self._policies.pop(path)
        if users > 1:
            self._policies[path] = (policy, users - 1)
        if not self._policies:
            self.worker.close()
