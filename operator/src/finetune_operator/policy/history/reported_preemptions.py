"""Runs that SIGTERM ended while the operator was down: their trainer recorded them, and the next run reports them."""

from collections.abc import Iterator, Sequence

from finetune_api.handoff import ExitCode
from finetune_api.names import Reason
from finetune_api.runs import Run, StoppedRun
from finetune_operator.kube.objects import Job
from finetune_operator.policy.decision import Context
from finetune_operator.policy.history import preemptions, record_runs, runs
from finetune_operator.policy.pods.run_outcome import RESULT_PREEMPTED

MESSAGE = "terminated by SIGTERM while the operator was down; reported by the next run"


def record_preemptions(context: Context, attempts: Sequence[Job]) -> None:
    """Count each once, by its pod's UID, as a preemption; a pod that still exists is judged by its own end."""
    status = context.status
    known = {pod.uid for pod in context.observed.pods}
    if status.current_run:
        known.add(status.current_run.pod_uid)
    for stopped in sorted(_reported(context, attempts), key=lambda one: one.end_time):
        is_ours = 1 <= stopped.attempt <= (status.attempts or 0) and _is_within_life(context, stopped)
        if not is_ours or stopped.pod_uid in known or runs.is_counted(status, stopped.pod_uid, stopped.end_time):
            continue
        child = next((one for one in attempts if one.attempt == stopped.attempt), None)
        record_runs.record_run(context, _run(stopped, (status.runs or 0) + 1), child)
        # Sorted, because a run older than a full history counts as recorded.
        status.history = sorted(runs.history(status), key=lambda one: one.end_time or context.observed.now)
        preemptions.add(status, Reason.UNOBSERVED)
        status.start_time = status.start_time or stopped.start_time


def _reported(context: Context, attempts: Sequence[Job]) -> Iterator[StoppedRun]:
    """Yield the stopped runs that the running pod and the ended pods of this job report."""
    reading = context.observed.reading
    for child in attempts:
        for pod in context.observed.pods_of(child.uid):
            if reading and reading.report and reading.pod_uid == pod.uid:
                yield from reading.report.stopped_runs or []
            report = context.outcome_of(pod).report if pod.is_over else None
            if report:
                yield from report.stopped_runs or []


def _is_within_life(context: Context, stopped: StoppedRun) -> bool:
    """Return whether a run ended between the job's creation and now; one of a clock that is ahead counts later."""
    created = context.observed.job.created
    return (created is None or created <= stopped.end_time) and stopped.end_time <= context.observed.now


def _run(stopped: StoppedRun, number: int) -> Run:
    return Run(
        run=number,
        attempt=stopped.attempt,
        pod_name=stopped.pod_name,
        pod_uid=stopped.pod_uid,
        start_time=stopped.start_time,
        end_time=stopped.end_time,
        result=RESULT_PREEMPTED,
        reason=Reason.UNOBSERVED,
        message=MESSAGE,
        exit_code=ExitCode.PREEMPTED,
        last_step=stopped.last_step,
        resumed_from_step=stopped.resumed_from_step,
    )
