"""Preempted preflight pods: each is counted once, separate from the runs of trainers."""

from finetune_api.status import PreflightRuns
from finetune_operator.kube.pod import Pod
from finetune_operator.policy.decision import Context
from finetune_operator.policy.history import bookkeeping, suspensions
from finetune_operator.policy.pods.run_outcome import RESULT_PREEMPTED


def record_preflight(context: Context, pods: tuple[Pod, ...]) -> None:
    """Count preempted preflight pods; they run one after another."""
    status = context.status
    for pod in pods:
        if not pod.counts_as_run or pod.created is None:
            continue
        known = bookkeeping.read(status)
        last = (known.last_preflight_pod_time, known.last_preflight_pod_name or "")
        if last[0] is not None and (pod.created, pod.name) <= last:
            continue
        is_ours = suspensions.is_suspension(context, pod) or (pod.deleting is not None and _is_held(context, pod))
        is_preempted = context.outcome_of(pod).result == RESULT_PREEMPTED
        if is_ours or is_preempted:
            bookkeeping.record(status, last_preflight_pod_name=pod.name, last_preflight_pod_time=pod.created)
        if is_preempted and not is_ours:
            count = ((status.preflight and status.preflight.preemptions) or 0) + 1
            status.preflight = PreflightRuns(preemptions=count)


def _is_held(context: Context, pod: Pod) -> bool:
    child = next((one for one in context.observed.own if one.uid == pod.job_uid), None)
    return child is not None and suspensions.is_held(context, child)
