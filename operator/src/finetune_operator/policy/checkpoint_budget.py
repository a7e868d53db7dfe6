"""Whether a trainer that is told to end has the time to save: condition SavesInTime, from the last save."""

from finetune_api.names import ConditionType, Reason
from finetune_operator.kube.objects import Job
from finetune_operator.policy.decision import Draft

C, R = ConditionType, Reason
SHARE = 0.8
"""The part of the grace period that a save may take; the rest is for the step, or the transfer, that it interrupts."""


def check_save_time(draft: Draft, child: Job) -> None:
    """Warns before a preemption proves it; the grace period is that of the Job as it was created."""
    saved, grace = draft.status.checkpoint, child.grace_seconds
    if saved is None or saved.save_seconds is None or grace is None:
        return
    took = f"Saving step {saved.step} took {saved.save_seconds:.3g} s, and a trainer that is told to end gets {grace} s"
    if saved.save_seconds <= SHARE * grace:
        draft.conditions.set(C.SAVES_IN_TIME, "True", R.CHECKPOINT_SAVED, took)
    else:
        draft.conditions.set(
            C.SAVES_IN_TIME,
            "False",
            R.SAVE_TOO_SLOW,
            f"{took}: raise checkpoint.gracePeriodSeconds to {round(2 * saved.save_seconds)} for the next attempt, "
            "or lower checkpoint.steps, for a preemption may lose the steps since the last checkpoint",
        )
