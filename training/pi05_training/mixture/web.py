"""Sources without a robot: pictures with questions (WD) and verbal instructions (VI).

    folder/samples.jsonl    {"image": "pictures/1.jpg", "prompt": "caption the image", "answer": "a red ball"}
                            {"image": …, "prompt": "detect cup", "boxes": [{"label": "cup", "box": [0, 0.2, 1, 0.6]}]}
    folder/samples.jsonl    {"task": "clean the kitchen", "subtask": "pick up the sponge"}
                            {…, "images": {"base_0_rgb": "pictures/1.jpg"}, "state": [0.1, …]}

Paths are relative to the folder. A detection may have an answer as well: it comes after the boxes.
"""

from pathlib import Path

import numpy as np
from pydantic import BaseModel, model_validator

from pi05_model.observation import Image
from pi05_model.prompts import ControlMode
from pi05_ros.contract import Contract
from pi05_ros.messages import MessageError, decode_jpeg
from pi05_training.data.episode import DatasetError
from pi05_training.data.spread import spread
from pi05_training.mixture.example import Reading
from pi05_training.mixture.groups import Groups
from pi05_training.mixture.lines import BoxEntry, JsonLines
from pi05_training.mixture.sources import Source, read_some

SAMPLES = "samples.jsonl"
# Lines whose files are looked for before training; the others are found missing when it is their turn.
_LOOKED_AT = 100


class WebLine(BaseModel):
    """A picture with a question."""

    image: str
    prompt: str
    answer: str | None = None
    boxes: list[BoxEntry] = []

    @model_validator(mode="after")
    def _says_something(self) -> "WebLine":
        _need_text("prompt", self.prompt)
        if not (self.answer or "").strip() and not self.boxes:
            raise ValueError("neither answer nor boxes: there is nothing to learn")
        return self


class VerbalLine(BaseModel):
    """What somebody told the robot to do next, with what it saw then where that is known."""

    task: str
    subtask: str
    images: dict[str, str] = {}
    state: list[float] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "VerbalLine":
        _need_text("task", self.task)
        _need_text("subtask", self.subtask)
        return self


class WebSource(Source):
    """Pictures with captions, answers or boxes.

    Args:
        name, weight: of `Source`; what can be learned is text.
        folder: holds samples.jsonl and the pictures.
        camera: model key under which the network sees the picture.

    Raises:
        DatasetError: the file or a picture is missing, or a line is not valid.
    """

    def __init__(self, name: str, weight: float, folder: Path, camera: str) -> None:
        self.folder, self._camera = folder, camera
        self._lines = JsonLines(folder / SAMPLES, WebLine)
        super().__init__(name, weight, frozenset({"text"}), Groups.of_lines(len(self._lines), folder.resolve().name))
        for index in spread(len(self._lines), _LOOKED_AT):
            _find(folder, self._lines[index].image, self._lines.where(index))
        read_some(self)

    def _read(self, place: int) -> Reading:
        line, where = self._lines[place], self._lines.where(place)
        return Reading(
            prompt=line.prompt,
            images={self._camera: _picture(self.folder, line.image, where)},
            answer=line.answer or None,
            boxes=tuple(entry.to_box() for entry in line.boxes),
            box_camera=self._camera,
        )


class VerbalSource(Source):
    """Verbal instructions.

    Args:
        name, weight: of `Source`; what can be learned is text.
        folder: holds samples.jsonl and the pictures.
        contract: the robot; a state, where it is given, is its vector.
        control: control mode of the prompts.

    Raises:
        DatasetError: the file or a picture is missing, or a line is not valid.
    """

    def __init__(
        self, name: str, weight: float, folder: Path, contract: Contract, control: ControlMode | None = None
    ) -> None:
        self.folder, self._control = folder, control
        self._dim = contract.dim
        self._cameras = [camera.model_key for camera in contract.cameras.values()]
        self._lines = JsonLines(folder / SAMPLES, VerbalLine)
        super().__init__(name, weight, frozenset({"text"}), Groups.of_lines(len(self._lines), folder.resolve().name))
        for index in spread(len(self._lines), _LOOKED_AT):
            for file in self._lines[index].images.values():
                _find(folder, file, self._lines.where(index))
        read_some(self)

    def _read(self, place: int) -> Reading:
        line, where = self._lines[place], self._lines.where(place)
        unknown = sorted(line.images.keys() - set(self._cameras))
        if unknown:
            raise DatasetError(f"{where}: images: no camera {', '.join(unknown)}; ours: {', '.join(self._cameras)}")
        state = None if line.state is None else np.array(line.state, np.float32)
        if state is not None and (len(state) != self._dim or not np.isfinite(state).all()):
            raise DatasetError(f"{where}: state: {len(state)} entries, expected {self._dim} finite ones")
        return Reading(
            prompt=line.task,
            images={key: _picture(self.folder, file, where) for key, file in line.images.items()},
            state=state,
            answer=line.subtask,
            control=self._control,
        )


def _need_text(key: str, text: str) -> None:
    if not text.strip():
        raise ValueError(f"{key} is empty")


def _find(folder: Path, name: str, where: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise DatasetError(f"{where}: {path}: no such picture; paths are relative to {folder}")
    return path


def _picture(folder: Path, name: str, where: str) -> Image:
    path = _find(folder, name, where)
    try:
        return decode_jpeg(path.read_bytes())
    except (OSError, MessageError) as error:
        raise DatasetError(f"{where}: {path}: {error}") from error
