"""`pi05 teleop`: the keyboard as a gamepad (`joy`), with the recorder's keys as capital letters.

A terminal tells no release of a key, only that it repeats: a key holds its axis until the next repeat is overdue.
"""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import tyro

from pi05_ros.record_keys import Recorder, graph_client, press
from pi05_ros.teleop_joy import (
    AXES,
    BUTTON_A,
    BUTTON_B,
    BUTTON_LB,
    BUTTON_RB,
    BUTTONS,
    CROSS_X,
    CROSS_Y,
    LEFT_X,
    LEFT_Y,
    RIGHT_X,
    RIGHT_Y,
)
from pi05_ros.terminal import Terminal
from pi05_ros.up import StopSignals

PERIOD_S = 0.05
FIRST_S, NEXT_S = 0.6, 0.25  # a key counts as held so long: until it begins to repeat, and while it does
QUIT = ("\x1b", "\x03")  # Esc, Ctrl-C
TARGETS = {"1": ("base", ()), "2": ("left tool", (BUTTON_LB,)), "3": ("right tool", (BUTTON_RB,))}
# Key -> axis and direction.
MOVES = {
    "w": (LEFT_Y, 1.0),
    "s": (LEFT_Y, -1.0),
    "a": (LEFT_X, 1.0),
    "d": (LEFT_X, -1.0),
    "q": (RIGHT_X, 1.0),
    "e": (RIGHT_X, -1.0),
    "r": (RIGHT_Y, 1.0),
    "f": (RIGHT_Y, -1.0),
    "t": (CROSS_Y, 1.0),
    "g": (CROSS_Y, -1.0),
    "z": (CROSS_X, 1.0),
    "x": (CROSS_X, -1.0),
}
HANDS = {"c": BUTTON_A, "o": BUTTON_B}
RECORD = {"S": "start", "Y": "success", "N": "failure", "D": "discard", "M": "mark", "E": "event"}
HELP = """\
1 base  2 left tool  3 right tool     + - faster, slower     space stop     Esc quit
w s forward, back  a d left, right  q e turn     base: t g lift
tool: r f up, down  t g pitch  z x roll  c close  o open
recording: S start  Y keep: success  N keep: failure  D discard  M mark a subtask  E mark an event"""


class Keyboard:
    """Keys in, a gamepad's axes and buttons out.

    Attributes:
        target: what moves, in words.
        speed: share of full deflection that a key gives.
    """

    def __init__(self) -> None:
        self.target, self.speed = "base", 0.5
        self._shoulder: tuple[int, ...] = ()
        self._until: dict[str, float] = {}

    def press(self, key: str, now_s: float) -> bool:
        """Take a key; return whether it means anything here."""
        if key in TARGETS:
            self.target, self._shoulder = TARGETS[key]
            self._until.clear()
        elif key in MOVES or key in HANDS:
            held = self._until.get(key, float("-inf")) > now_s
            self._until[key] = now_s + (NEXT_S if held else FIRST_S)
        elif key == " ":
            self._until.clear()
        elif key in ("+", "-"):
            self.speed = min(1.0, max(0.1, round(self.speed + (0.1 if key == "+" else -0.1), 1)))
        else:
            return False
        return True

    def joy(self, now_s: float) -> tuple[list[float], list[int]]:
        """Return axes and buttons as they are now."""
        axes, buttons = [0.0] * AXES, [0] * BUTTONS
        for key, until_s in self._until.items():
            if until_s <= now_s:
                continue
            if key in HANDS:
                buttons[HANDS[key]] = 1
            else:
                axis, direction = MOVES[key]
                axes[axis] += direction * self.speed
        for button in self._shoulder:
            buttons[button] = 1
        return axes, buttons


@dataclass(frozen=True)
class TeleopArguments:
    """Drive the robot from the keyboard; the graph must run with `--driver teleop`.

    Attributes:
        namespace: namespace of the nodes.
        task: the prompt of what is recorded, if nobody says it on the topic `task`.
        notes: for the bags' metadata, as "key=value; key=value".
    """

    namespace: str = ""
    task: str = ""
    notes: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `pi05 teleop` until Esc or Ctrl-C. Returns 0, or 2 where there is no terminal."""
    arguments = tyro.cli(TeleopArguments, prog="pi05 teleop", args=None if argv is None else list(argv))
    if not sys.stdin.isatty():
        print("pi05 teleop: no terminal to read keys from; publish sensor_msgs/Joy on `joy` instead", file=sys.stderr)
        return 2
    settings = {name: value for name, value in (("task", arguments.task), ("notes", arguments.notes)) if value}
    with ExitStack() as stack:
        signals, client = stack.enter_context(StopSignals()), stack.enter_context(graph_client(arguments.namespace))
        print(HELP)
        terminal = stack.enter_context(Terminal.opened())
        _drive(client.joy, Recorder(client, settings), terminal, lambda: signals.received)
        client.joy([0.0] * AXES, [0] * BUTTONS)
    return 0


def _drive(
    say: Callable[[Sequence[float], Sequence[int]], None],
    recorder: Recorder,
    terminal: Terminal,
    over: Callable[[], bool],
) -> None:
    keyboard, shown_s = Keyboard(), 0.0
    while not over():
        key, now_s = terminal.key(PERIOD_S), time.monotonic()
        recording = recorder.there(0.0)  # every time, not only for its keys: reaching a recorder takes some turns
        if key in QUIT:
            return
        if key in RECORD:
            if recording:
                press(recorder, terminal, RECORD[key])
            else:
                terminal.say("not done: no recorder runs; start one with `pi05 record --out DIR`")
        elif key:
            keyboard.press(key, now_s)
        say(*keyboard.joy(now_s))
        if now_s - shown_s > 0.5 or key:
            shown_s = now_s
            terminal.status(f"{keyboard.target}  speed {keyboard.speed:.1f}  |  {recorder.line()}")
