"""The mixture as a whole: all six sources in one batch, the same for every process, and what happens to damage."""

import itertools
import pickle
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from mixture_rig import (
    ARM,
    CONTRACT,
    EDGE,
    TASK,
    H,
    write_arm,
    write_folder,
    write_lines,
    write_verbal,
    write_web,
)
from torch.utils.data import DataLoader, Dataset

from pi05_model.prompts import parse_boxes
from pi05_training.augment import Augmentation
from pi05_training.data.episode import DatasetError
from pi05_training.mixture.example import Example
from pi05_training.mixture.mixture import Draw, Mixture
from pi05_training.mixture.spec import open_mixture

SPEC = """
sources:
  - {name: MM, data: [kitchen], weight: 5, control_mode: joint}
  - {name: ME, data: bedroom, weight: 2.5, losses: [fast, flow]}
  - {name: CE, data: arm, weight: 1, cameras: {top: base_0_rgb}, control_mode: end effector}
  - {name: HL, data: kitchen, weight: 0.8}
  - {name: WD, data: web, weight: 0.6}
  - {name: VI, data: verbal, weight: 0.1}
"""
PATCH = {"label": "patch", "box": [0.25, 0.3333, 0.5, 0.5]}


@pytest.fixture(scope="module")
def yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mixture")
    write_folder(root / "kitchen", ["ppqq"] * 8)
    write_folder(root / "bedroom", ["tttt"] * 3)
    write_arm(root / "arm")
    write_lines(
        root / "kitchen" / "boxes.jsonl", [{"episode": f"e{k}", "frame": 1, "boxes": [PATCH]} for k in range(8)]
    )
    write_web(root / "web", (40, 60))
    write_verbal(root / "verbal")
    (root / "mixture.yaml").write_text(SPEC)
    return root / "mixture.yaml"


def opened(path: Path, seed: int = 0, augment: bool = True) -> Mixture:
    augmentation = Augmentation() if augment else None
    return open_mixture(path, seed=seed, augmentation=augmentation, size=EDGE, contract=CONTRACT)


def rows(mixture: Mixture, batches: int = 4, size: int = 16, start: int = 0) -> Iterator[Example]:
    for batch in itertools.islice(mixture.plan(size, start), batches):
        for draw in batch:
            yield mixture.example(draw)


def same(first: Example, second: Example) -> bool:
    if first.images.keys() != second.images.keys():
        return False
    if not all((image == second.images[key]).all() for key, image in first.images.items()):
        return False
    names = [field.name for field in fields(Example) if field.name != "images"]
    pairs = [(getattr(first, name), getattr(second, name)) for name in names]
    return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in pairs)


def test_every_source_gives_what_it_carries(yaml: Path) -> None:
    mixture = opened(yaml)
    names = [source.name for source in mixture.sources]
    assert names == ["MM", "ME", "CE", "HL", "WD", "VI"]
    seen: dict[str, list[Example]] = {name: [] for name in names}
    for example in rows(mixture, batches=20):
        seen[names[example.source]].append(example)
    every = {"text", "fast", "flow"}
    carried = {name: {frozenset(example.losses) for example in examples} for name, examples in seen.items()}
    assert carried == {
        "MM": {frozenset(every)},
        "ME": {frozenset({"fast", "flow"})},
        "CE": {frozenset(every)},
        "HL": {frozenset({"text"})},
        "WD": {frozenset({"text"})},
        "VI": {frozenset({"text"})},
    }
    has_arm = [name in ARM for name in CONTRACT.names]
    for name, examples in seen.items():
        assert examples, name
        for example in examples:
            assert (example.actions is not None) == (name not in ("WD", "VI"))
            assert example.actions is None or example.actions.shape == (H, CONTRACT.dim)
            assert all(image.shape == (EDGE, EDGE, 3) for image in example.images.values())
            assert example.control == {"MM": "joint", "CE": "end effector"}.get(name)
            mask = example.action_mask
            assert (mask is None) == (name != "CE") and (mask is None or mask.tolist() == has_arm)
    boxes, rest = parse_boxes(seen["HL"][0].answer or "")
    assert [box.label for box in boxes] == ["patch"] and rest == "pick up the red cube"
    assert seen["MM"][0].prompt == TASK


def test_shares_follow_the_weights_and_are_reported(yaml: Path) -> None:
    mixture = opened(yaml)
    drawn = np.bincount([draw.source for batch in itertools.islice(mixture.plan(24), 300) for draw in batch])
    shares = np.array([5, 2.5, 1, 0.8, 0.6, 0.1]) / 10
    total = 24 * 300
    assert (np.abs(drawn - total * shares) < 3 * np.sqrt(total * shares * (1 - shares)) + 1).all()
    report = mixture.drawn(24, 300)
    assert [source.draws for source in report.sources] == drawn.tolist() and report.draws == total
    assert [source.share for source in report.sources] == pytest.approx(shares)
    assert report.sources[0].epochs == drawn[0] / 32 and report.sources[0].groups == 8
    later = mixture.drawn(24, 100, start=200)
    assert [s.draws for s in later.sources] == [
        a.draws - b.draws for a, b in zip(report.sources, mixture.drawn(24, 200).sources, strict=True)
    ]
    for name in ("MM", "50.00%", "text"):
        assert name in str(report)


def test_two_processes_and_a_pickle_see_the_same(yaml: Path) -> None:
    first, second = opened(yaml), opened(yaml)
    copied = pickle.loads(pickle.dumps(first))
    for a, b, c in zip(rows(first), rows(second), rows(copied), strict=True):
        assert same(a, b) and same(a, c)
    other = list(rows(opened(yaml, seed=1)))
    assert not all(same(a, b) for a, b in zip(rows(first), other, strict=True))


def test_a_resumed_run_goes_on_with_the_same_rows(yaml: Path) -> None:
    mixture = opened(yaml)
    whole = list(rows(mixture, batches=6))
    assert all(same(a, b) for a, b in zip(whole[4 * 16 :], rows(opened(yaml), batches=2, start=4), strict=True))
    far = next(mixture.plan(16, 100_000))
    assert far[0].row == 1_600_000
    assert same(mixture.example(far[3]), opened(yaml).example(far[3]))


def test_ranks_share_one_global_batch(yaml: Path) -> None:
    """What a row draws does not depend on how many ranks there are, only on its number."""
    batch = next(opened(yaml).plan(16, 7))
    whole = [opened(yaml).example(draw) for draw in batch]
    for world in (2, 4):
        for rank in range(world):
            mine = next(opened(yaml).plan(16, 7))[rank::world]
            mixture = opened(yaml)
            assert all(same(mixture.example(draw), whole[rank + world * k]) for k, draw in enumerate(mine))


class Examples(Dataset[Example]):
    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture

    def __getitem__(self, draw: Draw) -> Example:  # type: ignore[override]
        return self.mixture.example(draw)


def test_workers_give_the_same_and_their_damage_is_counted(yaml: Path, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "robot", ["p" * 40 + "q" * 40] * 2)
    damage(root, 1)
    mixture = opened(root)
    draws = [draw for batch in itertools.islice(mixture.plan(16), 10) for draw in batch]
    loader = DataLoader(
        Examples(mixture),
        batch_size=None,
        sampler=draws,  # type: ignore[arg-type]
        num_workers=2,
        multiprocessing_context="forkserver",
    )
    ours = opened(root)
    assert all(same(theirs, ours.example(draw)) for theirs, draw in zip(loader, draws, strict=True))
    assert mixture.drawn(16, 10).sources[0].damaged == ours.drawn(16, 10).sources[0].damaged == 1


def test_without_augmentation_images_are_those_of_the_data(yaml: Path) -> None:
    mixture = opened(yaml, augment=False)
    for draw in next(mixture.plan(64)):
        source, example = mixture.sources[draw.source], mixture.example(draw)
        for key, image in source.read(draw.index).images.items():
            if image.shape[:2] == (EDGE, EDGE):
                assert (example.images[key] == image).all()


def test_wrist_cameras_are_recoloured_and_not_moved(yaml: Path) -> None:
    plain, varied = opened(yaml, augment=False), opened(yaml)
    moved = {"base_0_rgb": 0, "left_wrist_0_rgb": 0}
    for draw in [draw for draw in next(plain.plan(64)) if plain.sources[draw.source].name == "MM"]:
        before, after = plain.example(draw), varied.example(draw)
        for key in moved:
            assert (before.images[key] != after.images[key]).any()
            # The patch is the brightest part, whatever its colours: its place tells whether the picture moved.
            moved[key] += not np.array_equal(*(patch(example.images[key]) for example in (before, after)))
    assert moved["left_wrist_0_rgb"] == 0 and moved["base_0_rgb"] > 10


def patch(image: np.ndarray) -> np.ndarray:
    grey = image.astype(int).sum(axis=-1)
    return grey > (grey.min() + grey.max()) / 2


def test_boxes_follow_padding_and_augmentation(yaml: Path) -> None:
    """In the picture that the network gets, the patch is where the answer says."""
    for augment in (False, True):
        mixture = opened(yaml, augment=augment)
        web = next(k for k, source in enumerate(mixture.sources) if source.name == "WD")
        for row in range(30):
            example = mixture.example(Draw(web, 1, row))
            (box,), _ = parse_boxes(example.answer or "")
            image = example.images["base_0_rgb"]
            rows_, columns = np.nonzero(patch(image))
            found = [rows_.min(), columns.min(), rows_.max() + 1, columns.max() + 1]
            said = [box.y_min, box.x_min, box.y_max, box.x_max]
            assert [EDGE * edge for edge in said] == pytest.approx(found, abs=1.3)


def test_a_box_at_the_edge_keeps_the_picture_in_place(tmp_path: Path) -> None:
    write_web(tmp_path)
    box = {"label": "edge", "box": [0.0, 0.0, 0.04, 0.04]}
    write_lines(tmp_path / "samples.jsonl", [{"image": "one.jpg", "prompt": "detect edge", "boxes": [box]}])
    path = tmp_path / "mixture.yaml"
    path.write_text("sources: [{name: WD, data: .}]")
    mixture = open_mixture(path, augmentation=Augmentation(), size=EDGE, contract=CONTRACT)
    answers = {mixture.example(Draw(0, 0, row)).answer for row in range(40)}
    assert "<loc0000><loc0000><loc0041><loc0041> edge" in answers and len(answers) > 1
    for answer in answers:
        assert parse_boxes(answer or "")[0], answer


def test_held_out_episodes_are_not_augmented_and_not_trained(yaml: Path) -> None:
    mixture = opened(yaml)
    kept, held = mixture.split(0.25)
    assert held is not None and held.augmentation is None and kept.augmentation is not None
    assert [source.name for source in kept.sources] == ["MM", "ME", "CE", "HL", "WD", "VI"]
    by_name = {source.name: source for source in held.sources}
    for source in kept.sources:
        other = by_name[source.name]
        whole = next(one for one in mixture.sources if one.name == source.name)
        assert source.groups + other.groups == whole.groups and len(source) + len(other) == len(whole)
        if source.name in ("MM", "ME", "CE", "HL"):
            states = [{part.read(k).state.tobytes() for k in range(len(part))} for part in (source, other)]  # type: ignore[union-attr]
            assert not states[0] & states[1]
    assert mixture.split(0.0)[1] is None


def damage(root: Path, count: int) -> None:
    """Make the front images of the last `count` frames of the first run unreadable."""
    for path in sorted(next(root.rglob("run_*")).glob("front/*.jpg"))[-count:]:
        path.write_bytes(b"no image")


def test_damage_is_replaced_the_same_way_and_counted(tmp_path: Path) -> None:
    root = write_folder(tmp_path, ["p" * 60 + "q" * 60] * 3)
    clean = [opened(root).example(draw) for draw in next(opened(root).plan(360))]
    damage(root, 2)
    first, second = opened(root), opened(root)
    batch = next(first.plan(360))
    ours, theirs = ([mixture.example(draw) for draw in batch] for mixture in (first, second))
    assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    changed = [k for k, (a, b) in enumerate(zip(ours, clean, strict=True)) if not same(a, b)]
    assert len(changed) == 2 == first.drawn(360, 1).sources[0].damaged
    assert all("base_0_rgb" in example.images for example in ours)


def test_training_stops_when_more_than_a_hundredth_is_damaged(tmp_path: Path) -> None:
    root = write_folder(tmp_path, ["p" * 60 + "q" * 60] * 3)
    damage(root, 24)
    mixture = opened(root)
    with pytest.raises(DatasetError, match=r"source MM: \d+ of \d+ samples are damaged, more than 1%.*\.jpg"):
        for batch in itertools.islice(mixture.plan(36), 10):
            for draw in batch:
                mixture.example(draw)
    assert mixture.drawn(36, 10).sources[0].damaged < 24


def test_half_a_percent_of_damage_does_not_stop(tmp_path: Path) -> None:
    root = write_folder(tmp_path, ["p" * 100 + "q" * 100])
    damage(root, 1)
    mixture = opened(root)
    for batch in itertools.islice(mixture.plan(200), 4):
        for draw in batch:
            mixture.example(draw)
    assert mixture.drawn(200, 4).sources[0].damaged >= 4


def test_plans_need_a_batch(yaml: Path) -> None:
    for size, start in ((0, 0), (4, -1)):
        with pytest.raises(ValueError, match="batch"):
            next(opened(yaml).plan(size, start))


def test_a_mixture_needs_sources_with_names_of_their_own(yaml: Path) -> None:
    source = opened(yaml).sources[0]
    with pytest.raises(ValueError, match="at least one"):
        Mixture([])
    with pytest.raises(ValueError, match="name of its own"):
        Mixture([source, source])
