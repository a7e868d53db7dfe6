"""Decide about a release: from what was observed to the next status and the next action, without I/O."""

import json
from dataclasses import dataclass, replace
from datetime import timedelta
from urllib.parse import urlsplit

from pydantic import ValidationError

from finetune_api.handoff import TERMINATION_LIMIT_BYTES, Artifact
from finetune_api.names import ConditionType, Reason
from finetune_api.release import (
    FineTuneReleaseSpec,
    FineTuneReleaseStatus,
    KServeTarget,
    ReleaseCondition,
    ReleaseConditionType,
    ReleasedResult,
    ReleaseOutcome,
    ReleaseReason,
    ReleaseRefusal,
    ReleaseReport,
    Rollback,
)
from finetune_api.text.printable import printable
from finetune_operator.kube.errors import ClusterError, NameTaken, Refused
from finetune_operator.kube.objects import Job, Pod
from finetune_operator.policy.admission import find_refusal, is_metadata_address
from finetune_operator.policy.conditions import MESSAGES
from finetune_operator.policy.pods import pod_diagnosis
from finetune_operator.policy.pods.pod_diagnosis import Diagnosis, EventQuery
from finetune_operator.release.manifests import build_carrier, build_name
from finetune_operator.release.objects import Release, Seen, Service
from finetune_operator.settings import Settings

C, R = ReleaseConditionType, ReleaseReason
SOON_SECONDS, SLOW_SECONDS = 3.0, 30.0
"""Between two looks at a pod or a service that works, and at what only a user or another job changes."""
FINAL = frozenset({R.RELEASED, R.HELD, R.REFUSED, R.ROLLED_BACK, R.FAILED})
"""Reasons after which nothing happens until the spec changes."""


@dataclass(frozen=True)
class Plan:
    """The next status, and at most one action after it is written."""

    status: FineTuneReleaseStatus
    requeue_after: float | None = None
    creates_job: bool = False
    sets_adapter: bool = False
    adapter_uri: str | None = None
    """With `sets_adapter`: the URI of the entry in the LLMInferenceService; None removes it."""


def is_settled(release: Release) -> bool:
    """Return whether this generation of the release has ended."""
    status = release.status
    return status.observed_generation == release.generation and status.reason in FINAL


def is_refused(release: Release) -> bool:
    """Return whether the API server has refused the Job of this generation."""
    status = release.status
    is_denied = status.observed_generation == release.generation and status.reason in {R.API_DENIED, R.NAME_CONFLICT}
    return is_denied and status.candidate is not None and status.job_name == build_name(release)


def plan(seen: Seen, settings: Settings) -> Plan:
    """Return the next step of a release."""
    release, spec = seen.release, seen.release.spec
    if spec is None:
        return _waiting(seen, "False", R.INVALID_SPEC, f"The spec cannot be read: {release.spec_error}.")
    if seen.problem:
        return _show_problem(seen, spec, seen.problem)
    candidate = _find_candidate(seen, spec)
    if isinstance(candidate, Plan):
        return candidate
    is_made = seen.child is not None and release.status.job_name == seen.child.name  # and its job may be gone
    if not is_made and (refusal := find_refusal(build_carrier(release, spec, seen.job), settings) or _check_url(spec)):
        return _waiting(seen, "False", R.FORBIDDEN, f"{refusal}.")
    name = build_name(release)
    if release.status.job_name != name:
        if undo := _undo_trial(seen, spec):
            return undo
        seen = _with(seen, replaced_adapter_uri=None)
    return _start(_with(seen, candidate=candidate, job_name=name), spec, candidate)


def _show_problem(seen: Seen, spec: FineTuneReleaseSpec, problem: ClusterError) -> Plan:
    """Wait for what the API server refuses; an adapter that is refused for too long ends the release."""
    reason, fix = _explain(problem)
    begun = seen.release.status.condition(C.RELEASED)
    if begun and begun.reason == reason and seen.child and seen.child.is_over and _is_late(seen, spec, begun):
        return _end(seen, R.FAILED, f"{problem}, for longer than progressDeadlineSeconds.")
    return _waiting(seen, "False", reason, f"{problem}: {fix}.")


def _start(seen: Seen, spec: FineTuneReleaseSpec, candidate: ReleasedResult) -> Plan:
    """Create the Job of this generation once no earlier pod is alive and the target exists."""
    if any(not pod.is_over and (seen.child is None or pod.job_uid != seen.child.uid) for pod in seen.pods):
        return _waiting(seen, "Unknown", R.RELEASING, "The pod of an earlier spec is ending.", SOON_SECONDS)
    if spec.target.kserve and seen.service is None:
        message = f"LLMInferenceService {spec.target.kserve.name} does not exist: create it, or correct the name."
        return _waiting(seen, "Unknown", R.TARGET_MISSING, message)
    if seen.child is None:
        begun = _waiting(seen, "Unknown", R.RELEASING, f"{candidate.uri} is being verified.", SOON_SECONDS)
        return replace(begun, creates_job=True)
    return _follow(seen, spec, candidate, seen.child)


def _find_candidate(seen: Seen, spec: FineTuneReleaseSpec) -> ReleasedResult | Plan:
    """Return the result of this generation, which stays the same even if its job is created again."""
    status = seen.release.status
    if status.candidate and status.job_name == build_name(seen.release):
        return status.candidate
    if spec.uri and spec.manifest_sha256:
        return ReleasedResult(uri=spec.uri.rstrip("/"), manifest_sha256=spec.manifest_sha256)
    name, job = spec.job_ref.name if spec.job_ref else "", seen.job
    if job is None:
        return _waiting(seen, "Unknown", R.WAITING_FOR_JOB, f"FineTuneJob {name} does not exist yet.")
    if job.status.is_true(ConditionType.FAILED):
        cause = f"{job.status.reason}: {job.status.message}"
        message = f"FineTuneJob {name} has failed, and its result is not released. {cause}"
        return _waiting(seen, "False", R.JOB_FAILED, message)
    found = job.status.artifacts
    if not job.status.is_true(ConditionType.COMPLETE) or not (found and found.uri and found.manifest_sha256):
        phase = job.status.phase or "Pending"
        return _waiting(seen, "Unknown", R.WAITING_FOR_JOB, f"FineTuneJob {name} is not complete: it is {phase}.")
    return ReleasedResult(uri=found.uri, manifest_sha256=found.manifest_sha256)


def _check_url(spec: FineTuneReleaseSpec) -> str | None:
    url = spec.target.vllm.url if spec.target.vllm else None
    if url and is_metadata_address(urlsplit(url).hostname or ""):
        return f"target.vllm.url {url} is a link-local or metadata address, which is never allowed"
    return None


def _follow(seen: Seen, spec: FineTuneReleaseSpec, candidate: ReleasedResult, child: Job) -> Plan:
    """Follow the Job of this generation to its end."""
    ended = [pod for pod in seen.pods if pod.job_uid == child.uid and pod.is_over]
    reports = [found for pod in ended if (found := read_report(pod, seen.release))]
    found = reports[-1] if reports else None
    if not child.is_over:
        after = SLOW_SECONDS if child.is_suspended else SOON_SECONDS
        return _waiting(seen, "Unknown", R.RELEASING, _describe(seen, child, found), after)
    if found is None:
        return _end(seen, R.FAILED, _explain_silence(seen, child))
    if child.failed or found.outcome is ReleaseOutcome.FAILED:
        deadline = " (progressDeadlineSeconds)" if child.failed_reason == "DeadlineExceeded" else ""
        return _end(seen, R.FAILED, f"{found.message}{deadline}", found)
    if found.outcome is ReleaseOutcome.VERIFIED and spec.target.kserve and seen.service:
        return _serve(seen, spec, candidate, spec.target.kserve, seen.service)
    return _end(seen, ReleaseReason(found.outcome.value), found.message, found)


def find_query(seen: Seen) -> EventQuery | None:
    """Return whose Warning events may name why no pod of the Job runs; None if it needs none."""
    child = seen.child
    if child is None or child.is_over or child.is_suspended or _is_running(seen, child):
        return None
    return _diagnose(seen, child).query


def _describe(seen: Seen, child: Job, found: ReleaseReport | None) -> str:
    """Return what an open Job waits for, or what its pod does."""
    if child.is_suspended and child.queue:
        return f"Job {child.name} waits in queue {child.queue}."
    if child.is_suspended:
        return f"Job {child.name} was suspended by another controller or user, who must resume it."
    is_running, problem = _is_running(seen, child), _diagnose(seen, child)
    if not is_running and problem.reason is not Reason.PODS_STARTING:
        return MESSAGES[ConditionType.RUNNING, problem.reason].format(detail=problem.detail.rstrip(".")) + "."
    if found:
        return f"Job {child.name} tries again: {found.message}"
    doing = f"Job {child.name} verifies the result and asks the server."
    return doing if is_running else f"The pod of Job {child.name} is starting."


def _explain_silence(seen: Seen, child: Job) -> str:
    """Return how a Job ended without a report; a pod that never started is gone by then, and so is its cause."""
    words = child.failed_message or "its pod has left no report"
    if child.failed_reason == "DeadlineExceeded":
        words = f"progressDeadlineSeconds has passed; the last state: {(seen.release.status.message or '').rstrip('.')}"
    return f"Job {child.name} ended without a report: {words}. See its pod's log, then edit or recreate the release."


def _is_running(seen: Seen, child: Job) -> bool:
    own = [pod for pod in seen.pods if pod.job_uid == child.uid]
    return any(pod.is_running and not pod_diagnosis.is_lost(pod, seen.now) for pod in own)


def _diagnose(seen: Seen, child: Job) -> Diagnosis:
    own = [pod for pod in seen.pods if pod.job_uid == child.uid]
    return pod_diagnosis.diagnose(child, own, seen.warnings, seen.now)


def _serve(
    seen: Seen, spec: FineTuneReleaseSpec, candidate: ReleasedResult, target: KServeTarget, service: Service
) -> Plan:
    """Set the adapter of an LLMInferenceService, wait until that is ready, or give back the one before."""
    status, wanted = seen.release.status, f"{candidate.uri}/{Artifact.ADAPTER}/"
    current, old = service.uri_of(target.adapter_name), status.replaced_adapter_uri
    begun, is_set = status.condition(C.RELEASED), _is_same(current, wanted)
    if begun is None or begun.reason != R.WAITING_FOR_SERVER:
        before = old if old is not None else current or ""  # of a trial that was interrupted, the one before it
        seen = _with(seen, replaced_adapter_uri=before)
        message = f"LLMInferenceService {target.name} gets {wanted} as {target.adapter_name}."
        return replace(_wait_for(seen, message), sets_adapter=not is_set, adapter_uri=wanted)
    detail = service.rollout or service.message or "its controller has not reported on it"
    answering = candidate.model_copy(update={"released_time": seen.now})
    if is_set and service.ready == "True" and not service.rollout:
        return _end_once_alone(seen, target, service, answering)
    if _is_late(seen, spec, begun):
        problem, written = (
            f"LLMInferenceService {target.name} was not ready within progressDeadlineSeconds",
            status.message,
        )
        # After the entry was given back, the service has no longer what the problem was.
        message = written if written and written.startswith(problem) else f"{problem}: {detail}"
        if spec.rollback is Rollback.NEVER or _is_same(old, wanted):
            return _end(seen, R.FAILED, message, _report(seen, ReleaseOutcome.FAILED, answering))
        return _give_back(seen, message, is_given=_is_same(current, old))
    if not is_set and not _is_same(current, old):
        message = f"Another client has set {target.adapter_name} of LLMInferenceService {target.name} to {current}"
        return _end(seen, R.FAILED, f"{message}: let one of the two set it, then edit the release.")
    waiting = _wait_for(seen, f"LLMInferenceService {target.name} is not ready with it yet: {detail}")
    return replace(waiting, sets_adapter=not is_set, adapter_uri=wanted)


def _end_once_alone(seen: Seen, target: KServeTarget, service: Service, answering: ReleasedResult) -> Plan:
    """End the release of a service that is ready once no other pod answers: a matter of seconds, so never too late."""
    message = f"LLMInferenceService {target.name} is ready with it"
    if service.ending:
        return _wait_for(seen, f"{message}; pods that are being deleted may still answer: {service.ending}.")
    return _end(seen, R.RELEASED, f"{message}.", _report(seen, ReleaseOutcome.RELEASED, answering))


def _undo_trial(seen: Seen, spec: FineTuneReleaseSpec) -> Plan | None:
    """Give back the entry that an earlier generation set and that was never ready; None if there is none."""
    status, target, service = seen.release.status, spec.target.kserve, seen.service
    if not (target and service and status.candidate) or status.replaced_adapter_uri is None:
        return None
    tried, before = f"{status.candidate.uri}/{Artifact.ADAPTER}/", status.replaced_adapter_uri
    if spec.rollback is Rollback.NEVER or _is_same(before, tried):
        return None
    if not _is_same(service.uri_of(target.adapter_name), tried):
        return None
    message = (
        f"LLMInferenceService {target.name} gets back {before or 'none'}: the release was edited before it was ready."
    )
    undo = _waiting(seen, "Unknown", R.RELEASING, message, SOON_SECONDS)
    return replace(undo, sets_adapter=True, adapter_uri=before or None)


def _is_late(seen: Seen, spec: FineTuneReleaseSpec, begun: ReleaseCondition) -> bool:
    return seen.now - begun.last_transition_time >= timedelta(seconds=spec.progress_deadline_seconds)


def _is_same(uri: str | None, other: str | None) -> bool:
    """Return whether two entries name the same folder; without its last slash, KServe also copies its neighbours."""
    return (uri or "").rstrip("/") == (other or "").rstrip("/")


def _give_back(seen: Seen, message: str, *, is_given: bool) -> Plan:
    """Set the entry to what it was before; the release ends once that is found to be done."""
    old = seen.release.status.replaced_adapter_uri
    if is_given:
        return _end(seen, R.ROLLED_BACK, f"{message}; before: {old or 'none'}")
    return replace(_wait_for(seen, message), sets_adapter=True, adapter_uri=old or None)


def _wait_for(seen: Seen, message: str) -> Plan:
    return _waiting(seen, "Unknown", R.WAITING_FOR_SERVER, message, SOON_SECONDS)


def _report(seen: Seen, outcome: ReleaseOutcome, answering: ReleasedResult) -> ReleaseReport:
    return ReleaseReport(
        outcome=outcome,
        message="",
        release_uid=seen.release.uid,
        generation=seen.release.generation,
        answering=answering,
    )


def read_report(pod: Pod, release: Release) -> ReleaseReport | None:
    """Return the pod's report if it is small, well-formed and of this generation of the release, else None."""
    if not pod.message or len(pod.message.encode()) > TERMINATION_LIMIT_BYTES:
        return None
    try:
        found = ReleaseReport.model_validate(json.loads(pod.message))
    except (ValueError, ValidationError, RecursionError):
        return None
    return found if (found.release_uid, found.generation) == (release.uid, release.generation) else None


def _with(seen: Seen, **changes: object) -> Seen:
    return replace(seen, release=replace(seen.release, status=seen.release.status.model_copy(update=changes)))


def _explain(problem: ClusterError) -> tuple[ReleaseReason, str]:
    """Return the reason for an answer of the API server, and what to change."""
    match problem:
        case NameTaken():
            return R.NAME_CONFLICT, "rename or remove it"
        case Refused():
            return R.API_DENIED, "change what refuses it, a quota or a policy; the release then continues"
        case _:
            return R.API_DENIED, "grant the right, or set release.kserve in the chart"


def _waiting(seen: Seen, ready: str, reason: str, message: str, after: float = SLOW_SECONDS) -> Plan:
    return Plan(_summarise(seen, seen.release.status, ready, reason, message), after)


def _end(seen: Seen, reason: ReleaseReason, message: str, found: ReleaseReport | None = None) -> Plan:
    """Return the end of this generation; what answers changes only if the pod has established that."""
    status = seen.release.status
    changes: dict[str, object] = {"replaced_adapter_uri": None}
    if found and found.answering:
        old = found.replaced or status.answering
        is_same = old is not None and old.manifest_sha256 == found.answering.manifest_sha256
        since = status.answering if is_same and found.answering.released_time is None else found.answering
        changes |= {"answering": since, "previous": status.previous if is_same else old}
    if found and found.comparison:
        changes["comparison"] = found.comparison
    if reason is not R.RELEASED:
        digest = status.candidate.manifest_sha256 if status.candidate else None
        changes["last_refusal"] = ReleaseRefusal(
            manifest_sha256=digest, refused_time=seen.now, reason=reason.value, message=message[:1024]
        )
    ready = "True" if reason is R.RELEASED else "False"
    return Plan(_summarise(seen, status.model_copy(update=changes), ready, reason, message))


def _summarise(
    seen: Seen, status: FineTuneReleaseStatus, ready: str, reason: str, message: str
) -> FineTuneReleaseStatus:
    """Return the status with its conditions; a transition time changes only with the condition's value."""
    text = printable(message)[:2048]
    values = {
        C.READY: ready,
        C.RELEASED: ready,
        C.RECONCILING: "True" if ready == "Unknown" else "False",
        C.STALLED: "True" if ready == "False" else "False",
    }
    conditions = []
    for kind, value in values.items():
        old = status.condition(kind)
        moved = old is None or old.status != value or (kind is C.RELEASED and old.reason != reason)
        conditions.append(
            ReleaseCondition(
                type=kind.value,
                status=value,
                reason=str(reason),
                message=text,
                last_transition_time=seen.now if old is None or moved else old.last_transition_time,
                observed_generation=seen.release.generation,
            )
        )
    changes = {
        "observed_generation": seen.release.generation,
        "reason": str(reason),
        "message": text,
        "conditions": conditions,
    }
    return status.model_copy(update=changes)
