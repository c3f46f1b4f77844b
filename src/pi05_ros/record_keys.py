"""The operator's side of a recorder: keys in a terminal, or one action a call where there is no terminal."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pi05_ros.config import Value
from pi05_ros.graph import GraphArguments, recorder_spec
from pi05_ros.processes import Supervisor
from pi05_ros.terminal import Terminal
from pi05_ros.up import StopSignals, environment, program

NODE = "recorder_node"
LOG = "recorder.log"  # where the lines of a recorder go that was started here
FIND_S = 5.0  # how long a running recorder is looked for before one is started here [s]
ANSWER_S = 15.0
KEYS = {"s": "start", "y": "success", "n": "failure", "d": "discard", "m": "mark", "e": "event"}
HELP = "s start   y keep: success   n keep: failure   d discard   m mark a subtask   e mark an event   q quit"


class RecorderSilent(RuntimeError):
    """No recorder answers; the message says what to start."""


class Recorder:
    """A running recorder_node, as its operator sees it.

    Args:
        client: participant of the graph (`pi05_ros.nodes.record_client.RecordClient`).
        settings: the recorder's parameters that are set before an episode begins.
        poll: called while waiting.
    """

    def __init__(self, client: Any, settings: Mapping[str, Value], poll: Callable[[], object] = lambda: None) -> None:
        self._client, self._settings, self._poll = client, dict(settings), poll

    def there(self, seconds: float) -> bool:
        """Return whether a recorder shows up and answers in time."""
        return self._until(lambda: self._client.reaches(NODE), seconds)

    def act(self, action: str, text: str = "") -> tuple[bool, str]:
        """Do what a key or `--do` asks for; return whether it went well, and what the recorder said.

        Args:
            action: one of the values of `KEYS`.
            text: of a mark.

        Raises:
            RecorderSilent: the recorder did not answer.
        """
        if not self.there(ANSWER_S):  # at once, unless the recorder was started again meanwhile
            raise RecorderSilent(f"{NODE} has gone; is it running, in this namespace and domain?")
        client, settings = self._client, dict(self._settings)
        if action in ("mark", "event"):
            settings = {"mark": text, "mark_kind": "subtask" if action == "mark" else "event"}
        if action in ("start", "mark", "event") and settings:
            well, said = self._answer(client.set_parameters(NODE, settings))
            if not well:
                return well, said
        if action in ("success", "failure"):
            return self._answer(client.set_bool(f"{NODE}/stop", action == "success"))
        return self._answer(client.trigger(f"{NODE}/{'mark' if action == 'event' else action}"))

    def line(self) -> str:
        """Say in a line what the recorder does, and what is wrong."""
        entries = {name.partition(": ")[2]: told for name, told in self._client.status.items() if f"{NODE}:" in name}
        _, message, values = entries.pop("bag", (0, "waiting for the recorder", {}))
        told = message
        if "messages" in values:
            size_mb = float(values["bytes"]) / 1e6
            told = f"{Path(values['bag']).name}: {message}  {values['messages']} messages  {size_mb:.1f} MB"
        wrong = [f"{part}: {said}" for part, (level, said, _) in entries.items() if level > 0 and part != "health"]
        return "  !  ".join([told, *wrong])

    def _answer(self, pending: Any) -> tuple[bool, str]:
        if not self._until(pending.done, ANSWER_S):
            raise RecorderSilent(f"{pending.what} does not answer; is {NODE} running, in this namespace and domain?")
        well, said = pending.result()
        return bool(well), str(said)

    def _until(self, predicate: Callable[[], object], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not predicate() and time.monotonic() < end:
            self._poll()
            time.sleep(0.01)
        return bool(predicate())


def once(action: str, text: str, namespace: str, settings: Mapping[str, Value]) -> int:
    """Do one thing and say how it went. Returns 0 if well.

    Raises:
        RecorderSilent: there is no recorder.
    """
    with graph_client(namespace) as client:
        recorder = Recorder(client, settings)
        if not recorder.there(ANSWER_S):
            raise RecorderSilent(f"no {NODE}; start one with `pi05 record --out DIR` or `pi05 up --record DIR`")
        well, said = recorder.act(action, text)
    print(said, file=sys.stdout if well else sys.stderr)
    return 0 if well else 1


def keyboard(out: Path, namespace: str, settings: Mapping[str, Value]) -> int:
    """Record by keyboard until q or Ctrl-C; a recorder is started if none is running. Returns the exit status.

    An episode that is open at the end is kept by the recorder that was started here, and goes on in one that was not.
    """
    if not sys.stdin.isatty():
        print("pi05 record: no terminal to read keys from; use --do start, success, failure, …", file=sys.stderr)
        return 2
    with ExitStack() as stack:
        signals, client = stack.enter_context(StopSignals()), stack.enter_context(graph_client(namespace))
        recorder = Recorder(client, settings)
        if not recorder.there(FIND_S):
            supervisor = stack.enter_context(_own_recorder(out, namespace, client.now_ns > 0))
            recorder = Recorder(client, settings, supervisor.poll)
            if not recorder.there(ANSWER_S):
                raise RecorderSilent(f"{NODE} did not start: {'; '.join(supervisor.failures) or 'no answer'}")
            print(f"started {NODE}; bags and its {LOG} go to {out}")
        print(HELP)
        terminal = stack.enter_context(Terminal.opened())
        _serve(recorder, terminal, lambda: signals.received)
    return 0


def _serve(recorder: Recorder, terminal: Terminal, over: Callable[[], bool]) -> None:
    while not over():
        key = terminal.key(0.5)
        if key == "q":
            return
        if key in KEYS:
            press(recorder, terminal, KEYS[key])
        terminal.status(recorder.line())


def press(recorder: Recorder, terminal: Terminal, action: str) -> None:
    """Do what a key asks for, and say how it went."""
    text = terminal.ask(f"{action}: ") if action in ("mark", "event") else ""
    well, said = recorder.act(action, text)
    terminal.say(said if well else f"not done: {said}")


@contextmanager
def graph_client(namespace: str) -> Iterator[Any]:
    """A participant of the graph (`pi05_ros.nodes.record_client.RecordClient`)."""
    os.environ.update(environment(GraphArguments()))  # read by the middleware when it starts
    from pi05_ros.nodes.record_client import RecordClient

    with RecordClient(namespace.strip("/")) as client:
        yield client


@contextmanager
def _own_recorder(out: Path, namespace: str, simulated: bool) -> Iterator[Supervisor]:
    """A recorder_node for a robot that is running already."""
    arguments = GraphArguments(namespace=namespace, use_sim_time="true" if simulated else "false")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pi05_record_") as folder, (out / LOG).open("a", encoding="utf-8") as log:
        spec = recorder_spec(arguments, out, on_activate=False)
        with Supervisor([program(spec, Path(folder))], environment(arguments), log) as supervisor:
            yield supervisor
