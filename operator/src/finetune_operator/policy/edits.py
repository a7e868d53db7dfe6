"""Edits of the spec: they take effect at the next start of a pod, so a Job without a running pod is replaced.

So is a Job that would run in another cluster.
"""

from finetune_api.names import ConditionType, Reason
from finetune_operator.kube.objects import Job
from finetune_operator.manifests.settings_digest import digest_settings
from finetune_operator.policy import kueue
from finetune_operator.policy.decision import Context, Effect, set_condition
from finetune_operator.policy.history import runs

C, R = ConditionType, Reason
REPLACED = ("Edited", "the spec was changed, and no pod was running")
MOVED = (str(R.MULTIKUEUE_UNSUPPORTED), "Kueue would run it in another cluster")
LATER = "The spec was edited, which takes effect with the next attempt. "


def find_cause(context: Context, child: Job) -> tuple[str, str] | None:
    """Return why a Job must be replaced: it is not for this cluster, or has other settings than the spec, and neither a
    pod that a replacement would interrupt nor a result.

    Its pods cannot change: one that waits for a Secret with a misspelt name would wait for it forever.
    """
    has_run = context.status.current_run or any(pod.is_running for pod in context.observed.pods_of(child.uid))
    if context.observed.obstacle or has_run or runs.has_succeeded(context.status, child):
        return None
    if context.observed.is_for_other_cluster(child):
        return MOVED
    return REPLACED if not context.is_blocked and _is_outdated(context, child) else None


def announce(context: Context, child: Job) -> Effect:
    """Name an edit that the running pods do not have, in condition Accepted."""
    if context.acceptance.reason is not R.ACCEPTED or not _is_outdated(context, child):
        return Effect()
    return set_condition(C.ACCEPTED, "True", R.ACCEPTED, prefix=LATER)


def _is_outdated(context: Context, child: Job) -> bool:
    """Return whether an open Job was built from another spec; one of an earlier version has no digest."""
    if child.is_over or child.is_deleting:
        return False
    has_other_settings = child.settings_sha256 not in {"", digest_settings(context.spec)}
    return has_other_settings or kueue.has_left_queue(context, child)
