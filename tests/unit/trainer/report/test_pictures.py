from pathlib import Path
from xml.etree import ElementTree

from report_record import make_history

from finetune_api.objectives import Objective
from finetune_trainer.evaluation.history import History
from finetune_trainer.evaluation.measurements import TrainPoint
from finetune_trainer.report.curves import curve_table
from finetune_trainer.report.data_tables import histogram_table
from finetune_trainer.report.pictures import (
    BEST,
    DARK,
    FAINT,
    HELD_OUT,
    INK,
    LINE,
    PAPER,
    bucket_size,
    choose_panels,
    curves_svg,
    darkened,
    lengths_svg,
)


def test_every_axis_has_a_unit(tmp_path: Path) -> None:
    history = make_history(tmp_path / "metrics.jsonl", 20, 4)
    for objective in Objective:
        assert all(panel.unit and panel.title for panel in choose_panels(history, objective))


def test_short_trainings_are_drawn_step_by_step(tmp_path: Path) -> None:
    assert [bucket_size(make_history(tmp_path / "m.jsonl", steps, 1)) for steps in (1, 500, 501)] == [1, 1, 2]


def test_long_trainings_are_drawn_as_means_with_their_range(tmp_path: Path) -> None:
    history = make_history(tmp_path / "metrics.jsonl", 10_000, 200)
    assert bucket_size(history) == 20
    assert sum(len(svg) for _, svg in curves_svg(history, 100, Objective.CHAT)) < 400_000


def test_pictures_are_whole_and_their_dark_twins_differ_in_colours_alone(tmp_path: Path) -> None:
    history = make_history(tmp_path / "metrics.jsonl", 30, 3, resumed_from=(10,))
    for _, svg in [*curves_svg(history, None, Objective.CHAT), *lengths_svg(((10, 3), (20, 0), (90, 1)), 15)]:
        light, dark = ElementTree.fromstring(svg), ElementTree.fromstring(darkened(svg))
        assert [one.tag for one in light.iter()] == [one.tag for one in dark.iter()]
        assert "#1b2733" in svg
        assert "#1b2733" not in darkened(svg)


def test_one_step_and_no_finite_gradient_still_give_a_picture(tmp_path: Path) -> None:
    history = History(tmp_path / "metrics.jsonl")
    history.add_step(TrainPoint(1, 1.0, 2.0, 1e-4, None, 10.0, 1.0))
    assert [title.split(" (")[0] for title, _ in curves_svg(history, None, Objective.CHAT)] == [
        "Loss", "Learning rate", "Throughput",
    ]  # fmt: skip


def test_the_table_keeps_the_first_the_best_and_the_last_evaluation(tmp_path: Path) -> None:
    history = make_history(tmp_path / "metrics.jsonl", 1000, 200)
    steps = [line.split("|")[1].strip() for line in curve_table(history, Objective.CHAT, 345).splitlines()[2:]]
    assert len(steps) <= 22
    assert {"0", "5", "345, best", "1000"} <= set(steps)


def test_the_histogram_is_a_table_with_bars() -> None:
    lines = histogram_table(((10, 4), (20, 2), (95, 0))).splitlines()
    assert lines[2].split("|")[1:5] == [" 1 to 10  ", " 4    ", " 66.7 % ", " ████████████████████████ "]
    assert lines[4].split("|")[1].strip() == "21 to 95"
    assert histogram_table(()) == ""


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(part * weight for part, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))


def test_texts_and_lines_contrast_with_their_background_in_light_and_dark() -> None:
    """4.5 for texts and 3 for lines, as WCAG asks."""
    for colours in ({one: one for one in DARK}, DARK):
        paper = luminance(colours[PAPER])
        for colour, least in ((INK, 4.5), (FAINT, 4.5), (LINE, 3), (HELD_OUT, 3), (BEST, 3)):
            low, high = sorted((paper, luminance(colours[colour])))
            assert (high + 0.05) / (low + 0.05) >= least, (colours[colour], colours[PAPER])
