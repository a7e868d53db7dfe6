"""What a release writes while the API server refuses its Job, and what queues it."""

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from finetune_operator.cluster import Cluster
from finetune_operator.controller.workqueue import WorkQueue
from finetune_operator.kube.errors import AlreadyExists, ClusterError, Denied, Gone, Refused
from finetune_operator.kube.objects import Key, Object
from finetune_operator.kube.observed import WarningEvent, Warnings
from finetune_operator.metrics.registry import Metrics
from finetune_operator.release.reconciler import ReleaseReconciler
from finetune_operator.release.watch import ReleaseController
from finetune_operator.settings import Settings

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = Settings(trainer_image="registry.example/finetune-trainer:1", releases=True)
KEY = Key("team", "bot")
SPEC = {"uri": "s3://bucket/new", "manifestSHA256": "a" * 64, "target": {"files": {"uri": "s3://bucket/alias"}}}


def merge(old: Object, change: Object) -> Object:
    """The object after a JSON merge patch."""
    new = {
        name: merge(old.get(name) or {}, value) if isinstance(value, dict) else value for name, value in change.items()
    }
    return {name: value for name, value in (old | new).items() if value is not None}


class Server:
    """An API server with one release, which refuses what it is given to refuse."""

    def __init__(self) -> None:
        meta = {"namespace": "team", "name": "bot", "uid": "uid-1", "generation": 1, "resourceVersion": "1"}
        self.release: Object = {"metadata": meta, "spec": SPEC, "status": {}}
        self.refusal: ClusterError | None = Refused("exceeded quota: small")
        self.writes: list[str] = []
        self.events: list[str] = []
        self.created: list[str] = []
        self.left: list[Object] = []
        """ConfigMaps and NetworkPolicies that exist."""
        self.deleted: list[str] = []

    async def request(self, verb: str, path: str, *, body: Object | None = None, **_: Any) -> Object:
        if verb == "POST" and body:
            if self.refusal:
                raise self.refusal
            self.created.append(body["kind"])
            return body
        if verb == "PATCH" and body:
            meta = self.release["metadata"]
            status = merge(self.release["status"], body["status"])
            self.release = {
                "metadata": meta | {"resourceVersion": str(int(meta["resourceVersion"]) + 1)},
                "spec": SPEC,
                "status": status,
            }
            self.writes.append(status["reason"])
            return self.release
        if path.endswith("/bot"):
            return self.release
        if path.endswith("/pods"):
            return {"items": []}
        if verb == "DELETE":
            self.deleted.append(path.partition("/namespaces/team/")[2])
            return {}
        for kind in ("ConfigMap", "NetworkPolicy"):
            if path.endswith(f"/{kind.lower()}s".replace("policys", "policies")):
                return {"items": [one for one in self.left if one["kind"] == kind]}
        raise Gone("not found")

    async def delete(self, path: str, uid: str) -> None:
        await Cluster.delete(cast("Cluster", self), path, uid)

    async def post_event(self, body: Object) -> None:
        self.events.append(body["reason"])

    async def count_event(self, *_: Any) -> None:
        self.events.append("again")


def reconciler(server: Server) -> ReleaseReconciler:
    return ReleaseReconciler(cast("Cluster", server), WorkQueue(1), SETTINGS, lambda: NOW)


async def test_a_refusal_that_lasts_is_written_once_and_is_one_event() -> None:
    server = Server()
    one = reconciler(server)
    for _ in range(5):
        await one.handle(KEY)
    assert server.writes == ["Releasing", "APIDenied"]
    assert server.events == ["Releasing", "APIDenied"]
    server.refusal = None
    await one.handle(KEY)
    assert "Job" in server.created
    assert server.writes[2:] == ["Releasing"]
    assert server.events[2:] == ["again"], "counted in the series of the first one"


@pytest.mark.parametrize(
    ("settings", "deleted"),
    [
        ({}, ["configmaps/bot-r0-old"]),
        ({"pod_egress": []}, ["configmaps/bot-r0-old", "networkpolicies/bot-r0"]),
        ({"isolate_training_pods": True}, ["configmaps/bot-r0-old", "networkpolicies/bot-r0"]),
    ],
)
async def test_what_an_earlier_spec_has_left_is_deleted_before_the_next_job_is_made(
    settings: Object, deleted: list[str]
) -> None:
    server = Server()
    for kind, name, owner in (
        ("ConfigMap", "bot-r0-old", "uid-1"),
        ("ConfigMap", "of-another", "uid-2"),
        ("NetworkPolicy", "bot-r0", "uid-1"),
        ("NetworkPolicy", "bot-r1", "uid-1"),
    ):
        owners = [{"kind": "FineTuneRelease", "uid": owner, "controller": True}]
        server.left.append({"kind": kind, "metadata": {"name": name, "uid": name, "ownerReferences": owners}})
    if "pod_egress" not in settings:
        server.left.pop()
    one = ReleaseReconciler(cast("Cluster", server), WorkQueue(1), SETTINGS.model_copy(update=settings), lambda: NOW)
    await one.handle(KEY)
    assert (server.deleted, server.created) == (deleted, [])
    server.refusal = None
    await one.handle(KEY)
    assert "Job" in server.created


class Starting(Server):
    """An API server with a release whose pod does not start, and which shows no events."""

    async def request(self, verb: str, path: str, *, body: Object | None = None, **more: Any) -> Object:
        if path.endswith("/jobs/bot-r1"):
            owner = {"kind": "FineTuneRelease", "uid": "uid-1", "controller": True}
            meta = {"namespace": "team", "name": "bot-r1", "uid": "job-uid", "ownerReferences": [owner]}
            return {"metadata": meta, "spec": {"template": {"spec": {"containers": [{"name": "trainer"}]}}}}
        return await super().request(verb, path, body=body, **more)

    async def list_warnings(self, namespace: str, kind: str) -> dict[str, Warnings]:
        if self.refusal:
            raise self.refusal
        return {"job-uid": Warnings("job-uid", (WarningEvent("FailedCreate", "exceeded quota: small"),))}


async def test_the_events_of_a_job_without_a_pod_explain_it_and_need_not_be_readable() -> None:
    server = Starting()
    server.refusal = Denied("list", "events", "team")
    one = reconciler(server)
    await one.handle(KEY)
    assert server.release["status"]["message"] == "The pod of Job bot-r1 is starting."
    server.refusal = None
    await one.handle(KEY)
    assert "exceeded quota: small: request less in resources" in server.release["status"]["message"]


class Guarded(Server):
    """An API server whose policy refuses to delete the Job of an earlier spec of the release."""

    async def request(self, verb: str, path: str, *, body: Object | None = None, **more: Any) -> Object:
        if path.endswith("/jobs/bot-r0"):
            if verb == "DELETE" and self.refusal:
                raise self.refusal
            owner = {"kind": "FineTuneRelease", "uid": "uid-1", "controller": True}
            meta = {"namespace": "team", "name": "bot-r0", "uid": "job-uid", "ownerReferences": [owner]}
            return {"metadata": meta, "spec": {"template": {"spec": {"containers": [{"name": "trainer"}]}}}}
        return await super().request(verb, path, body=body, **more)


async def test_a_refusal_to_delete_the_job_of_an_earlier_spec_is_written() -> None:
    server = Guarded()
    server.release["status"] = {"jobName": "bot-r0"}
    server.refusal = Refused("denied by a policy")
    one = reconciler(server)
    for _ in range(3):
        await one.handle(KEY)
    assert (server.writes, server.created) == (["APIDenied"], [])
    assert "denied by a policy" in server.release["status"]["message"]
    server.refusal = None
    await one.handle(KEY)
    assert "Job" in server.created


class WithoutStatus(Server):
    """An API server that refuses the status of a release."""

    async def request(self, verb: str, path: str, *, body: Object | None = None, **more: Any) -> Object:
        if verb == "PATCH" and self.refusal:
            raise self.refusal
        return await super().request(verb, path, body=body, **more)


async def test_a_status_that_cannot_be_written_is_an_event_which_is_counted() -> None:
    server = WithoutStatus()
    one = reconciler(server)
    for _ in range(3):
        await one.handle(KEY)
    assert (server.events, server.writes, server.created) == (["StatusRefused", "again", "again"], [], [])


class Recreated(Server):
    """An API server with a Job, or a NetworkPolicy, that has the name of that of a release."""

    def __init__(self, kind: str, owner: Object, **meta: Any) -> None:
        super().__init__()
        self.kind = kind
        self.meta = {"namespace": "team", "name": "bot-r1", "uid": "other", "ownerReferences": [owner]} | meta

    async def request(self, verb: str, path: str, *, body: Object | None = None, **more: Any) -> Object:
        if verb == "POST" and body and body["kind"] == self.kind:
            raise AlreadyExists("bot-r1 already exists")
        if path.endswith({"Job": "/jobs/bot-r1", "NetworkPolicy": "/networkpolicies/bot-r1"}[self.kind]):
            return {"metadata": self.meta, "spec": {"template": {"spec": {"containers": [{"name": "trainer"}]}}}}
        return await super().request(verb, path, body=body, **more)


EARLIER = {"kind": "FineTuneRelease", "name": "bot", "uid": "uid-0", "controller": True}
FOREIGN = {"kind": "CronJob", "name": "bot", "uid": "uid-0", "controller": True}


@pytest.mark.parametrize(
    ("owner", "meta"), [(EARLIER, {}), (FOREIGN, {"deletionTimestamp": "2026-01-01T00:00:00Z"})], ids=["owner", "time"]
)
async def test_the_job_of_an_earlier_release_of_this_name_is_waited_for(owner: Object, meta: Object) -> None:
    server, queue = Recreated("Job", owner, **meta), WorkQueue(1)
    one = ReleaseReconciler(cast("Cluster", server), queue, SETTINGS, lambda: NOW)
    for _ in range(3):
        await one.handle(KEY)
    assert (server.writes, server.events, len(queue)) == (["Releasing"], ["Releasing"], 1)
    assert queue._due[KEY] <= time.monotonic() + 3
    assert "Job bot-r1 of an earlier owner is being removed" in server.release["status"]["message"]
    assert server.created == []


async def test_the_network_policy_of_an_earlier_release_of_this_name_is_waited_for() -> None:
    server, queue = Recreated("NetworkPolicy", EARLIER), WorkQueue(1)
    server.refusal = None
    settings = SETTINGS.model_copy(update={"pod_egress": []})
    await ReleaseReconciler(cast("Cluster", server), queue, settings, lambda: NOW).handle(KEY)
    assert (server.writes, server.created, len(queue)) == (["Releasing"], ["ConfigMap"], 1)


async def test_the_job_of_another_owner_is_a_conflict_that_names_the_release() -> None:
    server = Recreated("Job", FOREIGN)
    await reconciler(server).handle(KEY)
    assert server.writes == ["NameConflict"]
    assert "Job bot-r1 exists but is not owned by this FineTuneRelease" in server.release["status"]["message"]


class Serving(Server):
    """An API server with a release for KServe whose Job is done, which refuses to change the LLMInferenceService."""

    def __init__(self) -> None:
        super().__init__()
        self.release["spec"] = SPEC | {"target": {"kserve": {"name": "service", "adapterName": "bot"}}}
        adapters = [{"name": "bot", "uri": "s3://bucket/old/adapter/"}]
        self.service: Object = {
            "metadata": {"resourceVersion": "1"},
            "spec": {"model": {"lora": {"adapters": adapters}}},
        }

    async def request(self, verb: str, path: str, *, body: Object | None = None, **more: Any) -> Object:
        owner = {"kind": "FineTuneRelease", "uid": "uid-1", "controller": True}
        meta = {"namespace": "team", "name": "bot-r1", "uid": "job-uid", "ownerReferences": [owner]}
        if path.endswith("/llminferenceservices/service"):
            if verb == "PATCH" and self.refusal:
                raise self.refusal
            if verb == "PATCH" and body:
                self.service = self.service | {"spec": body["spec"]}
            return self.service
        if path.endswith("/jobs/bot-r1"):
            ended = {"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
            pod = {"containers": [{"name": "trainer", "image": "x"}]}
            return {"metadata": meta, "spec": {"template": {"spec": pod}}, "status": {"conditions": [ended]}}
        if path.endswith("/pods"):
            report = {"outcome": "Verified", "message": "words", "releaseUID": "uid-1", "generation": 1}
            state = {"terminated": {"exitCode": 0, "message": json.dumps(report)}}
            status = {"containerStatuses": [{"name": "trainer", "state": state}]}
            of_job = {"kind": "Job", "uid": "job-uid", "controller": True}
            pod_meta = {"name": "pod", "uid": "pod-uid", "namespace": "team", "ownerReferences": [of_job]}
            return {"items": [{"metadata": pod_meta, "status": status}]}
        spec = self.release["spec"]
        found = await super().request(verb, path, body=body, **more)
        self.release["spec"] = spec
        return found


async def test_a_refused_adapter_is_written_once_and_what_it_replaces_is_kept() -> None:
    server = Serving()
    server.refusal = Refused("adapter name must differ from base model name")
    one = reconciler(server)
    for _ in range(5):
        await one.handle(KEY)
    assert server.writes == ["WaitingForServer", "APIDenied"]
    assert "must differ from base model name" in server.release["status"]["message"]
    server.refusal = None
    await one.handle(KEY)
    assert server.writes[2:] == ["WaitingForServer"]
    assert server.release["status"]["replacedAdapterURI"] == "s3://bucket/old/adapter/"


async def test_an_edit_to_another_target_gives_back_the_entry_of_the_earlier_service_first() -> None:
    server = Serving()
    server.refusal = None
    one = reconciler(server)
    before = server.service["spec"]
    await one.handle(KEY)
    assert server.service["spec"] != before
    server.release["spec"] = SPEC
    server.release["metadata"]["generation"] = 2
    server.refusal = Refused("a webhook")
    for _ in range(3):
        await one.handle(KEY)
    assert server.writes[1:] == ["Releasing", "APIDenied"], "written once"
    server.refusal = None
    await one.handle(KEY)
    assert (server.service["spec"], server.created) == (before, [])
    await one.handle(KEY)
    assert "Job" in server.created
    assert "trial" not in server.release["status"]


async def test_an_adapter_that_is_refused_for_too_long_ends_the_release() -> None:
    server, now = Serving(), [NOW]
    server.refusal = Refused("too many adapters")
    one = ReleaseReconciler(cast("Cluster", server), WorkQueue(1), SETTINGS, lambda: now[0])
    for _ in range(30):
        await one.handle(KEY)
        now[0] += timedelta(seconds=30)
    assert server.writes == ["WaitingForServer", "APIDenied"]
    await one.handle(KEY)
    assert server.writes[2:] == ["Failed"]
    assert "too many adapters, for longer than progressDeadlineSeconds" in server.release["status"]["message"]


async def test_a_rollback_that_is_refused_for_too_long_ends_the_release_too() -> None:
    server, now = Serving(), [NOW]
    server.refusal = None
    one = ReleaseReconciler(cast("Cluster", server), WorkQueue(1), SETTINGS, lambda: now[0])
    await one.handle(KEY)
    server.refusal = Refused("a webhook")
    for _ in range(100):
        now[0] += timedelta(seconds=30)
        await one.handle(KEY)
    # The message of the trial changes once, as the service reports nothing.
    assert server.writes == ["WaitingForServer", "WaitingForServer", "WaitingForServer", "APIDenied", "Failed"]
    assert "a webhook, for longer than progressDeadlineSeconds" in server.release["status"]["message"]


@pytest.mark.parametrize("kind", ["service", "child"])
async def test_what_is_gone_between_the_read_and_the_action_does_not_end_the_work_on_a_release(kind: str) -> None:
    server, queue = Serving() if kind == "service" else Server(), WorkQueue(1)
    server.refusal = Gone("not found")
    one = ReleaseReconciler(cast("Cluster", server), queue, SETTINGS, lambda: NOW)
    await one.handle(KEY)
    assert len(queue) == 1, "only a release that is gone itself is not queued"


async def test_another_refusal_is_written_with_its_words() -> None:
    server = Server()
    one = reconciler(server)
    await one.handle(KEY)
    server.refusal = Refused("denied by a policy")
    await one.handle(KEY)
    assert server.writes == ["Releasing", "APIDenied", "APIDenied"]
    assert "denied by a policy" in server.release["status"]["message"]


def test_a_status_alone_queues_nothing_and_another_spec_or_a_list_does() -> None:
    server = Server()
    controller = ReleaseController(cast("Cluster", server), SETTINGS, Metrics())

    def take() -> int:
        count, controller._queue = len(controller._queue), WorkQueue(1)
        return count

    meta = server.release["metadata"]
    controller.put("finetunereleases", server.release)
    assert take() == 1
    controller.put("finetunereleases", server.release | {"metadata": meta | {"resourceVersion": "2"}})
    assert take() == 0
    edited = server.release | {"metadata": meta | {"resourceVersion": "3", "generation": 2}}
    controller.put("finetunereleases", edited)
    assert take() == 1
    listing = controller.begin_listing("finetunereleases", None)
    controller.put("finetunereleases", edited)
    controller.end_listing("finetunereleases", listing, is_complete=True)
    assert take() == 1
