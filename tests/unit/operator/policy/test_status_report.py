"""What a trainer reports is found in the status, field for field."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_api.handoff import ProgressReport, Report
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import DatasetStatus, FineTuneJobStatus
from finetune_operator.kube.observed import Reading
from finetune_operator.policy import status_report

METRICS = {
    "trainLoss": 0.61,
    "rewardMargin": 0.42,
    "rewardAccuracy": 0.9,
    "reward": 1.5,
    "evalReward": 1.25,
    "baselineEvalReward": 0.25,
    "kl": 0.012,
}
RESOLVED = {
    "method": "LoRA",
    "methodReason": "as asked for",
    "packing": False,
    "estimatedGPUMemoryBytes": 6_500_000_000,
    "beta": 0.1,
    "lossType": "sigmoid",
    "desirableWeight": 1.0,
    "undesirableWeight": 2.0,
    "algorithm": "GRPO",
    "numGenerations": 4,
    "maxCompletionLength": 128,
    "temperature": 1.0,
}
DATASET = {
    "rows": 5,
    "acceptedRows": 4,
    "rejectedRows": 1,
    "rejectedRowsByCode": {"NOT_FOR_OBJECTIVE": 1},
    "p99LengthTokens": 812,
}
LINEAGE = {"baseModelRevision": "c0ffee" * 6 + "c0ff", "initialAdapterSHA256": "ab" * 32}


def test_what_preflight_reports_is_in_the_status(scene: Any) -> None:
    one = scene(objective="DPO")
    one.settle()
    report = one.report("Validated", dataset=DATASET, resolved=RESOLVED, lineage=LINEAGE)
    one.end(one.pod("one-preflight"), 0, report)
    one.complete("one-preflight")
    one.settle()
    assert (one.status["dataset"], one.status["resolved"]) == (DATASET, RESOLVED)
    assert one.status["lineage"].items() >= LINEAGE.items()


def test_what_a_running_trainer_reports_is_in_the_status(scene: Any) -> None:
    one = scene(objective="DPO").to_training()
    pod = one.pod("one-1")
    one.run(pod)
    report = {"jobUID": "job-uid", "heartbeat": 7, "progress": {"step": 3}, "metrics": METRICS, "resolved": RESOLVED}
    one.reading = Reading("one-1-1-uid", one.now - timedelta(seconds=1), ProgressReport.model_validate(report))
    one.settle()
    assert one.status["metrics"] == METRICS
    assert one.status["resolved"] == RESOLVED


def test_the_last_report_replaces_the_polled_progress_and_loses_nothing(scene: Any) -> None:
    one = scene(objective="RLHF", rlhf={"rewards": [{"type": "Length", "targetTokens": 20}]}).to_training()
    pod = one.pod("one-1")
    one.run(pod)
    report = {"jobUID": "job-uid", "heartbeat": 7, "progress": {"step": 3}, "metrics": METRICS}
    one.reading = Reading("one-1-1-uid", one.now, ProgressReport.model_validate(report))
    one.settle()
    artifacts = {"uri": "s3://bucket/out", "manifestSHA256": "ab" * 32}
    one.end(pod, 0, one.report("Published", artifacts=artifacts, metrics={"reward": 1.75}))
    one.complete("one-1")
    one.settle()
    assert one.status["metrics"] == METRICS | {"reward": 1.75}


def checkpoint(step: int) -> dict[str, Any]:
    uri = f"s3://bucket/out/checkpoints/step-{step:06d}"
    return {"uri": uri, "step": step, "savedTime": "2026-01-01T00:00:00Z", "sha256": "cd" * 32}


def test_the_last_checkpoint_and_the_step_that_a_run_resumed_from_are_in_the_status(scene: Any) -> None:
    one = scene().to_training()
    one.run(one.pod("one-1"))
    progress = {"step": 12, "resumedFromStep": 10, "note": "skipped broken checkpoints: step-000011: torn"}
    report = {"jobUID": "job-uid", "heartbeat": 7, "progress": progress, "checkpoint": checkpoint(10)}
    one.reading = Reading("one-1-1-uid", one.now, ProgressReport.model_validate(report))
    one.settle()
    assert one.status["checkpoint"] == checkpoint(10)
    assert one.status["progress"].items() >= progress.items()


def test_a_stopped_run_leaves_its_checkpoint_and_one_that_saved_none_that_before_it(scene: Any) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    report = one.report("Preempted", lastStep=40, resumedFromStep=30, checkpoint=checkpoint(40))
    one.end(pod, 75, report)
    one.settle()
    assert one.status["checkpoint"] == checkpoint(40)
    assert one.status["history"][0]["resumedFromStep"] == 30
    later = one.pod("one-1")
    one.run(later)
    one.settle()
    one.end(later, 75, one.report("Preempted"))
    one.settle()
    assert one.status["checkpoint"] == checkpoint(40)


def test_an_unobserved_run_keeps_the_step_that_it_resumed_from(scene: Any) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    report = {"jobUID": "job-uid", "heartbeat": 7, "progress": {"step": 12, "resumedFromStep": 10}}
    one.reading = Reading("one-1-1-uid", one.now, ProgressReport.model_validate(report))
    one.settle()
    one.end(pod, 137)
    one.settle()
    run = one.status["history"][0]
    assert (run["lastStep"], run["resumedFromStep"]) == (12, 10)


def test_a_published_job_points_at_no_checkpoint(scene: Any) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    report = {"jobUID": "job-uid", "heartbeat": 7, "progress": {"step": 3}, "checkpoint": checkpoint(3)}
    one.reading = Reading("one-1-1-uid", one.now, ProgressReport.model_validate(report))
    one.settle()
    assert "checkpoint" in one.status
    artifacts = {"uri": "s3://bucket/out", "manifestSHA256": "ab" * 32}
    one.end(pod, 0, one.report("Published", artifacts=artifacts))
    one.complete("one-1")
    one.settle()
    assert "checkpoint" not in one.status


def test_a_job_that_stopped_early_is_a_success_and_shows_the_step(scene: Callable[..., Any]) -> None:
    one = scene(
        earlyStopping={"patience": 2},
        dataset={"train": {"uri": "s3://bucket/rows.jsonl"}, "validationSplitPercent": 10},
    ).to_training()
    pod = one.pod("one-1")
    one.run(pod)
    one.settle()
    early = {"stopped": True, "stoppedAtStep": 60, "bestStep": 40, "patience": 2}
    artifacts = {"uri": "s3://bucket/out", "manifestSHA256": "ab" * 32}
    one.end(pod, 0, one.report("Published", artifacts=artifacts, earlyStopping=early))
    one.complete("one-1")
    one.settle()
    early = one.condition("EarlyStopped")
    assert (early["status"], early["reason"], one.status["phase"]) == ("True", "PatienceExhausted", "Succeeded")
    assert "stopped falling: stopped at step 60, best at step 40; the best weights" in early["message"]


@pytest.mark.parametrize(
    ("early", "message"),
    [
        (None, "The training is not evaluated yet."),
        ({"stopped": False, "bestStep": 20, "evaluationsWithoutImprovement": 0, "patience": 3},
         "0 of 3 evaluations in a row without improvement, the best at step 20."),
        ({"stopped": False, "bestStep": 20, "evaluationsWithoutImprovement": 2, "patience": 3},
         "2 of 3 evaluations in a row without improvement, the best at step 20."),
    ],
)  # fmt: skip
def test_early_stopping_shows_only_what_was_evaluated(scene: Callable[..., Any], early: Any, message: str) -> None:
    one = scene(
        earlyStopping={"patience": 3},
        dataset={"train": {"uri": "s3://bucket/rows.jsonl"}, "validationSplitPercent": 10},
    ).to_training()
    one.run(one.pod("one-1"))
    report = {"jobUID": "job-uid", "heartbeat": 7, "progress": {"step": 3}} | (
        {"earlyStopping": early} if early else {}
    )
    one.reading = Reading("one-1-1-uid", one.now, ProgressReport.model_validate(report))
    one.settle()
    found = one.condition("EarlyStopped")
    assert (found["status"], found["reason"], found["message"]) == ("False", "NotTriggered", message)


def test_progress_has_the_time_in_whole_seconds_as_it_is_stored(scene: Any) -> None:
    status = FineTuneJobStatus()
    early = {"stopped": True, "stoppedAtStep": 60, "bestStep": 40, "patience": 2}
    report = {"jobUID": "job-uid", "heartbeat": 7, "progress": {"step": 3}, "earlyStopping": early}
    at = datetime(2026, 3, 1, 12, 0, 1, 999, tzinfo=UTC)
    status_report.record_progress(status, ProgressReport.model_validate(report), at)
    assert status.progress is not None
    assert status.progress.last_updated_time == datetime(2026, 3, 1, 12, 0, 1, tzinfo=UTC)
    assert status.early_stopping is not None
    assert status.early_stopping.stopped_at_step == 60
    del report["earlyStopping"]
    status_report.record_progress(status, ProgressReport.model_validate(report), at)
    assert status.early_stopping is not None


def test_a_report_without_news_is_written_once_a_minute_so_that_watchers_see_no_equal_rows(scene: Any) -> None:
    one = scene().to_training()
    one.run(one.pod("one-1"))
    report = ProgressReport.model_validate({"jobUID": "job-uid", "heartbeat": 7, "progress": {"stage": "Loading"}})
    found = []
    for seconds in range(0, 80, 10):
        at = one.now + timedelta(seconds=seconds)
        one.reading = Reading("one-1-1-uid", at, report)
        one.settle()
        found.append(one.status["progress"]["lastUpdatedTime"][14:19])
    assert found == ["00:00"] * 6 + ["01:00"] * 2
    report = ProgressReport.model_validate({"jobUID": "job-uid", "heartbeat": 8, "progress": {"stage": "Baseline"}})
    one.reading = Reading("one-1-1-uid", one.now + timedelta(seconds=80), report)
    one.settle()
    assert one.status["progress"]["lastUpdatedTime"].endswith(":01:20Z")


def test_the_progress_of_a_finished_job_is_whole_and_has_no_time_left(scene: Any) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    progress = {"display": "97%", "percent": 97, "step": 97, "totalSteps": 100, "epoch": 2.9, "stage": "Training"}
    report = {"jobUID": "job-uid", "heartbeat": 7, "progress": progress | {"estimatedRemainingSeconds": 30}}
    one.reading = Reading("one-1-1-uid", one.now, ProgressReport.model_validate(report))
    one.settle()
    artifacts = {"uri": "s3://bucket/out", "manifestSHA256": "ab" * 32}
    one.end(pod, 0, one.report("Published", artifacts=artifacts, lastStep=100))
    one.complete("one-1")
    one.settle()
    shown = {"display": "100%", "percent": 100, "step": 100, "totalSteps": 100, "stage": "Done"}
    assert {name: value for name, value in one.status["progress"].items() if name != "lastUpdatedTime"} == shown


def test_a_report_changes_neither_the_pinned_image_nor_the_pinned_parent(scene: Any) -> None:
    spec = FineTuneJobSpec.model_validate(scene().object["spec"])
    parent = {"name": "sft", "uid": "u", "objective": "Chat", "outputURI": "s3://b/sft", "manifestSHA256": "cd" * 32}
    foreign = {
        "parent": parent | {"name": "other"},
        "rewardJob": parent,
        "trainerImage": "other:1",
        "datasetSHA256": "ef" * 32,
    }
    echo = {"reason": "Published", "message": "", "jobUID": "job-uid", "configSHA256": "ab" * 32}
    report = Report.model_validate({"outcome": "Published", "lineage": foreign} | echo)
    status = FineTuneJobStatus.model_validate({"lineage": {"trainerImage": "pinned:1", "parent": parent}})
    status_report.record_lineage(status, report, spec)
    found = status.to_wire()["lineage"]
    assert (found["trainerImage"], found["parent"]["name"], "rewardJob" in found) == ("pinned:1", "sft", False)
    assert (found["datasetSHA256"], found["baseModelURI"]) == ("ef" * 32, "s3://bucket/model")
    status = FineTuneJobStatus()
    status_report.record_lineage(status, report, spec)
    assert status.to_wire()["lineage"]["trainerImage"] == "other:1"


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [
        (None, "Dataset, model and storage are usable."),
        ({"acceptedRows": 5}, "Dataset, model and storage are usable."),
        ({"rows": 5, "acceptedRows": 5}, "5 of 5 rows can be trained on."),
        (
            {"rows": 5, "acceptedRows": 5, "rejectedRows": 0, "rejectedRowsByCode": {"BAD_JSON": 0}},
            "5 of 5 rows can be trained on.",
        ),
        ({"rows": 5, "rejectedRows": 5}, "0 of 5 rows can be trained on; 5 rejected."),
        (
            {"rows": 9, "acceptedRows": 6, "rejectedRows": 3, "rejectedRowsByCode": {"TOO_LONG": 1, "BAD_JSON": 2}},
            "6 of 9 rows can be trained on; 3 rejected (BAD_JSON 2, TOO_LONG 1).",
        ),
    ],
)
def test_a_dataset_is_a_sentence_with_its_counts(dataset: dict[str, Any] | None, sentence: str) -> None:
    found = DatasetStatus.model_validate(dataset) if dataset else None
    assert status_report.dataset_sentence(found) == sentence
