"""A GPU that reports that it is broken: the attempt ends, and the next one runs on other nodes."""

from collections.abc import Sequence

from finetune_api.handoff import ExitCode
from finetune_api.names import Reason
from finetune_operator.kube.objects import Job
from finetune_operator.policy.decision import Context
from finetune_operator.policy.history import runs
from finetune_operator.policy.pods import rank_outcomes, run_outcome

MOST = 16
"""Nodes that an attempt avoids, newest last; the bound of the status."""


def record_fault(context: Context, current: Job, ends: Sequence[rank_outcomes.End]) -> str:
    """Record the nodes whose GPU ended the attempt, and return the cause as a sentence; "" if it was another one."""
    status = context.status
    faults = [end for end in ends if end.outcome.reason == Reason.GPU_FAULT]
    counted = [one for one in runs.history(status) if one.attempt == current.attempt and one.reason == Reason.GPU_FAULT]
    if faults:
        cause = faults[0].named().message
    elif counted:
        cause = counted[-1].message or ""
    elif run_outcome.exit_code_of_failed_job(current) == ExitCode.GPU_FAULT:
        cause = current.failed_message
    else:
        return ""
    nodes = {end.pod.node for end in faults if end.pod and end.pod.node}
    nodes = nodes or {one.node_name for one in counted if one.node_name}
    avoided = status.avoided_node_names or []
    status.avoided_node_names = [*avoided, *sorted(nodes - {*avoided})][-MOST:] or None
    return cause or str(Reason.GPU_FAULT)
