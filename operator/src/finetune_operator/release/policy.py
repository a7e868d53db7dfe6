"""Decide about a release: from what was observed to the next status and the next action, without I/O."""

from dataclasses import replace

from finetune_api.names import ConditionType, Reason
from finetune_api.release import (
    FineTuneReleaseSpec,
    ReleaseConditionType,
    ReleasedResult,
    ReleaseOutcome,
    ReleaseReason,
    ReleaseReport,
)
from finetune_operator.kube.errors import ClusterError, NameTaken, Outdated, Refused
from finetune_operator.kube.objects import Job
from finetune_operator.kube.pod import Pod
from finetune_operator.policy.admission import check_endpoint, find_refusal
from finetune_operator.policy.conditions import MESSAGES
from finetune_operator.policy.pods import pod_diagnosis
from finetune_operator.policy.pods.pod_diagnosis import Diagnosis, EventQuery
from finetune_operator.policy.pods.run_outcome import parse_message
from finetune_operator.release.manifests import build_carrier, build_name
from finetune_operator.release.objects import Release, Seen
from finetune_operator.release.steps import SLOW_SECONDS, SOON_SECONDS, Plan, change, end, wait
from finetune_operator.release.trial import end_refused, is_late, is_on_trial, serve, undo_trial
from finetune_operator.settings import Settings

C, R = ReleaseConditionType, ReleaseReason
FINAL = frozenset({R.RELEASED, R.HELD, R.REFUSED, R.ROLLED_BACK, R.FAILED})
"""Reasons after which nothing happens until the spec changes."""


def is_settled(release: Release) -> bool:
    """Return whether this generation of the release has ended."""
    status = release.status
    return status.observed_generation == release.generation and status.reason in FINAL


def is_refused(release: Release, decided: Plan) -> bool:
    """Return whether the API server has refused the action of a plan, for which the status has all that it needs."""
    status = release.status
    is_denied = status.observed_generation == release.generation and status.reason in {R.API_DENIED, R.NAME_CONFLICT}
    is_pinned = status.candidate is not None and status.job_name == build_name(release)
    return is_denied and (is_pinned or decided.undoes is not None)


def plan(seen: Seen, settings: Settings) -> Plan:
    """Return the next step of a release."""
    release, spec = seen.release, seen.release.spec
    if spec is None:
        return wait(seen, "False", R.INVALID_SPEC, f"The spec cannot be read: {release.spec_error}.")
    if seen.problem:
        return _show_problem(seen, spec, seen.problem)
    name = build_name(release)
    if release.status.job_name != name:
        if undo := undo_trial(seen, spec):
            return undo
        seen = change(seen, replaced_adapter_uri=None, trial=None)
    candidate = _find_candidate(seen, spec)
    if isinstance(candidate, Plan):
        return candidate
    if obstacle := _find_obstacle(seen, spec, settings):
        return obstacle
    return _start(change(seen, candidate=candidate, job_name=name), spec, candidate)


def _find_obstacle(seen: Seen, spec: FineTuneReleaseSpec, settings: Settings) -> Plan | None:
    """Return why the Job of this generation must not be made; None if it may be, or was, and its job may be gone."""
    release = seen.release
    if is_on_trial(release) or (seen.child is not None and release.status.job_name == seen.child.name):
        return None
    if spec.job_ref and seen.job is None:
        message = f"FineTuneJob {spec.job_ref.name} was deleted before its result could be verified with its storage"
        return wait(seen, "Unknown", R.WAITING_FOR_JOB, f"{message}: create it again, or give uri in place of jobRef.")
    refusal = find_refusal(build_carrier(release, spec, seen.job), settings) or _check_server(seen, spec, settings)
    return wait(seen, "False", R.FORBIDDEN, f"{refusal}.") if refusal else None


def _show_problem(seen: Seen, spec: FineTuneReleaseSpec, problem: ClusterError) -> Plan:
    """Wait for what the API server refuses; an adapter that is refused for too long ends the release."""
    if isinstance(problem, Outdated):
        return wait(seen, "Unknown", R.RELEASING, f"{problem}.", SOON_SECONDS)
    reason, fix = _explain(problem)
    begun = seen.release.status.condition(C.RELEASED)
    is_too_long = begun is not None and begun.reason == reason and is_late(seen, spec, begun)
    if is_too_long and is_on_trial(seen.release) and spec.target.kserve and seen.service:
        return end_refused(seen, spec.target.kserve, seen.service, str(problem))
    return wait(seen, "False", reason, f"{problem}: {fix}.")


def _start(seen: Seen, spec: FineTuneReleaseSpec, candidate: ReleasedResult) -> Plan:
    """Create the Job of this generation once no earlier pod is alive and the target exists."""
    if any(not pod.is_over and (seen.child is None or pod.job_uid != seen.child.uid) for pod in seen.pods):
        return wait(seen, "Unknown", R.RELEASING, "The pod of an earlier spec is ending.", SOON_SECONDS)
    if spec.target.kserve and seen.service is None:
        message = f"LLMInferenceService {spec.target.kserve.name} does not exist: create it, or correct the name."
        return wait(seen, "Unknown", R.TARGET_MISSING, message)
    if is_on_trial(seen.release) and spec.target.kserve and seen.service:  # then it was verified
        return serve(seen, spec, candidate, spec.target.kserve, seen.service)
    if seen.child is None:
        begun = wait(seen, "Unknown", R.RELEASING, f"{candidate.uri} is being verified.", SOON_SECONDS)
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
        return wait(seen, "Unknown", R.WAITING_FOR_JOB, f"FineTuneJob {name} does not exist yet.")
    if job.status.is_true(ConditionType.FAILED):
        cause = f"{job.status.reason}: {job.status.message}"
        message = f"FineTuneJob {name} has failed, and its result is not released. {cause}"
        return wait(seen, "False", R.JOB_FAILED, message)
    found = job.status.artifacts
    if not job.status.is_true(ConditionType.COMPLETE) or not (found and found.uri and found.manifest_sha256):
        phase = job.status.phase or "Pending"
        return wait(seen, "Unknown", R.WAITING_FOR_JOB, f"FineTuneJob {name} is not complete: it is {phase}.")
    return ReleasedResult(uri=found.uri, manifest_sha256=found.manifest_sha256)


def _check_server(seen: Seen, spec: FineTuneReleaseSpec, settings: Settings) -> str | None:
    """Check the server that gets held-out rows and prompts; a Service may lead anywhere too (`externalName`)."""
    if spec.target.vllm is None:
        return None
    address = spec.target.vllm.find_address(seen.release.key.namespace)
    return check_endpoint("release", address, None, settings.allowed_release_endpoints)


def _follow(seen: Seen, spec: FineTuneReleaseSpec, candidate: ReleasedResult, child: Job) -> Plan:
    """Follow the Job of this generation to its end."""
    ended = [pod for pod in seen.pods if pod.job_uid == child.uid and pod.is_over]
    reports = [found for pod in ended if (found := read_report(pod, seen.release))]
    found = reports[-1] if reports else None
    if not child.is_over:
        after = SLOW_SECONDS if child.is_suspended else SOON_SECONDS
        return wait(seen, "Unknown", R.RELEASING, _describe(seen, child, found), after)
    if found is None:
        return end(seen, R.FAILED, _explain_silence(seen, child))
    if child.failed or found.outcome is ReleaseOutcome.FAILED:
        deadline = " (progressDeadlineSeconds)" if child.failed_reason == "DeadlineExceeded" else ""
        return end(seen, R.FAILED, f"{found.message}{deadline}", found)
    if found.outcome is ReleaseOutcome.VERIFIED and spec.target.kserve and seen.service:
        return serve(seen, spec, candidate, spec.target.kserve, seen.service)
    return end(seen, ReleaseReason(found.outcome.value), found.message, found)


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


def read_report(pod: Pod, release: Release) -> ReleaseReport | None:
    """Return the pod's report if it is small, well-formed and of this generation of the release, else None."""
    found = parse_message(pod, ReleaseReport)
    is_ours = found is not None and (found.release_uid, found.generation) == (release.uid, release.generation)
    return found if is_ours else None


def _explain(problem: ClusterError) -> tuple[ReleaseReason, str]:
    """Return the reason for an answer of the API server, and what to change."""
    match problem:
        case NameTaken():
            return R.NAME_CONFLICT, "rename or remove it"
        case Refused():
            return R.API_DENIED, "change what refuses it, a quota or a policy; the release then continues"
        case _:
            return R.API_DENIED, "grant the right, or set release.kserve in the chart"
