"""The plan: from the observed state and the time to the next status and action. No I/O."""

from finetune_api.names import ConditionType, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_operator.kube.errors import Denied, NameTaken, Refused, RetryLater
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
from finetune_operator.policy.conditions import Conditions
from finetune_operator.policy.decision import (
    OBSTACLE_SECONDS,
    Acceptance,
    Context,
    Decision,
    Effect,
    requeue_in,
    set_condition,
)
from finetune_operator.policy.status_report import record_end
from finetune_operator.settings import Settings

C, R = ConditionType, Reason


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
    refusal = admission.find_refusal(observed.job, settings)
    other_cluster = kueue.find_refusal(observed)
    waits = dependencies.find_obstacle(observed.job, observed.relatives)
    events_forbidden = isinstance(obstacle, Denied) and obstacle.resource == "events"
    is_retried = isinstance(obstacle, RetryLater)  # with the queue's backoff
    effect = requeue_in(OBSTACLE_SECONDS) if obstacle and not is_retried else Effect()
    is_refused = bool(refusal or other_cluster or waits or (obstacle and not events_forbidden))
    if refusal:
        reason = R.FORBIDDEN
        effect += set_condition(C.ACCEPTED, "False", reason, refusal)
    elif other_cluster:
        reason = R.MULTIKUEUE_UNSUPPORTED
        effect += set_condition(C.ACCEPTED, "False", reason, other_cluster)
        if not status.is_true(C.VALIDATED):
            effect += set_condition(C.VALIDATED, "Unknown", R.PENDING)
    elif isinstance(obstacle, NameTaken):
        reason = R.NAME_CONFLICT
        effect += set_condition(C.ACCEPTED, "False", reason, str(obstacle))
    elif isinstance(obstacle, Denied) and not events_forbidden:
        reason = R.API_DENIED
        effect += set_condition(C.ACCEPTED, "False", reason, str(obstacle))
    elif is_retried:
        reason = R.API_UNAVAILABLE
        effect += set_condition(C.ACCEPTED, "Unknown", reason, str(obstacle))
    elif waits:
        reason = waits.reason
        effect += set_condition(C.ACCEPTED, "False" if reason is R.INVALID_SPEC else "Unknown", reason, waits.detail)
    else:
        reason = R.ACCEPTED
        effect += set_condition(C.ACCEPTED, "True", reason)
        # Written before anything is created from it, so that a crash between the two leaves no job with two parents.
        if dependencies.pin(status, observed.job, observed.relatives):
            is_refused = True
            effect += requeue_in(0)
    if isinstance(obstacle, Refused):
        detail = remediation.append_fix(R.POD_CREATION_REFUSED, str(obstacle))
        effect += set_condition(C.RUNNING, "False", R.POD_CREATION_REFUSED, detail)
    return Acceptance(reason, is_refused, events_forbidden), effect
