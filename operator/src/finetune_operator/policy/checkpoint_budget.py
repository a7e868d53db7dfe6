"""Condition GracePeriodSufficient: whether a checkpoint can be saved within it, according to the last save."""

from finetune_api.names import ConditionType, Reason
from finetune_operator.kube.objects import Job
from finetune_operator.policy.decision import Context, Effect, set_condition

C, R = ConditionType, Reason
SHARE = 0.8
"""Share of the grace period that a save may take; the rest is for the step or upload that it interrupts."""


def check_save_time(context: Context, child: Job) -> Effect:
    """Warn if a preemption would lose work; the grace period is that of the existing Job."""
    saved, grace, limit = context.status.checkpoint, child.grace_seconds, context.settings.node_shutdown_seconds
    if saved is None or saved.save_seconds is None or grace is None:
        return Effect()
    took = f"Saving step {saved.step} took {saved.save_seconds:.3g} s, and the grace period is {grace} s"
    raised = f"raise checkpoint.gracePeriodSeconds to {round(2 * saved.save_seconds)} for later pods, or "
    if limit and limit < grace:
        took += f", of which a node that shuts down leaves {limit} s"
        grace, raised = limit, ""
    if saved.save_seconds <= SHARE * grace:
        return set_condition(C.GRACE_PERIOD_SUFFICIENT, "True", R.CHECKPOINT_SAVED, took)
    advice = f"{raised}lower checkpoint.steps, because a preemption may lose the steps since the last checkpoint"
    return set_condition(C.GRACE_PERIOD_SUFFICIENT, "False", R.SAVE_TOO_SLOW, f"{took}: {advice}")
