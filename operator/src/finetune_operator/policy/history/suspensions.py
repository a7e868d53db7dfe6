"""What the operator stops for the job's user, which counts as no failure and no preemption."""

from finetune_operator.kube.objects import Job
from finetune_operator.kube.pod import Pod
from finetune_operator.policy.conditions import suspended_since
from finetune_operator.policy.decision import Context


def is_suspension(context: Context, pod: Pod) -> bool:
    """Return whether the pod was deleted after the user's request to suspend was written."""
    since = suspended_since(context.stored)
    return since is not None and pod.deletion_requested is not None and pod.deletion_requested >= since


def is_held(context: Context, child: Job) -> bool:
    """Return whether the operator holds the Job for its user, who may have resumed it in the meantime."""
    workload = context.observed.workload_of(child)
    is_inactive = workload is not None and not workload.is_active and workload.is_ours_to_activate
    return (child.is_suspended and child.is_ours_to_resume) or is_inactive
