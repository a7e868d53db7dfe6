"""The plan: from the observed state and the time to the next status and action. No I/O."""

from finetune_api.names import ConditionType, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_operator.kube.errors import ClusterError, Denied, NameTaken, Refused, RetryLater
from finetune_operator.kube.observed import Observed
from finetune_operator.policy import (
    admission,
    attempts,
    deadlines,
    dependencies,
    kueue,
    preflight,
    remediation,
    suspension,
)
from finetune_operator.policy.conditions import Conditions, Truth
from finetune_operator.policy.decision import (
    OBSTACLE_SECONDS,
    Acceptance,
    Context,
    Decision,
    Effect,
    requeue_in,
    set_condition,
)
from finetune_operator.policy.history import restored
from finetune_operator.policy.status_report import record_end
from finetune_operator.settings import Settings

C, R = ConditionType, Reason
OBSTACLES: tuple[tuple[type[ClusterError], Reason, Truth], ...] = (
    (NameTaken, R.NAME_CONFLICT, "False"),
    (Denied, R.API_DENIED, "False"),
    (RetryLater, R.API_UNAVAILABLE, "Unknown"),
)
"""Errors of the API server with which no Job is created, and what condition Accepted is then."""


def plan(observed: Observed, settings: Settings) -> Decision:
    """Decide the next step of one FineTuneJob."""
    status = observed.job.status.model_copy(deep=True)
    if observed.job.is_finished or observed.job.status_error:
        return Decision(status=status)
    spec = observed.job.spec
    conditions = Conditions(status, observed.job.generation, observed.now)
    conditions.set_initial(early_stopping=spec is not None and spec.early_stopping is not None)
    if spec is None:
        unread = f"this version of the operator cannot read it: {observed.job.spec_error}"
        effect = set_condition(C.ACCEPTED, "False", R.INVALID_SPEC, unread)
        status.eligible_time = status.eligible_time if status.start_time else None
    else:
        effect = _decide(observed, settings, spec, status)
    for kind, truth, *words, prefix in effect.conditions:
        if truth is None:
            conditions.remove(kind)
        else:
            conditions.set(kind, truth, *words, prefix=prefix)
    if status.is_true(C.FAILED) or status.is_true(C.COMPLETE):
        conditions.close()
        record_end(status)
    conditions.summarise()
    status.completion_time = effect.completion_time or status.completion_time
    return Decision.of(effect, status)


def _decide(observed: Observed, settings: Settings, spec: FineTuneJobSpec, status: FineTuneJobStatus) -> Effect:
    acceptance, effect = _check_acceptance(observed, settings, status)
    if observed.children_unreadable:
        return effect
    context = Context(observed, settings, spec, status, acceptance)
    kueue.record_workload(context)
    if lost := restored.close_lost_attempt(context):
        return effect + lost
    deadlines.record_eligible_time(context)
    effect += kueue.check_quota(context) + suspension.check_suspension(context)
    if context.is_blocked and not observed.own and status.current_run is None:
        deadline = deadlines.next_deadline(context)
        return effect + (deadlines.end_job(context, deadline) if deadline else Effect())
    if not spec.has_preflight:
        return effect + set_condition(C.VALIDATED, "Unknown", R.PREFLIGHT_DISABLED) + attempts.train(context)
    if status.is_true(C.VALIDATED):
        return effect + preflight.remove_lingering(context) + attempts.train(context)
    has_passed, checked = preflight.check(context)
    return effect + checked + (attempts.train(context) if has_passed else Effect())


def _check_acceptance(observed: Observed, settings: Settings, status: FineTuneJobStatus) -> tuple[Acceptance, Effect]:
    """Accept or refuse the job; a refusal prevents new Jobs, but never stops a running one."""
    obstacle = observed.obstacle or (observed.workloads_error if isinstance(observed.workloads_error, Denied) else None)
    events_forbidden = isinstance(obstacle, Denied) and obstacle.resource == "events"
    blocking = None if events_forbidden else obstacle
    refusal = _find_refusal(observed, settings, blocking)
    reason, truth, detail = refusal or (R.ACCEPTED, "True", "")
    is_retried = isinstance(obstacle, RetryLater)  # with the queue's backoff
    effect = requeue_in(OBSTACLE_SECONDS) if obstacle and not is_retried else Effect()
    effect += set_condition(C.ACCEPTED, truth, reason, detail)
    if reason is R.MULTIKUEUE_UNSUPPORTED and not status.is_true(C.VALIDATED):
        effect += set_condition(C.VALIDATED, "Unknown", R.PENDING)
    # Written before anything is created from it, so that a crash between the two leaves no job with two parents.
    is_pinned_now = refusal is None and dependencies.pin(status, observed.job, observed.relatives)
    if is_pinned_now:
        effect += requeue_in(0)
    if isinstance(obstacle, Refused):
        detail = remediation.append_fix(R.POD_CREATION_REFUSED, str(obstacle))
        effect += set_condition(C.RUNNING, "False", R.POD_CREATION_REFUSED, detail)
    is_refused = refusal is not None or blocking is not None or is_pinned_now
    return Acceptance(reason, is_refused, events_forbidden), effect


def _find_refusal(
    observed: Observed, settings: Settings, obstacle: ClusterError | None
) -> tuple[Reason, Truth, str] | None:
    """Return reason, truth and message of a condition Accepted that is not true; None if the job is accepted."""
    if forbidden := admission.find_refusal(observed.job, settings):
        return R.FORBIDDEN, "False", forbidden
    if other_cluster := kueue.find_refusal(observed):
        return R.MULTIKUEUE_UNSUPPORTED, "False", other_cluster
    for kind, reason, truth in OBSTACLES:
        if isinstance(obstacle, kind):
            return reason, truth, str(obstacle)
    if waits := dependencies.find_obstacle(observed.job, observed.relatives):
        return waits.reason, "False" if waits.reason is R.INVALID_SPEC else "Unknown", waits.detail
    return None
