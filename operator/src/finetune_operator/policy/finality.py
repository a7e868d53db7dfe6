"""Whether a decision can be taken back: if not, it needs a live read, because the store may be old."""

from finetune_api.names import Component, ConditionType, Reason
from finetune_api.status import FineTuneJobStatus
from finetune_operator.policy.decision import Decision
from finetune_operator.policy.history import bookkeeping

CORRECTABLE = frozenset(
    {
        *("observed_generation", "phase", "reason", "message", "conditions", "eligible_time", "workload_ref"),
        *("progress", "metrics", "checkpoint", "early_stopping", "resolved"),
    }
)
"""Fields of the status that the next reconcile corrects if they were wrong. All others are counts, times and digests
that stay."""
_ENDS = (ConditionType.COMPLETE, ConditionType.FAILED)


def is_final(stored: FineTuneJobStatus, decision: Decision) -> bool:
    """Return whether a decision acts on the cluster, ends the job, or changes what is never corrected."""
    create = None if _begins_preflight(stored, decision) else decision.create
    actions = [create, decision.delete, decision.suspend, decision.resume, decision.move_to_queue]
    return (
        any(one is not None for one in [*actions, decision.deactivate, decision.activate])
        or any(decision.status.is_true(kind) for kind in _ENDS)
        or _fixed_part(stored) != _fixed_part(decision.status)
    )


def _begins_preflight(stored: FineTuneJobStatus, decision: Decision) -> bool:
    """Return whether the action creates a job's first preflight.

    The API server itself refuses a second one, because its name is fixed, and the write of an outdated status.
    """
    if decision.create is None or decision.create.component != Component.PREFLIGHT:
        return False
    validated = stored.condition(ConditionType.VALIDATED)
    return validated is None or validated.reason != Reason.PREFLIGHT_RUNNING


def _fixed_part(status: FineTuneJobStatus) -> dict[str, object]:
    found: dict[str, object] = {
        name: getattr(status, name) for name in type(status).model_fields if name not in CORRECTABLE
    }
    run = status.current_run
    # The trainer reports its heartbeat again.
    found["current_run"] = run and run.model_copy(update={"last_moved_time": None})
    found["internal"] = bookkeeping.read(status).model_copy(update={"heartbeat": None})
    return found
