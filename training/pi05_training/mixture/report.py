"""What a training really draws, against the weights it was given."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SourceDraws:
    """Draws of one source.

    Attributes:
        name: of the source.
        share: its weight as a part of all weights.
        draws: samples drawn.
        samples: samples that there are.
        groups: episodes, or lines of a list.
        losses: what they carry.
        damaged: samples that had to be replaced.
    """

    name: str
    share: float
    draws: int
    samples: int
    groups: int
    losses: tuple[str, ...]
    damaged: int

    @property
    def epochs(self) -> float:
        """How often each sample was drawn, on average."""
        return self.draws / self.samples


@dataclass(frozen=True, slots=True)
class DrawReport:
    """Draws of every source. `left_out` says what was asked for and is not drawn, and why."""

    sources: tuple[SourceDraws, ...]
    left_out: tuple[str, ...] = ()

    @property
    def draws(self) -> int:
        """Samples drawn of all sources."""
        return sum(source.draws for source in self.sources)

    def __str__(self) -> str:
        head = f"{'source':<12}{'weight':>8}{'drawn':>8}{'draws':>12}{'samples':>12}{'epochs':>9}{'damaged':>9}  losses"
        lines = [
            f"{s.name:<12}{s.share:>8.2%}{s.draws / max(1, self.draws):>8.2%}{s.draws:>12,}{s.samples:>12,}"
            f"{s.epochs:>9.2f}{s.damaged:>9}  {', '.join(s.losses)}"
            for s in self.sources
        ]
        return "\n".join([head, *lines, *(f"left out: {text}" for text in self.left_out)])
