"""Small made-up web and verbal-instruction sets, for tests and for the tiny recipe.

    python -m pi05_training.mixture.synthetic OUT --robot DATASET

Pictures show one or two coloured objects of the kinds that the simulator has, in its words. Captions, questions and
boxes are true of the picture, so that a network can learn them; a verbal instruction asks for one object, and the
subtask picks it up with the arm on whose side it lies. Writes OUT/web, OUT/verbal and OUT/mixture.yaml.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tyro
import yaml

from pi05_model.observation import Image
from pi05_ros.contract import load_contract
from pi05_ros.messages import encode_jpeg
from pi05_ros.sim.tasks import COLOURS, SHAPES, Subtask
from pi05_training.data.episode import DatasetError
from pi05_training.data.open import open_dataset
from pi05_training.mixture.web import SAMPLES

_RGB = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 200), "yellow": (220, 200, 50)}
# Half width and half height of each kind as it is drawn, as a fraction of the picture.
_EXTENT = {"cube": (0.09, 0.09), "cylinder": (0.07, 0.12), "block": (0.14, 0.07)}
_REQUESTS = ("hand me the {}", "now the {} please", "get the {}", "take the {} next", "could you grab the {}")
_STATES = 64
_NUMBERS = ("no", "one", "two")
_VERBAL_CAMERA = "base_0_rgb"


@dataclass(frozen=True)
class SyntheticArguments:
    """Make web data and verbal instructions.

    Attributes:
        out: folder to write; new or empty.
        robot: dataset that mixture.yaml takes beside them; verbal instructions are said in its states.
        web: pictures with questions.
        verbal: verbal instructions.
        size: edge of a picture [px].
        seed: of what is shown and asked.
    """

    out: tyro.conf.Positional[Path]
    robot: Path | None = None
    web: int = 200
    verbal: int = 100
    size: int = 224
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Object:
    """An object in a picture; edges are fractions of it."""

    colour: str
    shape: str
    x: float
    y: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def box(self) -> list[float]:
        width, height = _EXTENT[self.shape]
        return [round(edge, 4) for edge in (self.y - height, self.x - width, self.y + height, self.x + width)]


def write_sets(arguments: SyntheticArguments) -> Path:
    """Write both sets and a mixture of them; return the mixture's file.

    Raises:
        DatasetError: the folder is not empty, or a number is not positive.
    """
    out = arguments.out
    if out.exists() and any(out.iterdir()):
        raise DatasetError(f"{out}: is not empty; give a new folder")
    if min(arguments.web, arguments.verbal, arguments.size) < 1:
        raise DatasetError("web, verbal and size must be at least 1")
    rng = np.random.default_rng(arguments.seed)
    states = _states(arguments.robot)
    web = (_web_line(objects, rng) for objects in _scenes(rng, arguments.web))
    _write(out / "web", web, arguments.size, rng)
    verbal = (_verbal_line(objects, rng, states) for objects in _scenes(rng, arguments.verbal))
    _write(out / "verbal", verbal, arguments.size, rng)
    sources: list[dict[str, Any]] = [
        {"name": "WD", "data": "web", "weight": 1.0},
        {"name": "VI", "data": "verbal", "weight": 1.0},
    ]
    if arguments.robot is not None:
        robot = str(arguments.robot.resolve())
        sources.insert(0, {"name": "MM", "data": robot, "weight": 8.0})
    path = out / "mixture.yaml"
    path.write_text(yaml.safe_dump({"sources": sources}, sort_keys=False), encoding="utf-8")
    return path


def _scenes(rng: np.random.Generator, count: int) -> Iterator[list[_Object]]:
    """Yield one or two objects of different colours, the first one to the left."""
    for _ in range(count):
        number = int(rng.integers(1, 3))
        colours = rng.permutation(COLOURS)[:number].tolist()
        lefts = [0.25, 0.75] if number == 2 else [float(rng.choice([0.25, 0.75]))]
        yield [
            _Object(colour, str(rng.choice(SHAPES)), left + rng.uniform(-0.08, 0.08), rng.uniform(0.3, 0.7))
            for colour, left in zip(colours, lefts, strict=True)
        ]


def _web_line(objects: list[_Object], rng: np.random.Generator) -> tuple[dict[str, Any], list[_Object]]:
    chosen = objects[int(rng.integers(len(objects)))]
    colour = str(rng.choice(COLOURS))
    found = [one.name for one in objects if one.colour == colour]
    lines: list[dict[str, Any]] = [
        {"prompt": "caption the image", "answer": " and ".join(f"a {one.name}" for one in objects)},
        {"prompt": f"what is {colour}", "answer": found[0] if found else "nothing"},
        {"prompt": "how many objects are there", "answer": _NUMBERS[len(objects)]},
        {"prompt": f"where is the {chosen.name}", "answer": "left" if chosen.x < 0.5 else "right"},
        {"prompt": f"detect {chosen.name}", "boxes": [{"label": chosen.name, "box": chosen.box}]},
    ]
    return lines[int(rng.integers(len(lines)))], objects


def _verbal_line(
    objects: list[_Object], rng: np.random.Generator, states: list[list[float]]
) -> tuple[dict[str, Any], list[_Object]]:
    chosen = objects[int(rng.integers(len(objects)))]
    side = "left" if chosen.x < 0.5 else "right"
    task = str(rng.choice(_REQUESTS)).format(chosen.name)
    line: dict[str, Any] = {"task": task, "subtask": Subtask("pick", chosen.name, side).text}
    if states:
        line["state"] = states[int(rng.integers(len(states)))]
    return line, objects


def _states(robot: Path | None) -> list[list[float]]:
    """Return some states of the robot's data, so that an instruction's prompt has the form that it has on the robot."""
    if robot is None:
        return []
    dataset, dim = open_dataset(robot), load_contract().dim
    found = [dataset.labels(k * len(dataset) // _STATES)[0] for k in range(_STATES)]
    return [[round(float(x), 4) for x in state] for state in found if len(state) == dim]


def _write(
    folder: Path, lines: Iterator[tuple[dict[str, Any], list[_Object]]], size: int, rng: np.random.Generator
) -> None:
    (folder / "pictures").mkdir(parents=True)
    with (folder / SAMPLES).open("w", encoding="utf-8") as file:
        for number, (line, objects) in enumerate(lines):
            name = f"pictures/{number:06d}.jpg"
            (folder / name).write_bytes(encode_jpeg(_picture(objects, size, rng), 90))
            shown = {"image": name} if "prompt" in line else {"images": {_VERBAL_CAMERA: name}}
            file.write(json.dumps(shown | line) + "\n")


def _picture(objects: list[_Object], size: int, rng: np.random.Generator) -> Image:
    """Draw objects on a table of a random grey, with the noise of a camera."""
    image = np.full((size, size, 3), rng.integers(90, 190), np.uint8)
    for one in objects:
        width, height = (round(extent * size) for extent in _EXTENT[one.shape])
        x, y, colour = round(one.x * size), round(one.y * size), _RGB[one.colour]
        if one.shape == "cylinder":
            cv2.ellipse(image, (x, y), (width, height), 0, 0, 360, colour, -1, cv2.LINE_AA)
        else:
            cv2.rectangle(image, (x - width, y - height), (x + width, y + height), colour, -1)
    noisy = image + rng.normal(0, 3, image.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    print(write_sets(tyro.cli(SyntheticArguments)))
