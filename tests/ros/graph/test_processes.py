"""The supervisor, on real processes: deaths, restarts, and that nothing is left behind."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pi05_ros.processes import KILL_S, REAP_S, Program, RespawnLimit, Supervisor

ENV = {**os.environ, "PYTHONUNBUFFERED": "1", "_ROS_WHEELS_BOOTSTRAP_COMPLETE": "1"}
SLEEPER = "import time; print('up'); time.sleep(600)"
# Ignores polite signals, and has a child that does too.
STUBBORN = """
import signal, subprocess, sys, time
for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
print("pids", child.pid)
time.sleep(600)
"""


def python(name: str, source: str, **how: bool) -> Program:
    return Program(name, [sys.executable, "-S", "-c", source], **how)


def wait_for(predicate: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not predicate() and time.monotonic() < end:
        time.sleep(0.01)
    return predicate()


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    with io.StringIO() as stream:
        yield stream


def test_lines_carry_the_name_of_their_process(output: io.StringIO) -> None:
    programs = [python("one", "print('hello')"), python("three", "import sys; print('oh', file=sys.stderr)")]
    with Supervisor(programs, ENV, output) as supervisor:
        supervisor.run(lambda: not supervisor.pids)
    lines = output.getvalue().splitlines()
    assert "[one  ] hello" in lines
    assert "[three] oh" in lines
    assert supervisor.failures == []


def test_a_dead_process_is_restarted_up_to_the_limit(output: io.StringIO) -> None:
    limit = RespawnLimit(count=2, delay_s=0.01)
    with Supervisor([python("poor", "raise SystemExit(3)", respawn=True)], ENV, output, limit) as supervisor:
        supervisor.run(lambda: bool(supervisor.failures), period_s=0.01)
    assert supervisor.failures == ["poor died (exit status 3) again, after 2 restarts in 60 s"]
    assert output.getvalue().count("restart") == 3
    assert not supervisor.finished


def test_a_killed_process_comes_back(output: io.StringIO) -> None:
    limit = RespawnLimit(delay_s=0.01)
    with Supervisor([python("node", SLEEPER, respawn=True)], ENV, output, limit) as supervisor:
        first = supervisor.pids["node"]
        os.kill(first, signal.SIGKILL)
        supervisor.run(lambda: supervisor.pids.get("node", first) != first, period_s=0.01)
        second = supervisor.pids["node"]
        assert alive(second)
    assert "died (SIGKILL); restart 1 of 3" in output.getvalue()
    assert not alive(second)


def test_the_death_of_a_critical_process_ends_the_graph(output: io.StringIO) -> None:
    programs = [python("sim", "raise SystemExit(1)", critical=True), python("other", SLEEPER)]
    with Supervisor(programs, ENV, output) as supervisor:
        other = supervisor.pids["other"]
        supervisor.run(lambda: False)
    assert supervisor.failures == ["sim died (exit status 1)"]
    assert not alive(other)


def test_a_program_that_does_not_exist_is_a_failure(output: io.StringIO) -> None:
    with Supervisor([Program("ghost", ["/nowhere/ghost"], critical=True)], ENV, output) as supervisor:
        supervisor.run(lambda: False)
    assert "cannot be started" in supervisor.failures[0]


def test_stubborn_processes_and_their_children_are_gone_within_five_seconds(output: io.StringIO) -> None:
    with Supervisor([python("stubborn", STUBBORN)], ENV, output) as supervisor:
        supervisor.run(lambda: "pids" in output.getvalue())
        pids = [*supervisor.pids.values(), int(output.getvalue().split()[-1])]
        assert all(map(alive, pids))
        begin = time.monotonic()
    assert KILL_S + REAP_S <= 5.0
    assert time.monotonic() - begin < 15.0  # the bound, and a machine under load
    assert wait_for(lambda: not any(map(alive, pids)))


def test_nothing_outlives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "supervise.py"
    script.write_text(
        "import os, sys\n"
        "from pi05_ros.processes import Program, Supervisor\n"
        f"programs = [Program('stubborn', [sys.executable, '-S', '-c', {STUBBORN!r}])]\n"
        "with Supervisor(programs, dict(os.environ)) as supervisor:\n"
        "    print('pid', *supervisor.pids.values(), flush=True)\n"
        "    supervisor.run(lambda: False)\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=ENV, text=True)
    assert process.stdout is not None
    with process.stdout:
        pids = [int(process.stdout.readline().split()[-1]) for _ in range(2)]
        process.kill()
        process.wait()
    assert wait_for(lambda: not any(map(alive, pids)))
