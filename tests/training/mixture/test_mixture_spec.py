"""The mixture's YAML file: what it may say, and what is answered when it is wrong."""

from pathlib import Path

import pytest
from mixture_rig import CONTRACT, EDGE, write_folder, write_verbal, write_web

from pi05_training.data.episode import DatasetError
from pi05_training.mixture.spec import KINDS, open_mixture, read_spec

EXAMPLES = sorted((Path(__file__).resolve().parents[3] / "config" / "mixtures").glob("*.yaml"))


def written(folder: Path, text: str) -> Path:
    path = folder / "mixture.yaml"
    path.write_text(text)
    return path


def test_a_folder_is_a_mixture_of_one(tmp_path: Path) -> None:
    write_folder(tmp_path, ["ppqq"])
    mixture = open_mixture(tmp_path, size=EDGE, contract=CONTRACT)
    assert [(s.name, s.weight, sorted(s.losses), len(s)) for s in mixture.sources] == [
        ("MM", 1.0, ["fast", "flow", "text"], 4)
    ]


def test_names_say_the_kind_and_kinds_the_losses(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "sources:\n"
        "- {name: MM-kitchen, data: a}\n"
        "- {name: mine, kind: robot, data: [a, b], losses: [flow]}\n"
        "- {name: HL, data: a, boxes: labels.jsonl}\n"
        "- {name: WD, data: /web}\n",
    )
    sources = read_spec(path).sources
    assert [(s.name, s.kind, s.losses) for s in sources] == [
        ("MM-kitchen", "robot", ("text", "fast", "flow")),
        ("mine", "robot", ("flow",)),
        ("HL", "high_level", ("text",)),
        ("WD", "web", ("text",)),
    ]
    assert sources[1].data == (tmp_path / "a", tmp_path / "b") and sources[2].boxes == tmp_path / "labels.jsonl"
    assert sources[3].data == (Path("/web"),)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{name: MM}", r"sources\.0\.data: Field required"),
        ("{name: MM, data: a, wieght: 2}", r"sources\.0\.wieght: Extra inputs.*Keys of a source: name, kind, data"),
        ("{name: MM, data: a, weight: 0}", r"sources\.0\.weight: .*greater than 0 \(value: 0\)"),
        ("{name: MM, data: a, weight: .inf}", r"sources\.0\.weight"),
        ("{name: MM, data: a, losses: [txt]}", r"sources\.0\.losses\.0: .*'text', 'fast' or 'flow' \(value: 'txt'\)"),
        ("{name: MM, data: a, losses: []}", r"losses \[\]"),
        ("{name: WD, data: a, losses: [text, flow]}", r"kind web carries \['text'\]"),
        ("{name: XY, data: a}", r"name 'XY' does not say the kind; add kind: robot, high_level, web, verbal"),
        ("{name: XY, kind: car, data: a}", r"sources\.0\.kind: .*'robot', 'high_level', 'web' or 'verbal'"),
        ("{name: MM, data: a, control_mode: joints}", r"control_mode: .*'joint' or 'end effector'"),
        ("{name: MM, data: []}", r"sources\.0\.data"),
        ("{name: MM, data: a, outcome: good}", r"outcome: .*'success' or 'failure'"),
        ("{name: WD, data: a, outcome: success}", "outcome: a source of kind web does not have this key"),
        ("{name: MM, data: a, boxes: b}", "boxes: a source of kind robot does not have this key"),
        ("{name: VI, data: a, camera: base_0_rgb}", "camera: a source of kind verbal does not have this key"),
        ("{name: WD, data: [a, b]}", "is one folder; make it several sources"),
        ("{name: MM, data: a}, {name: MM, data: b}", "name MM is there twice; write MM-a and MM-b"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_valid(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_spec(written(tmp_path, f"sources: [{source}]"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "line"), ("sources: []", "sources"), ("[1]", "line"), ("sources: {a: [", "cannot be read"), ("a: 1", "a")],
)
def test_a_file_that_is_no_mixture_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_spec(written(tmp_path, text))


def test_a_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nothing: no such dataset folder or mixture file"):
        open_mixture(tmp_path / "nothing")
    with pytest.raises(DatasetError, match=r"robot: no such folder"):
        open_mixture(written(tmp_path, "sources: [{name: MM, data: robot}]"))


def test_sources_that_carry_nothing_that_is_trained_are_left_out(tmp_path: Path) -> None:
    write_folder(tmp_path / "robot", ["tttt"])
    write_web(tmp_path / "web")
    path = written(tmp_path, "sources: [{name: MM, data: robot}, {name: WD, data: web}]")
    mixture = open_mixture(path, losses={"flow"}, size=EDGE, contract=CONTRACT)
    assert [(s.name, s.losses) for s in mixture.sources] == [("MM", {"flow"})]
    assert "left out: WD: carries text, not flow" in str(mixture.drawn(4, 1))
    with pytest.raises(DatasetError, match="no subtasks"):
        open_mixture(path, losses={"text", "flow"}, size=EDGE, contract=CONTRACT)
    only_web = written(tmp_path, "sources: [{name: WD, data: web}]")
    with pytest.raises(DatasetError, match="nothing to learn from: WD: carries text, not fast, flow"):
        open_mixture(only_web, losses={"flow", "fast"}, contract=CONTRACT)
    with pytest.raises(DatasetError, match="expected some of text, fast, flow"):
        open_mixture(only_web, losses={"flows"}, contract=CONTRACT)


def test_a_camera_has_to_be_the_contracts(tmp_path: Path) -> None:
    write_web(tmp_path / "web")
    path = written(tmp_path, "sources: [{name: WD, data: web, camera: top}]")
    with pytest.raises(DatasetError, match="source WD: no camera top in the contract; it has: base_0_rgb"):
        open_mixture(path, contract=CONTRACT)


def test_verbal_instructions_take_a_control_mode(tmp_path: Path) -> None:
    write_verbal(tmp_path / "said")
    path = written(tmp_path, "sources: [{name: VI, data: said, control_mode: end effector}]")
    mixture = open_mixture(path, size=EDGE, contract=CONTRACT)
    assert {mixture.example(draw).control for draw in next(mixture.plan(4))} == {"end effector"}


def test_a_chunk_has_the_length_that_is_asked_for(tmp_path: Path) -> None:
    write_folder(tmp_path, ["ppqq"])
    mixture = open_mixture(tmp_path, size=EDGE, horizon=7, contract=CONTRACT)
    example = mixture.example(next(mixture.plan(1))[0])
    assert example.actions is not None and example.actions.shape == (7, CONTRACT.dim)


def test_the_shipped_examples_are_valid() -> None:
    assert {path.stem for path in EXAMPLES} == {"pretrain", "posttrain"}
    said = {path.stem: {source.name for source in read_spec(path).sources} for path in EXAMPLES}
    # arXiv 2504.16054: verbal instructions belong to post-training, other robots to pre-training.
    assert said == {"pretrain": KINDS.keys() - {"VI"}, "posttrain": KINDS.keys() - {"CE"}}
