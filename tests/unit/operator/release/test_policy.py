"""What the operator decides about a release, from what it has read."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_api import handoff
from finetune_api.release import KServeTarget, ReleaseConfig, ReleasedResult
from finetune_operator.kube.errors import Denied, NameTaken, Refused
from finetune_operator.kube.objects import FineTuneJob, Job
from finetune_operator.kube.observed import WarningEvent, Warnings
from finetune_operator.kube.pod import Pod
from finetune_operator.policy.pods.pod_diagnosis import EventQuery
from finetune_operator.release.manifests import build_carrier, build_children, build_name, set_adapter
from finetune_operator.release.objects import Release, Seen, Service, count_ending, explain_pods, explain_rollout
from finetune_operator.release.policy import find_query, is_settled, plan
from finetune_operator.release.steps import Plan
from finetune_operator.settings import Settings

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WIRE = "2026-01-01T00:00:00Z"
SETTINGS = Settings(trainer_image="registry.example/finetune-trainer:1", releases=True)
DIGEST, OLD = "a" * 64, "b" * 64
VLLM = {"service": {"name": "vllm"}, "adapterName": "bot", "volume": {"claimName": "adapters", "path": "/adapters"}}
KSERVE = {"name": "service", "adapterName": "bot"}
ELSEWHERE_VLLM = {key: VLLM[key] for key in VLLM if key != "service"} | {"url": "https://evil.example"}
RELEASE_LIST = "add it to FINETUNE_ALLOWED_RELEASE_ENDPOINTS"
WANTED = "s3://bucket/new/adapter/"
Object = dict[str, Any]


def release(spec: Object | None = None, status: Object | None = None, generation: int = 1) -> Release:
    given = {"uri": "s3://bucket/new", "manifestSHA256": DIGEST, "target": {"vllm": VLLM}}
    meta = {"namespace": "team", "name": "bot", "uid": "release-uid", "generation": generation}
    return Release.from_object({"metadata": meta, "spec": spec or given, "status": status or {}})


def job(phase: str = "Succeeded", **conditions: str) -> FineTuneJob:
    spec = {
        "objective": "Chat",
        "storage": {"credentialsSecretRef": {"name": "s3"}},
        "model": {"uri": "hf://owner/base", "credentialsSecretRef": {"name": "token"}},
        "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}},
        "output": {"uri": "s3://bucket/new"},
    }
    found = [
        {"type": kind, "status": value, "reason": "Why", "message": "m", "lastTransitionTime": WIRE}
        for kind, value in conditions.items()
    ]
    status = {"phase": phase, "reason": "GateNotMet", "message": "not better", "conditions": found}
    status["artifacts"] = {"uri": "s3://bucket/new", "manifestSHA256": DIGEST}
    meta = {"namespace": "team", "name": "job", "uid": "job-uid"}
    return FineTuneJob.from_object({"metadata": meta, "spec": spec, "status": status})


def child(name: str = "bot-r1", **status: Any) -> Job:
    pod = {"containers": [{"name": "trainer", "image": "x"}]}
    meta = {"name": name, "uid": f"{name}-uid"}
    return Job.from_object({"metadata": meta, "spec": {"template": {"spec": pod}}, "status": status})


COMPLETE = {"conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": WIRE}], "completionTime": WIRE}
FAILED = {
    "conditions": [
        {
            "type": "Failed",
            "status": "True",
            "lastTransitionTime": WIRE,
            "reason": "BackoffLimitExceeded",
            "message": "4",
        }
    ]
}


def pod(report: Object | None, *, of: str = "bot-r1", is_over: bool = True) -> Pod:
    owner = [{"kind": "Job", "uid": f"{of}-uid", "controller": True}]
    state = {"terminated": {"exitCode": 0, "message": json.dumps(report) if report else ""}} if is_over else {}
    meta = {"name": "pod", "uid": "pod-uid", "namespace": "team", "ownerReferences": owner}
    return Pod.from_object({"metadata": meta, "status": {"containerStatuses": [{"name": "trainer", "state": state}]}})


def report(outcome: str, **more: Any) -> Object:
    return {"outcome": outcome, "message": "words", "releaseUID": "release-uid", "generation": 1} | more


def after(seen: Seen, decided: Plan) -> Seen:
    return replace(seen, release=replace(seen.release, status=decided.status))


def conditions(decided: Plan) -> dict[str, str]:
    return {one.type: one.status for one in decided.status.conditions or []}


def test_a_release_waits_for_its_job_and_states_what_it_is() -> None:
    seen = Seen(release({"jobRef": {"name": "job"}, "target": {"vllm": VLLM}}), NOW)
    assert (plan(seen, SETTINGS).status.reason, plan(seen, SETTINGS).requeue_after) == ("WaitingForJob", 30)
    training = plan(replace(seen, job=job("Training")), SETTINGS)
    assert "not complete: it is Training" in (training.status.message or "")
    assert conditions(training) == {
        "Ready": "Unknown",
        "Released": "Unknown",
        "Reconciling": "True",
        "Stalled": "False",
    }
    failed = plan(replace(seen, job=job(Failed="True")), SETTINGS)
    assert "GateNotMet: not better" in (failed.status.message or "")
    assert (failed.status.reason, conditions(failed)["Stalled"]) == ("JobFailed", "True")
    assert not is_settled(after(seen, failed).release)
    assert plan(replace(seen, job=job(Complete="True")), SETTINGS).creates_job


def test_the_digest_of_a_job_is_kept_although_the_job_is_created_again() -> None:
    seen = Seen(release({"jobRef": {"name": "job"}, "target": {"vllm": VLLM}}), NOW, job=job(Complete="True"))
    begun = after(seen, plan(seen, SETTINGS))
    again = plan(replace(begun, job=None, child=child()), SETTINGS)
    assert again.status.candidate == ReleasedResult(uri="s3://bucket/new", manifest_sha256=DIGEST)
    edited = replace(begun, job=None, release=replace(begun.release, generation=2))
    assert plan(edited, SETTINGS).status.reason == "WaitingForJob"


def test_the_pod_has_the_storage_and_secrets_of_the_job_but_no_token_of_a_hub_and_a_volume() -> None:
    one = release({"jobRef": {"name": "job"}, "target": {"vllm": VLLM}})
    assert one.spec
    candidate = ReleasedResult(uri="s3://bucket/new", manifest_sha256=DIGEST)
    carrier = build_carrier(one, one.spec, job())
    config_map, built = build_children(one, one.spec, candidate, carrier, SETTINGS)
    config = ReleaseConfig.model_validate_json(config_map["data"][handoff.CONFIG_FILE])
    assert (config.candidate, config.generation) == (candidate, 1)
    spec = built["spec"]["template"]["spec"]
    volumes = {one["name"]: one for one in spec["volumes"]}
    assert volumes["credentials"]["secret"]["secretName"] == "s3"
    assert volumes["model-cache"]["persistentVolumeClaim"] == {"claimName": "adapters"}
    assert "hub-tokens" not in volumes
    (container,) = spec["containers"]
    assert (container["args"], container["image"]) == (["release"], SETTINGS.trainer_image)
    assert spec["automountServiceAccountToken"] is False
    assert built["spec"]["activeDeadlineSeconds"] == 900
    assert "finetune.dev/job-name" not in built["metadata"]["labels"]


def test_the_pod_has_the_key_and_the_authority_of_its_server_and_of_no_other() -> None:
    server = VLLM | {"url": "https://vllm:8000", "credentialsSecretRef": {"name": "key"}, "caSecretRef": {"name": "ca"}}
    server.pop("service", None)
    for target, items in ((server, {"key": "VLLM_API_KEY", "ca": "ca.crt"}), (VLLM, {})):
        one = release({"jobRef": {"name": "job"}, "target": {"vllm": target}})
        assert one.spec
        candidate = ReleasedResult(uri="s3://bucket/new", manifest_sha256=DIGEST)
        _, built = build_children(one, one.spec, candidate, build_carrier(one, one.spec, job()), SETTINGS)
        spec = built["spec"]["template"]["spec"]
        volumes = [one["projected"] for one in spec["volumes"] if one["name"] == "server"]
        sources = [one["secret"] for volume in volumes for one in volume["sources"]]
        assert {one["name"]: one["items"][0]["key"] for one in sources} == items
        assert all(volume["defaultMode"] == 0o440 for volume in volumes)
        mounts = [one for one in spec["containers"][0]["volumeMounts"] if one["name"] == "server"]
        wanted = {"name": "server", "mountPath": handoff.SERVER_DIR, "readOnly": True}
        assert mounts == ([wanted] if items else [])


def test_limited_egress_holds_for_the_pod_of_a_release_too() -> None:
    one, limited = release(), SETTINGS.model_copy(update={"pod_egress": []})
    assert one.spec
    candidate = ReleasedResult(uri="s3://bucket/new", manifest_sha256=DIGEST)
    children = build_children(one, one.spec, candidate, build_carrier(one, one.spec, None), limited)
    assert [body["kind"] for body in children] == ["ConfigMap", "NetworkPolicy", "Job"]
    assert children[1]["spec"]["policyTypes"] == ["Egress"]


def test_the_egress_of_one_generation_does_not_hold_for_the_next_because_policies_add_up() -> None:
    limited, found = SETTINGS.model_copy(update={"pod_egress": []}), []
    for generation in (1, 2):
        one = release(generation=generation)
        assert one.spec
        candidate = ReleasedResult(uri="s3://bucket/new", manifest_sha256=DIGEST)
        _, policy, job = build_children(one, one.spec, candidate, build_carrier(one, one.spec, None), limited)
        selected = policy["spec"]["podSelector"]["matchLabels"].items()
        found.append((selected, job["spec"]["template"]["metadata"]["labels"].items()))
    assert [[selected <= labels for selected, _ in found] for _, labels in found] == [[True, False], [False, True]]


@pytest.mark.parametrize(
    ("spec", "settings", "words"),
    [
        ({"target": {"vllm": VLLM}}, {"allowed_model_cache_claims": ["other"]}, "FINETUNE_ALLOWED_MODEL_CACHE_CLAIMS"),
        (
            {"target": {"files": {"uri": "s3://other/x"}}},
            {"allowed_storage_prefixes": ["s3://bucket/"]},
            "s3://other/x",
        ),
        (
            {
                "target": {
                    "vllm": {key: VLLM[key] for key in VLLM if key != "service"} | {"url": "http://169.254.169.254"}
                }
            },
            {},
            "metadata address",
        ),
        ({"target": {"vllm": VLLM}, "storage": {"endpoint": "http://169.254.169.254"}}, {}, "metadata address"),
        ({"target": {"vllm": ELSEWHERE_VLLM}}, {"allowed_release_endpoints": ["http://*.serving:8000"]}, RELEASE_LIST),
        ({"target": {"vllm": VLLM}}, {"allowed_release_endpoints": ["http://vllm.other.svc:8000"]}, RELEASE_LIST),
    ],
)
def test_the_lists_of_what_is_allowed_hold_for_releases(spec: Object, settings: Object, words: str) -> None:
    seen = Seen(release({"uri": "s3://bucket/new", "manifestSHA256": DIGEST} | spec), NOW)
    decided = plan(seen, SETTINGS.model_copy(update=settings))
    assert (decided.status.reason, decided.creates_job) == ("Forbidden", False)
    assert words in (decided.status.message or "")


@pytest.mark.parametrize("allowed", ["http://vllm.team.svc:8000", "http://*.team.svc:*"])
def test_a_service_is_allowed_by_its_address_in_the_cluster(allowed: str) -> None:
    seen = Seen(release({"uri": "s3://bucket/new", "manifestSHA256": DIGEST, "target": {"vllm": VLLM}}), NOW)
    assert plan(seen, SETTINGS.model_copy(update={"allowed_release_endpoints": [allowed]})).creates_job


def begun(**spec: Any) -> Seen:
    given = {"uri": "s3://bucket/new", "manifestSHA256": DIGEST, "target": {"vllm": VLLM}} | spec
    answering = {"answering": {"uri": "s3://bucket/old", "manifestSHA256": OLD, "releasedTime": WIRE}}
    seen = Seen(release(given, answering), NOW, service=service("s3://bucket/old/adapter"))
    return after(seen, plan(seen, SETTINGS))


def test_a_released_result_answers_and_the_one_before_it_is_named() -> None:
    new = {"uri": "s3://bucket/new", "manifestSHA256": DIGEST, "releasedTime": WIRE}
    comparison = {"verdict": "Better", "rows": 20}
    seen = replace(
        begun(), child=child(**COMPLETE), pods=(pod(report("Released", answering=new, comparison=comparison)),)
    )
    decided = plan(seen, SETTINGS)
    status = decided.status
    assert status.answering
    assert status.previous
    assert (status.answering.manifest_sha256, status.previous.manifest_sha256) == (DIGEST, OLD)
    assert status.comparison
    assert status.comparison.rows == 20
    assert conditions(decided) == {"Ready": "True", "Released": "True", "Reconciling": "False", "Stalled": "False"}
    assert is_settled(after(seen, decided).release)


@pytest.mark.parametrize("outcome", ["Held", "Refused", "RolledBack"])
def test_a_result_that_is_not_released_leaves_the_answering_one_and_its_refusal(outcome: str) -> None:
    decided = plan(replace(begun(), child=child(**COMPLETE), pods=(pod(report(outcome)),)), SETTINGS)
    status = decided.status
    assert status.answering
    assert status.answering.manifest_sha256 == OLD
    assert status.last_refusal
    assert (status.last_refusal.reason, status.last_refusal.message, status.last_refusal.manifest_sha256) == (
        outcome,
        "words",
        DIGEST,
    )
    assert (status.reason, conditions(decided)["Ready"], decided.requeue_after) == (outcome, "False", None)


@pytest.mark.parametrize(
    "message",
    [
        report("Released") | {"releaseUID": "other"},
        report("Released") | {"generation": 2},
        report("Nonsense"),
        None,
    ],
)
def test_a_report_of_another_release_or_generation_proves_nothing(message: Object | None) -> None:
    decided = plan(replace(begun(), child=child(**COMPLETE), pods=(pod(message),)), SETTINGS)
    assert (decided.status.reason, "without a report" in (decided.status.message or "")) == ("Failed", True)


def test_the_pod_of_another_job_proves_nothing() -> None:
    decided = plan(replace(begun(), child=child(**COMPLETE), pods=(pod(report("Released"), of="forged"),)), SETTINGS)
    assert decided.status.reason == "Failed"


def test_a_server_that_is_away_is_tried_again_and_its_words_are_shown() -> None:
    lost = pod(report("Failed", message="http://vllm: ConnectError"))
    running = plan(replace(begun(), child=child(), pods=(lost,)), SETTINGS)
    assert (running.status.reason, running.requeue_after) == ("Releasing", 3)
    assert "tries again: http://vllm: ConnectError" in (running.status.message or "")
    ended = plan(replace(begun(), child=child(**FAILED), pods=(lost,)), SETTINGS)
    assert (ended.status.reason, ended.status.message) == ("Failed", "http://vllm: ConnectError")


def test_a_job_that_waits_in_a_queue_is_shown_so_and_asked_for_less_often() -> None:
    waiting = plan(replace(begun(), child=replace(child(), is_suspended=True, queue="team-a")), SETTINGS)
    assert (waiting.status.reason, waiting.requeue_after) == ("Releasing", 30)
    assert waiting.status.message == "Job bot-r1 waits in queue team-a."
    held = plan(replace(begun(), child=replace(child(), is_suspended=True)), SETTINGS)
    assert "suspended by another controller or user" in (held.status.message or "")


def test_a_pod_that_works_and_one_that_starts_are_shown_as_that() -> None:
    seen = replace(begun(), child=child(), pods=(pod(None, is_over=False),))
    assert plan(seen, SETTINGS).status.message == "The pod of Job bot-r1 is starting."
    running = replace(seen.pods[0], started=NOW)
    message = plan(replace(seen, pods=(running,)), SETTINGS).status.message or ""
    assert message == "Job bot-r1 verifies the result and asks the server."


@pytest.mark.parametrize(
    ("changes", "warning", "words"),
    [
        ({"waiting_reason": "ImagePullBackOff", "waiting_message": "x:1: not found"}, (), "check the name and the tag"),
        ({"unschedulable": "0/4 nodes are available: 4 Insufficient cpu."}, (), "No node can run the pod: 0/4 nodes"),
        ({}, ("FailedMount", 'secret "s3" not found'), "create this Secret"),
    ],
)
def test_why_the_pod_does_not_start_is_shown_and_stays_in_the_end(changes: Any, warning: Any, words: str) -> None:
    waiting = replace(pod(None, is_over=False), **changes)
    warnings = Warnings(waiting.uid, (WarningEvent(*warning),)) if warning else None
    seen = replace(begun(), child=child(), pods=(waiting,), warnings=warnings)
    decided = plan(seen, SETTINGS)
    assert (decided.status.reason, decided.requeue_after) == ("Releasing", 3)
    assert words in (decided.status.message or "")
    late = child(conditions=[FAILED["conditions"][0] | {"reason": "DeadlineExceeded", "message": "too long"}])
    ended = plan(replace(after(seen, decided), child=late, pods=()), SETTINGS)
    assert ended.status.reason == "Failed"
    assert "progressDeadlineSeconds" in (ended.status.message or "")
    assert words in (ended.status.message or "")


def test_events_are_read_only_of_a_pod_that_does_not_start() -> None:
    seen = replace(begun(), child=child(), pods=(pod(None, is_over=False),))
    assert find_query(seen) == EventQuery("Pod", "pod-uid")
    assert find_query(replace(seen, pods=())) == EventQuery("Job", "bot-r1-uid")
    for other in (None, child(**COMPLETE), replace(child(), is_suspended=True)):
        assert find_query(replace(seen, child=other)) is None
    assert find_query(replace(seen, pods=(replace(seen.pods[0], started=NOW),))) is None


def test_an_edited_release_starts_once_no_pod_of_the_earlier_spec_is_alive() -> None:
    seen = begun()
    seen = replace(seen, release=replace(seen.release, generation=2), pods=(pod(None, is_over=False),))
    assert not plan(seen, SETTINGS).creates_job
    decided = plan(replace(seen, pods=(pod(report("Released")),)), SETTINGS)
    assert (decided.creates_job, build_name(after(seen, decided).release)) == (True, "bot-r2")


def service(uri: str | None, ready: str = "", message: str = "", rollout: str = "") -> Service:
    adapters = ({"name": "other", "uri": "s3://x"}, *([{"name": "bot", "uri": uri}] if uri else []))
    return Service("7", adapters, ready, message, rollout=rollout)


def verified() -> Seen:
    return replace(begun(target={"kserve": KSERVE}), child=child(**COMPLETE), pods=(pod(report("Verified")),))


def test_the_adapter_of_a_service_is_set_after_the_check_and_released_once_it_is_ready() -> None:
    seen = verified()
    first = plan(seen, SETTINGS)
    assert (first.sets_adapter, first.adapter_uri, first.status.reason) == (True, WANTED, "WaitingForServer")
    assert first.status.replaced_adapter_uri == "s3://bucket/old/adapter"
    again = plan(after(seen, first), SETTINGS)  # the operator has ended before it could set it
    assert (again.sets_adapter, again.adapter_uri) == (True, WANTED)
    waiting = plan(replace(after(seen, first), service=service(WANTED, message="pulling")), SETTINGS)
    assert (waiting.sets_adapter, waiting.requeue_after) == (False, 3)
    assert "not ready with it yet: pulling" in (waiting.status.message or "")
    rolling = service(WANTED, "True", rollout="old pods of Deployment service-kserve answer still")
    early = plan(replace(after(seen, waiting), service=rolling), SETTINGS)
    assert (early.status.reason, early.status.answering and early.status.answering.uri) == (
        "WaitingForServer",
        "s3://bucket/old",
    )
    assert "old pods of Deployment service-kserve" in (early.status.message or "")
    ready = plan(replace(after(seen, early), service=service(WANTED, "True")), SETTINGS)
    assert ready.status.answering
    assert (ready.status.reason, ready.status.answering.manifest_sha256) == ("Released", DIGEST)


@pytest.mark.parametrize(
    ("rollback", "reason", "answers"), [("OnFailure", "RolledBack", OLD), ("Never", "Failed", DIGEST)]
)
def test_a_service_that_is_not_ready_in_time_gets_back_its_adapter_if_asked(
    rollback: str, reason: str, answers: str
) -> None:
    seen = begun(target={"kserve": KSERVE}, rollback=rollback)
    seen = replace(seen, child=child(**COMPLETE), pods=(pod(report("Verified")),))
    seen = replace(after(seen, plan(seen, SETTINGS)), now=NOW + timedelta(seconds=901))
    seen = replace(seen, service=service(WANTED, "False", "rank 24 is greater than max_lora_rank 16"))
    decided = plan(seen, SETTINGS)
    if rollback == "OnFailure":
        assert (decided.sets_adapter, decided.adapter_uri) == (True, "s3://bucket/old/adapter")
        decided = plan(replace(after(seen, decided), service=service(decided.adapter_uri)), SETTINGS)
    assert "rank 24 is greater than max_lora_rank 16" in (decided.status.message or "")
    assert decided.status.answering
    assert (decided.status.reason, decided.status.answering.manifest_sha256) == (reason, answers)
    assert not decided.sets_adapter


@pytest.mark.parametrize("uri", [WANTED, WANTED.rstrip("/")])
@pytest.mark.parametrize("ready", ["True", ""])
def test_an_entry_that_has_the_result_already_is_neither_set_nor_taken_away(uri: str, ready: str) -> None:
    seen = replace(verified(), service=service(uri, ready))
    first = plan(seen, SETTINGS)
    assert (first.sets_adapter, first.status.reason) == (False, "WaitingForServer")
    second = plan(replace(after(seen, first), now=NOW + timedelta(seconds=0 if ready else 901)), SETTINGS)
    assert (second.sets_adapter, second.status.reason) == (False, "Released" if ready else "Failed")


def test_a_service_that_is_missing_is_waited_for_and_one_that_others_set_is_left_alone() -> None:
    missing = plan(replace(verified(), service=None), SETTINGS)
    assert (missing.status.reason, missing.creates_job) == ("TargetMissing", False)
    seen = verified()
    other = plan(replace(after(seen, plan(seen, SETTINGS)), service=service("s3://someone/else")), SETTINGS)
    assert (other.status.reason, other.sets_adapter) == ("Failed", False)
    assert "let one of the two set it" in (other.status.message or "")


def test_setting_an_adapter_keeps_the_others_and_every_other_field_of_the_entry() -> None:
    own = {"name": "bot", "uri": "s3://old", "more": 1}
    adapters = ({"name": "other"}, own)
    assert set_adapter(adapters, "bot", "s3://new") == [{"name": "other"}, own | {"uri": "s3://new"}]
    assert set_adapter(adapters, "bot", None) == [{"name": "other"}]
    assert set_adapter((), "bot", "s3://new") == [{"name": "bot", "uri": "s3://new"}]


def deployment(**status: Any) -> Object:
    meta = {"name": "service-kserve", "generation": 3}
    settled = {"observedGeneration": 3, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}
    return {"metadata": meta, "spec": {"replicas": 2}, "status": settled | status}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"observedGeneration": 2}, "has not been observed yet"),
        ({"updatedReplicas": 1}, "1 of 2 pods are new"),
        ({"replicas": 3}, "1 of 3 pods are of its earlier spec"),
        ({"availableReplicas": None}, "0 of 2 new pods are available"),
        (
            {
                "availableReplicas": 0,
                "conditions": [{"type": "Progressing", "status": "False", "message": "it has timed out"}],
            },
            "available: it has timed out",
        ),
        ({}, ""),
    ],
)
def test_a_rollout_is_over_once_only_new_pods_answer(status: Object, words: str) -> None:
    found = explain_rollout(deployment(**status))
    assert found.endswith(words)
    assert bool(found) == bool(words)


@pytest.mark.parametrize(("ending", "seconds", "counted"), [(1, 60, 1), (1, 61, 0), (0, 1, 0), (None, 1, 0)], ids=str)
def test_pods_of_before_that_end_are_counted_for_their_grace_period_after_the_rollout(
    ending: int | None, seconds: int, counted: int
) -> None:
    rolled_out = {"type": "Progressing", "status": "True", "lastUpdateTime": WIRE}
    found = deployment(terminatingReplicas=ending, conditions=[rolled_out])
    found["spec"]["template"] = {"spec": {"terminationGracePeriodSeconds": 60}}
    assert count_ending(found, NOW + timedelta(seconds=seconds)) == counted


def test_a_result_is_released_once_the_pods_of_before_have_ended_which_is_never_too_late() -> None:
    seen = replace(tried(), now=LATE, service=replace(service(WANTED, "True"), ending=1))
    waiting = plan(seen, SETTINGS)
    assert (waiting.status.reason, waiting.sets_adapter) == ("WaitingForServer", False)
    assert "pods that are being deleted may still answer: 1" in (waiting.status.message or "")
    ended = replace(after(seen, waiting), service=service(WANTED, "True"))
    assert plan(ended, SETTINGS).status.reason == "Released"


def test_a_service_names_its_deployments_and_why_it_is_not_ready() -> None:
    failed = {"type": "PresetsCombined", "status": "False", "message": "LoRA adapter: oci is not supported"}
    unknown = {"type": "Ready", "status": "Unknown", "message": "unsuccessfully observed a new generation"}
    workloads = {
        "primary": {"kind": "Deployment", "name": "service-kserve"},
        "prefill": {"kind": "LeaderWorkerSet", "name": "x"},
        "service": {"kind": "Service", "name": "y"},
        "scheduler": {"kind": "Deployment", "name": "../secrets/s3"},
    }
    status = {"observedGeneration": 2, "conditions": [failed, unknown], "workloads": workloads}
    meta = {"resourceVersion": "7", "generation": 2}
    found = Service.from_object({"metadata": meta, "spec": {}, "status": status})
    assert (found.ready, found.message, found.deployments) == ("Unknown", failed["message"], ("service-kserve",))


LATE = NOW + timedelta(seconds=901)
OLD_ADAPTER = "s3://bucket/old/adapter"


def tried() -> Seen:
    """The adapter is set, and the service is not ready yet."""
    seen = verified()
    seen = after(seen, plan(seen, SETTINGS))
    return after(seen, plan(replace(seen, service=service(WANTED)), SETTINGS))


def edited(seen: Seen, outcome: str, uri: str) -> Seen:
    """Generation 2, whose pod has ended, after the entry of generation 1 was given back."""
    spec = {"uri": "s3://bucket/newer", "manifestSHA256": "c" * 64, "target": {"kserve": KSERVE}}
    second = replace(release(spec, generation=2), status=seen.release.status)
    seen = replace(seen, release=second, child=None, pods=(), service=service(WANTED), tried=service(WANTED))
    undone = plan(seen, SETTINGS)
    assert (undone.sets_adapter, undone.adapter_uri, undone.creates_job) == (True, OLD_ADAPTER, False)
    seen = replace(after(seen, undone), service=service(OLD_ADAPTER), tried=service(OLD_ADAPTER))
    begun = plan(seen, SETTINGS)
    assert begun.creates_job
    seen = replace(after(seen, begun), child=child("bot-r2", **COMPLETE))
    ended = pod(report(outcome, generation=2), of="bot-r2")
    return replace(seen, pods=(ended,), service=service(uri))


def test_a_service_that_became_ready_while_no_operator_ran_is_released() -> None:
    decided = plan(replace(tried(), now=LATE, service=service(WANTED, "True")), SETTINGS)
    assert (decided.status.reason, decided.sets_adapter) == ("Released", False)
    assert decided.status.replaced_adapter_uri is None


def test_a_rollback_that_the_api_server_refuses_is_no_new_trial_and_ends_after_the_deadline() -> None:
    late = replace(tried(), now=LATE, service=service(WANTED, "False", "out of memory"))
    giving_back = plan(late, SETTINGS)
    assert (giving_back.sets_adapter, giving_back.adapter_uri) == (True, OLD_ADAPTER)
    seen = after(late, giving_back)
    refused = plan(replace(seen, problem=Refused("a webhook")), SETTINGS)
    assert refused.status.reason == "APIDenied"
    seen = replace(after(seen, refused), now=LATE + timedelta(seconds=30))
    again = plan(seen, SETTINGS)
    assert (again.sets_adapter, again.adapter_uri) == (True, OLD_ADAPTER)
    given = plan(replace(seen, service=service(OLD_ADAPTER, "True")), SETTINGS)
    assert given.status.reason == "RolledBack"
    assert "out of memory" in (given.status.message or "")
    assert plan(replace(seen, service=service(WANTED, "True")), SETTINGS).status.reason == "Released"
    seen = replace(seen, now=LATE + timedelta(seconds=901), problem=Refused("a webhook"))
    decided = plan(seen, SETTINGS)
    assert (decided.status.reason, decided.requeue_after, decided.status.trial) == ("Failed", None, None)
    assert "out of memory" in (decided.status.message or "")
    assert "a webhook" in (decided.status.message or "")
    assert decided.status.answering
    assert decided.status.answering.manifest_sha256 == DIGEST, "as with rollback Never"


@pytest.mark.parametrize("rollback", ["OnFailure", "Never"])
def test_an_entry_that_another_client_has_set_is_left_alone_although_the_deadline_has_passed(rollback: str) -> None:
    seen = replace(begun(target={"kserve": KSERVE}, rollback=rollback), child=child(**COMPLETE))
    seen = replace(seen, pods=(pod(report("Verified")),))
    seen = replace(after(seen, plan(seen, SETTINGS)), now=LATE, service=service("s3://someone/else", "True"))
    decided = plan(seen, SETTINGS)
    assert (decided.status.reason, decided.sets_adapter) == ("Failed", False)
    assert "let one of the two set it" in (decided.status.message or "")
    assert decided.status.answering
    assert decided.status.answering.manifest_sha256 == OLD


def test_a_result_that_no_entry_has_at_the_deadline_does_not_count_as_answering() -> None:
    seen = replace(begun(target={"kserve": KSERVE}, rollback="Never"), child=child(**COMPLETE))
    seen = replace(seen, pods=(pod(report("Verified")),))
    seen = replace(after(seen, plan(seen, SETTINGS)), now=LATE, service=service(OLD_ADAPTER, "True"))
    decided = plan(seen, SETTINGS)
    assert (decided.status.reason, decided.sets_adapter) == ("Failed", False)
    assert decided.status.answering
    assert decided.status.answering.manifest_sha256 == OLD


@pytest.mark.parametrize("left", [None, child(**COMPLETE), child(**FAILED)], ids=["none", "complete", "failed"])
def test_a_result_on_trial_is_verified_and_needs_its_pod_and_job_no_more(left: Job | None) -> None:
    seen = replace(tried(), child=left, pods=())
    waiting = plan(replace(seen, service=service(WANTED, "", "pulling")), SETTINGS)
    assert (waiting.status.reason, waiting.creates_job) == ("WaitingForServer", False)
    assert plan(replace(seen, service=service(WANTED, "True")), SETTINGS).status.reason == "Released"
    late = plan(replace(seen, now=LATE, service=service(WANTED, "False", "out of memory")), SETTINGS)
    assert (late.sets_adapter, late.adapter_uri) == (True, OLD_ADAPTER)


@pytest.mark.parametrize("before", [OLD_ADAPTER, None])
@pytest.mark.parametrize("interruption", ["a denied read", "a deleted Job", "a service that is away"])
def test_a_rollback_gives_back_what_answered_before_whatever_happened_in_between(
    interruption: str, before: str | None
) -> None:
    seen = replace(verified(), service=service(before))
    seen = after(seen, plan(seen, SETTINGS))
    seen = replace(seen, service=service(WANTED))
    problem = Denied("get", "llminferenceservices", "team") if interruption == "a denied read" else None
    broken = replace(seen, problem=problem)
    if interruption == "a deleted Job":
        broken = replace(seen, child=None)
    elif interruption == "a service that is away":
        broken = replace(seen, service=None)
    seen = replace(after(broken, plan(broken, SETTINGS)), problem=None, child=seen.child, service=seen.service)
    seen = after(seen, plan(seen, SETTINGS))
    late = replace(seen, now=LATE + timedelta(seconds=901), service=service(WANTED, "False", "out of memory"))
    decided = plan(late, SETTINGS)
    assert (decided.sets_adapter, decided.adapter_uri) == (True, before)


def test_a_release_of_what_answers_already_never_takes_the_name_away() -> None:
    seen = replace(verified(), service=service(WANTED))
    seen = after(seen, plan(seen, SETTINGS))
    decided = plan(replace(seen, now=LATE, service=service(WANTED, "False", "a node is drained")), SETTINGS)
    assert (decided.status.reason, decided.sets_adapter) == ("Failed", False)


def test_an_edit_while_a_result_is_tried_gives_its_entry_back_first() -> None:
    seen = edited(tried(), "Verified", OLD_ADAPTER)
    seen = after(seen, plan(seen, SETTINGS))
    late = replace(seen, now=LATE, service=service("s3://bucket/newer/adapter/", "False", "out of memory"))
    decided = plan(late, SETTINGS)
    assert (decided.sets_adapter, decided.adapter_uri) == (True, OLD_ADAPTER)


def test_an_edit_to_a_result_that_is_held_leaves_the_one_before_both() -> None:
    decided = plan(edited(tried(), "Held", OLD_ADAPTER), SETTINGS)
    assert (decided.status.reason, decided.sets_adapter) == ("Held", False)


OF_A_JOB = {"jobRef": {"name": "job"}, "target": {"kserve": KSERVE}}
ELSEWHERE = {"uri": "s3://elsewhere/x", "manifestSHA256": DIGEST, "target": {"kserve": KSERVE}}
NEWER = {"uri": "s3://bucket/newer", "manifestSHA256": DIGEST}


@pytest.mark.parametrize(
    ("spec", "of_job", "then"),
    [
        (OF_A_JOB, job("Training"), "WaitingForJob"),
        (OF_A_JOB, job(Failed="True"), "JobFailed"),
        (OF_A_JOB, None, "WaitingForJob"),
        (ELSEWHERE, None, "Forbidden"),
        (NEWER | {"target": {"kserve": KSERVE | {"adapterName": "other"}}}, None, "Releasing"),
        (NEWER | {"target": {"kserve": KSERVE | {"name": "new"}}}, None, "TargetMissing"),
        (NEWER | {"target": {"files": {"uri": "s3://bucket/alias"}}}, None, "Releasing"),
    ],
)
@pytest.mark.parametrize("before", [OLD_ADAPTER, None])
def test_any_edit_while_a_result_is_tried_gives_the_entry_of_the_trial_back(
    spec: Object, of_job: FineTuneJob | None, then: str, before: str | None
) -> None:
    limited = SETTINGS.model_copy(update={"allowed_storage_prefixes": ["s3://bucket/"]})
    seen = replace(verified(), service=service(before))
    seen = after(seen, plan(seen, SETTINGS))
    second = replace(release(spec, generation=2), status=seen.release.status)
    shown = None if then == "TargetMissing" else service(WANTED)
    seen = replace(seen, release=second, child=None, pods=(), job=of_job, service=shown, tried=service(WANTED))
    undone = plan(seen, limited)
    assert (undone.sets_adapter, undone.adapter_uri) == (True, before)
    assert undone.undoes == KServeTarget.model_validate(KSERVE)
    seen = after(seen, undone)
    refused = plan(replace(seen, problem=Refused("a webhook")), limited)
    assert (refused.status.reason, refused.requeue_after) == ("APIDenied", 30)
    assert plan(after(seen, refused), limited).undoes
    ended = plan(replace(seen, tried=service(before)), limited)
    assert (ended.status.reason, ended.sets_adapter) == (then, False)
    assert (ended.status.replaced_adapter_uri, ended.status.trial) == (None, None)


def test_a_trial_of_an_earlier_operator_is_that_of_the_entry_in_the_spec() -> None:
    seen = tried()
    earlier = seen.release.status.model_copy(update={"trial": None})
    seen = replace(seen, release=replace(seen.release, status=earlier))
    assert plan(replace(seen, service=service(WANTED, "True")), SETTINGS).status.reason == "Released"
    second = replace(release(OF_A_JOB, generation=2), status=earlier)
    edited = plan(replace(seen, release=second, child=None, tried=service(WANTED)), SETTINGS)
    assert (edited.sets_adapter, edited.adapter_uri) == (True, OLD_ADAPTER)


TARGETS: dict[str, Object] = {
    "vllm": {"vllm": VLLM},
    "kserve": {"kserve": KSERVE},
    "files": {"files": {"uri": "s3://bucket/alias"}},
}


@pytest.mark.parametrize("target", TARGETS)
def test_the_result_of_a_job_is_released_where_storage_is_limited_to_its_prefix(target: str) -> None:
    limited = SETTINGS.model_copy(update={"allowed_storage_prefixes": ["s3://bucket/"]})
    spec = {"jobRef": {"name": "job"}, "target": TARGETS[target]}
    seen = Seen(release(spec), NOW, job=job(Complete="True"), service=service(OLD_ADAPTER))
    decided = plan(seen, limited)
    assert decided.status.reason == "Releasing", decided.status.message


def test_a_release_ends_although_its_job_was_deleted_in_the_meantime() -> None:
    limited = SETTINGS.model_copy(update={"allowed_storage_endpoints": ["http://minio:9000"]})
    of_job = job(Complete="True")
    assert of_job.spec
    storage = of_job.spec.storage.model_copy(update={"endpoint": "http://minio:9000"})
    of_job = replace(of_job, spec=of_job.spec.model_copy(update={"storage": storage}))
    seen = Seen(release({"jobRef": {"name": "job"}, "target": {"vllm": VLLM}}), NOW, job=of_job)
    seen = after(seen, plan(seen, limited))
    new = {"uri": "s3://bucket/new", "manifestSHA256": DIGEST, "releasedTime": WIRE}
    seen = replace(seen, job=None, child=child(**COMPLETE), pods=(pod(report("Released", answering=new)),))
    decided = plan(seen, limited)
    assert decided.status.reason == "Released", decided.status.message


def test_a_job_that_is_deleted_before_the_job_of_its_release_could_be_made_is_waited_for() -> None:
    seen = Seen(release({"jobRef": {"name": "job"}, "target": {"vllm": VLLM}}), NOW, job=job(Complete="True"))
    seen = after(seen, plan(seen, SETTINGS))
    seen = after(seen, plan(replace(seen, problem=Refused("exceeded quota: small")), SETTINGS))
    decided = plan(replace(seen, job=None), SETTINGS)
    assert (decided.status.reason, decided.creates_job, decided.requeue_after) == ("WaitingForJob", False, 30)
    assert "FineTuneJob job was deleted" in (decided.status.message or "")
    assert decided.status.candidate == ReleasedResult(uri="s3://bucket/new", manifest_sha256=DIGEST)
    assert plan(after(seen, decided), SETTINGS).creates_job


def test_a_trial_does_not_need_the_job_of_its_result() -> None:
    seen = verified()
    spec = {"jobRef": {"name": "job"}, "target": {"kserve": KSERVE}}
    seen = replace(seen, release=replace(release(spec), status=seen.release.status))
    seen = after(seen, plan(seen, SETTINGS))
    decided = plan(replace(seen, child=None, pods=(), service=service(WANTED, "True")), SETTINGS)
    assert decided.status.reason == "Released"


def test_a_comparison_is_that_of_the_last_candidate() -> None:
    held = pod(report("Held", comparison={"verdict": "Worse", "rows": 20}))
    seen = replace(begun(), child=child(**COMPLETE), pods=(held,))
    decided = plan(seen, SETTINGS)
    assert decided.status.comparison
    second = replace(release(NEWER | {"target": {"files": {"uri": "s3://bucket/alias"}}}, generation=2))
    seen = replace(seen, release=replace(second, status=decided.status), child=None, pods=())
    seen = after(seen, plan(seen, SETTINGS))
    ended = pod(report("Released", generation=2), of="bot-r2")
    assert plan(replace(seen, child=child("bot-r2", **COMPLETE), pods=(ended,)), SETTINGS).status.comparison is None


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (Denied("get", "llminferenceservices", "team"), "APIDenied"),
        (Refused("exceeded quota: small"), "APIDenied"),
        (NameTaken("Job", "bot-r1"), "NameConflict"),
    ],
)
def test_a_missing_right_and_a_taken_name_are_named(problem: Any, reason: str) -> None:
    decided = plan(replace(begun(), problem=problem), SETTINGS)
    assert (decided.status.reason, decided.requeue_after) == (reason, 30)
    assert str(problem) in (decided.status.message or "")


@pytest.mark.process
def test_nothing_of_releases_is_imported_by_default() -> None:
    import subprocess
    import sys

    code = "import sys, finetune_operator.__main__; print([n for n in sys.modules if 'operator.release' in n])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def pod_of_service(name: str = "new", second: int = 2, *, is_ready: bool = False, **status: Any) -> Object:
    ready = {"type": "Ready", "status": "True" if is_ready else "False"}
    conditions = [ready, *status.pop("conditions", [])]
    meta = {"name": name, "creationTimestamp": f"2026-01-01T00:00:0{second}Z"}
    return {"metadata": meta, "status": {"conditions": conditions} | status}


LOG = """(APIServer pid=1) WARNING 01-01 00:00:00 [utils.py:255] It may cause errors like `OSError: [Errno 24]`.
(EngineCore pid=55) Traceback (most recent call last):
(EngineCore pid=55)   File "worker.py", line 12, in add_lora
(EngineCore pid=55) ValueError: LoRA rank 24 is greater than max_lora_rank 16.
(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.
"""
CRASHED = {"exitCode": 1, "reason": "Error", "message": LOG}
LOOPING = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}}
PULLING = {"waiting": {"reason": "ImagePullBackOff", "message": "manifest unknown"}}
NO_GPU = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "1 Insufficient gpu"}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            {"containerStatuses": [{"name": "main", "state": LOOPING, "lastState": {"terminated": CRASHED}}]},
            "container main of pod new ended with 1: ValueError: LoRA rank 24 is greater than max_lora_rank 16: "
            "raise spec.model.lora.maxRank first",
        ),
        (
            {"initContainerStatuses": [{"name": "storage", "state": {"terminated": {"exitCode": 137}}}]},
            "container storage of pod new ended with 137",
        ),
        (
            {"containerStatuses": [{"name": "main", "state": PULLING}]},
            "container main of pod new waits: ImagePullBackOff: manifest unknown",
        ),
        (
            {"containerStatuses": [{"name": "main", "state": {"waiting": {"reason": "ContainerCreating"}}}]},
            "",
        ),
        ({"conditions": [NO_GPU]}, "pod new is not scheduled: 1 Insufficient gpu"),
        ({"containerStatuses": [{"name": "main", "state": {"running": {}}}]}, ""),
    ],
)
def test_a_new_pod_that_does_not_start_is_explained_in_the_words_of_its_server(status: Object, words: str) -> None:
    crashed_once = {"containerStatuses": [{"name": "main", "lastState": {"terminated": CRASHED}}]}
    old = pod_of_service("old", 1, is_ready=True, **crashed_once)
    assert explain_pods([pod_of_service(**status), old]) == words
    assert not explain_pods([old])


def test_the_words_of_a_pod_are_one_line_of_bounded_length() -> None:
    noise = CRASHED | {"message": "\x1b[31mValueError: " + "x" * 5000}
    found = explain_pods([pod_of_service(containerStatuses=[{"name": "main", "state": {"terminated": noise}}])])
    assert found.isprintable()
    assert len(found) < 400
