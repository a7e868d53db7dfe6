"""API objects as the API server sends them, and an observation of a job built from them."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_api import handoff, names
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.kube.objects import FineTuneJob, Job
from finetune_operator.kube.observed import Observed, Reading, Warnings
from finetune_operator.kube.pod import Pod
from finetune_operator.manifests.jobs import build_attempt, build_preflight
from finetune_operator.policy.decision import Decision
from finetune_operator.policy.plan import plan
from finetune_operator.settings import Settings

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
IMAGE = "registry.example/trainer:1"
SPEC: dict[str, Any] = {
    "objective": "Chat",
    "model": {"uri": "s3://bucket/model"},
    "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}},
    "output": {"uri": "s3://bucket/out"},
}
Object = dict[str, Any]


def stamp(seconds: float = 0) -> str:
    """Return a Kubernetes time, in seconds from now."""
    return (NOW + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


class Scene:
    """A FineTuneJob and the objects around it; `look` plans, `settle` also does the planned actions."""

    def __init__(self, settings: Settings, name: str = "one", **spec: Any) -> None:
        self.settings = settings
        self.object: Object = {
            "metadata": {"namespace": "team", "name": name, "uid": "job-uid", "generation": 1, "resourceVersion": "5"},
            "spec": SPEC | spec,
            "status": {"observedGeneration": -1},
        }
        self.children: dict[str, Object] = {}
        self.pods: dict[str, Object] = {}
        self.reading: Reading | None = None
        self.warnings: Warnings | None = None
        self.now = NOW
        self.extra: dict[str, Any] = {}

    @property
    def job(self) -> FineTuneJob:
        return FineTuneJob.from_object(self.object)

    def observe(self, **changes: Any) -> Observed:
        fields = {
            "job": self.job,
            "now": self.now,
            "children": tuple(Job.from_object(one) for one in self.children.values()),
            "pods": tuple(Pod.from_object(one) for one in self.pods.values()),
            "reading": self.reading,
            "warnings": self.warnings,
        }
        return Observed(**fields | self.extra | changes)

    def look(self, **changes: Any) -> Decision:
        return plan(self.observe(**changes), self.settings)

    def settle(self) -> Decision:
        """Plan, act and write until nothing changes, as the reconciler does."""
        for _ in range(10):
            decision = self.look()
            if decision.create:
                created = decision.create.job
                name = created["metadata"]["name"]
                meta = created["metadata"] | {"uid": f"{name}-uid", "creationTimestamp": stamp()}
                self.children[name] = created | {"metadata": meta, "status": {}}
                continue
            if change := decision.suspend or decision.resume:
                note = {names.ANNOTATION_SUSPENDED_BY: names.MANAGED_BY} if decision.suspend else {}
                self.suspend(change.name, note, is_suspended=decision.suspend is not None)
                continue
            before = self.object["status"]
            self.object["status"] = decision.status.to_wire()
            if decision.delete:
                self.children.pop(decision.delete.name, None)
            if before == self.object["status"] and not decision.delete:
                return decision
        raise AssertionError("the plan does not settle")

    def pod(self, job: str, name: str = "", *, rank: int = 0, **status: Any) -> Object:
        """Add a pod of a Job, as the Job controller creates it."""
        name = name or f"{job}-{len(self.pods)}"
        template = self.children[job]["spec"]["template"]
        self.pods[name] = {
            "metadata": {
                "namespace": "team",
                "name": name,
                "uid": f"{name}-uid",
                "creationTimestamp": stamp(max(len(self.pods), (self.now - NOW).total_seconds())),
                "labels": template["metadata"]["labels"] | {names.LABEL_CONTROLLER_UID: f"{job}-uid"},
                "annotations": template["metadata"]["annotations"] | {names.ANNOTATION_INDEX: str(rank)},
                "ownerReferences": [{"kind": "Job", "uid": f"{job}-uid", "controller": True}],
            },
            "spec": template["spec"],
            "status": {"phase": "Pending"} | status,
        }
        return self.pods[name]

    def set_of(self, job: str, nodes: int = 2, *, runs: bool = True) -> list[Object]:
        """Add one pod for each rank."""
        pods = [self.pod(job, rank=rank) for rank in range(nodes)]
        for pod in pods if runs else ():
            self.run(pod)
        return pods

    def run(self, pod: Object, ip: str = "10.0.0.7") -> None:
        state = {"running": {"startedAt": stamp()}}
        pod["status"] = {"phase": "Running", "podIP": ip, "containerStatuses": [self._container(state)]}

    def end(
        self, pod: Object, code: int, message: str = "", reason: str = "", *, disruption: str = "", evicted: str = ""
    ) -> None:
        number = list(self.pods.values()).index(pod)
        terminated = {
            "exitCode": code,
            "reason": reason,
            "message": message,
            "startedAt": stamp(number * 10),
            "finishedAt": stamp(number * 10 + 5),
        }
        pod["status"] = {
            "phase": "Failed" if code else "Succeeded",
            "containerStatuses": [self._container({"terminated": terminated})],
        }
        if disruption:
            pod["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True", "reason": disruption}]
        if evicted:
            pod["status"] |= {"reason": "Evicted", "message": evicted}

    def linger(self, pod: Object, code: int, message: str = "") -> None:
        """End the trainer's container, while a proxy that was injected runs on."""
        self.end(pod, code, message)
        proxy = {"name": "istio-proxy", "state": {"running": {"startedAt": stamp()}}}
        pod["status"] = pod["status"] | {"phase": "Running"}
        pod["status"]["containerStatuses"].append(proxy)

    def reject(self, pod: Object, reason: str, message: str) -> None:
        """Set the pod status that the kubelet writes when it rejects a pod, or evicts it before a container ended."""
        pod["status"] = {"phase": "Failed", "reason": reason, "message": message}

    def _container(self, state: Object) -> Object:
        return {"name": "trainer", "imageID": "registry.example/trainer@sha256:" + "1" * 64, "state": state}

    def suspend(self, job: str, note: Object | None = None, *, is_suspended: bool = True) -> None:
        """Suspend a Job without the operator's annotation, as another controller does, or resume it."""
        self.children[job]["spec"]["suspend"] = is_suspended
        meta = self.children[job]["metadata"]
        others = {name: value for name, value in meta["annotations"].items() if name != names.ANNOTATION_SUSPENDED_BY}
        meta["annotations"] = others | (note or {})

    def delete_pod(self, pod: Object, grace: int = 120) -> None:
        """Set the deletion fields that the API server writes on a deleted pod."""
        until = (self.now + timedelta(seconds=grace)).strftime("%Y-%m-%dT%H:%M:%SZ")
        pod["metadata"] |= {"deletionTimestamp": until, "deletionGracePeriodSeconds": grace}

    def complete(self, job: str) -> None:
        condition = {"type": "Complete", "status": "True", "lastTransitionTime": stamp(60)}
        self.children[job]["status"] = {"conditions": [condition], "completionTime": stamp(60), "succeeded": 1}

    def fail(self, job: str, reason: str = "PodFailurePolicy", message: str = "", failed: int = 1) -> None:
        condition = {"type": "Failed", "status": "True", "lastTransitionTime": stamp(60), "reason": reason}
        self.children[job]["status"] = {"conditions": [condition | {"message": message}], "failed": failed}

    def report(self, outcome: str, /, **blocks: Any) -> str:
        digest = handoff.config_sha256(FineTuneJobSpec.model_validate(self.object["spec"]))
        echo = {"jobUID": self.object["metadata"]["uid"], "configSHA256": digest}
        return json.dumps({"outcome": outcome, "reason": outcome, "message": "a sentence"} | echo | blocks)

    def published(self) -> str:
        return self.report("Published", artifacts={"uri": "s3://bucket/out", "manifestSHA256": "ab" * 32})

    def to_training(self) -> "Scene":
        """Pass preflight and create the first trainer Job."""
        self.settle()
        preflight = next(iter(self.children))
        self.end(self.pod(preflight), 0, self.report("Validated", dataset={"rows": 5, "acceptedRows": 5}))
        self.complete(preflight)
        self.settle()
        return self

    def condition(self, kind: str) -> Object:
        return next(one for one in self.object["status"]["conditions"] if one["type"] == kind)

    @property
    def status(self) -> Object:
        return self.object["status"]


@pytest.fixture(scope="session")
def settings() -> Settings:
    return Settings(trainer_image=IMAGE)


@pytest.fixture
def scene(settings: Settings) -> Callable[..., Scene]:
    def build(name: str = "one", **spec: Any) -> Scene:
        return Scene(settings, name, **spec)

    return build


@pytest.fixture
def built(settings: Settings) -> Callable[..., Object]:
    """Build the Job object for a spec: preflight, or the trainer's first attempt."""

    def build(kind: str = "trainer", name: str = "one", using: Settings | None = None, **spec: Any) -> Object:
        job = Scene(settings, name, **spec).job
        chosen = using or settings
        if kind == names.Component.PREFLIGHT:
            return build_preflight(job, chosen, IMAGE).job
        return build_attempt(job, chosen, IMAGE, 1).job

    return build
