"""Closed-loop success in simulation, with confidence intervals, in one process per worker and without DDS."""

import json
import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pi05_ros.contract import load_contract
from pi05_ros.expert.expert import ScriptedExpert
from pi05_ros.paths import share_file
from pi05_ros.rollout import Brain, ExpertBrain, Look, Outcome, PolicyBrain, Rollout, RolloutConfig
from pi05_ros.sim.tasks import CLEAR_TABLE

TaskName = Literal["clear_table"]
TASK_TEXT: dict[str, str] = {"clear_table": CLEAR_TABLE}


@dataclass(frozen=True)
class EvalConfig:
    """Settings of an evaluation."""

    out: Path
    """Folder that receives report.json."""
    task: TaskName = "clear_table"
    """Task to evaluate."""
    episodes: int = 20
    """Number of episodes; episode i uses layout seed + i."""
    seed: int = 1_000_000
    """First layout seed; training uses seeds below 1,000,000."""
    policy: Path | None = None
    """Checkpoint folder; None evaluates the embedded checkpoint."""
    driver: Literal["policy", "expert"] = "policy"
    """Who drives: the policy, or the scripted expert as an upper bound."""
    time_limit_s: float = 60.0
    """Simulated length after which an episode counts as failed."""
    workers: int = 2
    """Processes."""


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Run the episodes and write report.json; return the report.

    The report is {"tasks": {task: {success, ci_low, ci_high, episodes, planner_accuracy, …}}, "episodes": […]}.

    Raises:
        BrokenProcessPool: a worker could not start or died; its own message is above.
    """
    config.out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.workers, context, initializer=_start_worker, initargs=(config,)) as pool:
        running = [pool.submit(_episode, config, config.seed + index) for index in range(config.episodes)]
        for done, finished in enumerate(as_completed(running), 1):
            results.append(finished.result())
            wins = sum(result["success"] for result in results)
            print(f"episode {done}/{config.episodes}: {wins} of {done} succeeded", flush=True)
    report = summarise(config, sorted(results, key=lambda result: int(result["seed"])))
    (config.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def summarise(config: EvalConfig, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Condense episode results into the report."""
    wins = sum(result["success"] for result in results)
    low, high = wilson_interval(wins, len(results))
    looks = sum(result["looks"] for result in results)
    summary = {
        "success": wins / len(results),
        "ci_low": low,
        "ci_high": high,
        "episodes": len(results),
        "objects_cleared": sum(r["cleared"] for r in results) / max(1, sum(r["objects"] for r in results)),
        "planner_accuracy": sum(result["planner_right"] for result in results) / max(1, looks),
        "episodes_without_refusal": sum(not result["refused"] for result in results) / len(results),
        "mean_seconds": sum(result["seconds"] for result in results) / len(results),
    }
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()}
    return {"config": settings, "tasks": {config.task: summary}, "episodes": results}


def wilson_interval(wins: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson score interval of a success rate (Wilson 1927); 95 % for z = 1.96."""
    if trials == 0:
        return 0.0, 1.0
    rate, spread = wins / trials, z * z / trials
    centre = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


_worker: tuple[Rollout, Brain, ScriptedExpert] | None = None


def _start_worker(config: EvalConfig) -> None:
    global _worker
    os.environ.setdefault("MUJOCO_GL", "egl")
    from pi05_model.policy import Pi05Policy
    from pi05_ros.sim.simulator import Simulator

    contract = load_contract()
    expert = ScriptedExpert(contract)
    brain: Brain = ExpertBrain(expert)
    if config.driver == "policy":
        path = config.policy or share_file("checkpoints/pi05_tiny")
        brain = PolicyBrain(contract, Pi05Policy.load(path, threads=1))
    rollout = Rollout(contract, Simulator(contract), RolloutConfig(time_limit_s=config.time_limit_s))
    _worker = (rollout, brain, expert)


def _episode(config: EvalConfig, seed: int) -> dict[str, Any]:
    assert _worker is not None
    rollout, brain, expert = _worker
    task, right, looks = TASK_TEXT[config.task], 0, 0

    def judge(look: Look, subtask: str) -> None:
        nonlocal right, looks
        looks += 1
        right += subtask == expert.choose(look.world, task).text

    outcome: Outcome = rollout.run(seed, task, brain, judge)
    return {"seed": seed, **asdict(outcome), "looks": looks, "planner_right": right}
