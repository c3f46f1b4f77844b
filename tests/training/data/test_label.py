"""Labels: one set of operations over LeRobot datasets, folder datasets and bags; undo brings everything back."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot_rig import LAYOUT, make_frame, subtask_of, write_dataset
from numpy.typing import NDArray
from PIL import Image as Picture

from pi05_ros.cli import main as pi05
from pi05_ros.contract import load_contract
from pi05_training.data.bag_labels import BagLabels, read_labels_sidecar
from pi05_training.data.episode import DatasetError, EpisodeInfo, Frame, SubtaskSpan
from pi05_training.data.folder import FolderDataset
from pi05_training.data.folder_writer import FolderWriter
from pi05_training.data.label import LabelStore, Spans, apply, fused, merge, rename, split, undo
from pi05_training.data.label_command import open_labels
from pi05_training.data.lerobot import LeRobotDataset
from pi05_training.data.open import open_dataset
from pi05_training.data.synthetic import NS, Script, numbered_image, write_bag

EPISODE = "bag_1"


def lerobot(root: Path) -> Path:
    write_dataset(root)
    return root


def lerobot_with_language(root: Path) -> Path:
    write_dataset(root, layout=dataclasses.replace(LAYOUT, language_columns=True))
    return root


def lerobot_without_subtasks(root: Path) -> Path:
    """A dataset as lerobot writes it: no subtask anywhere."""
    write_dataset(root)
    info = json.loads((root / "meta/info.json").read_text())
    del info["features"]["subtask_index"]
    (root / "meta/info.json").write_text(json.dumps(info))
    path = root / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["subtask_index"]), path)
    (root / "meta/subtasks.parquet").unlink()
    return root


def folder(root: Path, layout: str = "a") -> Path:
    contract = load_contract()
    writer = FolderWriter(root, contract, "b" if layout == "b" else "a")
    for number in range(2):
        episode = writer.episode(EpisodeInfo(f"bag_{number}", "tidy up", "success", 50))
        for k in range(30 + number):
            vector = np.full(18, number + k / 100, np.float32)
            cameras = ("front", "back") if k % 5 else ("front",)
            images = {name: numbered_image(contract, i, k + 40 * number) for i, name in enumerate(cameras)}
            episode.add(Frame(number * NS + k * 20_000_000, images, vector, vector + 1, subtask_of(k)))
        episode.close()
    return root


def folder_b(root: Path) -> Path:
    return folder(root, "b")


DATASETS: dict[str, Callable[[Path], Path]] = {
    "lerobot": lerobot,
    "lerobot with language columns": lerobot_with_language,
    "folder A": folder,
    "folder B": folder_b,
}


@pytest.fixture(params=list(DATASETS))
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A dataset of two episodes of 30 and 31 frames, "reach" up to frame 12, then "grasp"."""
    return DATASETS[request.param](tmp_path / "dataset")


def spans_of(store: LabelStore, episode: str = EPISODE) -> list[tuple[int, int, str]]:
    return [(span.start, span.stop, span.text) for span in store.spans(episode)]


def contents(root: Path) -> list[tuple[object, ...]]:
    """Return everything in a dataset but the subtasks, in order of episode and frame."""
    data = open_dataset(root)
    samples = sorted((data[i] for i in range(len(data))), key=lambda sample: (sample.episode, sample.frame))
    return [
        (s.episode, s.frame, s.task, *(a.tobytes() for a in (s.state, s.actions, s.action_is_pad)), *shown(s.images))
        for s in samples
    ]


def shown(images: dict[str, NDArray[np.uint8]]) -> list[tuple[str, bytes]]:
    return [(key, image.tobytes()) for key, image in sorted(images.items())]


def subtasks(root: Path, episode: str = EPISODE) -> list[str]:
    data = open_dataset(root)
    samples = [sample for sample in (data[i] for i in range(len(data))) if sample.episode == episode]
    return [sample.subtask for sample in sorted(samples, key=lambda sample: sample.frame)]


def pictures(root: Path) -> dict[str, int]:
    """Return the inode of every image or video by the digest of its contents."""
    files = [path for path in root.rglob("*") if path.suffix in (".jpg", ".mp4")]
    return {hashlib.sha256(path.read_bytes()).hexdigest(): path.stat().st_ino for path in files}


def test_a_change_reaches_the_samples_and_nothing_else(dataset: Path) -> None:
    before, files = contents(dataset), pictures(dataset)
    store = open_labels(dataset)
    assert spans_of(store) == [(0, 12, "reach"), (12, 31, "grasp")]
    apply(store, EPISODE, "split", lambda spans: split(spans, 20, "lift"))
    apply(store, EPISODE, "rename", lambda spans: rename(spans, 1, "öffne die Hand"))
    wanted = [(0, 12, "öffne die Hand"), (12, 20, "grasp"), (20, 31, "lift")]
    assert spans_of(store) == wanted == spans_of(open_labels(dataset))
    assert subtasks(dataset) == [text for start, stop, text in wanted for _ in range(start, stop)]
    assert subtasks(dataset, "bag_0") == [subtask_of(k) for k in range(30)]
    assert contents(dataset) == before
    assert pictures(dataset) == files


def test_merging_joins_what_was_apart(dataset: Path) -> None:
    before = contents(dataset)
    store = open_labels(dataset)
    apply(store, EPISODE, "split", lambda spans: split(spans, 3, "wait"))
    apply(store, EPISODE, "merge", lambda spans: merge(spans, 2, 3, "go"))
    assert spans_of(store) == [(0, 3, "reach"), (3, 31, "go")]
    apply(store, EPISODE, "merge", lambda spans: merge(spans, 1, 2))
    assert subtasks(dataset) == ["reach"] * 31
    assert contents(dataset) == before


def test_undo_goes_back_step_by_step(dataset: Path) -> None:
    store = open_labels(dataset)
    states = [spans_of(store)]
    for number, at in enumerate((5, 20, 25)):
        apply(store, EPISODE, "split", lambda spans, at=at, number=number: split(spans, at, f"part {number}"))  # type: ignore[misc]
        states.append(spans_of(store))
    for wanted in reversed(states[:-1]):
        entry = undo(open_labels(dataset))
        assert (entry.episode, entry.operation) == (EPISODE, "split")
        assert spans_of(open_labels(dataset)) == wanted
    with pytest.raises(DatasetError, match="nothing to undo"):
        undo(open_labels(dataset))


def test_undo_keeps_what_something_else_changed(dataset: Path) -> None:
    store = open_labels(dataset)
    apply(store, EPISODE, "rename", lambda spans: rename(spans, 1, "wait"))
    store.write(EPISODE, [SubtaskSpan(0, 31, "another tool's label")])
    with pytest.raises(DatasetError, match="changed by something else since 'rename'"):
        undo(open_labels(dataset))
    assert spans_of(open_labels(dataset)) == [(0, 31, "another tool's label")]


def test_a_change_that_was_announced_and_never_made_is_undone(dataset: Path) -> None:
    class Dying:
        """A store that dies between journal and change."""

        def __init__(self) -> None:
            self._store = open_labels(dataset)
            self.journal, self.spans, self.rate = self._store.journal, self._store.spans, self._store.rate
            self.episodes, self.images = self._store.episodes, self._store.images

        def write(self, episode: str, spans: Spans) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(Dying(), EPISODE, "rename", lambda spans: rename(spans, 1, "wait"))
    store = open_labels(dataset)
    undo(store)
    assert spans_of(store) == [(0, 12, "reach"), (12, 31, "grasp")] and store.journal.last() is None


def test_a_dataset_without_labels_starts_with_its_task(tmp_path: Path) -> None:
    root = lerobot_without_subtasks(tmp_path / "d")
    before = contents(root)
    store = open_labels(root)
    assert spans_of(store) == [(0, 31, "tidy up")]
    apply(store, EPISODE, "split", lambda spans: split(spans, 7, "reach"))
    assert subtasks(root) == ["tidy up"] * 7 + ["reach"] * 24
    assert subtasks(root, "bag_0") == ["tidy up"] * 30
    assert contents(root) == before
    table = pq.read_table(root / "data/chunk-000/file-000.parquet")
    assert "subtask_index" in json.loads((root / "meta/info.json").read_text())["features"].keys() & set(
        table.column_names
    )


def test_language_rows_of_other_styles_stay(tmp_path: Path) -> None:
    root = lerobot_with_language(tmp_path / "d")
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    plan = {
        "role": "assistant",
        "content": "1. reach",
        "style": "plan",
        "timestamp": 0.1,
        "camera": None,
        "tool_calls": None,
    }
    rows = [[plan, *row] for row in table["language_persistent"].to_pylist()]
    import pyarrow as pa

    column = pa.array(rows, table.schema.field("language_persistent").type)
    index = table.column_names.index("language_persistent")
    pq.write_table(table.set_column(index, "language_persistent", column), path)
    store = open_labels(root)
    apply(store, EPISODE, "split", lambda spans: split(spans, 20, "lift"))
    found = pq.read_table(path)["language_persistent"].to_pylist()
    assert [(row["style"], row["content"]) for row in found[45]] == [
        ("subtask", "reach"),
        ("plan", "1. reach"),
        ("subtask", "grasp"),
        ("subtask", "lift"),
    ]
    assert found[30:] == [found[30]] * 31 and found[0] == found[29] != found[30]


def test_foreign_folders_are_not_edited(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="neither a dataset nor a bag"):
        open_labels(tmp_path)
    (tmp_path / "stage1/run_001").mkdir(parents=True)
    with pytest.raises(DatasetError, match="names of its folders"):
        open_labels(tmp_path)
    with pytest.raises(DatasetError, match="no such folder; give a dataset or a bag"):
        open_labels(tmp_path / "nothing")


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    """Two seconds, in the folder episode_000000: "pick up the red cube", then "put the red cube in the bin"."""
    contract = load_contract()
    return write_bag(tmp_path / "bags", contract, Script().events(contract), {"task": "clear the table"}, "robot1")


def test_bag_labels_stand_beside_the_recording(bag: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in bag.iterdir()}
    assert read_labels_sidecar(bag) is None
    store = open_labels(bag)
    (name,) = store.episodes()
    assert [text for *_, text in spans_of(store, name)] == list(Script().subtasks)
    first = store.spans(name)[0].start
    assert first == Script().start_ns
    apply(store, name, "split", lambda spans: split(spans, first + NS // 2, "lift the red cube"))
    labels = read_labels_sidecar(bag)
    assert labels is not None
    assert [labels.at(first + ns) for ns in (0, NS // 2 - 1, NS // 2, int(1.7 * NS))] == [
        "pick up the red cube",
        "pick up the red cube",
        "lift the red cube",
        "put the red cube in the bin",
    ]
    assert labels.at(first - 1) == labels.at(first + 9 * NS) == ""
    assert {name: (bag / name).read_bytes() for name in before} == before
    undo(open_labels(bag))
    assert [text for *_, text in spans_of(open_labels(bag), name)] == list(Script().subtasks)


@pytest.mark.parametrize("form", ["folder", "lerobot"])
def test_conversion_takes_the_labels_of_a_bag(bag: Path, tmp_path: Path, form: str) -> None:
    assert pi05(["label", str(bag), "split", "1.5", "wave"]) == 0
    assert pi05(["convert", str(bag), str(tmp_path / "out"), "--format", form, "--jobs", "1"]) == 0
    data = open_dataset(tmp_path / "out")
    found = [sample.subtask for sample in sorted((data[i] for i in range(len(data))), key=lambda sample: sample.frame)]
    assert list(dict.fromkeys(found)) == [*Script().subtasks, "wave"]
    assert abs(found.count("wave") - 25) <= 3


def test_damaged_sidecars_are_explained(bag: Path) -> None:
    path = bag / "labels.json"
    good = {"format": "pi05_labels", "version": 1, "spans": [{"start_ns": 5, "end_ns": 9, "text": "a"}]}
    path.write_text(json.dumps(good))
    assert read_labels_sidecar(bag) == BagLabels((SubtaskSpan(5, 9, "a"),))
    late = {"start_ns": 8, "end_ns": 12, "text": "b"}
    for broken, message in (
        ({**good, "version": 2}, "format and version must be"),
        ({**good, "spans": [{"start_ns": 5, "text": "a"}]}, "it needs start_ns, end_ns and text"),
        ({**good, "spans": [*good["spans"], late]}, "span 2: .* is empty or out of order"),  # type: ignore[misc]
    ):
        path.write_text(json.dumps(broken))
        with pytest.raises(DatasetError, match=message):
            read_labels_sidecar(bag)
    path.write_text("{")
    with pytest.raises(DatasetError, match=r"labels.json: no labels of a bag"):
        read_labels_sidecar(bag)


texts = st.sampled_from(["a", "b", "c"])
episodes = st.lists(st.tuples(st.integers(1, 5), texts), min_size=1, max_size=6)


def spans_from(parts: list[tuple[int, str]]) -> Spans:
    ends = np.cumsum([0, *(length for length, _ in parts)]).tolist()
    return fused([SubtaskSpan(a, b, text) for a, b, (_, text) in zip(ends[:-1], ends[1:], parts, strict=True)])


@settings(deadline=None)
@given(episodes, st.integers(-2, 40), st.integers(-1, 8), st.integers(-1, 8), texts)
def test_operations_keep_spans_whole(parts: list[tuple[int, str]], at: int, first: int, last: int, text: str) -> None:
    spans = spans_from(parts)
    for change in (
        lambda: split(spans, at, text),
        lambda: rename(spans, first, text),
        lambda: merge(spans, first, last, text),
        lambda: merge(spans, first, last),
    ):
        try:
            after = fused(change())
        except DatasetError:
            continue
        assert (after[0].start, after[-1].stop) == (spans[0].start, spans[-1].stop)
        for left, right in itertools.pairwise(after):
            assert left.stop == right.start and left.start < left.stop and left.text != right.text


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    status = pi05(["label", *map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out + said.err


def test_command_edits_and_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = lerobot(tmp_path / "d")
    assert run(capsys, root, "split", "0.4", "lift", "--episode", EPISODE)[0] == 0
    status, said = run(capsys, root, "--episode", "1", "list")
    assert status == 0 and "bag_0" not in said
    assert [line.split() for line in said.splitlines()[1:]] == [
        ["1", "0.00", "s", "0.24", "s", "'reach'"],
        ["2", "0.24", "s", "0.40", "s", "'grasp'"],
        ["3", "0.40", "s", "0.62", "s", "'lift'"],
    ]
    assert run(capsys, root, "merge", 2, 3, "--episode", EPISODE)[0] == 0
    assert "undid merge" in run(capsys, root, "undo")[1]
    assert "'lift'" in run(capsys, root, "list")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rename", "1", "x"], "say which one with --episode; episodes: bag_0, bag_1"),
        (["rename", "1", "x", "--episode", "bag_9"], "no episode 'bag_9'; episodes: bag_0, bag_1"),
        (["rename", "3", "x", "--episode", "0"], "bag_0: no span 3; spans are numbered 1 to 2"),
        (["rename", "1", "reach", "--episode", "0"], "that changes nothing"),
        (["rename", "1", " ", "--episode", "0"], "' ' is no text of a subtask"),
        (["split", "0.0", "x", "--episode", "0"], "the cut is not inside a span"),
        (["split", "99", "x", "--episode", "0"], "2      0.24 s      0.60 s  'grasp'"),
        (["split", "nan", "x", "--episode", "0"], "nan is no time"),
        (["split", "0.1", "reach", "--episode", "0"], "span 1 already says 'reach'"),
        (["merge", "2", "1", "--episode", "0"], "2 to 1 is not two spans or more"),
        (["undo"], "nothing to undo"),
    ],
)
def test_command_explains_what_is_not_possible(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    status, said = run(capsys, lerobot(tmp_path / "d"), *arguments)
    assert status == 1 and message in said


def test_sheets_show_every_span(tmp_path: Path, bag: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheets"
    for path in (lerobot(tmp_path / "d"), folder(tmp_path / "f"), bag):
        assert run(capsys, path, "sheet", "--out", out)[0] == 0
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    assert names == [
        "d/bag_0_01_reach.png",
        "d/bag_0_02_grasp.png",
        "d/bag_1_01_reach.png",
        "d/bag_1_02_grasp.png",
        "episode_000000/episode_000000_01_pick_up_the_red_cube.png",
        "episode_000000/episode_000000_02_put_the_red_cube_in_the_bin.png",
        "f/bag_0_01_reach.png",
        "f/bag_0_02_grasp.png",
        "f/bag_1_01_reach.png",
        "f/bag_1_02_grasp.png",
    ]
    sheet = np.asarray(Picture.open(out / "d/bag_1_02_grasp.png"))
    # The columns are the first, the middle and the last frame of the span: colours as the rig draws them.
    middle = 3 * 22 + 112
    for column, frame in enumerate((12, 21, 30)):
        found = sheet[middle, 8 + column * 232 + 112].astype(int)
        assert np.abs(found - [frame * 37 % 250, 70, 200]).max() < 12


def test_frames_keep_their_numbers_when_an_episode_is_cut(tmp_path: Path) -> None:
    root = folder(tmp_path / "f")
    store = open_labels(root)
    apply(store, EPISODE, "split", lambda spans: split(spans, 21, "lift"))
    data = FolderDataset(root)
    runs = [(run.first_frame, run.frames, run.instruction.subtask) for run in data.runs if run.episode == EPISODE]
    assert runs == [(0, 12, "reach"), (12, 9, "grasp"), (21, 10, "lift")]
    stamps = [np.load(run.folder / "stamps.npy") for run in data.runs if run.episode == EPISODE]
    np.testing.assert_array_equal(np.concatenate(stamps), NS + np.arange(31) * 20_000_000)
    assert not (root / ".staging").exists()


def test_lerobot_labels_survive_an_append(tmp_path: Path) -> None:
    root = tmp_path / "d"
    writer = write_dataset(root)
    apply(open_labels(root), EPISODE, "rename", lambda spans: rename(spans, 1, "wait"))
    episode = writer.episode(EpisodeInfo("bag_2", "tidy up", "", 50))
    for k in range(5):
        episode.add(make_frame(2, k, "grasp"))
    episode.close()
    data = LeRobotDataset(root)
    assert [[span.text for span in data.spans(n)] for n in range(3)] == [
        ["reach", "grasp"],
        ["wait", "grasp"],
        ["grasp"],
    ]
