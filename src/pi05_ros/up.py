"""`pi05 up`: the graph in a plain virtual environment, where there is no `ros2 launch`.

`run_graph` is the same for programs: the demo and the tests start the graph with it and watch it from outside.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TextIO

import tyro

from pi05_ros.graph import PROFILE, GraphArguments, GraphError, NodeSpec, build_graph
from pi05_ros.paths import share_file
from pi05_ros.processes import Program, Supervisor


@dataclass(frozen=True)
class GraphOutcome:
    """How a run ended.

    Attributes:
        failures: one sentence for each process that died and stayed down.
        interrupted: SIGINT, SIGTERM or SIGHUP ended it.
        seconds: wall time.
    """

    failures: tuple[str, ...] = ()
    interrupted: bool = False
    seconds: float = 0.0

    @property
    def exit_status(self) -> int:
        """0 unless a process failed."""
        return 1 if self.failures else 0


@dataclass
class StopSignals:
    """While entered, SIGINT, SIGTERM and SIGHUP set `received` instead of ending this process. Main thread only."""

    received: bool = False
    _before: dict[signal.Signals, object] = field(default_factory=dict)

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, *_: object) -> None:
        self.received = True


def run_graph(
    arguments: GraphArguments,
    duration_s: float | None = None,
    until: Callable[[], bool] | None = None,
    output: TextIO | None = None,
) -> GraphOutcome:
    """Start the graph, watch it, end it.

    Args:
        arguments: which graph.
        duration_s: wall time after which it ends; None: no limit.
        until: asked about 20 times a second; ends the graph when true. It must not block for long.
        output: where the nodes' lines go; None: standard output.

    Raises:
        GraphError: the arguments describe no graph that can be started.
        ValueError: called outside the main thread, which alone can catch signals.
    """
    specs = build_graph(arguments)
    begin = time.monotonic()

    def done() -> bool:
        late = duration_s is not None and time.monotonic() - begin >= duration_s
        return signals.received or late or (until is not None and until())

    with tempfile.TemporaryDirectory(prefix="pi05_up_") as folder, StopSignals() as signals:
        programs = [program(spec, Path(folder)) for spec in specs]
        with Supervisor(programs, environment(arguments), output) as supervisor:
            supervisor.run(done)
    return GraphOutcome(tuple(supervisor.failures), signals.received, time.monotonic() - begin)


def program(spec: NodeSpec, folder: Path) -> Program:
    """Return the process for a node spec: this interpreter runs the module, so nothing needs to be installed.

    Args:
        spec: the process.
        folder: where its parameters are written.
    """
    parameters = folder / f"{spec.name}.yaml"
    parameters.write_text(spec.parameters_yaml(), encoding="utf-8")
    command = [sys.executable, "-m", spec.module, "--ros-args", *spec.ros_arguments(parameters)]
    return Program(spec.name, command, respawn=spec.respawn, critical=spec.critical)


def environment(arguments: GraphArguments) -> dict[str, str]:
    """Return the nodes' environment: this process's, with what a plain virtual environment lacks filled in."""
    env = dict(os.environ)
    env.setdefault("FASTDDS_DEFAULT_PROFILES_FILE", str(share_file(PROFILE)))
    env.setdefault("AMENT_PREFIX_PATH", sys.prefix)
    env.setdefault("MUJOCO_GL", "glfw" if arguments.viewer else "egl")
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning torch threads would take the cores from the torque loop
    env["PYTHONUNBUFFERED"] = "1"
    here = str(Path(__file__).resolve().parents[1])
    env["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [env.get("PYTHONPATH")])])
    return env


@dataclass(frozen=True)
class UpArguments:
    """Start the simulated or real robot with every node; Ctrl-C ends it.

    Attributes:
        duration: end by itself after so many seconds of wall time; 0: run until Ctrl-C.
    """

    graph: GraphArguments
    duration: float = 0.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run `pi05 up`. Returns the exit status: 0 done, 1 a process failed, 2 wrong arguments."""
    flat = Annotated[UpArguments, tyro.conf.OmitArgPrefixes]
    arguments = tyro.cli(flat, prog="pi05 up", args=None if argv is None else list(argv))
    try:
        outcome = run_graph(arguments.graph, arguments.duration or None)
    except GraphError as error:
        print(f"pi05 up: {error}", file=sys.stderr)
        return 2
    for failure in outcome.failures:
        print(f"pi05 up: {failure}", file=sys.stderr)
    return outcome.exit_status


if __name__ == "__main__":
    sys.exit(main())
