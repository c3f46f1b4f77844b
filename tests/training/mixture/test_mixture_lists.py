"""Web data and verbal instructions from JSON Lines, and the synthetic sets."""

import json
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mixture_rig import CONTRACT, D, write_folder, write_lines, write_verbal, write_web

from pi05_model.prompts import Box, parse_boxes
from pi05_training.data.episode import DatasetError
from pi05_training.mixture.lines import JsonLines
from pi05_training.mixture.spec import open_mixture
from pi05_training.mixture.synthetic import SyntheticArguments, write_sets
from pi05_training.mixture.web import VerbalSource, WebLine, WebSource

CAPTION = {"image": "one.jpg", "prompt": "caption the image", "answer": "a bright patch"}


def web(folder: Path) -> WebSource:
    return WebSource("WD", 1.0, folder, "base_0_rgb")


def test_web_samples_have_text_alone(tmp_path: Path) -> None:
    source = web(write_web(tmp_path))
    assert source.losses == {"text"} and (len(source), source.groups) == (2, 2)
    caption, detection = source.read(0), source.read(1)
    assert (caption.prompt, caption.answer, caption.boxes) == ("caption the image", "a bright patch", ())
    assert (caption.state, caption.actions, caption.subtask, caption.control) == (None, None, None, None)
    assert list(caption.images) == ["base_0_rgb"]
    assert detection.answer is None and detection.boxes == (Box(0.25, 0.5, 0.5, 0.75, "patch"),)
    assert caption.losses(frozenset({"text", "flow"})) == {"text"} == detection.losses(frozenset({"text"}))
    assert source.labels(0) is None


def test_verbal_instructions_need_neither_picture_nor_state(tmp_path: Path) -> None:
    source = VerbalSource("VI", 1.0, write_verbal(tmp_path), CONTRACT, "joint")
    bare, seen = source.read(0), source.read(1)
    assert (bare.prompt, bare.answer, bare.images, bare.state) == ("tidy up", "pick up the cup", {}, None)
    assert list(seen.images) == ["base_0_rgb"] and seen.state is not None and len(seen.state) == D
    assert seen.control == "joint" and seen.subtask is None


def test_blank_lines_do_not_count_but_keep_their_number(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "samples.jsonl", ["", CAPTION, "  ", CAPTION | {"answer": "second"}, "{}"])
    lines = JsonLines(path, WebLine)
    assert len(lines) == 3 and lines[1].answer == "second"
    with pytest.raises(DatasetError, match=r"samples\.jsonl:5: image: Field required"):
        lines[2]


def test_a_last_line_without_an_end_counts(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps(CAPTION) + "\n" + json.dumps(CAPTION | {"answer": "größer"}))
    lines = pickle.loads(pickle.dumps(JsonLines(path, WebLine)))
    assert [lines[k].answer for k in range(len(lines))] == ["a bright patch", "größer"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", r"samples\.jsonl:2: line: Invalid JSON"),
        (CAPTION | {"image": "two.jpg"}, r"samples\.jsonl:2:.*two\.jpg: no such picture; paths are relative to"),
        ({"image": "one.jpg", "prompt": "detect"}, r"samples\.jsonl:2:.*neither answer nor boxes"),
        (CAPTION | {"prompt": " "}, r"samples\.jsonl:2:.*prompt is empty"),
        (CAPTION | {"boxes": [{"label": "a;b", "box": [0, 0, 1, 1]}]}, r"samples\.jsonl:2: boxes\.0.*label 'a;b'"),
        (CAPTION | {"boxes": [{"label": "a", "box": [0, 0, 224, 1]}]}, r"divide pixels by the height"),
    ],
)
def test_lines_that_are_not_valid_are_named(tmp_path: Path, line: Any, message: str) -> None:
    write_web(tmp_path)
    write_lines(tmp_path / "samples.jsonl", [CAPTION, line])
    with pytest.raises(DatasetError, match=message):
        web(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"task": "tidy up"}, r"samples\.jsonl:1: subtask: Field required"),
        ({"task": "tidy up", "subtask": ""}, r"samples\.jsonl:1:.*subtask is empty"),
        ({"task": "a", "subtask": "b", "images": {"top": "one.jpg"}}, r"no camera top; ours: base_0_rgb"),
        ({"task": "a", "subtask": "b", "state": [0.0, 1.0]}, rf"state: 2 entries, expected {D}"),
    ],
)
def test_instructions_that_are_not_valid_are_named(tmp_path: Path, line: Any, message: str) -> None:
    write_verbal(tmp_path)
    write_lines(tmp_path / "samples.jsonl", [line])
    with pytest.raises(DatasetError, match=message):
        VerbalSource("VI", 1.0, tmp_path, CONTRACT)


def test_a_list_has_to_be_there_and_hold_something(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"samples\.jsonl: cannot be read: No such file"):
        web(tmp_path)
    write_lines(tmp_path / "samples.jsonl", ["", " "])
    with pytest.raises(DatasetError, match="no lines in it; expected one JSON object with image, prompt"):
        web(tmp_path)


def test_synthetic_sets_are_true_of_their_pictures(tmp_path: Path) -> None:
    """Find the objects in the pixels again, by colour, and hold captions, counts and boxes against them."""
    robot = write_folder(tmp_path / "robot", ["ppqq"])
    path = write_sets(SyntheticArguments(tmp_path / "made", robot=robot, web=60, verbal=20, size=96, seed=3))
    mixture = open_mixture(path, size=96, contract=CONTRACT)
    assert [(s.name, len(s)) for s in mixture.sources] == [("MM", 4), ("WD", 60), ("VI", 20)]
    asked = set()
    for index in range(60):
        reading = mixture.sources[1].read(index)
        found = colours_in(reading.images["base_0_rgb"])
        asked.add(reading.prompt.split()[0])
        if reading.prompt == "caption the image":
            assert {word for word in (reading.answer or "").split() if word in HUES} == set(found)
        elif reading.prompt.startswith("how many"):
            assert reading.answer == ["no", "one", "two"][len(found)]
        elif reading.prompt.startswith("detect"):
            (box,) = reading.boxes
            assert reading.prompt == f"detect {box.label}"
            seen = found[box.label.split()[0]]
            assert [box.y_min, box.x_min, box.y_max, box.x_max] == pytest.approx(seen, abs=0.03)
        elif reading.prompt.startswith("where"):
            _, x_min, _, x_max = found[reading.prompt.split()[3]]
            assert reading.answer == ("left" if x_min + x_max < 1 else "right")
    assert asked == {"caption", "how", "detect", "where", "what"}
    for index in range(20):
        reading = mixture.sources[2].read(index)
        assert reading.answer is not None
        assert reading.state is not None and float(reading.state[0]) in (0.0, 1.0, 2.0, 3.0)
        _, x_min, _, x_max = colours_in(reading.images["base_0_rgb"])[reading.answer.split()[3]]
        assert f"with the {'left' if x_min + x_max < 1 else 'right'} arm" in reading.answer


def test_synthetic_sets_repeat_and_overwrite_nothing(tmp_path: Path) -> None:
    made = [tmp_path / name for name in ("one", "two")]
    for out in made:
        write_sets(SyntheticArguments(out, web=5, verbal=5, size=32))
    trees = [{path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} for out in made]
    assert trees[0] == trees[1] and len(trees[0]) == 13
    with pytest.raises(DatasetError, match="is not empty"):
        write_sets(SyntheticArguments(made[0]))


def test_box_answers_can_be_read_back(tmp_path: Path) -> None:
    path = tmp_path / "mixture.yaml"
    write_web(tmp_path / "web")
    path.write_text("sources: [{name: WD, data: web}]")
    mixture = open_mixture(path, size=32, contract=CONTRACT)
    answers = {mixture.example(draw).answer for draw in next(mixture.plan(8))}
    (said,) = answers - {"a bright patch"}
    assert parse_boxes(said or "") == ([Box(0.25, 0.5, 0.5, 0.75, "patch")], "")


HUES = {"red": 0, "green": 65, "blue": 114, "yellow": 26}


def colours_in(image: np.ndarray) -> dict[str, list[float]]:
    """Return y_min, x_min, y_max, x_max of every colour that fills more than a few pixels."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(int)
    found = {}
    for name, hue in HUES.items():
        away = np.abs((hsv[..., 0] - hue + 90) % 180 - 90)
        rows, columns = np.nonzero((away < 9) & (hsv[..., 1] > 100))
        if len(rows) > 60:
            edges = np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1])
            found[name] = (edges / len(image)).tolist()
    return found
