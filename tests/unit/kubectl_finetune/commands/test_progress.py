import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from plugin_world import ENDED
from rich.console import Console

from finetune_client.cluster.job import Job
from finetune_client.errors import Unreachable
from finetune_client.progress import LossHistory, describe_progress
from kubectl_finetune.commands import progress
from kubectl_finetune.display.table import bar

Make = Callable[..., Job]
Printed = Callable[..., str]


def test_a_change_is_one_line_and_a_terminal_gets_a_bar_with_losses(job: Make, printed: Printed) -> None:
    assert describe_progress(job()) == (
        "Training 42% step 42/100 loss 1.4231 eval 1.5 left 56m40s PodsRunning: 1 of 1 pods are running."
    )
    losses = LossHistory()
    for step, loss in ((0, 3.0), (20, 2.0), (20, 2.0), (30, 1.0)):
        figures = {"trainLoss": loss, "evalLoss": loss + 1, "baselineEvalLoss": 5.0}
        losses.add(job(progress={"step": step}, metrics=figures))
    assert (losses.train, losses.evaluated) == ([3.0, 2.0, 1.0], [5.0, 4.0, 3.0, 2.0])
    first, *rest = printed(progress.picture(job(), losses)).splitlines()
    assert first == f"one Training  {bar(42)}  42%  step 42/100  56m40s left"
    pairs = [line.split(":", 1) for line in rest]
    assert {name.strip(): value.strip() for name, value in pairs} == {
        "stage": "Training",
        "train loss": "1.4231  █▅▁",
        "eval loss": "1.5  █▆▃▁  best 1.498 (2 before training)",
        "checkpoint": "step 40",
        "why": "1 of 1 pods are running.",
    }


def test_a_loss_is_kept_once_for_each_step_and_only_with_its_step(job: Make) -> None:
    losses = LossHistory()
    losses.add(job(metrics={"trainLoss": 9.0}, progress=None))
    losses.add(job(metrics={"trainLoss": 9.0}, progress={"stage": "Loading"}))
    assert (losses.train, losses.evaluated) == ([], [])
    losses.add(job(metrics={"trainLoss": 3.0}, progress={"step": 0}))
    losses.add(job(metrics={"evalLoss": 2.5}, progress={"step": 5}))
    losses.add(job(metrics={"trainLoss": 2.0, "baselineEvalLoss": 4.0}, progress={"step": 5}))
    losses.add(job(metrics={"trainLoss": 2.0, "evalLoss": 2.5}, progress={"stage": "Saving"}))
    losses.add(job(metrics={"trainLoss": 1.0, "evalLoss": 2.0}, progress={"step": 9}))
    losses.add(job(metrics=None))
    assert (losses.train, losses.evaluated) == ([3.0, 2.0, 1.0], [2.5, 2.0])


def test_the_curve_of_the_evaluation_begins_before_training(job: Make) -> None:
    losses = LossHistory()
    for evaluated in ({}, {"evalLoss": 4.0}, {"evalLoss": 3.0}, {"evalLoss": 3.0}, {"evalLoss": 4.0}):
        losses.add(job(metrics={"baselineEvalLoss": 4.0} | evaluated))
    assert losses.evaluated == [4.0, 3.0, 4.0]


def test_a_line_and_a_picture_have_no_time_left_once_the_job_has_ended(job: Make, printed: Printed) -> None:
    ended = job(phase="Succeeded", conditions=ENDED, message=None, progress={"step": 5, "estimatedRemainingSeconds": 0})
    assert describe_progress(ended) == "Succeeded step 5/? loss 1.4231 eval 1.5 PodsRunning"
    picture = printed(progress.picture(ended, LossHistory()))
    assert picture.startswith(f"one Succeeded  {bar(0)}   0%  step 5/?\n")
    assert "train loss" not in picture


def test_a_job_without_figures_is_its_phase_alone(job: Make, printed: Printed) -> None:
    new = Job.from_object(job().raw | {"status": {}})
    losses = LossHistory()
    losses.add(new)
    assert describe_progress(new) == "Pending"
    assert printed(progress.picture(new, losses)).rstrip() == f"one Pending  {bar(0)}   0%"
    assert progress.loss_pairs(new) == []


@pytest.mark.parametrize(
    ("metrics", "resolved", "shown"),
    [
        ({"bestEvalLoss": 1.5}, {}, {"Best": "1.5"}),
        ({}, {"learningRate": 0.0001}, {"Learning rate": "0.0001"}),
        ({"learningRate": 0.0}, {"learningRate": 0.0001}, {}),
        ({"evalReward": 0.5, "reward": 0.4}, {}, {"Reward": "0.5"}),
        (
            {"reward": 0.4, "baselineEvalReward": 0.1, "kl": 0.01},
            {},
            {"Reward": "0.4", "Reward before": "0.1", "KL": "0.01"},
        ),
        ({"tokensPerSecond": 12345.0}, {}, {"Tokens/s": "12345"}),
    ],
)
def test_figures_that_were_measured_are_named(
    job: Make, metrics: dict[str, Any], resolved: dict[str, Any], shown: dict[str, str]
) -> None:
    pairs = progress.loss_pairs(job(metrics=metrics, resolved=resolved))
    assert {name: value for name, value in pairs if value != "-"} == shown


def test_a_terminal_gets_one_picture_over_the_last_and_a_pipe_gets_lines(job: Make) -> None:
    terminal, pipe = io.StringIO(), io.StringIO()
    for file, options in ((terminal, {"force_terminal": True}), (pipe, {})):
        with progress.screen(Console(file=file, width=120, highlight=False, **options)) as draw:
            draw(job())
            draw(job(progress={"display": "50%", "percent": 50, "step": 50, "totalSteps": 100}))
    assert "\x1b[1A" in terminal.getvalue()
    assert "train loss:   1.4231  ▁\n" in terminal.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert "step 50/100" in terminal.getvalue().rpartition("\x1b[1A")[2]
    assert [line.split()[1:3] for line in pipe.getvalue().splitlines()] == [["Training", "42%"], ["Training", "50%"]]


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    terminal = io.StringIO()
    with progress.screen(Console(file=terminal, force_terminal=True)) as draw:
        draw(job())
        assert "Training 42%" in terminal.getvalue()


def test_a_line_begins_with_the_time_of_day_and_its_zone(job: Make) -> None:
    pipe = io.StringIO()
    with progress.screen(Console(file=pipe)) as draw:
        draw(job())
    assert re.match(r"\d\d:\d\d:\d\dZ Training 42%", pipe.getvalue())


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ({"stage": "Loading", "display": "Loading"}, "Training Loading PodsRunning"),
        ({"stage": "Baseline", "display": "Baseline 40%"}, "Training Baseline 40% PodsRunning"),
        ({"stage": "Evaluating", "display": "50%", "step": 5}, "Training 50% step 5/? Evaluating PodsRunning"),
    ],
)
def test_a_line_has_no_word_twice(job: Make, shown: dict[str, Any], words: str) -> None:
    assert describe_progress(job(progress=shown, metrics=None, message=None)) == words


def piped(clock: list[float], *drawn: tuple[float, Job]) -> list[str]:
    """Return the lines of a pipe, each without its time of day, for jobs drawn at these seconds."""
    pipe = io.StringIO()
    with progress.screen(Console(file=pipe), clock=lambda: clock[0]) as draw:
        for seconds, one in drawn:
            clock[0] = seconds
            draw(one)
    return [line.split(" ", 1)[1] for line in pipe.getvalue().splitlines()]


def test_a_pipe_gets_a_line_only_when_more_than_the_time_left_has_changed(job: Make) -> None:
    def at(step: int, left: int) -> Job:
        return job(progress={"step": step, "totalSteps": 9, "estimatedRemainingSeconds": left}, message=None)

    lines = piped([0.0], (0, at(1, 80)), (2, at(1, 80)), (4, at(1, 78)), (6, at(2, 70)), (8, at(2, 69)))
    assert [line.split(" loss ")[0] for line in lines] == ["Training step 1/9", "Training step 2/9"]


def test_a_pipe_gets_an_unchanged_line_once_a_minute_as_a_sign_of_life(job: Make) -> None:
    drawn = [(float(second), job()) for second in range(0, 150, 2)]
    assert piped([0.0], *drawn) == [describe_progress(job())] * 3


def test_a_change_is_one_line_of_a_pipe_however_long(job: Make) -> None:
    pipe = io.StringIO()
    with progress.screen(Console(file=pipe, width=20)) as draw:
        draw(job(message="a long message " * 9))
    assert pipe.getvalue().count("\n") == 1


def test_a_job_is_followed_until_it_has_ended(job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [job(), job(), job(phase="Succeeded", conditions=ENDED)]
    seen[2].raw["metadata"]["resourceVersion"] = "2"
    left, waits = iter(seen), list[float]()
    monkeypatch.setattr("time.sleep", waits.append)
    assert list(progress.changes(lambda: next(left), 7.5)) == [seen[0], seen[2]]
    assert waits == [7.5, 7.5]


def test_a_job_that_does_not_change_is_looked_at_and_passed_on_once_a_minute(
    job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    ended = job(phase="Succeeded", conditions=ENDED)
    ended.raw["metadata"]["resourceVersion"] = "2"
    found = list(progress.changes(lambda: job() if now[0] < 150 else ended, 2.0, clock=lambda: now[0]))
    assert [one.phase for one in found] == ["Training", "Training", "Training", "Succeeded"]


def test_an_api_server_that_is_away_for_a_while_does_not_end_the_following(
    job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    answers: list[Job | None] = [job(), None, None, job(phase="Succeeded", conditions=ENDED)]

    def look() -> Job:
        answer = answers.pop(0)
        if answer is None:
            raise Unreachable("away")
        answer.raw["metadata"]["resourceVersion"] = str(len(answers))
        return answer

    assert [one.phase for one in progress.changes(look, 0)] == ["Training", "Succeeded"]
    with pytest.raises(Unreachable):
        list(progress.changes(_away, 0))


@pytest.mark.parametrize("interval", [0.1, 30.0])
def test_an_api_server_that_is_away_is_asked_for_a_minute_at_any_interval(
    job: Make, monkeypatch: pytest.MonkeyPatch, interval: float
) -> None:
    waits = [0.0]
    monkeypatch.setattr("time.sleep", waits.append)

    def look() -> Job:
        if len(waits) > 1:
            raise Unreachable("away")
        return job()

    with pytest.raises(Unreachable):
        list(progress.changes(look, interval))
    assert sum(waits) == interval + 60


def _away() -> Job:
    raise Unreachable("away")


@pytest.mark.parametrize("failure", [(502, b"<html>Bad Gateway</html>"), (429, {"message": "too many requests"})])
def test_progress_survives_a_failing_gateway_and_ends_with_the_job(
    front: Any, finetune: Callable[..., Any], job: Make, failure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "RETRY_SECONDS", 0.01)
    done = job(phase="Succeeded", conditions=ENDED).raw
    complete = done | {"metadata": done["metadata"] | {"resourceVersion": "2"}}
    front.answers["one"] = [(200, job().raw), failure, failure, (200, complete)]
    ended = finetune("progress", "one", "--context", "lab", "--interval", "0.1")
    assert (ended.code, ended.out.count("\n")) == (0, 2)


def test_an_unreachable_api_server_has_another_exit_code_than_a_failed_job(
    front: Any, finetune: Callable[..., Any], job: Make
) -> None:
    front.answers["one"] = [(503, b"")]
    done = finetune("progress", "one", "--context", "lab")
    assert (done.code, "the API server returned 503" in done.err) == (5, True)
    front.answers["one"] = [(200, job(phase="Failed", conditions=[ENDED[0] | {"type": "Failed"}]).raw)]
    assert finetune("progress", "one", "--context", "lab").code == 1
