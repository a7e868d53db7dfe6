"""Decide about the adapter of an LLMInferenceService while a result is tried there. Pure."""

from dataclasses import replace
from datetime import timedelta

from finetune_api.handoff import Artifact
from finetune_api.release import (
    AdapterTrial,
    FineTuneReleaseSpec,
    KServeTarget,
    ReleaseCondition,
    ReleaseConditionType,
    ReleasedResult,
    ReleaseOutcome,
    ReleaseReason,
    ReleaseReport,
    Rollback,
)
from finetune_operator.release.manifests import build_name
from finetune_operator.release.objects import Release, Seen, Service
from finetune_operator.release.steps import SOON_SECONDS, Plan, change, end, wait

C, R = ReleaseConditionType, ReleaseReason


def is_on_trial(release: Release) -> bool:
    """Return whether this generation's result was verified, and its entry set or about to be."""
    status = release.status
    return status.replaced_adapter_uri is not None and status.job_name == build_name(release)


def find_earlier_trial(release: Release) -> KServeTarget | None:
    """Return the entry in which the result of an earlier spec is tried; operators before this field knew the spec's."""
    status = release.status
    if status.replaced_adapter_uri is None or status.job_name == build_name(release):
        return None
    if status.trial:
        return KServeTarget(name=status.trial.name, adapter_name=status.trial.adapter_name)
    return release.spec.target.kserve if release.spec else None


def serve(
    seen: Seen, spec: FineTuneReleaseSpec, candidate: ReleasedResult, target: KServeTarget, service: Service
) -> Plan:
    """Set the adapter of an LLMInferenceService, wait until that is ready, or give back the one before."""
    status, wanted = seen.release.status, _adapter_of(candidate)
    current, old = service.uri_of(target.adapter_name), status.replaced_adapter_uri
    begun, is_set = status.condition(C.RELEASED), _is_same(current, wanted)
    problem = status.trial.problem if status.trial else None
    if begun is None or (begun.reason != R.WAITING_FOR_SERVER and not problem):
        before = old if old is not None else current or ""  # of a trial that was interrupted, the one before it
        trial = AdapterTrial(name=target.name, adapter_name=target.adapter_name)
        seen = change(seen, replaced_adapter_uri=before, trial=trial)
        message = f"LLMInferenceService {target.name} gets {wanted} as {target.adapter_name}."
        return replace(_wait_for(seen, message), sets_adapter=not is_set, adapter_uri=wanted)
    detail = service.rollout or service.message or "its controller has not reported on it"
    answering = candidate.model_copy(update={"released_time": seen.now})
    if is_set and service.ready == "True" and not service.rollout:
        return _end_once_alone(seen, target, service, answering)
    if not is_set and not _is_same(current, old):
        message = (
            f"Another client has set {target.adapter_name} of LLMInferenceService {target.name} to {current or 'none'}"
        )
        return end(seen, R.FAILED, f"{message}: let one of the two set it, then edit the release.")
    if problem or is_late(seen, spec, begun):
        late = f"LLMInferenceService {target.name} was not ready within progressDeadlineSeconds"
        problem = problem or f"{late}: {detail}"
        if spec.rollback is Rollback.NEVER or _is_same(old, wanted):
            found = _report(seen, ReleaseOutcome.FAILED, answering) if is_set else None
            return end(seen, R.FAILED, problem, found)
        return _give_back(seen, target, problem, is_given=_is_same(current, old))
    waiting = _wait_for(seen, f"LLMInferenceService {target.name} is not ready with it yet: {detail}")
    return replace(waiting, sets_adapter=not is_set, adapter_uri=wanted)


def _end_once_alone(seen: Seen, target: KServeTarget, service: Service, answering: ReleasedResult) -> Plan:
    """End the release of a service that is ready once no other pod answers: a matter of seconds, so never too late."""
    message = f"LLMInferenceService {target.name} is ready with it"
    if service.ending:
        return _wait_for(seen, f"{message}; pods that are being deleted may still answer: {service.ending}.")
    return end(seen, R.RELEASED, f"{message}.", _report(seen, ReleaseOutcome.RELEASED, answering))


def undo_trial(seen: Seen, spec: FineTuneReleaseSpec) -> Plan | None:
    """Give back the entry that an earlier generation set and that was never ready; None if there is none."""
    status, target, service = seen.release.status, find_earlier_trial(seen.release), seen.tried
    if not (target and service and status.candidate) or status.replaced_adapter_uri is None:
        return None
    tried, before = _adapter_of(status.candidate), status.replaced_adapter_uri
    if spec.rollback is Rollback.NEVER or _is_same(before, tried):
        return None
    if not _is_same(service.uri_of(target.adapter_name), tried):
        return None
    message = (
        f"LLMInferenceService {target.name} gets back {before or 'none'}: the release was edited before it was ready."
    )
    undo = wait(seen, "Unknown", R.RELEASING, message, SOON_SECONDS)
    return replace(undo, sets_adapter=True, adapter_uri=before or None, undoes=target)


def is_late(seen: Seen, spec: FineTuneReleaseSpec, begun: ReleaseCondition) -> bool:
    """Return whether a condition has had its value for longer than `progressDeadlineSeconds`."""
    return seen.now - begun.last_transition_time >= timedelta(seconds=spec.progress_deadline_seconds)


def _is_same(uri: str | None, other: str | None) -> bool:
    """Return whether two entries name the same folder; without its last slash, KServe also copies its neighbours."""
    return (uri or "").rstrip("/") == (other or "").rstrip("/")


def _give_back(seen: Seen, target: KServeTarget, problem: str, *, is_given: bool) -> Plan:
    """Set the entry to what it was before; the release ends once that is found to be done."""
    old = seen.release.status.replaced_adapter_uri
    if is_given:
        return end(seen, R.ROLLED_BACK, f"{problem}; before: {old or 'none'}")
    # Then the service has no longer what the problem was, and a refusal begins no new trial.
    trial = AdapterTrial(name=target.name, adapter_name=target.adapter_name, problem=problem[:1024])
    return replace(_wait_for(change(seen, trial=trial), problem), sets_adapter=True, adapter_uri=old or None)


def end_refused(seen: Seen, target: KServeTarget, service: Service, refusal: str) -> Plan:
    """End a release whose entry the API server refuses to set, or to give back, for too long."""
    status, found = seen.release.status, None
    if status.candidate and _is_same(service.uri_of(target.adapter_name), _adapter_of(status.candidate)):
        answering = status.candidate.model_copy(update={"released_time": seen.now})
        found = _report(seen, ReleaseOutcome.FAILED, answering)
    words = [status.trial.problem] if status.trial and status.trial.problem else []
    return end(seen, R.FAILED, "; ".join([*words, f"{refusal}, for longer than progressDeadlineSeconds."]), found)


def _adapter_of(result: ReleasedResult) -> str:
    return f"{result.uri}/{Artifact.ADAPTER}/"


def _wait_for(seen: Seen, message: str) -> Plan:
    return wait(seen, "Unknown", R.WAITING_FOR_SERVER, message, SOON_SECONDS)


def _report(seen: Seen, outcome: ReleaseOutcome, answering: ReleasedResult) -> ReleaseReport:
    return ReleaseReport(
        outcome=outcome,
        message="",
        release_uid=seen.release.uid,
        generation=seen.release.generation,
        answering=answering,
    )
