import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest

from finetune_client.cluster.job import Job
from finetune_client.notebook import live
from finetune_client.notebook.picture import EVALUATED, LONGEST, TRAIN, draw_picture
from finetune_client.progress import JobProgress, LossHistory

Make = Callable[..., Job]


def drawn(job: Make, points: int = 5, **status: Any) -> str:
    losses = LossHistory()
    for step in range(points):
        train, held_out = round(2 - step / points, 3), round(1.9 - (step // 2) / points, 3)
        metrics = {"trainLoss": train, "evalLoss": held_out, "baselineEvalLoss": 2.0}
        last = job(progress={"step": step * 10, "totalSteps": points * 10, "percent": 42}, metrics=metrics, **status)
        losses.add(last)
    return draw_picture(JobProgress.of(last), losses)


def parsed(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(html)


def test_bar_and_curves_have_names_and_values_for_readers_of_the_screen(job: Make) -> None:
    page = parsed(drawn(job))
    bar = page.find(".//progress")
    assert bar is not None
    assert (bar.get("value"), bar.get("aria-label")) == ("42", "Progress of team-a/one")
    curves = page.find(".//svg")
    assert curves is not None
    assert curves.get("role") == "img"
    label = curves.get("aria-label") or ""
    assert "training loss from 2 at step 0 to 1.2 at step 40" in label
    assert "held out loss from 2 at step 0 to 1.5 at step 40" in label
    rows = [[cell.text for cell in row] for row in page.findall(".//tbody/tr")]
    assert rows[0] == ["0", "2", "1.9"]
    assert [row[0] for row in rows] == ["0", "10", "20", "30", "40"]


def test_curves_differ_by_more_than_their_colour(job: Make) -> None:
    page = parsed(drawn(job))
    lines = page.findall(".//polyline")
    assert [line.get("stroke-dasharray") for line in lines] == [None, "6 3"]
    names = [text.text for text in page.findall(".//text") if text.get("font-weight")]
    assert names == ["training", "held out"]


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("page", ["#ffffff", "#111111", "#1e1e1e"])
@pytest.mark.parametrize("colour", [TRAIN, EVALUATED])
def test_both_colours_are_readable_on_a_light_and_on_a_dark_page(colour: str, page: str) -> None:
    low, high = sorted((luminance(colour), luminance(page)))
    assert (high + 0.05) / (low + 0.05) >= 3


def test_the_page_has_no_script_and_no_colour_of_its_own_for_text(job: Make) -> None:
    html = drawn(job)
    assert "<script" not in html
    assert "<style" not in html
    assert set(re.findall(r"#[0-9a-f]{6}", html)) == {TRAIN, EVALUATED}


def test_text_of_the_cluster_is_escaped(job: Make) -> None:
    html = drawn(job, message="<img src=x onerror=alert(1)> \x1b[2J")
    assert "<img" not in html
    assert "&lt;img src=x" in html
    assert "\\u001b" in html


def test_a_job_without_losses_has_a_bar_alone(job: Make) -> None:
    html = draw_picture(JobProgress.of(job(metrics=None)), LossHistory())
    assert "<progress" in html
    assert "<svg" not in html
    assert "<table" not in html


def test_a_long_run_has_a_picture_of_bounded_size(job: Make) -> None:
    html = drawn(job, points=2000)
    longest = max(len(line.get("points", "").split()) for line in parsed(html).findall(".//polyline"))
    assert longest <= LONGEST
    assert "at step 19990" in html


def test_without_a_notebook_each_change_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    picture = live.open_picture()
    for line in ("Pending", "Pending", "Training 1%"):
        picture.draw("<b>", line)
    assert capsys.readouterr().out == "Pending\nTraining 1%\n"


def test_in_a_notebook_one_picture_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []

    class Handle:
        def update(self, picture: Any) -> None:
            shown.append(("update", picture._repr_html_(), repr(picture)))

    class Display:
        @staticmethod
        def display(picture: Any, *, display_id: bool) -> Handle:
            shown.append(("display", picture._repr_html_(), display_id))
            return Handle()

    class Kernel:
        kernel = object()

    class IPython:
        get_ipython = staticmethod(Kernel)

    monkeypatch.setitem(live.sys.modules, "IPython", IPython)  # type: ignore[arg-type]
    monkeypatch.setitem(live.sys.modules, "IPython.display", Display)  # type: ignore[arg-type]
    assert live.is_notebook()
    picture = live.open_picture()
    picture.draw("<b>1</b>", "one")
    picture.draw("<b>2</b>", "two")
    assert shown == [("display", "<b>1</b>", True), ("update", "<b>2</b>", "two")]
