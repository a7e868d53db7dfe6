from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from plugin_world import ENDED

from finetune_client.cluster.job import Job
from kubectl_finetune.commands import describe

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
Make = Callable[..., Job]
Printed = Callable[..., str]


def values_of(page: str) -> dict[str, str]:
    """Return the values of a page's `Name:   value` lines."""
    pairs = (line.strip().split(":  ", 1) for line in page.splitlines() if ":  " in line)
    return {name: value.strip() for name, value in pairs}


def test_a_page_has_the_reason_the_figures_and_the_next_command(job: Make, printed: Printed) -> None:
    waiting = job(phase="Queued", reason="WaitingForQuota", message="insufficient quota: ask for fewer GPUs")
    assert "insufficient quota: ask for fewer GPUs" in printed(describe.job_page(waiting, [], NOW))
    page = printed(describe.job_page(job(), [], NOW))
    assert "against the model before training" not in page  # a percentage without its interval
    assert "1.498 at step 40" in page
    assert page.rstrip().endswith("kubectl finetune progress one -n team-a")


def test_the_head_of_a_page_leaves_out_what_a_job_does_not_have(job: Make, printed: Printed) -> None:
    page = printed(describe.job_page(job(), [], NOW)).partition("In training")[0]
    assert page.startswith("Phase: ")
    assert values_of(page) == {
        "Name": "team-a/one",
        "Phase": "Training",
        "Reason": "PodsRunning",
        "Why": "1 of 1 pods are running.",
        "Progress": "42%, step 42 of 100, 56m40s left",
        "Stage": "Training",
        "Objective": "Chat",
        "Model": "hf://owner/model",
        "Method": "QLoRA (Auto is QLoRA)",
        "Data": "s3://b/rows.jsonl",
        "Output": "s3://b/out",
        "Counted": "attempts 2, runs 1, preemptions 1",
        "Ran": "10m00s",
    }


def test_the_head_of_a_page_has_the_revision_the_queue_and_the_parent(job: Make, printed: Printed) -> None:
    spec = {
        "scheduling": {"queueName": "team"},
        "lineage": {"parentRef": {"name": "sft"}},
        "tuning": {"method": "Auto"},
    }
    lineage = {"baseModelURI": "hf://owner/model", "baseModelRevision": "abc"}
    progress = {"display": "1%", "note": "The disk is nearly full.", "estimatedRemainingSeconds": 30}
    ended = job("one", spec, lineage=lineage, progress=progress, resolved={}, conditions=ENDED)
    found = values_of(printed(describe.job_page(ended, [], NOW)))
    assert (found["Model"], found["Queue"], found["Parent"]) == ("hf://owner/model@abc", "team", "sft")
    assert (found["Method"], found["Note"], found["Progress"]) == ("Auto", "The disk is nearly full.", "1%")


def test_the_message_of_the_job_is_on_its_page_once(job: Make, printed: Printed) -> None:
    message = "none of the 9 rows can be used (NO_ASSISTANT 9)"
    kinds = {"Ready": "False", "Validated": "False", "Failed": "True", "Stalled": "True"}
    found = [
        {"type": kind, "status": status, "reason": "DatasetUnusable", "lastTransitionTime": "2026-03-01T12:25:00Z",
         "message": "Preflight failed." if kind == "Validated" else message}
        for kind, status in kinds.items()
    ]  # fmt: skip
    failed = job(phase="Failed", reason="DatasetUnusable", message=message, conditions=found)
    page = printed(describe.job_page(failed, [], NOW))
    assert page.count(message) == 1
    assert values_of(page)["Why"] == message
    brief = [line.split()[0] for line in page.splitlines() if line.endswith("see Why")]
    assert brief == ["2026-03-01", "Ready", "Failed", "Stalled"]  # the first one in the timeline
    assert "Preflight failed." in page


def test_the_page_of_an_ended_job_begins_with_verdict_reason_and_fix(job: Make, printed: Printed) -> None:
    worse = {
        "verdict": "Worse",
        "metric": "Loss",
        "before": 2.0,
        "after": 2.5,
        "difference": 0.5,
        "differenceLow": 0.3,
        "differenceHigh": 0.7,
        "rows": 40,
        "change": "+25 %",
        "servedAs": "Adapter",
    }
    ended = job(phase="Succeeded", reason="Succeeded", message="Published.", conditions=ENDED, evaluation=worse)
    page = printed(describe.job_page(ended, [], NOW))
    assert [line.partition(":")[0] for line in page.splitlines()[:7]] == [
        "Verdict", "Change", "Phase", "Reason", "Why", "Fix", "Name",
    ]  # fmt: skip
    found = values_of(page)
    assert found["Verdict"] == "Worse"
    expected = (
        "+25 %: loss 2 → 2.5, 95 % interval of the difference 0.3 to 0.7, 40 held-out rows, measured on the adapter"
    )
    assert found["Change"] == expected
    assert found["Fix"] == "see the recommendations of the report: kubectl finetune report one -n team-a"


def test_a_failed_job_has_no_verdict_and_its_reason_has_the_fix(job: Make, printed: Printed) -> None:
    failed = [ENDED[0] | {"type": "Failed", "reason": "OutOfMemory"}]
    message = "The container was killed: raise resources.limits.memory"
    page = printed(
        describe.job_page(job(phase="Failed", reason="OutOfMemory", message=message, conditions=failed), [], NOW)
    )
    found = values_of(page)
    assert page.startswith("Verdict: ")
    assert (found["Verdict"], found["Reason"], found["Why"]) == ("NotEvaluated", "OutOfMemory", message)
    assert "Fix" not in found


def test_a_page_has_the_shares_of_correct_answers(job: Make, printed: Printed) -> None:
    points = {"differencePoints": 30, "differenceLowPoints": 18.24, "differenceHighPoints": 40.5}
    shares = {"beforePercent": 60, "afterPercent": 90} | points
    counted = {"verdict": "Better", "answers": shares | {"rows": 200}, "ability": shares | {"questions": 400}}
    found = values_of(printed(describe.job_page(job(phase="Succeeded", conditions=ENDED, evaluation=counted), [], NOW)))
    interval = "95 % interval +18.2 to +40.5 percentage points"
    assert found["Correct"] == f"60.0 % → 90.0 % of 200 held-out rows, {interval}"
    assert found["Ability"] == f"60.0 % → 90.0 % of 400 questions, {interval}"


def test_a_better_result_needs_no_fix(job: Make, printed: Printed) -> None:
    better = {"verdict": "Better", "metric": "Reward", "before": 0.5, "after": 0.75}
    ended = job(phase="Succeeded", conditions=ENDED, evaluation=better)
    found = values_of(printed(describe.job_page(ended, [], NOW)))
    assert (found["Verdict"], found["Change"], "Fix" in found) == ("Better", "reward 0.5 → 0.75", False)


def test_a_job_that_no_operator_has_seen_names_what_to_check(job: Make, printed: Printed) -> None:
    unseen = Job.from_object(job().raw | {"status": {"observedGeneration": -1}})
    page = printed(describe.job_page(unseen, [], NOW))
    assert not any(title in page for title in ("In training", "Dataset", "Result", "Conditions", "Events", "Next"))
    found = values_of(page)
    assert found["Phase"] == "Pending"
    assert "check that finetune-operator is running and watches this namespace" in found["Why"]
    accepted = Job.from_object(job().raw | {"status": {"observedGeneration": 1, "message": "Accepted."}})
    assert values_of(printed(describe.job_page(accepted, [], NOW)))["Why"] == "Accepted."


def test_a_page_counts_the_rows(job: Make, printed: Printed) -> None:
    rows = {
        "rows": 1000,
        "acceptedRows": 990,
        "rejectedRows": 10,
        "rejectedRowsByCode": {"BAD_JSON": 10},
        "truncatedRows": 3,
    }
    found = values_of(printed(describe.job_page(job(dataset=rows), [], NOW)))
    assert (found["Rows"], found["Accepted"], found["Rejected"]) == ("1,000", "990", "10 (BAD_JSON 10)")
    assert found["Cut to maxLength"] == "3"
    found = values_of(printed(describe.job_page(job(dataset={"rows": 5, "truncatedRows": 0}), [], NOW)))
    assert found["Rejected"] == "0"
    assert "Cut to maxLength" not in found


def test_a_page_has_the_gates_and_the_published_files(job: Make, printed: Printed) -> None:
    artifacts = {
        "uri": "s3://b/out",
        "adapterURI": "s3://b/out/adapter",
        "keptCheckpoints": [
            {"step": 24, "evalLoss": 1.2346, "uri": "s3://b/out/kept-checkpoints/step-000024"},
            {"step": 8, "uri": "s3://b/out/kept-checkpoints/step-000008"},
        ],
        "reportURI": "s3://b/out/finetune_report.md",
        "manifestSHA256": "ab" * 32,
        "sizeBytes": 2048,
    }
    verdict = {"gate": "Passed", "mergeGate": "NotAsked", "gateMessage": "The loss fell."}
    found = values_of(printed(describe.job_page(job(artifacts=artifacts, evaluation=verdict), [], NOW)))
    assert (found["Gate"], found["Not met"], "Full model" in found) == ("Passed", "The loss fell.", False)
    assert found["Step 24"] == "s3://b/out/kept-checkpoints/step-000024 (loss 1.235)"
    assert found["Step 8"] == "s3://b/out/kept-checkpoints/step-000008"
    assert (found["Adapter"], found["Report"]) == ("s3://b/out/adapter", "s3://b/out/finetune_report.md")
    assert (found["Size"], found["Everything under"]) == ("2.0 KiB", "s3://b/out")


@pytest.mark.parametrize(
    ("push", "words"),
    [
        ({"reference": "r.example/bot@sha256:abc"}, "r.example/bot@sha256:abc"),
        ({"message": "no"}, "not pushed to r.example/bot: see condition RegistryPushed"),
    ],
)
def test_a_page_has_what_was_pushed_to_a_registry(
    job: Make, printed: Printed, push: dict[str, str], words: str
) -> None:
    found = job(artifacts={"oci": {"repository": "r.example/bot"} | push})
    assert values_of(printed(describe.job_page(found, [], NOW)))["Registry"] == words


def test_a_page_has_the_conditions_and_the_last_ten_events_with_their_ages(job: Make, printed: Printed) -> None:
    events = [
        {"lastTimestamp": f"2026-03-01T12:{minute:02d}:00Z", "type": "Normal", "reason": f"R{minute}", "message": "m"}
        for minute in range(10, 20)
    ]
    events += [{"eventTime": "2026-03-01T12:29:00Z", "type": "Warning", "reason": "Late"}, {"reason": "Undated"}]
    lines = [line.split() for line in printed(describe.job_page(job(), events, NOW)).splitlines()]
    assert [
        "Validated",
        "True",
        "DatasetValid",
        "29m00s",
        "90",
        "of",
        "100",
        "rows",
        "can",
        "be",
        "trained",
        "on.",
    ] in lines
    shown = lines[lines.index(["Events"]) + 2 :][:10]
    assert shown[0] == ["18m00s", "Normal", "R12", "m"]
    assert shown[-2:] == [["1m00s", "Warning", "Late"], ["-", "Undated"]]


@pytest.mark.parametrize(
    ("status", "suspend", "command"),
    [
        ({"phase": "Succeeded"}, None, "report one -n team-a"),
        ({"phase": "Preflight"}, None, "logs one -n team-a --preflight -f"),
        ({"phase": "Suspended"}, True, "resume one -n team-a"),
    ],
)
def test_a_page_ends_with_the_command_for_the_phase(
    job: Make, printed: Printed, status: dict[str, Any], suspend: bool | None, command: str
) -> None:
    page = printed(describe.job_page(job("one", {"suspend": suspend}, **status), [], NOW))
    assert page.rstrip().endswith(f"Next\n  kubectl finetune {command}")


def test_a_job_that_a_queue_suspends_is_not_to_be_resumed_by_hand(job: Make, printed: Printed) -> None:
    assert "Next" not in printed(describe.job_page(job(phase="Suspended"), [], NOW))


def test_a_job_that_failed_before_it_was_accepted_has_no_log_to_look_at(job: Make, printed: Printed) -> None:
    refused = {"type": "Accepted", "status": "False", "reason": "ParentFailed"}
    conditions = [ENDED[0] | refused, ENDED[0] | {"type": "Failed", "reason": "ParentFailed"}]
    page = printed(describe.job_page(job(phase="Failed", conditions=conditions), [], NOW))
    assert "Next" not in page


@pytest.mark.parametrize(
    ("validated", "command"), [("True", "logs one -n team-a"), ("False", "logs one -n team-a --preflight")]
)
def test_a_failed_job_leads_to_the_log_of_the_pod_that_failed(
    job: Make, printed: Printed, validated: str, command: str
) -> None:
    conditions = [ENDED[0] | {"type": "Validated", "status": validated}, ENDED[0] | {"type": "Failed"}]
    page = printed(describe.job_page(job(phase="Failed", conditions=conditions), [], NOW))
    assert page.rstrip().endswith(f"kubectl finetune {command}")


def test_foreign_texts_neither_control_a_terminal_nor_are_markup(job: Make, printed: Printed) -> None:
    hostile = "\x1b[2J[red]gone[/red]\x07\nnext"
    page = printed(describe.job_page(job(message=hostile), [], NOW), force_terminal=True)
    assert "\x1b[2J" not in page
    assert "\\u001b[2J[red]gone[/red]\\u0007\\nnext" in page


def test_a_page_counts_the_rows_of_each_source(job: Make, printed: Printed) -> None:
    faq, chats = "s3://rows/faq.jsonl", "s3://rows/chats.jsonl"
    counted = {
        "sources": [
            {"uri": faq, "acceptedRows": 1200, "rejectedRows": 3, "trainRows": 900, "trainedTokens": 3000},
            {"uri": chats, "acceptedRows": 50, "trainRows": 50, "trainedTokens": 1000},
        ]
    }
    spec = {"dataset": {"train": {"sources": [{"uri": faq}, {"uri": chats}]}}}
    page = printed(describe.job_page(job("one", spec, dataset=counted), [], NOW))
    assert values_of(page)["Data"] == f"{faq}, {chats}"
    lines = [line.split() for line in page.splitlines()]
    assert [faq, "1,200", "3", "900", "3,000", "75.0", "%"] in lines
    assert [chats, "50", "-", "50", "1,000", "25.0", "%"] in lines


def test_the_names_of_conditions_have_no_colours_of_states(job: Make, printed: Printed) -> None:
    calm = {"type": "Failed", "status": "False", "reason": "Progressing", "message": "The job has not failed."}
    page = printed(
        describe.job_page(job(conditions=[calm | {"lastTransitionTime": "2026-03-01T12:00:00Z"}]), [], NOW),
        force_terminal=True,
    )
    (line,) = (one for one in page.splitlines() if "has not failed" in one)
    assert line.split()[:2] == ["Failed", "False"]
