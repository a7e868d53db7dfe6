"""Inputs from outside: the API server's answers, a trainer's answers, the cache, metrics and events."""

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
import yaml
from aiohttp import web
from scraped import read_scrape

from finetune_api.names import ConditionType, Reason
from finetune_api.status import FineTuneJobStatus, JobRef, Resolved
from finetune_operator.cluster import find_resource
from finetune_operator.connection import RequestLimit
from finetune_operator.controller.event_recorder import build_event
from finetune_operator.controller.events import derive_events
from finetune_operator.controller.progress_poller import ProgressError, fetch_progress, open_session
from finetune_operator.controller.reconciler import build_merge_patch
from finetune_operator.controller.watch_cache import MAX_ENDED_PODS_PER_JOB, WatchCache
from finetune_operator.kube.errors import AlreadyExists, Denied, Gone, Outdated, Refused, RetryLater, error_from
from finetune_operator.kube.objects import Key
from finetune_operator.kube.observed import Target
from finetune_operator.kube.pod import Pod
from finetune_operator.metrics.job_collector import JobCollector
from finetune_operator.metrics.registry import Metrics
from finetune_operator.policy.conditions import MESSAGES
from finetune_operator.rights import RIGHTS, needed_rights
from finetune_operator.settings import Settings

PATH = "/apis/batch/v1/namespaces/team/jobs"


@pytest.mark.parametrize(
    ("path", "resource"),
    [
        ("/apis/finetune.dev/v1alpha1/namespaces/team/finetunejobs/one/status", "finetunejobs/status"),
        ("/apis/finetune.dev/v1alpha1/namespaces/team/finetunejobs/one", "finetunejobs"),
        ("/api/v1/namespaces/namespaces/pods", "pods"),
        ("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", "selfsubjectrulesreviews"),
        ("/apis/kueue.x-k8s.io", "kueue.x-k8s.io"),
    ],
)
def test_requests_are_counted_by_resource_and_never_by_name(path: str, resource: str) -> None:
    assert find_resource(path) == resource


@pytest.mark.parametrize(
    ("code", "body", "kind"),
    [
        (403, {"message": 'User "x" cannot create resource "jobs" in API group "batch"'}, Denied),
        (403, {"message": 'jobs "one" is forbidden: exceeded quota: q'}, Refused),
        (403, {"message": "unable to create: namespace team is being terminated"}, Gone),
        (404, {"message": "not found"}, Gone),
        (404, {"message": 'admission webhook "x" denied the request: no such project'}, Refused),
        (409, {"message": 'admission webhook "x" denied the request: two jobs', "reason": "Conflict"}, Refused),
        (409, {"reason": "AlreadyExists"}, AlreadyExists),
        (409, {"reason": "Conflict"}, Outdated),
        (422, {"message": "spec.x: Invalid value"}, Refused),
        (429, {}, RetryLater),
        (500, {}, RetryLater),
        (503, {}, RetryLater),
    ],
)
def test_errors_of_the_api_server_have_types(code: int, body: Any, kind: type[Exception]) -> None:
    assert isinstance(error_from(code, orjson.dumps(body), None, PATH), kind)


def test_a_proxys_page_instead_of_json_is_retried() -> None:
    found = error_from(502, b"<html>", "7", PATH)
    assert isinstance(found, RetryLater)
    assert found.after_seconds == 7


@pytest.mark.parametrize("source", ["10.244.0.1:43210", "[fd00:10:244::1]:43210"])
def test_the_message_of_a_broken_connection_is_the_same_each_time(source: str) -> None:
    words = 'failed calling webhook "mjob.kb.io": Post "https://kueue.svc/mutate": read tcp {}10.96.12.3:9443: reset'
    body = orjson.dumps({"message": words.format(f"{source}->")})
    assert str(error_from(500, body, None, PATH)) == words.format("")


def test_a_missing_right_names_verb_resource_and_namespace() -> None:
    body = orjson.dumps({"message": 'User "x" cannot create resource "jobs" in API group "batch"'})
    assert str(error_from(403, body, None, PATH)) == "the operator may not create jobs in namespace team"


def test_every_documented_right_is_checked_at_start_and_no_other() -> None:
    text = (Path(__file__).parents[3] / "operator/README.md").read_text()
    found = re.search(r"```yaml\n(rules:.*?)```", text, re.DOTALL)
    assert found is not None
    documented = {
        (verb, group, *resource.split("/"), *([""] * ("/" not in resource)))
        for rule in yaml.safe_load(found.group(1))["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert set(RIGHTS) == documented


@pytest.mark.parametrize("change", [{"isolate_training_pods": True}, {"pod_egress": []}])
def test_rights_on_network_policies_are_needed_only_if_some_are_made(settings: Settings, change: Any) -> None:
    def policies(given: Settings) -> set[str]:
        return {verb for verb, _, resource, _ in needed_rights(given) if resource == "networkpolicies"}

    assert policies(settings) == set()
    assert policies(settings.model_copy(update=change)) == {"get", "list", "create", "delete"}


async def test_a_rate_limit_lets_a_burst_through_and_then_paces() -> None:
    limit = RequestLimit(100, rate=100, burst=5)

    async def send() -> None:
        async with limit.slot():
            pass

    started = asyncio.get_running_loop().time()
    await asyncio.gather(*(send() for _ in range(15)))
    assert asyncio.get_running_loop().time() - started >= 0.09


async def _serve(handler: Any) -> tuple[web.AppRunner, int]:
    app = web.Application()
    app.router.add_get("/progress", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, runner.addresses[0][1]


async def _fetch_progress(answer: Any) -> Any:
    async def handler(_: web.Request) -> web.StreamResponse:
        return answer() if callable(answer) else web.json_response(answer)

    runner, port = await _serve(handler)
    try:
        async with aiohttp.ClientSession() as session:
            return await fetch_progress(session, Target("job", "pod", "name", "127.0.0.1"), port)
    finally:
        await runner.cleanup()


GOOD = {"jobUID": "job", "podUID": "pod", "heartbeat": 1, "progress": {"step": 3}}


async def test_no_connection_to_a_trainer_is_kept_until_its_next_poll() -> None:
    closed = asyncio.Event()

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        report = json.dumps(GOOD)
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(report)}\r\n\r\n{report}".encode())
        if await reader.read() == b"":
            closed.set()
        writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1")
    async with server, open_session() as session, asyncio.timeout(5):
        await fetch_progress(session, Target("job", "pod", "name", "127.0.0.1"), server.sockets[0].getsockname()[1])
        await closed.wait()


async def test_a_trainers_progress_is_read() -> None:
    report = await _fetch_progress(GOOD)
    assert report.progress.step == 3


@pytest.mark.parametrize(
    "answer",
    [
        {**GOOD, "jobUID": "other"},
        {**GOOD, "podUID": "other"},
        {**GOOD, "progress": {"step": -1}},
        {"x": "y" * 70_000},
        [],
        lambda: web.Response(text="not json"),
        lambda: web.Response(status=500),
        lambda: web.Response(status=302, headers={"Location": "http://169.254.169.254/"}),
        lambda: web.Response(text='{"jobUID":"job","heartbeat":1,"progress":{},"metrics":{"trainLoss":NaN}}'),
    ],
)
async def test_an_answer_that_is_not_a_progress_report_of_this_pod_is_refused(answer: Any) -> None:
    with pytest.raises(ProgressError):
        await _fetch_progress(answer)


def test_a_merge_patch_has_changed_fields_and_null_for_removed_ones() -> None:
    old = {"a": 1, "b": {"c": 1, "d": 2}, "gone": {"x": 1}, "list": [1, 2]}
    new = {"a": 1, "b": {"c": 3}, "list": [1]}
    assert build_merge_patch(old, new) == {"b": {"c": 3, "d": None}, "gone": None, "list": [1]}
    assert build_merge_patch(new, new) == {}


def test_an_observed_exit_code_is_kept_when_a_later_event_has_none(scene: Any) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.end(pod, 75, "words")
    cache, key = WatchCache(), Key("team", "one")
    cache.keep_ended_pod(key, Pod.from_object(pod, gone=False))
    pod["status"] = {"phase": "Failed"}
    cache.keep_ended_pod(key, Pod.from_object(pod, gone=True))
    assert cache.merge_ended_pods(key, [])[0].exit_code == 75
    cache.forget(key)
    assert cache.merge_ended_pods(key, []) == ()


def test_a_pod_that_is_shown_alive_has_not_ended_unless_its_exit_code_was_seen(scene: Any) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    cache, key, alive = WatchCache(), Key("team", "one"), Pod.from_object(pod)
    cache.keep_ended_pod(key, Pod.from_object(pod, gone=True))
    assert cache.merge_ended_pods(key, [alive]) == (alive,)
    one.end(pod, 75)
    cache.keep_ended_pod(key, Pod.from_object(pod))
    assert [found.exit_code for found in cache.merge_ended_pods(key, [alive])] == [75]


def test_the_cache_is_bounded(scene: Any) -> None:
    one = scene().to_training()
    cache, key = WatchCache(), Key("team", "one")
    for number in range(MAX_ENDED_PODS_PER_JOB + 10):
        pod = one.pod("one-1", f"p{number}")
        one.end(pod, 75)
        cache.keep_ended_pod(key, Pod.from_object(pod, gone=False))
    assert len(cache.ended_pods[key]) == MAX_ENDED_PODS_PER_JOB


def test_a_pod_deleted_before_it_started_is_not_a_run(scene: Any) -> None:
    one = scene().to_training()
    cache, key = WatchCache(), Key("team", "one")
    cache.keep_ended_pod(key, Pod.from_object(one.pod("one-1"), gone=True))
    assert cache.merge_ended_pods(key, []) == ()


def test_series_are_removed_with_their_job(scene: Any) -> None:
    collector = JobCollector()
    for name in ("one", "two", "three"):
        collector.update(scene(name).job)
    collector.remove(Key("team", "three"))
    collector.remove(Key("team", "two"))
    labels = [sample.labels for family in read_scrape(collector) for sample in family.samples]
    assert {one["name"] for one in labels if "name" in one} == {"one"}


def test_a_thousand_jobs_that_come_and_go_leave_no_series(scene: Any) -> None:
    metrics = Metrics()
    before = len(metrics.expose().splitlines())
    running = scene().to_training().job
    for number in range(1_000):
        metrics.jobs.update(replace(running, key=Key("team", f"job-{number}")))
    assert len(metrics.expose().splitlines()) > before + 1_000
    for number in range(1_000):
        metrics.jobs.remove(Key("team", f"job-{number}"))
    left = metrics.expose().decode().splitlines()
    assert len(left) == before + 1
    assert [line for line in left if "team" in line] == ['finetune_namespace_gpu_seconds_total{namespace="team"} 0.0']


def test_events_follow_from_what_changed(scene: Any) -> None:
    one = scene()
    before = FineTuneJobStatus()
    one.settle()
    first = one.job.status
    assert [event.reason for event in derive_events(before, first)] == ["PreflightStarted"]
    assert derive_events(first, first) == []
    one.to_training()
    second = one.job.status
    (started,) = derive_events(first, second)
    assert started.reason == "TrainingStarted"
    assert "rows" in started.message, "what preflight found is in the same event"
    assert started.message.endswith("Created trainer Job one-1.")
    one.end(one.pod("one-1"), 137, reason="OOMKilled")
    one.settle()
    third = one.job.status
    assert [(event.reason, event.is_warning) for event in derive_events(second, third)] == [("TrainerFailed", True)]


@pytest.mark.parametrize(
    ("before", "after", "events"),
    [
        ({}, {"Suspended": "UserRequested"}, ["Suspended"]),
        ({"Suspended": "UserRequested"}, {}, ["Resumed"]),
        ({"Suspended": "UserRequested"}, {"Queued": "QueuedByKueue"}, ["Resumed"]),
        ({}, {"Queued": "JobSuspended"}, ["Queued"]),
        ({"Queued": "JobSuspended"}, {}, ["Resumed"]),
        ({"Queued": "JobSuspended"}, {"Queued": "QueuedByKueue"}, []),
        ({"Queued": "JobSuspended"}, {"Suspended": "UserRequested"}, ["Suspended"]),
        ({}, {"Queued": "QueuedByKueue"}, []),  # QuotaReserved has the cause
    ],
)
def test_being_suspended_and_being_queued_have_their_own_events(
    before: dict[str, str], after: dict[str, str], events: list[str]
) -> None:
    def status(reasons: dict[str, str]) -> FineTuneJobStatus:
        kinds = {kind: reasons.get(kind) for kind in ("Suspended", "Queued")}
        time = "2026-03-01T12:00:00Z"
        found = [
            {"type": kind, "status": str(reason is not None), "reason": reason or f"Not{kind}", "message": "",
             "lastTransitionTime": time}
            for kind, reason in kinds.items()
        ]  # fmt: skip
        return FineTuneJobStatus.model_validate({"conditions": found})

    assert [event.reason for event in derive_events(status(before), status(after))] == events


@pytest.mark.parametrize(
    ("mode", "attempt", "reason", "message"),
    [
        (None, 1, "TrainingStarted", "Created trainer Job one-1."),
        (None, 2, "TrainingRetried", "Created trainer Job one-2 for attempt 2."),
        ("Evaluate", 1, "EvaluationStarted", "Created Job one-1, which evaluates the adapter and trains nothing."),
        ("Evaluate", 2, "EvaluationRetried", "Created Job one-2 for attempt 2, which evaluates from the beginning."),
    ],
)
def test_the_start_of_an_attempt_is_an_event_that_names_what_it_does(
    mode: str | None, attempt: int, reason: str, message: str
) -> None:
    old = FineTuneJobStatus(resolved=Resolved(mode=mode), attempts=attempt - 1)
    job_ref = JobRef(name=f"one-{attempt}", uid="u")
    new = old.model_copy(update={"attempts": attempt, "job_ref": job_ref})
    assert [(event.reason, event.message) for event in derive_events(old, new)] == [(reason, message)]


def test_the_same_event_has_the_same_name(scene: Any) -> None:
    one = scene()
    event = derive_events(FineTuneJobStatus(), one.look().status)[0]
    assert build_event(one.job, event, "", one.now) == build_event(one.job, event, "", one.now)
    assert len(build_event(scene("a" * 253).job, event, "", one.now)["metadata"]["name"]) <= 253


def test_the_map_in_the_readme_names_every_module_and_no_other() -> None:
    operator = Path(__file__).parents[3] / "operator"
    table = (operator / "README.md").read_text().split("## Map")[1].split("## Invariants")[0]
    modules = {path.name for path in (operator / "src/finetune_operator").rglob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"`(\w+\.py)`", table)) == modules


def test_every_setting_has_its_row_in_the_readme() -> None:
    text = (Path(__file__).parents[3] / "operator/README.md").read_text()
    table = text.split("## Settings")[1].split("## Rights")[0]
    documented = re.findall(
        r"`(FINETUNE_[A-Z_]+)`", "".join(line.split("|")[1] for line in table.splitlines()[3:] if "|" in line)
    )
    assert sorted(documented) == sorted(f"FINETUNE_{name.upper()}" for name in Settings.model_fields)


def test_every_reason_for_not_being_accepted_is_in_the_readme() -> None:
    text = (Path(__file__).parents[3] / "operator/README.md").read_text()
    reasons = {reason for kind, reason in MESSAGES if kind is ConditionType.ACCEPTED} - {Reason.ACCEPTED}
    assert {reason for reason in reasons if f"/{reason}`" not in text} == set()


def test_labels_of_metrics_are_closed_whatever_a_trainer_reports(scene: Any) -> None:
    one = scene(objective="KTO")
    one.object["status"] = {
        "resolved": {"method": "Sneaky"},
        "metrics": {"rewardMargin": 0.5, "kl": 0.01},
        "dataset": {"rejectedRowsByCode": {"BAD_JSON": 3, 'x" y': 1, "WORD": 1}, "rowsByFormat": {"Unpaired": 7}},
    }
    collector = JobCollector()
    collector.update(one.job)
    samples = [sample for family in read_scrape(collector) for sample in family.samples]
    (info,) = [sample.labels for sample in samples if sample.name == "finetune_job_info"]
    assert (info["objective"], info["method"]) == ("KTO", "Auto")
    values = {sample.name: sample.value for sample in samples}
    assert (values["finetune_job_reward_margin"], values["finetune_job_kl"]) == (0.5, 0.01)
    codes = {sample.labels["code"]: sample.value for sample in samples if "code" in sample.labels}
    assert codes == {"BAD_JSON": 3, "Unknown": 2}
    assert values["finetune_job_dataset_rows_by_format"] == 7
