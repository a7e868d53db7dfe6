"""What commands print of a job."""

import io
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console, RenderableType

from kubectl_finetune.cluster.job import Job
from kubectl_finetune.commands import describe, diff, lineage, progress, timeline
from kubectl_finetune.commands import list as listing
from kubectl_finetune.display.table import bar, clean, duration, size, sparkline
from kubectl_finetune.errors import Unreachable

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
ENDED = [
    {
        "type": "Complete",
        "status": "True",
        "reason": "Succeeded",
        "message": "Published to s3://b/out.",
        "lastTransitionTime": "2026-03-01T12:25:00Z",
    }
]
Make = Callable[..., Job]


def printed(part: RenderableType, **options: Any) -> str:
    text = io.StringIO()
    Console(file=text, width=200, highlight=False, **options).print(part, soft_wrap=True)
    return text.getvalue()


def test_a_list_has_a_line_for_each_job_and_those_that_run_come_first(job: Make) -> None:
    jobs = [job("done", phase="Succeeded", conditions=ENDED), job("one")]
    header, first, second = printed(listing.table(jobs, NOW, everywhere=True)).splitlines()
    assert header.split()[:3] == ["NAMESPACE", "NAME", "PHASE"]
    assert first.split() == [
        *("team-a", "one", "Training", "Chat", "QLoRA", "42%", "56m40s", "1.4231", "1.5", "-", "PodsRunning", "30m00s")
    ]
    assert second.split()[:3] == ["team-a", "done", "Succeeded"]


def test_a_timeline_tells_runs_in_their_order_with_what_ended_them(job: Make) -> None:
    told = timeline.moments(job(), NOW)
    assert [one.what for one in told] == [
        *("created", "accepted", "validated", "run 1 (attempt 1) Preempted", "checkpoint", "run 2 (attempt 2) runs")
    ]
    assert told[3].took == "10m00s"
    assert told[3].detail == "Evicted; exit code 75; steps 0 to 40; on node-a; The node was low on memory."
    assert "went on from step 40" in told[5].detail


def test_a_page_tells_why_a_job_waits_and_what_to_do_next(job: Make) -> None:
    waiting = job(phase="Queued", reason="WaitingForQuota", message="insufficient quota: ask for fewer GPUs")
    assert "insufficient quota: ask for fewer GPUs" in printed(describe.page(waiting, [], NOW))
    page = printed(describe.page(job(), [], NOW))
    assert "1.5 (-25.0 % against the model before training)" in page
    assert "1.498 at step 40" in page
    assert "10 (BAD_JSON 10)" in page
    assert page.rstrip().endswith("kubectl finetune progress one -n team-a")


@pytest.mark.parametrize(
    ("validated", "command"), [("True", "logs one -n team-a"), ("False", "logs one -n team-a --preflight")]
)
def test_a_failed_job_leads_to_the_log_of_the_pod_that_failed(job: Make, validated: str, command: str) -> None:
    conditions = [ENDED[0] | {"type": "Validated", "status": validated}, ENDED[0] | {"type": "Failed"}]
    page = printed(describe.page(job(phase="Failed", conditions=conditions), [], NOW))
    assert page.rstrip().endswith(f"kubectl finetune {command}")


def test_foreign_texts_steer_no_terminal_and_are_no_markup(job: Make) -> None:
    hostile = "\x1b[2J[red]gone[/red]\x07\nnext"
    page = printed(describe.page(job(message=hostile), [], NOW), force_terminal=True)
    assert "\x1b[2J" not in page
    assert "[2J[red]gone[/red] next" in page
    assert clean(hostile) == "[2J[red]gone[/red] next"


def test_a_change_is_one_line_and_a_terminal_gets_a_bar_with_losses(job: Make) -> None:
    assert progress.line(job()) == (
        "Training 42% step 42/100 Training loss 1.4231 eval 1.5 left 56m40s PodsRunning: 1 of 1 pods run."
    )
    losses = progress.Losses()
    for step, loss in ((10, 3.0), (20, 2.0), (20, 2.0), (30, 1.0)):
        figures = {"trainLoss": loss, "evalLoss": loss + 1, "baselineEvalLoss": 5.0}
        losses.add(job(progress={"step": step}, metrics=figures))
    assert (losses.train, losses.evaluated) == ([3.0, 2.0, 1.0], [5.0, 4.0, 3.0, 2.0])
    picture = printed(progress.picture(job(), losses))
    assert f"{bar(42)}  42%  step 42/100  56m40s left" in picture
    assert "█▅▁" in picture
    assert "█▆▃▁" in picture


def test_a_terminal_gets_one_picture_over_the_last_and_a_pipe_gets_lines(job: Make) -> None:
    terminal, pipe = io.StringIO(), io.StringIO()
    for file, options in ((terminal, {"force_terminal": True}), (pipe, {})):
        with progress.screen(Console(file=file, width=120, highlight=False, **options)) as draw:
            draw(job())
            draw(job(progress={"display": "50%", "percent": 50, "step": 50, "totalSteps": 100}))
    assert "\x1b[1A" in terminal.getvalue()
    assert "step 50/100" in terminal.getvalue().rpartition("\x1b[1A")[2]
    assert [line.split()[1:3] for line in pipe.getvalue().splitlines()] == [["Training", "42%"], ["Training", "50%"]]


def test_a_job_is_followed_until_it_has_ended(job: Make) -> None:
    seen = [job(), job(), job(phase="Succeeded", conditions=ENDED)]
    seen[2].raw["metadata"]["resourceVersion"] = "2"
    left = iter(seen)
    assert list(progress.changes(lambda: next(left), 0)) == [seen[0], seen[2]]


def test_an_api_server_that_is_away_for_a_while_does_not_end_the_following(job: Make) -> None:
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


def _away() -> Job:
    raise Unreachable("away")


def test_a_difference_has_both_values_and_by_how_much(job: Make) -> None:
    other = job("two", {"objective": "DPO", "dpo": {"beta": 0.1}}, metrics={"evalLoss": 1.2})
    page = [line.split() for line in printed(diff.page(job(), other)).splitlines()]
    assert ["objective", "Chat", "DPO"] in page
    assert ["dpo.beta", "-", "0.1"] in page
    assert ["metrics.evalLoss", "1.5", "1.2", "-20.0", "%"] in page
    assert printed(diff.page(job(), job())).count("no difference") == 2


def test_a_tree_of_jobs_names_those_that_are_gone_or_replaced(job: Make) -> None:
    parent = {
        "name": "sft",
        "uid": "uid-sft",
        "objective": "Chat",
        "outputUri": "s3://b/sft",
        "manifestSha256": "cd" * 32,
    }
    child = job(spec={"lineage": {"parentRef": {"name": "sft"}}}, lineage={"parent": parent})
    there = {"sft": job("sft")}
    tree = printed(lineage.tree(lineage.record(child, there.get)))
    assert tree.index("one Chat") < tree.index("parent: sft Chat") < tree.index("base model: hf://owner/model")
    assert "no longer in the cluster" in printed(lineage.tree(lineage.record(child, lambda _: None)))
    there["sft"].raw["metadata"]["uid"] = "another"
    assert "another job of this name" in printed(lineage.tree(lineage.record(child, there.get)))


@pytest.mark.parametrize(
    ("shown", "meant"),
    [
        (duration(59.6), "1m00s"), (duration(42), "42s"), (duration(3725), "1h02m"), (duration(None), "-"),
        (duration(200_000), "2d7h"), (size(1536), "1.5 KiB"), (size(12), "12 B"), (size(3 * 1024**4), "3.0 TiB"),
        (sparkline([]), ""), (sparkline([1, 1]), "▁▁"), (bar(150, 4), "████"), (bar(0, 4), "░░░░"),
    ],
)  # fmt: skip
def test_figures_are_short(shown: str, meant: str) -> None:
    assert shown == meant
