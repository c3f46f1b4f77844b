"""What a node tells about itself: counters, and trouble that is warned once and recovers. Free of rclpy."""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum


class Level(IntEnum):
    """Levels of diagnostic_msgs/DiagnosticStatus."""

    OK = 0
    WARN = 1
    ERROR = 2
    STALE = 3


@dataclass(frozen=True, slots=True)
class Status:
    """One entry of /diagnostics.

    Attributes:
        part: what it is about; the entry's name is "node: part" (REP-107).
        level: how bad it is.
        message: one line for a person.
        values: figures, by name.
    """

    part: str
    level: Level = Level.OK
    message: str = "ok"
    values: dict[str, str | int | float] = field(default_factory=dict)


class Health:
    """Trouble by key, and counts of what was dropped. Safe to use from several threads.

    Args:
        warn: called once when a trouble begins.
        recovered: called once when it is over.
    """

    def __init__(self, warn: Callable[[str], object], recovered: Callable[[str], object]) -> None:
        self._warn, self._recovered = warn, recovered
        self._lock = threading.Lock()
        self._troubles: dict[str, tuple[str, Level]] = {}
        self._counts: Counter[str] = Counter()

    def trouble(self, key: str, message: str, level: Level = Level.WARN) -> None:
        """Say that something is wrong; told once, until `fine` ends it."""
        with self._lock:
            new = key not in self._troubles
            self._troubles[key] = (message, level)
        if new:
            self._warn(f"{key}: {message}")

    def fine(self, key: str) -> None:
        """Say that something is right (again)."""
        with self._lock:
            old = self._troubles.pop(key, None)
        if old is not None:
            self._recovered(f"{key}: recovered ({old[0]})")

    def set(self, key: str, message: str) -> None:
        """Say that something is wrong, or with an empty message that it is right."""
        if message:
            self.trouble(key, message)
        else:
            self.fine(key)

    def drop(self, reason: str, count: int = 1) -> None:
        """Count something that was dropped or refused."""
        with self._lock:
            self._counts[reason] += count

    @property
    def counts(self) -> dict[str, int]:
        """Drops so far, by reason."""
        with self._lock:
            return dict(self._counts)

    @property
    def troubles(self) -> dict[str, str]:
        """Present troubles, by key."""
        with self._lock:
            return {key: message for key, (message, _) in self._troubles.items()}

    def status(self, part: str = "health") -> Status:
        """Return the worst level, every trouble's message and all counts as one diagnostics entry."""
        with self._lock:
            level = max((lvl for _, lvl in self._troubles.values()), default=Level.OK)
            message = "; ".join(f"{key}: {text}" for key, (text, _) in self._troubles.items()) or "ok"
            return Status(part, level, message, dict(self._counts))
