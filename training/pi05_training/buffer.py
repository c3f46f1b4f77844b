"""Training samples in memory, on the training device, while more keep arriving."""

from dataclasses import dataclass

import torch
from torch import Tensor

Columns = dict[str, Tensor]


@dataclass
class SampleBuffer:
    """A growing table of tensors with a fixed capacity; when it is full, the oldest rows are overwritten.

    Attributes:
        capacity: rows.
        device: where the table lives.
    """

    capacity: int
    device: torch.device

    def __post_init__(self) -> None:
        self._columns: Columns = {}
        self._added = 0

    def __len__(self) -> int:
        return min(self._added, self.capacity)

    @property
    def added(self) -> int:
        """Rows added since the start, overwritten ones included."""
        return self._added

    def add(self, rows: Columns) -> None:
        """Append rows: tensors [n, …] with the same n; the first call fixes names, shapes and types.

        Raises:
            ValueError: the columns are not those of the first call.
        """
        if not self._columns:
            self._columns = {
                name: torch.empty((self.capacity, *column.shape[1:]), dtype=column.dtype, device=self.device)
                for name, column in rows.items()
            }
        if set(rows) != set(self._columns):
            raise ValueError(f"expected columns {sorted(self._columns)}, got {sorted(rows)}")
        count = len(next(iter(rows.values())))
        index = (self._added + torch.arange(count)) % self.capacity
        for name, column in rows.items():
            self._columns[name][index.to(self.device)] = column.to(self.device)
        self._added += count

    def draw(self, count: int, generator: torch.Generator) -> Columns:
        """Draw rows uniformly, with replacement; the generator lives on the CPU so that draws repeat anywhere."""
        index = torch.randint(len(self), (count,), generator=generator).to(self.device)
        return {name: column[index] for name, column in self._columns.items()}
