"""policy_node as a process: one real network (debug size, random weights) behind planner and action expert."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diagnostic_msgs.msg import DiagnosticArray
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from pi05_model.checkpoint import save_checkpoint
from pi05_model.config import PRESETS
from pi05_model.normalize import NormStats
from pi05_model.pi05 import Pi05
from pi05_model.tokenizer import PolicyTokenizer
from pi05_ros import topics
from pi05_ros.contract import load_contract
from pi05_ros.messages import chunk_from

pytestmark = pytest.mark.ros
CONTRACT = load_contract()
SUBTASKS = ("pick up the red cube", "put it into the bin")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("policy")
    samples = np.random.default_rng(0).normal(size=(200, CONTRACT.dim))
    stats = {"state": NormStats.from_samples(samples), "actions": NormStats.from_samples(samples)}
    network = Pi05(PRESETS["pi05_debug"])
    save_checkpoint(path, network, stats, PolicyTokenizer.default(), extra={"subtasks": list(SUBTASKS)})
    return path


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def run(graph: Any, module: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "ROS_DOMAIN_ID": str(graph.context.get_domain_id())}
    command = [sys.executable, "-m", f"pi05_ros.nodes.{module}", "--ros-args", "-p", "use_sim_time:=true", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


@pytest.mark.parametrize(
    "modules", [("policy_process",), ("planner_node", "action_expert_node")], ids=["shared", "split"]
)
def test_images_become_chunks(
    graph: Any, robot: Any, checkpoint: Path, processes: Any, modules: tuple[str, ...]
) -> None:
    chunks, said = graph.hear(JointTrajectory, topics.ACTION_CHUNK), graph.hear(String, topics.SUBTASK)
    told = graph.hear(DiagnosticArray, topics.DIAGNOSTICS)
    options = ("-p", f"policy:={checkpoint}", "-p", "planner_node:task:=clear the table")
    processes += [run(graph, module, *options) for module in modules]
    graph.until(lambda: len(chunks) >= 3, "3 chunks")
    assert said[0].data in SUBTASKS
    for message in chunks:
        chunk = chunk_from(message)
        assert chunk.names == CONTRACT.names and chunk.actions.shape == (50, 18) and np.isfinite(chunk.actions).all()
    assert np.ptp([chunk_from(message).actions[0] for message in chunks], axis=0).max() > 0
    graph.until(
        lambda: {s.name for m in told for s in m.status} >= {"planner_node: planner", "action_expert_node: health"}
    )
    for process in processes:
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)
        assert process.returncode == 0 and "Traceback" not in output, output


def test_missing_checkpoint_ends_the_process_with_its_name(graph: Any, processes: Any) -> None:
    processes.append(run(graph, "policy_process", "-p", "policy:=no/such/checkpoint"))
    output, _ = processes[0].communicate(timeout=60)
    assert processes[0].returncode == 1
    assert "policy: no/such/checkpoint: cannot be loaded" in output and "Traceback" not in output


def test_a_signal_while_the_policy_loads_ends_the_process_at_once(graph: Any, checkpoint: Path, processes: Any) -> None:
    told = graph.hear(DiagnosticArray, topics.DIAGNOSTICS)
    # As a Python program that is told when loading begins: the import of torch is the longest part.
    program = (
        "import sys; from pi05_ros.nodes import policy_process as p; from pi05_ros.inference import PolicyHost\n"
        "def load(path):\n    print('loading', flush=True)\n    __import__('threading').Event().wait(60)\n"
        "h = PolicyHost(load); p.PolicyHost = lambda: h; p.main()"
    )
    environment = {**os.environ, "ROS_DOMAIN_ID": str(graph.context.get_domain_id())}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    processes.append(process)
    assert process.stdout is not None and process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0 and output == "" and not told
