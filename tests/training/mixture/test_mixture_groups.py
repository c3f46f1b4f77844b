"""What is held out: whole episodes, the same everywhere, of all sources that draw from them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixture_rig import CONTRACT, EDGE, write_folder, write_lines

from pi05_training.mixture.groups import Groups, hold_out
from pi05_training.mixture.spec import open_mixture


def episodes(names: list[str], dataset: str = "kitchen") -> Groups:
    return Groups.of_episodes((10 * k, 10 * k + 10, dataset, name) for k, name in enumerate(names))


@given(
    chosen=st.lists(st.sets(st.integers(0, 30), min_size=1), min_size=1, max_size=4),
    lines=st.integers(1, 50),
    share=st.floats(0.001, 0.9),
)
@settings(max_examples=100, deadline=None)
def test_nobody_is_left_with_nothing_and_every_source_gives_its_share(
    chosen: list[set[int]], lines: int, share: float
) -> None:
    sources = [*(episodes([f"e{k}" for k in sorted(names)]) for names in chosen), Groups.of_lines(lines, "web")]
    held = hold_out(sources, share)
    for groups in sources:
        out = int(np.isin(groups.keys, held).sum())
        assert out < len(groups)
    # Lines belong to no other source, so that their number is exact.
    wanted = max(1, round(share * lines)) if lines > 1 else 0
    assert int(np.isin(sources[-1].keys, held).sum()) == min(wanted, lines - 1)
    assert set(hold_out(sources, share).tolist()) == set(held.tolist())


def test_one_source_gives_its_share() -> None:
    for count, out in ((1, 0), (2, 1), (10, 1), (100, 5)):
        assert len(hold_out([episodes([str(k) for k in range(count)])], 0.05)) == out
    assert not len(hold_out([episodes(["a", "b"])], 0.0))
    with pytest.raises(ValueError, match=r"share of 1 is not in \[0, 1\)"):
        hold_out([episodes(["a", "b"])], 1)


def test_an_episode_has_the_same_key_in_every_source() -> None:
    assert (episodes(["a", "b", "c"]).keys[1:] == episodes(["b", "c"]).keys).all()
    assert (episodes(["a"]).keys != episodes(["a"], "bedroom").keys).all()
    assert len(set(Groups.of_lines(1000, "web").keys.tolist())) == 1000


def test_labelled_frames_of_a_held_out_episode_are_not_trained_on(tmp_path: Path) -> None:
    write_folder(tmp_path / "robot", ["ppqq"] * 12)
    write_lines(tmp_path / "robot" / "boxes.jsonl", [{"episode": f"e{k}", "frame": 2} for k in range(2, 12)])
    path = tmp_path / "mixture.yaml"
    path.write_text("sources: [{name: MM, data: robot}, {name: HL, data: robot}]")
    kept, held = open_mixture(path, size=EDGE, contract=CONTRACT).split(0.2)
    assert held is not None

    def seen(mixture: object, name: str) -> set[int]:
        source = next(s for s in mixture.sources if s.name == name)  # type: ignore[attr-defined]
        return {int(source.labels(k)[0][0]) // 100 for k in range(len(source))}

    assert len(seen(held, "HL")) == 2 and seen(held, "HL") <= seen(held, "MM")
    for name in ("MM", "HL"):
        assert not seen(kept, name) & (seen(held, "MM") | seen(held, "HL"))
