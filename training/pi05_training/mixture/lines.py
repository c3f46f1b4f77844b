"""JSON Lines with labels: random access by the place of each line in the file, checked as they are read.

Boxes, wherever they stand: {"label": "red cube", "box": [y_min, x_min, y_max, x_max]}, edges as fractions of the
image, 0 = top or left.
"""

import mmap
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError, model_validator

from pi05_model.prompts import Box
from pi05_training.data.episode import DatasetError


class BoxEntry(BaseModel):
    """A box of a line."""

    label: str
    box: Annotated[list[float], Field(min_length=4, max_length=4)]

    @model_validator(mode="after")
    def _is_a_box(self) -> "BoxEntry":
        self.to_box()
        return self

    def to_box(self) -> Box:
        """Return it as the prompts take it."""
        y_min, x_min, y_max, x_max = self.box
        return Box(y_min, x_min, y_max, x_max, self.label)


Line = TypeVar("Line", bound=BaseModel)


class JsonLines(Generic[Line]):
    """The lines of a file as checked records. Only the places of the lines are kept in memory.

    Args:
        path: the file.
        model: what a line has to be; further keys are allowed.

    Raises:
        DatasetError: it is missing or holds no line.
    """

    def __init__(self, path: Path, model: type[Line]) -> None:
        self.path, self._model = path, model
        self._starts, self._numbers = _line_starts(path)
        if not len(self._starts):
            raise DatasetError(f"{path}: no lines in it; expected one JSON object with {_keys(model)} per line")

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Line:
        """Return a record.

        Raises:
            DatasetError: the line is not valid; names its number and the key.
        """
        with self.path.open("rb") as file:
            file.seek(int(self._starts[index]))
            text = file.readline()
        return self._parse(index, text)

    def where(self, index: int) -> str:
        """Return file and line number of a record, for messages."""
        return f"{self.path}:{int(self._numbers[index])}"

    def _parse(self, index: int, text: bytes) -> Line:
        try:
            return self._model.model_validate_json(text)
        except ValidationError as error:
            raise DatasetError(f"{self.where(index)}: {explain(error)}; expected {_keys(self._model)}") from error


def explain(error: ValidationError) -> str:
    """Return what is wrong with a record, by key."""
    return "; ".join(
        f"{'.'.join(map(str, d['loc'])) or 'line'}: {d['msg']} (value: {_short(d)})" for d in error.errors()
    )


def _short(detail: Any) -> str:
    value = repr(detail["input"])
    return value if len(value) < 80 else value[:77] + "..."


def _keys(model: type[BaseModel]) -> str:
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    optional = [name for name in model.model_fields if name not in required]
    return ", ".join(required) + (f" (and perhaps {', '.join(optional)})" if optional else "")


def _line_starts(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the place in bytes and the number, from 1, of every line that is not blank."""
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                return np.zeros(0, np.int64), np.zeros(0, np.int64)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _scan(data)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from error


def _scan(data: mmap.mmap) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    starts, numbers, start, number = [], [], 0, 0
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        number += 1
        if data[start:end].strip():
            starts.append(start)
            numbers.append(number)
        start = end + 1
    return np.array(starts, np.int64), np.array(numbers, np.int64)
