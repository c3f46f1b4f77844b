"""What the planner and the expert accept, say and refuse, and how their thread behaves."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pi05_model.observation import Observation
from pi05_ros.config import ConfigError
from pi05_ros.contract import load_contract
from pi05_ros.control.chunk import Chunk
from pi05_ros.health import Health, Level
from pi05_ros.inference import Cadence, Expert, Latency, Planner, PolicyHost, Worker, check_policy

CONTRACT = load_contract()
MS = 1_000_000


class Told:
    """A health whose warnings and recoveries are kept."""

    def __init__(self) -> None:
        self.warned: list[str] = []
        self.recovered: list[str] = []
        self.health = Health(self.warned.append, self.recovered.append)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


@pytest.fixture
def observation(striped: Any) -> Observation:
    return Observation(5 * MS, {"base_0_rgb": striped}, np.zeros(CONTRACT.dim))


def test_cadence_ticks_on_multiples() -> None:
    cadence = Cadence(0.4)
    cadence.due(0)
    assert [t for t in range(0, 1300, 10) if cadence.due(t * MS)] == [400, 800, 1200]
    assert not cadence.due(1290 * MS)
    assert cadence.due(5 * MS)  # jumped back


def test_latency_percentiles() -> None:
    latency = Latency(size=100)
    assert latency.values() == {"inference_count": 0}
    for k in range(1, 102):
        latency.add(k / 1000)
    values = latency.values()
    assert values["inference_ms.p50"] == pytest.approx(51.5)  # the first of the 101 was forgotten
    assert values["inference_ms.max"] == pytest.approx(101)
    assert values["inference_count"] == 101


def test_planner_says_changes_and_answers_every_new_task(policy: Any, told: Told, observation: Observation) -> None:
    said: list[str] = []
    planner = Planner(policy, said.append, told.health, 512)
    planner.run(observation)
    assert said == [] and planner.waiting_for() == ["a task"]
    planner.set_task("  clear\n the   table ")
    assert planner.waiting_for() == []
    planner.run(observation)
    planner.run(observation)
    assert said == ["clear the table: left side"]
    mirrored = Observation(6 * MS, {"base_0_rgb": observation.images["base_0_rgb"][:, ::-1]}, observation.state)
    planner.run(mirrored)
    assert said[1:] == ["clear the table: right side"]
    planner.say_again()
    planner.run(mirrored)
    assert said[2:] == ["clear the table: right side"]
    planner.set_task(" ")
    assert said[3:] == [""]
    planner.run(mirrored)
    assert len(said) == 4


def test_a_task_of_ten_thousand_characters_changes_nothing(policy: Any, told: Told, observation: Observation) -> None:
    said: list[str] = []
    planner = Planner(policy, said.append, told.health, 512)
    planner.set_task("clear the table")
    planner.set_task("x" * 10_000)
    planner.run(observation)
    assert said == ["clear the table: left side"]
    assert told.warned == [f"task: refused: 10000 characters, at most 512 are allowed (it begins {'x' * 40!r})"]
    assert told.health.counts == {"task: too long": 1}
    planner.set_task("wipe")
    assert len(told.recovered) == 1


def test_a_plan_for_an_old_task_is_not_said(policy: Any, told: Told, observation: Observation) -> None:
    said: list[str] = []
    planner = Planner(policy, said.append, told.health, 512)
    plan = policy.plan

    def interrupted(seen: Observation, task: str) -> str:
        planner.set_task("new task")
        return str(plan(seen, task))

    policy.plan = interrupted
    planner.set_task("old task")
    planner.run(observation)
    assert said == []


def test_expert_sends_finite_chunks_stamped_with_the_observation(
    policy: Any, told: Told, observation: Observation
) -> None:
    sent: list[Chunk] = []
    expert = Expert(policy, CONTRACT, sent.append, told.health, 512)
    expert.run(observation)
    assert sent == [] and expert.waiting_for() == ["a subtask"]
    expert.set_subtask("pick up the cube")
    expert.run(observation)
    [chunk] = sent
    assert chunk.stamp_ns == observation.stamp_ns and chunk.names == CONTRACT.names
    assert chunk.actions.shape == (50, 18) and chunk.actions.dtype == np.float64
    np.testing.assert_allclose(chunk.actions[9], 1e-3 * 16 * 10, rtol=1e-6)
    expert.set_subtask("")
    expert.run(observation)
    assert len(sent) == 1


def test_nan_is_counted_told_once_and_never_sent(policy: Any, told: Told, observation: Observation) -> None:
    sent: list[Chunk] = []
    expert = Expert(policy, CONTRACT, sent.append, told.health, 512)
    expert.set_subtask("pick")

    def spoil(actions: Any) -> Any:
        actions[7, 14] = np.nan
        return actions

    policy.spoil = spoil
    expert.run(observation)
    expert.run(observation)
    assert sent == []
    assert told.health.counts == {"chunk: not finite": 2}
    assert told.warned == ["chunk: policy gave values that are not finite for torso_lift"]
    assert told.health.status().level is Level.ERROR
    policy.spoil = lambda actions: actions
    expert.run(observation)
    assert len(sent) == 1 and told.health.status().level is Level.OK and len(told.recovered) == 1


def test_chunks_of_another_shape_or_for_an_old_subtask_are_dropped(
    policy: Any, told: Told, observation: Observation
) -> None:
    sent: list[Chunk] = []
    expert = Expert(policy, CONTRACT, sent.append, told.health, 512)
    expert.set_subtask("pick")
    policy.spoil = lambda actions: actions[:, :7]
    expert.run(observation)
    assert told.health.counts == {"chunk: wrong shape": 1}

    def change_of_mind(actions: Any) -> Any:
        expert.set_subtask("place")
        return actions

    policy.spoil = change_of_mind
    expert.run(observation)
    assert sent == [] and told.health.counts["chunk: for an old subtask"] == 1


def test_wrong_action_size_names_both(policy: Any) -> None:
    check_policy(policy, CONTRACT, "")
    policy.action_shape = (50, 7)
    with pytest.raises(ConfigError, match=r"policy arm\.ckpt gives chunks of 50 steps x 7 entries.*needs 50 x 18"):
        check_policy(policy, CONTRACT, "arm.ckpt")


def test_worker_keeps_the_newest_request_and_prefers_the_expert(worker: Worker, told: Told) -> None:
    begun, go, done = threading.Event(), threading.Event(), threading.Event()
    ran: list[str] = []

    def first() -> None:
        begun.set()
        assert go.wait(20)

    worker.submit("planner", told.health, first)
    assert begun.wait(20)
    worker.submit("planner", told.health, lambda: ran.append("old plan"))
    worker.submit("planner", told.health, lambda: (ran.append("new plan"), done.set())[0])
    worker.submit("action_expert", told.health, lambda: ran.append("chunk"))
    go.set()
    assert done.wait(20)
    assert ran == ["chunk", "new plan"]
    assert told.health.counts == {"request overtaken": 1}


def test_worker_survives_exceptions_and_tells_them(worker: Worker, told: Told) -> None:
    begun, done = threading.Event(), threading.Event()

    def fail() -> None:
        begun.set()
        raise RuntimeError("out of memory")

    worker.submit("planner", told.health, fail)
    assert begun.wait(20)
    worker.cancel("planner")
    assert told.warned == ["inference: RuntimeError: out of memory"]
    assert told.health.counts == {"inference failed": 1}
    worker.submit("action_expert", told.health, done.set)
    assert done.wait(20)


def test_cancel_waits_for_what_runs(worker: Worker, told: Told) -> None:
    begun, go = threading.Event(), threading.Event()
    finished: list[bool] = []

    def job() -> None:
        begun.set()
        assert go.wait(20)
        finished.append(True)

    worker.submit("planner", told.health, job)
    assert begun.wait(20)
    threading.Timer(0.05, go.set).start()
    worker.cancel("planner")
    assert finished == [True]


def test_host_loads_once_and_forgets_with_the_last_user(policy: Any) -> None:
    loaded: list[str] = []

    def load(path: str) -> Any:
        loaded.append(path)
        return policy

    host = PolicyHost(load)
    assert host.acquire("a", CONTRACT) is host.acquire("a", CONTRACT) is policy
    assert loaded == ["a"]
    host.release("a")
    host.acquire("a", CONTRACT)
    host.release("a")
    host.release("a")
    host.acquire("a", CONTRACT)
    assert loaded == ["a", "a"]
    host.release("a")
