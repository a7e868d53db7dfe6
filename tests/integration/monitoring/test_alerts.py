"""Each alert by promtool: one case in which it fires, with its sentences, and one in which it does not."""

import re
import subprocess
from pathlib import Path
from typing import Any

import dashboards
import pytest
import yaml
from debian import install_missing

pytestmark = pytest.mark.nightly

Series = dict[str, str]
JOB = 'namespace="team", name="one"'
WHERE = {"namespace": "team", "name": "one"}
HELD = 'finetune_release_stalled{namespace="team", name="one", reason="Held"}'
WATCH = 'finetune_operator_last_event_timestamp_seconds{instance="a", resource="finetunejobs"}'
LEADS, LEADS_TOO, LEADS_ELSEWHERE = (
    f'finetune_operator_leading{{namespace="system",service="{service}",pod="{pod}"}}'
    for service, pod in (("one", "a"), ("one", "b"), ("two", "c"))
)
PATCHES = 'finetune_operator_api_requests_total{instance="a", verb="PATCH", resource="finetunejobs/status", code="200"}'
OTHER_PATCHES = 'finetune_operator_api_requests_total{instance="a", verb="PATCH", resource="jobs", code="200"}'
ERRORS = 'finetune_operator_reconcile_total{instance="a", result="error"}'


def job(name: str, labels: str = "") -> str:
    return f"finetune_job_{name}{{{JOB}{labels}}}"


def phase(name: str) -> str:
    return job("status_phase", f', phase="{name}"')


QUEUED, STARTED, HEARD, MOVED = (
    job(f"{name}_timestamp_seconds") for name in ("eligible", "start", "last_progress", "last_moved")
)
UP = "finetune_operator_build_info"
SAVED, ENDED, SAVES = job("checkpoint_timestamp_seconds"), job("completion_timestamp_seconds"), job("saves_checkpoints")
TRAINING, WAITING = phase("Training"), phase("Queued")
QUOTA, FORBIDDEN, FOR_PARENT = (
    job("waiting", f', reason="{reason}"') for reason in ("WaitingForQuota", "Forbidden", "WaitingForParent")
)
IN_QUEUE = WHERE | {"reason": "WaitingForQuota"}
MUST, BETTER, WORSE = job("must_improve"), job("verdict", ', verdict="Better"'), job("verdict", ', verdict="Worse"')
NOT_MET, KILLED = (job("failed", f', reason="{reason}"') for reason in ("GateNotMet", "OutOfMemory"))
DONE, FAILED = phase("Succeeded"), phase("Failed")
DIVERGED, REFUSED = (job("failed", f', reason="{reason}"') for reason in ("Diverged", "StorageDenied"))
FAILED_SAVES = 'finetune_trainer_checkpoint_failures_total{namespace="team", name="one", pod="one-1-0-x"}'
DENIED = job("failures_total", ', reason="StorageUnavailable"')

FIRING: list[tuple[str, str, Series, dict[str, str]]] = [
    ("FineTuneOperatorDown", "6m", {"finetune_job_info": "1x10"}, {}),
    (
        "FineTuneOperatorNotLeading", "7m",
        {LEADS: "1 0x10", LEADS_TOO: "0x10"}, {"namespace": "system", "service": "one"},
    ),
    # The watch was last heard at minute 1, and a status is written every ten seconds.
    ("FineTuneWatchStale", "12m", {WATCH: "60x60", PATCHES: "0+6x60"}, {"instance": "a", "resource": "finetunejobs"}),
    ("FineTuneReconcileErrors", "30m", {ERRORS: "0+1x60"}, {"instance": "a", "result": "error"}),
    ("FineTuneJobPendingLong", "70m", {QUEUED: "0x90", WAITING: "1x90", QUOTA: "1x90"}, IN_QUEUE),
    # It trained, was preempted, and has not been heard for longer than an hour.
    (
        "FineTuneJobPendingLong", "90m",
        {QUEUED: "0x90", STARTED: "60x90", WAITING: "0x10 1x90", QUOTA: "_x10 1x90"}, IN_QUEUE,
    ),
    # The reason has changed in the meantime.
    (
        "FineTuneJobPendingLong", "90m",
        {QUEUED: "0x120", WAITING: "1x120", FORBIDDEN: "1x80 _x40", QUOTA: "_x80 1x40"}, IN_QUEUE,
    ),
    # It is refused, so that it does not count as queued.
    ("FineTuneJobPendingLong", "70m", {phase("Pending"): "1x90", FORBIDDEN: "1x90"}, WHERE | {"reason": "Forbidden"}),
    ("FineTuneJobFailed", "10m", {KILLED: "1x60", ENDED: "300x60"}, WHERE | {"reason": "OutOfMemory"}),
    # The result is worse, whether its gate has failed the job or not.
    ("FineTuneJobNotImproved", "10m", {MUST: "1x60", DONE: "1x60", ENDED: "300x60", WORSE: "1x60"}, WHERE),
    (
        "FineTuneJobNotImproved", "10m",
        {MUST: "1x60", FAILED: "1x60", NOT_MET: "1x60", ENDED: "300x60", WORSE: "1x60"}, WHERE,
    ),
    # It has no verdict at all.
    ("FineTuneJobNotImproved", "10m", {MUST: "1x60", DONE: "1x60", ENDED: "300x60"}, WHERE),
    ("FineTuneJobNoProgress", "30m", {HEARD: "60x60", TRAINING: "1x60"}, WHERE),
    # It answers, and does not move.
    ("FineTuneJobNoProgress", "30m", {HEARD: "0+60x60", MOVED: "60x60", TRAINING: "1x60"}, WHERE),
    # It was never heard at all.
    ("FineTuneJobNoProgress", "30m", {TRAINING: "1x60"}, WHERE),
    ("FineTuneLossNotFinite", "10m", {DIVERGED: "1x60", ENDED: "300x60"}, WHERE | {"reason": "Diverged"}),
    ("FineTuneCheckpointStale", "150m", {SAVED: "600x200", STARTED: "0x200", SAVES: "1x200", TRAINING: "1x200"}, WHERE),
    # It never saved one.
    ("FineTuneCheckpointStale", "150m", {STARTED: "0x200", SAVES: "1x200", TRAINING: "1x200"}, WHERE),
    ("FineTuneStorageErrors", "10m", {FAILED_SAVES: "0x4 1x60"}, WHERE),
    ("FineTuneStorageErrors", "40m", {UP: "1x60", DENIED: "_x35 1x60"}, WHERE),
    ("FineTuneStorageErrors", "10m", {REFUSED: "1x60", ENDED: "300x60"}, WHERE),
    ("FineTuneReleaseStalled", "10m", {HELD: "1x60"}, WHERE | {"reason": "Held"}),
]  # fmt: skip
SILENT: list[tuple[str, str, Series]] = [
    ("FineTuneOperatorDown", "30m", {"finetune_operator_build_info": "1x60"}),
    # The other replica takes over, and a second release has an operator of its own.
    ("FineTuneOperatorNotLeading", "30m", {LEADS: "1x10 0x60", LEADS_TOO: "0x12 1x60", LEADS_ELSEWHERE: "1x60"}),
    # Nothing happens in the cluster: nothing is written, and nothing heard.
    ("FineTuneWatchStale", "30m", {WATCH: "60x60", PATCHES: "5x60"}),
    ("FineTuneWatchStale", "30m", {WATCH: "60x60", OTHER_PATCHES: "0+6x60"}),
    ("FineTuneWatchStale", "30m", {WATCH: "0+60x60", PATCHES: "0+6x60"}),
    ("FineTuneReconcileErrors", "30m", {ERRORS: "0x10 4x60"}),
    ("FineTuneJobPendingLong", "50m", {QUEUED: "0x90", WAITING: "1x90", QUOTA: "1x90"}),
    ("FineTuneJobPendingLong", "90m", {QUEUED: "0x90", STARTED: "3600x90", HEARD: "0+60x90", TRAINING: "1x90"}),
    # It was suspended for long, and has been waiting for ten minutes.
    (
        "FineTuneJobPendingLong", "90m",
        {QUEUED: "0x90", STARTED: "60x90", HEARD: "60x90", WAITING: "0x80 1x90", QUOTA: "_x80 1x90"},
    ),
    # It waits for another job, or has just been refused.
    ("FineTuneJobPendingLong", "90m", {phase("Pending"): "1x90", FOR_PARENT: "1x90"}),
    ("FineTuneJobPendingLong", "50m", {phase("Pending"): "1x90", FORBIDDEN: "1x90"}),
    ("FineTuneJobFailed", "70m", {KILLED: "1x90", ENDED: "300x90"}),
    ("FineTuneJobFailed", "10m", {DONE: "1x60", ENDED: "300x60"}),
    ("FineTuneJobNotImproved", "10m", {MUST: "1x60", DONE: "1x60", ENDED: "300x60", BETTER: "1x60"}),
    ("FineTuneJobNotImproved", "10m", {MUST: "0x60", DONE: "1x60", ENDED: "300x60", WORSE: "1x60"}),
    ("FineTuneJobNotImproved", "10m", {MUST: "1x60", TRAINING: "1x60", DONE: "0x60"}),
    # It failed before there was a result, which another alert reports.
    ("FineTuneJobNotImproved", "10m", {MUST: "1x60", FAILED: "1x60", KILLED: "1x60", ENDED: "300x60"}),
    ("FineTuneJobNotImproved", "70m", {MUST: "1x90", DONE: "1x90", ENDED: "300x90", WORSE: "1x90"}),
    ("FineTuneJobPendingLong", "90m", {QUEUED: "0x90", phase("Failed"): "1x90", WAITING: "0x90"}),
    ("FineTuneJobNoProgress", "30m", {HEARD: "0+60x60", TRAINING: "1x60"}),
    ("FineTuneJobNoProgress", "30m", {HEARD: "60x60", MOVED: "0+60x60", TRAINING: "1x60"}),
    ("FineTuneJobNoProgress", "60m", {HEARD: "60x60", phase("Succeeded"): "1x60", TRAINING: "0x60"}),
    ("FineTuneLossNotFinite", "10m", {job("failed", ', reason="GPUOutOfMemory"'): "1x60", ENDED: "300x60"}),
    ("FineTuneLossNotFinite", "70m", {DIVERGED: "1x90", ENDED: "300x90"}),
    ("FineTuneCheckpointStale", "150m", {SAVED: "0+60x200", STARTED: "0x200", SAVES: "1x200", TRAINING: "1x200"}),
    # It was suspended for hours, and trains again for half an hour.
    ("FineTuneCheckpointStale", "210m", {SAVED: "600x240", SAVES: "1x240", TRAINING: "1x10 0x170 1x60"}),
    ("FineTuneCheckpointStale", "150m", {STARTED: "0x200", SAVES: "0x200", TRAINING: "1x200"}),
    ("FineTuneStorageErrors", "50m", {FAILED_SAVES: "1x60"}),
    ("FineTuneStorageErrors", "80m", {DENIED: "1x90"}),
    # Nothing was scraped half an hour ago: the failure may be of any age.
    ("FineTuneStorageErrors", "40m", {UP: "_x35 1x60", DENIED: "_x35 1x60"}),
    ("FineTuneStorageErrors", "10m", {job("failures_total", ', reason="OutOfMemory"'): "_x5 1x60"}),
    # It works on another spec again.
    ("FineTuneReleaseStalled", "10m", {HELD: "1x7 0x50"}),
    ("FineTuneReleaseStalled", "4m", {HELD: "1x60"}),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def promtool() -> None:
    install_missing("prometheus", "promtool")


def check(folder: Path, tests: list[dict[str, Any]]) -> str:
    """What promtool says; nothing where all is as expected."""
    whole = {"rule_files": [str(dashboards.ALERTS)], "evaluation_interval": "1m", "tests": tests}
    (folder / "test.yaml").write_text(yaml.safe_dump(whole))
    done = subprocess.run(
        ["promtool", "test", "rules", str(folder / "test.yaml")], capture_output=True, text=True, check=False
    )
    return f"{done.stdout}{done.stderr}" if done.returncode else ""


def case(alert: str, at: str, series: Series, expected: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [{"eval_time": at, "alertname": alert, "exp_alerts": expected}],
    }


def sentences(alert: str, labels: dict[str, str]) -> dict[str, Any]:
    """The alert as people get it; a label that it does not have is an error."""
    (rule,) = [rule for rule in dashboards.rules() if rule["alert"] == alert]
    annotations = {
        name: re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], text)
        for name, text in rule["annotations"].items()
    }
    return {"exp_labels": rule["labels"] | labels, "exp_annotations": annotations}


def test_the_rules_are_well_formed() -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", str(dashboards.ALERTS)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("alert", "at", "series", "labels"), FIRING, ids=[one[0] for one in FIRING])
def test_an_alert_fires_and_names_its_object(
    tmp_path: Path, alert: str, at: str, series: Series, labels: dict[str, str]
) -> None:
    assert check(tmp_path, [case(alert, at, series, [sentences(alert, labels)])]) == ""


@pytest.mark.parametrize(("alert", "at", "series"), SILENT, ids=[one[0] for one in SILENT])
def test_an_alert_stays_silent(tmp_path: Path, alert: str, at: str, series: Series) -> None:
    assert check(tmp_path, [case(alert, at, series, [])]) == ""


def test_every_alert_is_seen_to_fire_and_to_stay_silent() -> None:
    names = {rule["alert"] for rule in dashboards.rules()}
    assert {one[0] for one in FIRING} == {one[0] for one in SILENT} == names
