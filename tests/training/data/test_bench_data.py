"""The benchmark of the data room measures what it says, on recordings that are too short to say anything."""

from pathlib import Path

from pi05_training.bench_data import data_figures


def test_every_figure_is_measured(tmp_path: Path) -> None:
    figures = {figure.name: figure for figure in data_figures(seconds=2.0, bags=1, samples=5, out=tmp_path)}
    assert len(figures) == 6 and all(figure.value > 0 for figure in figures.values())
    assert figures["folder reader"].target and figures["conversion to folder, 2 processes"].target
    assert not list(tmp_path.iterdir())
