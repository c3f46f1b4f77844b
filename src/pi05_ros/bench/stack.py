"""`pi05 bench stack`: chunk, planner, simulator, memory and torque loop of the whole stack on this machine."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from pi05_ros.bench.figures import Figure, report
from pi05_ros.contract import load_contract
from pi05_ros.graph import EMBEDDED_POLICY
from pi05_ros.paths import share_dir

OUT = Path("out/bench")


@dataclass(frozen=True)
class StackArguments:
    """Measure the whole stack on this machine.

    Attributes:
        json: file that also receives the figures.
        policy: checkpoint folder; empty: the one that the package ships.
        seconds: simulated length of the run of the whole graph; 0 leaves it out.
    """

    json: Path | None = None
    policy: str = ""
    seconds: float = 20.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run `pi05 bench stack`. Returns 0 when everything was measured, whatever the figures are."""
    arguments = tyro.cli(StackArguments, prog="pi05 bench stack", args=None if argv is None else list(argv))
    report("stack", measure(arguments), arguments.json)
    return 0


def measure(arguments: StackArguments) -> Iterator[list[Figure]]:
    """Measure the parts one after another on an otherwise idle machine, then the whole graph.

    Raises:
        CheckpointError: there is no such policy.
        DemoError: the graph did not start.
    """
    os.environ.setdefault("MUJOCO_GL", "egl")
    from pi05_model.policy import Pi05Policy
    from pi05_ros.bench.parts import policy_figures, simulator_figures
    from pi05_ros.bench.whole import stack_figures

    contract = load_contract()
    print("bench: policy …", flush=True)
    yield policy_figures(Pi05Policy.load(arguments.policy or share_dir() / EMBEDDED_POLICY), contract)
    print("bench: simulator …", flush=True)
    yield simulator_figures(contract)
    if arguments.seconds > 0:
        print(f"bench: whole graph, {arguments.seconds:g} s simulated …", flush=True)
        yield stack_figures(arguments.seconds, arguments.policy, contract.rates.torque_hz, OUT)
