"""A FineTuneRelease and what is observed of it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

from finetune_api.release import FineTuneReleaseSpec, FineTuneReleaseStatus, ReleaseConditionType
from finetune_api.text.printable import printable
from finetune_operator.kube.errors import ClusterError
from finetune_operator.kube.objects import FineTuneJob, Job, Key, Object, moment, read_part, version_of
from finetune_operator.kube.observed import Warnings
from finetune_operator.kube.pod import MAX_GRACE_SECONDS, Pod

_ERROR = re.compile(r"(?:^|[])] +)([\w.]*(?:Error|Exception): \S.*)", re.MULTILINE)
"""An error in a log; vLLM puts its process before it, and mentions other errors within warnings."""
MAX_WORDS = 300
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
"""Names that need no escaping in a path."""


@dataclass(frozen=True)
class Release:
    """A FineTuneRelease."""

    key: Key
    uid: str
    generation: int
    resource_version: str
    is_deleting: bool
    spec: FineTuneReleaseSpec | None
    spec_error: str
    status: FineTuneReleaseStatus

    @classmethod
    def from_object(cls, obj: Object) -> Self:
        """Read what the API server sent; a status that cannot be read is replaced as a whole."""
        meta = obj["metadata"]
        spec, spec_error = read_part(obj.get("spec"), "spec", FineTuneReleaseSpec)
        status, _ = read_part(obj.get("status") or {}, "status", FineTuneReleaseStatus)
        return cls(
            key=Key(meta["namespace"], meta["name"]),
            uid=meta["uid"],
            generation=meta.get("generation", 0),
            resource_version=meta.get("resourceVersion", ""),
            is_deleting=bool(meta.get("deletionTimestamp")),
            spec=spec,
            spec_error=spec_error,
            status=status or FineTuneReleaseStatus(),
        )

    @property
    def version(self) -> int:
        """The resourceVersion; 0 if it cannot be compared."""
        return version_of({"resourceVersion": self.resource_version})

    def is_true(self, kind: ReleaseConditionType) -> bool:
        """Return whether a condition of the current generation is True."""
        found = self.status.condition(kind)
        return found is not None and found.status == "True" and self.status.observed_generation == self.generation


@dataclass(frozen=True)
class Service:
    """An LLMInferenceService of KServe."""

    resource_version: str
    adapters: tuple[Object, ...]
    ready: str
    """Status of its condition Ready, for its current generation; empty if its controller has not reported one."""
    message: str
    deployments: tuple[str, ...] = ()
    """Names of the Deployments of its pods."""
    rollout: str = ""
    """Why not only pods with its current adapters answer; empty if only those do. Ready is True before that."""
    ending: int = 0
    """How many deleted pods may still answer, by connections or routes of before."""

    @classmethod
    def from_object(cls, obj: Object) -> Self:
        """Read what the API server sent."""
        meta, status = obj["metadata"], obj.get("status") or {}
        lora = ((obj.get("spec") or {}).get("model") or {}).get("lora") or {}
        conditions: list[Object] = status.get("conditions") or []
        ready = next((one for one in conditions if one.get("type") == "Ready"), {})
        failed = next((one for one in (ready, *conditions) if one.get("status") == "False"), ready)
        is_current = status.get("observedGeneration") == meta.get("generation")
        workloads = [one for one in (status.get("workloads") or {}).values() if one.get("kind") == "Deployment"]
        deployments = [str(one.get("name")) for one in workloads]
        return cls(
            resource_version=meta["resourceVersion"],
            adapters=tuple(lora.get("adapters") or ()),
            ready=ready.get("status", "") if is_current else "",
            message=str(failed.get("message") or failed.get("reason") or ""),
            deployments=tuple(name for name in deployments if _NAME.fullmatch(name)),
        )

    def uri_of(self, name: str) -> str | None:
        """Return the URI of an adapter."""
        return next((str(one.get("uri", "")) for one in self.adapters if one.get("name") == name), None)


def explain_rollout(deployment: Object) -> str:
    """Return why not only pods of a Deployment's current template answer, as `kubectl rollout status` decides it."""
    meta, status, text = deployment["metadata"], deployment.get("status") or {}, ""
    wanted = (deployment.get("spec") or {}).get("replicas", 1)
    total, new, available = (int(status.get(f"{one}eplicas") or 0) for one in ("r", "updatedR", "availableR"))
    if int(status.get("observedGeneration") or 0) < int(meta.get("generation") or 0):
        text = "its change has not been observed yet"
    elif new < wanted:
        text = f"{new} of {wanted} pods are new"
    elif total > new:
        text = f"{total - new} of {total} pods are of its earlier spec"
    elif available < new:
        text = f"{available} of {new} new pods are available"
    if not text:
        return ""
    conditions: list[Object] = status.get("conditions") or []
    stuck = (one for one in conditions if one.get("type") == "Progressing" and one.get("status") == "False")
    causes = [str(one.get("message")) for one in stuck]
    return ": ".join([f"Deployment {meta['name']}", text, *causes])


def explain_pods(pods: Sequence[Object]) -> str:
    """Return why the newest pod of a rollout is not ready, in its server's own words; empty if it may become ready."""
    waiting = [one for one in pods if not any(map(_is_ready, (one.get("status") or {}).get("conditions") or []))]
    newest = max(waiting, key=lambda one: str(one["metadata"].get("creationTimestamp")), default=None)
    if newest is None:
        return ""
    name, status = newest["metadata"]["name"], newest.get("status") or {}
    containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    found = next(filter(None, (_explain_container(one, name) for one in containers)), "")
    unscheduled = (one for one in status.get("conditions") or [] if one.get("reason") == "Unschedulable")
    return found or next((_short(f"pod {name} is not scheduled: {one.get('message')}") for one in unscheduled), "")


def _explain_container(container: Object, pod: str) -> str:
    """Return why a container has ended or waits; empty if it does neither."""
    state, last = container.get("state") or {}, container.get("lastState") or {}
    ended, waiting = state.get("terminated") or last.get("terminated") or {}, state.get("waiting") or {}
    place = f"container {container['name']} of pod {pod}"
    if ended.get("exitCode"):
        return _explain_end(f"{place} ended with {ended['exitCode']}", ended)
    if waiting.get("message"):
        return _short(f"{place} waits: {waiting.get('reason')}: {waiting['message']}")
    return ""


def _is_ready(condition: Object) -> bool:
    return bool(condition.get("type") == "Ready" and condition.get("status") == "True")


def _explain_end(text: str, ended: Object) -> str:
    """Append the first error of the log's end, and the fix: later ones follow from it."""
    log = str(ended.get("message") or "")
    found = _ERROR.search(log)
    words = found[1] if found else next((line for line in reversed(log.splitlines()) if line.strip()), "")
    fix = "raise spec.model.lora.maxRank first" if "max_lora_rank" in words else ""
    return ": ".join(filter(None, (text, _short(words.strip().rstrip(".")), fix)))


def _short(text: str) -> str:
    return printable(text[:MAX_WORDS])


def count_ending(deployment: Object, now: datetime) -> int:
    """Return how many deleted pods of a Deployment may still answer; Kubernetes counts them since 1.35.

    Of a lost node they stay for longer than their grace period, and answer no more.
    """
    status, pod = deployment.get("status") or {}, deployment["spec"]["template"]["spec"]
    conditions: list[Object] = status.get("conditions") or []
    over = next((moment(one.get("lastUpdateTime")) for one in conditions if one.get("type") == "Progressing"), None)
    grace = timedelta(seconds=min(pod.get("terminationGracePeriodSeconds") or 0, MAX_GRACE_SECONDS))
    return int(status.get("terminatingReplicas") or 0) if over and now <= over + grace else 0


@dataclass(frozen=True)
class Seen:
    """What one reconcile of a release has read."""

    release: Release
    now: datetime
    job: FineTuneJob | None = None
    """The job of `jobRef`."""
    child: Job | None = None
    """The Job of this generation."""
    pods: tuple[Pod, ...] = ()
    """All pods of this release, also those of earlier generations."""
    service: Service | None = None
    """The LLMInferenceService of the spec."""
    tried: Service | None = None
    """The LLMInferenceService in which the result of an earlier spec is tried."""
    warnings: Warnings | None = None
    """The Warning events of a pod, or of the Job, that does not start."""
    problem: ClusterError | None = None
    """Why something could not be read or created."""
