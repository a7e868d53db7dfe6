"""What a trainer reports is found in the status, field for field."""

from datetime import timedelta
from typing import Any

from finetune_api.handoff import ProgressReport
from finetune_operator.state import Reading

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
    "estimatedGpuMemoryBytes": 6_500_000_000,
    "beta": 0.1,
    "lossType": "sigmoid",
    "desirableWeight": 1.0,
    "undesirableWeight": 2.0,
    "algorithm": "GRPO",
    "numGenerations": 4,
    "maxCompletionLength": 128,
    "temperature": 1.0,
}
DATASET = {"rows": 5, "accepted": 4, "rejected": 1, "rejectedByCode": {"NOT_FOR_OBJECTIVE": 1}, "lengthP99": 812}
LINEAGE = {"baseModelRevision": "c0ffee" * 6 + "c0ff", "initialAdapterSha256": "ab" * 32}


def test_what_preflight_reports_is_in_the_status(scene: Any) -> None:
    one = scene(objective="DPO")
    one.settle()
    report = one.report("Validated", dataset=DATASET, resolved=RESOLVED, lineage=LINEAGE)
    one.end(one.pod("one-preflight"), 0, report)
    one.complete("one-preflight")
    one.settle()
    assert (one.status["dataset"], one.status["resolved"]) == (DATASET, RESOLVED)
    assert one.status["lineage"].items() >= LINEAGE.items()


def test_what_a_running_trainer_says_is_in_the_status(scene: Any) -> None:
    one = scene(objective="DPO").to_training()
    pod = one.pod("one-1")
    one.run(pod)
    told = {"jobUid": "job-uid", "heartbeat": 7, "progress": {"step": 3}, "metrics": METRICS, "resolved": RESOLVED}
    one.reading = Reading("one-1-1-uid", one.now - timedelta(seconds=1), ProgressReport.model_validate(told))
    one.settle()
    assert one.status["metrics"] == METRICS
    assert one.status["resolved"] == RESOLVED


def test_what_the_last_report_says_replaces_what_was_pulled_and_loses_nothing(scene: Any) -> None:
    one = scene(objective="RLHF", rlhf={"rewards": [{"type": "Length", "targetTokens": 20}]}).to_training()
    pod = one.pod("one-1")
    one.run(pod)
    told = {"jobUid": "job-uid", "heartbeat": 7, "progress": {"step": 3}, "metrics": METRICS}
    one.reading = Reading("one-1-1-uid", one.now, ProgressReport.model_validate(told))
    one.settle()
    artifacts = {"uri": "s3://bucket/out", "manifestSha256": "ab" * 32}
    one.end(pod, 0, one.report("Published", artifacts=artifacts, metrics={"reward": 1.75}))
    one.complete("one-1")
    one.settle()
    assert one.status["metrics"] == METRICS | {"reward": 1.75}
