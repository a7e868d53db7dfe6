"""Decide how a run has ended: by its own pod, by a pod that ran with it, or by its Job's status."""

from collections.abc import Sequence

from finetune_api.names import Reason
from finetune_api.status import CurrentRun
from finetune_operator.kube.objects import Job
from finetune_operator.kube.pod import Pod
from finetune_operator.policy import kueue
from finetune_operator.policy.decision import Context
from finetune_operator.policy.history import rejections, runs, suspensions
from finetune_operator.policy.pods import rank_outcomes
from finetune_operator.policy.pods.rank_outcomes import End
from finetune_operator.policy.pods.run_outcome import (
    RESULT_FAILED,
    RESULT_PREEMPTED,
    RESULT_SUCCEEDED,
    RESULT_SUSPENDED,
    PodOutcome,
)

STALLED = (
    "no progress for stallTimeoutSeconds although the trainer was reachable; raise it if a step can take that long"
)
JOB_DELETED = PodOutcome(RESULT_FAILED, Reason.JOB_DELETED, "the Job was deleted while the pod ran")
UNSEEN_SECONDS = 5.0
"""Seconds in which the end of a deleted pod may still arrive as a watch event."""


def decide_end(context: Context, pod: Pod, child: Job | None) -> tuple[End, float]:
    """Return how a run counts, and for how many seconds another pod's end may still change that."""
    own = End(_outcome(context, pod, child), pod)
    if child and child.is_suspended and pod.deleting and context.observed.workloads_error:
        return own, UNSEEN_SECONDS  # its Workload shows whether the user or Kueue has stopped it
    run = runs.current_run_of(context.status, pod)
    # If all were stopped, no pod caused another's end.
    if child is None or child.nodes == 1 or (run and run.stopping_reason):
        return own, 0.0
    pods = context.observed.pods_of(child.uid)
    is_last = rank_outcomes.is_last(pod, pods)
    peers = pods if is_last and child.failed_pods else rank_outcomes.pods_alive_with(pod, pods)
    is_unseen = is_last and child.failed_pods > runs.count_failures(context.status, child)
    end = rank_outcomes.decide_end(own, ends_of_peers(context, peers, child), unseen=is_unseen)
    is_open = end.outcome.result == RESULT_PREEMPTED or end.pod is None or (end.pod is pod and bool(pod.deleting))
    return end, rank_outcomes.seconds_to_wait(pod, pods, context.observed.now) if is_open else 0.0


def ends_of_peers(context: Context, pods: Sequence[Pod], child: Job) -> list[End]:
    """Return the ends of the pods of other ranks."""
    return [End(_outcome(context, pod, child), pod) for pod in pods if pod.rank and pod.counts_as_run]


def _outcome(context: Context, pod: Pod, child: Job | None) -> PodOutcome:
    """Return how a pod counts; why it was stopped decides before its exit code does."""
    status = context.status
    failed_unseen = child is not None and child.failed_pods > runs.count_failures(status, child)
    outcome = rejections.limit(status, context.outcome_of(pod, failed_unseen=failed_unseen))
    run = runs.current_run_of(status, pod)
    if run and run.stopping_reason == Reason.NO_PROGRESS:
        return PodOutcome(RESULT_FAILED, Reason.NO_PROGRESS, STALLED, report=outcome.report)
    if child is None and outcome.is_proven:
        return outcome
    if child is None:
        return JOB_DELETED
    if outcome.result == RESULT_SUCCEEDED or not pod.deleting:
        return outcome
    return _outcome_of_suspension(context, pod, child, outcome) or outcome


def _outcome_of_suspension(context: Context, pod: Pod, child: Job, outcome: PodOutcome) -> PodOutcome | None:
    """Return the outcome of a pod that was deleted because the user, Kueue or another controller suspended its Job.

    The Job controller does not count such a pod, whatever its exit code.
    """
    run = runs.current_run_of(context.status, pod)
    is_stopped = run is not None and run.stopping_reason == Reason.USER_REQUESTED
    evicted = kueue.eviction(context, child)
    if evicted and not is_stopped:
        return PodOutcome(RESULT_PREEMPTED, *evicted, report=outcome.report)
    if run and run.stopping_reason and not is_stopped:
        return PodOutcome(
            RESULT_PREEMPTED, run.stopping_reason, run.stopping_message or outcome.message, report=outcome.report
        )
    if is_stopped or suspensions.is_suspension(context, pod) or suspensions.is_held(context, child):
        return PodOutcome(RESULT_SUSPENDED, Reason.USER_REQUESTED, outcome.message, report=outcome.report)
    if child.is_suspended:
        return PodOutcome(RESULT_PREEMPTED, Reason.JOB_SUSPENDED, outcome.message, report=outcome.report)
    return None


def decide_unseen_end(context: Context, run: CurrentRun, child: Job | None) -> End:
    """Return the end by the Job's status, unless a pod that ran with it has failed."""
    own = End(_outcome_of_unseen(context, run, child), None)
    if child is None or child.nodes == 1 or own.outcome.reason != Reason.UNOBSERVED:
        return own
    pods = context.observed.pods_of(child.uid)
    since = [pod for pod in pods if pod.ended and (run.start_time is None or pod.ended >= run.start_time)]
    cause = rank_outcomes.first_cause(ends_of_peers(context, since, child))
    return End(cause.named(), cause.pod) if cause else own


def _outcome_of_unseen(context: Context, run: CurrentRun, child: Job | None) -> PodOutcome:
    message = "the pod's exit status was not observed"
    if run.stopping_reason == Reason.NO_PROGRESS:
        return PodOutcome(RESULT_FAILED, Reason.NO_PROGRESS, STALLED)
    if child is None:
        return JOB_DELETED
    if child.failed_pods > runs.count_failures(context.status, child):
        return PodOutcome(RESULT_FAILED, Reason.UNOBSERVED, message)
    if child.completed and not find_later_pods(context, run, child):
        return PodOutcome(
            RESULT_FAILED, Reason.RESULT_MISSING, "the pod exited with 0, and its report was not observed"
        )
    if run.stopping_reason == Reason.USER_REQUESTED:
        return PodOutcome(RESULT_SUSPENDED, Reason.USER_REQUESTED, message)
    return PodOutcome(RESULT_PREEMPTED, run.stopping_reason or Reason.UNOBSERVED, run.stopping_message or message)


def find_later_pods(context: Context, run: CurrentRun, child: Job) -> list[Pod]:
    """Return the pods of rank 0 that the run's Job created after that of the run."""
    began = run.start_time
    if began is None or child.attempt != run.attempt:
        return []
    # By the clock of its node, a run may have begun some seconds before its own pod or an earlier one was created.
    known = {run.pod_uid, *(one.pod_uid for one in runs.history(context.status))}
    pods = [pod for pod in context.observed.pods_of(child.uid) if pod.rank == 0 and pod.uid not in known]
    return [pod for pod in pods if pod.created and pod.created > began]


def is_pod_missing(context: Context) -> bool:
    """Return whether the pod of the current run is gone, so that its end is still waited for."""
    run = context.status.current_run
    return run is not None and all(pod.uid != run.pod_uid for pod in context.observed.pods)
