"""Runs that nobody watched: their trainers wrote down that SIGTERM ended them, and a later run of the job tells so."""

from collections.abc import Iterator, Sequence

from finetune_api.handoff import ExitCode
from finetune_api.names import Reason
from finetune_api.runs import Run, StoppedRun
from finetune_operator.kube.objects import Job
from finetune_operator.policy import counters, runs
from finetune_operator.policy.decision import Draft
from finetune_operator.policy.run_outcome import RESULT_PREEMPTED, judge

WORDS = "SIGTERM ended it while no operator watched; the next run told of it"


def count(draft: Draft, attempts: Sequence[Job]) -> None:
    """Counts each of them once, by its pod's UID, as a preemption; a pod that is known is judged by its end."""
    status = draft.status
    known = {pod.uid for pod in draft.observed.pods}
    if status.current_run:
        known.add(status.current_run.pod_uid)
    for told in sorted(_told(draft, attempts), key=lambda one: one.end_time):
        is_ours = 1 <= told.attempt <= (status.attempts or 0)
        if not is_ours or told.pod_uid in known or runs.is_counted(status, told.pod_uid, told.end_time):
            continue
        child = next((one for one in attempts if one.attempt == told.attempt), None)
        runs.append(draft, _run(told, (status.runs or 0) + 1), child)
        # In its place: what is older than a full history counts as known.
        status.history = sorted(runs.of(status), key=lambda one: one.end_time or draft.observed.now)
        counters.add_preemption(status, Reason.UNOBSERVED)
        status.start_time = status.start_time or told.start_time


def _told(draft: Draft, attempts: Sequence[Job]) -> Iterator[StoppedRun]:
    """What the pods of this job say: the one that runs, and those that have ended."""
    reading = draft.observed.reading
    for child in attempts:
        for pod in draft.observed.pods_of(child.uid):
            if reading and reading.report and reading.pod_uid == pod.uid:
                yield from reading.report.stopped_runs or []
            report = judge(pod, draft.observed.job).report if pod.is_over else None
            if report:
                yield from report.stopped_runs or []


def _run(told: StoppedRun, number: int) -> Run:
    return Run(
        run=number,
        attempt=told.attempt,
        pod_name=told.pod_name,
        pod_uid=told.pod_uid,
        start_time=told.start_time,
        end_time=told.end_time,
        result=RESULT_PREEMPTED,
        reason=Reason.UNOBSERVED,
        message=WORDS,
        exit_code=ExitCode.PREEMPTED,
        last_step=told.last_step,
        resumed_from_step=told.resumed_from_step,
    )
