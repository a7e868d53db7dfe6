"""The decision: what was observed and the time in, the next status and the next action out. No I/O."""

from finetune_api.names import ConditionType, Reason
from finetune_operator.kube.errors import Denied, NameTaken, Refused
from finetune_operator.kube.observed import Observed
from finetune_operator.policy import admission, attempts, deadlines, dependencies, kueue, preflight, suspension
from finetune_operator.policy.conditions import Conditions
from finetune_operator.policy.decision import Decision, Draft
from finetune_operator.settings import Settings

C, R = ConditionType, Reason
OBSTACLE_SECONDS = 20.0


def plan(observed: Observed, settings: Settings) -> Decision:
    """Decides the next step of one FineTuneJob."""
    status = observed.job.status.model_copy(deep=True)
    conditions = Conditions(status, observed.job.generation, observed.now)
    decision = Decision(status)
    if observed.job.is_finished or observed.job.status_error:
        return decision
    spec = observed.job.spec
    conditions.set_initial(early_stopping=spec is not None and spec.early_stopping is not None)
    if spec is None:
        unread = f"this version of the operator cannot read it: {observed.job.spec_error}"
        conditions.set(C.ACCEPTED, "False", R.INVALID_SPEC, unread)
    else:
        draft = Draft(observed, settings, spec, conditions, decision)
        _accept(draft)
        if not observed.children_unreadable:
            _go_on(draft)
    conditions.summarise()
    return decision


def _go_on(draft: Draft) -> None:
    kueue.note_quota(draft)
    suspension.decide(draft)
    deadlines.note_queued(draft)
    if draft.is_blocked and not draft.observed.own:
        if overdue := deadlines.exceeded(draft):
            draft.fail(overdue.reason, overdue.detail)
        return
    if draft.status.is_true(C.VALIDATED) or preflight.check(draft):
        attempts.train(draft)


def _accept(draft: Draft) -> None:
    """Accepted or not; a refusal stops what would be created, never what runs."""
    obstacle, conditions = draft.observed.obstacle, draft.conditions
    refused = admission.find_refusal(draft.observed.job, draft.settings)
    waits = dependencies.find_obstacle(draft.observed.job, draft.observed.relatives)
    draft.events_forbidden = isinstance(obstacle, Denied) and obstacle.resource == "events"
    draft.is_blocked = bool(refused or waits or (obstacle and not draft.events_forbidden))
    if obstacle:
        draft.decision.again_in(OBSTACLE_SECONDS)
    if refused:
        conditions.set(C.ACCEPTED, "False", R.FORBIDDEN, refused)
    elif isinstance(obstacle, NameTaken):
        conditions.set(C.ACCEPTED, "False", R.NAME_CONFLICT, str(obstacle))
    elif isinstance(obstacle, Denied) and not draft.events_forbidden:
        conditions.set(C.ACCEPTED, "False", R.API_DENIED, str(obstacle))
    elif waits:
        conditions.set(C.ACCEPTED, "False" if waits.reason is R.INVALID_SPEC else "Unknown", waits.reason, waits.detail)
    else:
        conditions.set(C.ACCEPTED, "True", R.ACCEPTED)
        _pin_parents(draft)
    if isinstance(obstacle, Refused):
        conditions.set(C.RUNNING, "False", R.POD_CREATION_REFUSED, str(obstacle))


def _pin_parents(draft: Draft) -> None:
    """Written before anything is created from it, so that no crash between the two leaves a job with two parents."""
    if dependencies.pin(draft.status, draft.observed.job, draft.observed.relatives):
        draft.is_blocked = True
        draft.decision.again_in(0)
