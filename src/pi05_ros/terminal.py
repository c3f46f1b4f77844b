"""A terminal that gives single keys and has a status line."""

import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Terminal:
    """A terminal that gives single keys, with a status line at the bottom of what was said."""

    def __init__(self, fd: int, cooked: list[Any]) -> None:
        self._fd, self._cooked = fd, cooked

    @classmethod
    @contextmanager
    def opened(cls) -> "Iterator[Terminal]":
        """Take single keys while entered; the terminal is given back as it was."""
        fd = sys.stdin.fileno()
        cooked = termios.tcgetattr(fd)
        tty.setcbreak(fd)
        try:
            yield cls(fd, cooked)
        finally:
            termios.tcsetattr(fd, termios.TCSADRAIN, cooked)
            print()

    def key(self, seconds: float) -> str:
        """Return a key, or nothing when none was pressed in time."""
        if not select.select([self._fd], [], [], seconds)[0]:
            return ""
        read = os.read(self._fd, 1)
        return read.decode(errors="ignore") if read else "q"  # end of file: the terminal has gone

    def ask(self, prompt: str) -> str:
        """Return a line that was typed."""
        termios.tcsetattr(self._fd, termios.TCSADRAIN, self._cooked)
        print(f"\r\033[K{prompt}", end="", flush=True)
        try:
            return sys.stdin.readline().strip()
        finally:
            tty.setcbreak(self._fd)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        print(f"\r\033[K{text}", flush=True)

    def status(self, text: str) -> None:
        """Show a line that the next one replaces."""
        width = os.get_terminal_size(self._fd).columns or 80
        print(f"\r\033[K{text[: width - 1]}", end="", flush=True)
