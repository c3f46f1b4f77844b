"""Starting, watching and ending processes, so that none is ever left behind.

Each process leads its own session, so that Ctrl-C in a terminal reaches the supervisor alone and ends are orderly:
SIGINT to all, SIGTERM after 2.5 s, SIGKILL after 4 s, always to the whole process group. A guardian process holds the
other end of a pipe; should the supervisor vanish (SIGKILL, out of memory), the pipe closes and the guardian ends the
groups in the same way. It does what PR_SET_PDEATHSIG would, and more: it reaches grandchildren, and those that hang.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, TextIO

TERM_S, KILL_S = 2.5, 4.0  # from the start of the end until SIGTERM, until SIGKILL
REAP_S = 0.5  # what a killed process may take to vanish

# Reads "+pgid" and "-pgid" lines; at end of file it ends the groups that are left. Deliberately imports no package.
_GUARDIAN = """
import os, signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
groups = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
for number, wait_s in ((signal.SIGINT, {interrupt}), (signal.SIGTERM, {terminate}), (signal.SIGKILL, 0)):
    end = time.monotonic() + wait_s
    for group in tuple(groups):
        try: os.killpg(group, number)
        except ProcessLookupError: groups.discard(group)
    while groups and time.monotonic() < end:
        time.sleep(0.05)
        for group in tuple(groups):
            try: os.killpg(group, 0)
            except ProcessLookupError: groups.discard(group)
"""


@dataclass(frozen=True)
class Program:
    """One process to keep running.

    Attributes:
        name: prefix of its output.
        command: argument vector.
        respawn: start it again when it dies (not after a clean exit).
        critical: when it ends, everything ends.
    """

    name: str
    command: Sequence[str]
    respawn: bool = False
    critical: bool = False


@dataclass(frozen=True, slots=True)
class RespawnLimit:
    """At most `count` restarts of one program within `window_s`, each `delay_s` after the death."""

    count: int = 3
    window_s: float = 60.0
    delay_s: float = 1.0


@dataclass
class _Child:
    program: Program
    process: "subprocess.Popen[bytes] | None" = None
    reader: threading.Thread | None = None
    restarts: list[float] = field(default_factory=list)
    start_at: float | None = None


class Supervisor:
    """Runs programs until they are stopped. Use it as a context manager; leaving it ends every process.

    Args:
        programs: what to run.
        environment: the processes' environment.
        output: where their lines and the supervisor's own go.
        limit: how often a program is restarted.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        environment: Mapping[str, str],
        output: TextIO | None = None,
        limit: RespawnLimit | None = None,
    ) -> None:
        self._children = [_Child(program) for program in programs]
        self._environment = dict(environment)
        self._output = output or sys.stdout
        self._limit = limit or RespawnLimit()
        self._lock = threading.Lock()
        self._width = max((len(program.name) for program in programs), default=0)
        self._guardian: subprocess.Popen[bytes] | None = None
        self.failures: list[str] = []  # one sentence for each program that died and did not come back
        self.finished = False  # a critical program has ended

    def __enter__(self) -> "Supervisor":
        self._guardian = _start_guardian()
        for child in self._children:
            self._start(child)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the running programs, by name."""
        running = ((child.program.name, child.process) for child in self._children)
        return {name: process.pid for name, process in running if process is not None}

    def run(self, done: Callable[[], bool], period_s: float = 0.05) -> None:
        """Watch the programs until `done()` is true or a critical program has ended."""
        while not self.finished and not done():
            self.poll()
            time.sleep(period_s)

    def poll(self) -> None:
        """Notice deaths, and restart what is due."""
        for child in self._children:
            if child.process is not None and child.process.poll() is not None:
                self._reap(child)
            elif child.start_at is not None and time.monotonic() >= child.start_at:
                self._start(child)

    def stop(self) -> None:
        """End every process: SIGINT, then SIGTERM, then SIGKILL; returns within 5 s with none left."""
        begin = time.monotonic()
        steps = [(signal.SIGINT, TERM_S), (signal.SIGTERM, KILL_S), (signal.SIGKILL, KILL_S + REAP_S)]
        for number, until_s in steps:
            running = [child for child in self._children if child.process is not None]
            for child in running:
                if number != signal.SIGINT:
                    self._say(child.program.name, f"still running; {number.name}")
                _signal_group(child, number)
            while any(child.process is not None for child in self._children):
                for child in self._children:
                    if child.process is not None and child.process.poll() is not None:
                        self._release(child)
                if time.monotonic() - begin > until_s:
                    break
                time.sleep(0.02)
        self._end_guardian()

    def _start(self, child: _Child) -> None:
        child.start_at = None
        try:
            process = subprocess.Popen(
                child.program.command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            self._fail(child, f"cannot be started: {error}")
            return
        child.process = process
        self._tell_guardian(f"+{process.pid}")
        assert process.stdout is not None
        child.reader = threading.Thread(
            target=self._forward, args=(child.program.name, process.stdout), name=child.program.name, daemon=True
        )
        child.reader.start()

    def _reap(self, child: _Child) -> None:
        """Decide what a death means."""
        assert child.process is not None
        code = child.process.returncode
        self._release(child)
        if code == 0:
            self._say(child.program.name, "ended")
            self.finished |= child.program.critical
            return
        how = f"died ({_describe(code)})"
        now = time.monotonic()
        child.restarts = [at for at in child.restarts if now - at < self._limit.window_s]
        if child.program.respawn and len(child.restarts) < self._limit.count:
            child.restarts.append(now)
            child.start_at = now + self._limit.delay_s
            self._say(child.program.name, f"{how}; restart {len(child.restarts)} of {self._limit.count}")
            return
        if child.program.respawn:
            how += f" again, after {self._limit.count} restarts in {self._limit.window_s:.0f} s"
        self._fail(child, how)

    def _fail(self, child: _Child, how: str) -> None:
        self.failures.append(f"{child.program.name} {how}")
        self._say(child.program.name, f"{how}; it stays down")
        self.finished |= child.program.critical

    def _release(self, child: _Child) -> None:
        """Forget a process that has ended, and end what it left in its group."""
        assert child.process is not None
        _signal_group(child, signal.SIGKILL)
        self._tell_guardian(f"-{child.process.pid}")
        if child.reader is not None:
            child.reader.join(timeout=1.0)
        child.process = child.reader = None

    def _forward(self, name: str, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self._say(name, line.decode(errors="replace").rstrip("\n"))

    def _say(self, name: str, line: str) -> None:
        with self._lock:
            print(f"[{name:<{self._width}}] {line}", file=self._output, flush=True)

    def _tell_guardian(self, line: str) -> None:
        if self._guardian is None or self._guardian.stdin is None:
            return
        try:
            self._guardian.stdin.write(f"{line}\n".encode())
            self._guardian.stdin.flush()
        except BrokenPipeError:  # somebody killed the guardian; an orderly end still works without it
            self._guardian.stdin = None

    def _end_guardian(self) -> None:
        if self._guardian is not None:
            if self._guardian.stdin is not None:
                self._guardian.stdin.close()
            self._guardian.wait()
            self._guardian = None


def _start_guardian() -> "subprocess.Popen[bytes]":
    source = _GUARDIAN.format(interrupt=TERM_S, terminate=KILL_S - TERM_S)
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", source],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _signal_group(child: _Child, number: signal.Signals) -> None:
    assert child.process is not None
    try:
        os.killpg(child.process.pid, number)  # it leads its session: its pid is the group's
    except (ProcessLookupError, PermissionError):
        return


def _describe(code: int) -> str:
    """Say an exit status as Popen gives it."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
