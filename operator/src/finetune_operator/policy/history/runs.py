"""Turn ended pods into runs: each is counted once, by its pod's UID, and counters never decrease."""

from collections.abc import Sequence
from datetime import datetime

from finetune_api.names import Reason
from finetune_api.status import CurrentRun, DatasetStatus, FineTuneJobStatus, Run
from finetune_operator.kube.objects import Job
from finetune_operator.kube.pod import Pod
from finetune_operator.policy import kueue
from finetune_operator.policy.decision import Context, Effect, requeue_in
from finetune_operator.policy.history import bookkeeping, clocks, counters, preemptions, rejections, suspensions
from finetune_operator.policy.pods import rank_outcomes
from finetune_operator.policy.pods.rank_outcomes import End
from finetune_operator.policy.pods.run_outcome import (
    RESULT_FAILED,
    RESULT_PREEMPTED,
    RESULT_SUCCEEDED,
    RESULT_SUSPENDED,
    PodOutcome,
)

HISTORY = 10
STALLED = (
    "no progress for stallTimeoutSeconds although the trainer was reachable; raise it if a step can take that long"
)
Steps = dict[str, int | None]
UNSEEN_SECONDS = 5.0
"""Seconds in which the end of a deleted pod may still arrive as a watch event."""


def history(status: FineTuneJobStatus) -> list[Run]:
    """Return the recorded runs, oldest first."""
    return status.history or []


def record_ended(context: Context, attempts: Sequence[Job]) -> Effect:
    """Record the ended pods of this job's attempts that are not in the history yet; requeue for those not decided."""
    status, effect = context.status, Effect()
    number = {child.uid: child for child in attempts}
    deleted = {status.job_ref.uid} - number.keys() if status.job_ref else set()
    for pod in _ended(context, [*number, *deleted]):
        ended = _times(context, pod)[1]
        if not is_counted(status, pod.uid, ended, pod.created):
            child = number.get(pod.job_uid)
            end, seconds_to_wait = _end_of(context, pod, child)
            if seconds_to_wait:
                effect += requeue_in(seconds_to_wait)
                continue
            if end.outcome.report and end.outcome.report.checkpoint:
                status.checkpoint = end.outcome.report.checkpoint
            if child:
                _record_counters(status, end.outcome, child)
                _record_followed(context, pod, child)
            began = _begin_run(context, pod, child.attempt if child else status.attempts or 1)
            run = _end_run(context, began, end, ended, _steps(context, began, end.outcome))
            run.exit_code = (end.pod or pod).exit_code
            record_run(context, run, child)
            if child is None or child.nodes == 1 or run.last_step:  # else it may have waited for the others
                status.start_time = status.start_time or run.start_time
        if status.current_run and status.current_run.pod_uid == pod.uid:
            bookkeeping.record_current_run(status, None)
    effect += _record_missing(context, attempts)
    _record_unseen_failures(context, attempts)
    return effect


def record_running(context: Context, child: Job, pod: Pod) -> None:
    """Record the running pod; if the end of the pod before was not observed, it ends now."""
    status = context.status
    if status.current_run and status.current_run.pod_uid == pod.uid:
        return
    if status.current_run:
        _record_unseen_end(context, status.current_run, child)
    run = _begin_run(context, pod, child.attempt)
    run.gpus = _count_gpus(context, child)
    bookkeeping.record_current_run(status, run)


def _ended(context: Context, job_uids: Sequence[str]) -> list[Pod]:
    """Return the ended pods of rank 0, which are the runs, in the order of their creation."""
    observed = context.observed
    pods = [pod for uid in job_uids for pod in observed.pods_of(uid) if pod.counts_as_run and pod.rank == 0]
    return sorted(pods, key=lambda pod: clocks.order(pod, observed.now))


def _times(context: Context, pod: Pod) -> clocks.Times:
    return clocks.run_times(pod, context.observed.pods_of(pod.job_uid), context.observed.now)


def is_counted(
    status: FineTuneJobStatus, pod_uid: str, ended: datetime | None, created: datetime | None = None
) -> bool:
    """Return whether a run is in the history, or older than all of a full history."""
    known = history(status)
    if any(run.pod_uid == pod_uid for run in known):
        return True
    oldest = known[0] if len(known) >= HISTORY else None
    if oldest is None:
        return False
    is_before = bool(oldest.start_time and created and created < oldest.start_time)
    return is_before or bool(oldest.end_time and ended and ended <= oldest.end_time)


def _end_of(context: Context, pod: Pod, child: Job | None) -> tuple[End, float]:
    """Return how a run counts, and for how many seconds another pod's end may still change that."""
    own = End(_outcome(context, pod, child), pod)
    if child and child.is_suspended and pod.deleting and context.observed.workloads_error:
        return own, UNSEEN_SECONDS  # its Workload shows whether the user or Kueue has stopped it
    run = _running(context.status, pod)
    if (
        child is None or child.nodes == 1 or (run and run.stopping_reason)
    ):  # all were stopped: no pod caused another's end
        return own, 0.0
    pods = context.observed.pods_of(child.uid)
    is_last = rank_outcomes.is_last(pod, pods)
    peers = pods if is_last and child.failed_pods else rank_outcomes.pods_alive_with(pod, pods)
    is_unseen = is_last and child.failed_pods > _failed_of(context.status, child)
    end = rank_outcomes.decide_end(own, _ends_of_peers(context, peers, child), unseen=is_unseen)
    is_open = end.outcome.result == RESULT_PREEMPTED or end.pod is None or (end.pod is pod and bool(pod.deleting))
    return end, rank_outcomes.seconds_to_wait(pod, pods, context.observed.now) if is_open else 0.0


def _ends_of_peers(context: Context, pods: Sequence[Pod], child: Job) -> list[End]:
    return [End(_outcome(context, pod, child), pod) for pod in pods if pod.rank and pod.counts_as_run]


def _outcome(context: Context, pod: Pod, child: Job | None) -> PodOutcome:
    """Return how a pod counts; why it was stopped decides before its exit code does."""
    status = context.status
    failed_unseen = child is not None and child.failed_pods > _failed_of(status, child)
    outcome = rejections.limit(status, context.outcome_of(pod, failed_unseen=failed_unseen))
    run = _running(status, pod)
    if run and run.stopping_reason == Reason.NO_PROGRESS:
        return PodOutcome(RESULT_FAILED, Reason.NO_PROGRESS, STALLED, report=outcome.report)
    if child is None and outcome.is_proven:
        return outcome
    if child is None:
        return PodOutcome(RESULT_FAILED, Reason.JOB_DELETED, "the Job was deleted while the pod ran")
    if outcome.result == RESULT_SUCCEEDED or not pod.deleting:
        return outcome
    return _outcome_of_suspension(context, pod, child, outcome) or outcome


def _running(status: FineTuneJobStatus, pod: Pod) -> CurrentRun | None:
    """Return the current run if it is of that pod."""
    return status.current_run if status.current_run and status.current_run.pod_uid == pod.uid else None


def _outcome_of_suspension(context: Context, pod: Pod, child: Job, outcome: PodOutcome) -> PodOutcome | None:
    """Return the outcome of a pod that was deleted because the user, Kueue or another controller suspended its Job.

    The Job controller does not count such a pod, whatever its exit code.
    """
    run = _running(context.status, pod)
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


def _begin_run(context: Context, pod: Pod, attempt: int) -> CurrentRun:
    started = _times(context, pod)[0]
    return CurrentRun(attempt=attempt, pod_name=pod.name, pod_uid=pod.uid, node_name=pod.node, start_time=started)


def _end_run(context: Context, run: CurrentRun, end: End, ended: datetime | None, steps: Steps) -> Run:
    """Return the next entry of the history; its exit code is that of the pod that decided the end."""
    return Run(
        run=(context.status.runs or 0) + 1,
        attempt=run.attempt,
        pod_name=run.pod_name,
        pod_uid=run.pod_uid,
        node_name=run.node_name,
        start_time=run.start_time,
        end_time=ended,
        result=end.outcome.result,
        reason=end.outcome.reason,
        message=end.outcome.message[:1024],
        exit_code=end.pod.exit_code if end.pod else None,
        **steps,
    )


def record_run(context: Context, run: Run, child: Job | None) -> None:
    """Add a run to the history, which keeps the last ten, and its time to the job's."""
    status = context.status
    status.runs = run.run
    status.history = [*history(status), run][-HISTORY:]
    if run.start_time and run.end_time:
        seconds = int((run.end_time - run.start_time).total_seconds())
        current = status.current_run
        held = current.gpus if current and current.pod_uid == run.pod_uid else None
        counters.add_time(status, seconds, _count_gpus(context, child) if held is None else held)


def _count_gpus(context: Context, child: Job | None) -> int:
    """Return the GPUs of a run: by the limits of its Job, or by the spec if it is gone, or if its GPUs are claims."""
    resources = context.spec.resources
    if child and not resources.claims:
        return child.gpus(resources.gpu_resource_name)
    return 0 if context.status.trained_weights else resources.num_nodes * resources.gpus_per_node


def _steps(context: Context, run: CurrentRun, outcome: PodOutcome | None = None) -> Steps:
    """Return the first and last step of a run: from its report, its last progress, or the stored progress."""
    reading, progress = context.observed.reading, context.status.progress
    report = outcome.report if outcome else None
    if report and report.last_step is not None:
        return {"last_step": report.last_step, "resumed_from_step": report.resumed_from_step}
    began = run.start_time
    if reading and reading.pod_uid == run.pod_uid and reading.report:
        progress = reading.report.progress
    elif not (progress and progress.last_updated_time and began and progress.last_updated_time >= began):
        return {}
    return {"last_step": progress.step, "resumed_from_step": progress.resumed_from_step}


def _record_counters(status: FineTuneJobStatus, outcome: PodOutcome, child: Job) -> None:
    """Count a run; with several pods, the first failure ends the Job, and nothing counts after it."""
    is_single = child.nodes == 1
    if not is_single and _failed_of(status, child):
        return
    is_the_jobs = outcome.reason != (Reason.RESULT_MISSING if is_single else Reason.NO_PROGRESS)
    if outcome.result == RESULT_FAILED:
        counters.add_failures(status, outcome.reason)
    if status.job_ref and is_the_jobs and (outcome.result == RESULT_FAILED or outcome.is_rejection):
        counted = bookkeeping.read(status).counted_job_failures or 0
        bookkeeping.record(status, counted_job_failures=counted + 1)
    if outcome.result == RESULT_PREEMPTED:
        preemptions.add(status, outcome.reason)


def _failed_of(status: FineTuneJobStatus, child: Job) -> int:
    """Return how many failed pods of that Job are counted."""
    if status.job_ref and status.job_ref.uid == child.uid:
        return bookkeeping.read(status).counted_job_failures or 0
    return sum(run.attempt == child.attempt and run.result == RESULT_FAILED for run in history(status))


def is_pod_missing(context: Context) -> bool:
    """Return whether the pod of the current run is gone, so that its end is still waited for."""
    run = context.status.current_run
    return run is not None and all(pod.uid != run.pod_uid for pod in context.observed.pods)


def _record_followed(context: Context, pod: Pod, child: Job) -> None:
    """Record the current run before the pod of its Job that followed it, if its own is gone: it has ended before.

    If the Job counts a failure more, either may be meant, and the other pods come first.
    """
    run = context.status.current_run
    is_open = child.failed_pods > _failed_of(context.status, child)
    if run and is_pod_missing(context) and not is_open and pod in _later_pods(context, run, child):
        _record_unseen_end(context, run, child)


def _record_missing(context: Context, attempts: Sequence[Job]) -> Effect:
    """Record a run whose pod is gone by its Job's status, once the pod's end can no longer arrive as an event."""
    run = context.status.current_run
    if run is None:
        return Effect()
    # The end of a pod without a Job is not recorded as a run.
    if any(pod.uid == run.pod_uid and (pod.job_uid or not pod.is_over) for pod in context.observed.pods):
        bookkeeping.record(context.status, pod_missing_since_time=None)
        return Effect()
    since = bookkeeping.read(context.status).pod_missing_since_time or context.observed.now
    bookkeeping.record(context.status, pod_missing_since_time=since)
    left = UNSEEN_SECONDS - (context.observed.now - since).total_seconds()
    if left > 0:
        return requeue_in(left)
    _record_unseen_end(context, run, next((one for one in attempts if one.attempt == run.attempt), None))
    return Effect()


def _record_unseen_end(context: Context, run: CurrentRun, child: Job | None) -> None:
    end = _unseen_end(context, run, child)
    record_cut(context, run, end)
    if child:
        _record_counters(context.status, end.outcome, child)


def _unseen_end(context: Context, run: CurrentRun, child: Job | None) -> End:
    """Return the end by the Job's status, unless a pod that ran with it has failed."""
    own = End(_outcome_of_unseen(context, run, child), None)
    if child is None or child.nodes == 1 or own.outcome.reason != Reason.UNOBSERVED:
        return own
    pods = context.observed.pods_of(child.uid)
    since = [pod for pod in pods if pod.ended and (run.start_time is None or pod.ended >= run.start_time)]
    cause = rank_outcomes.first_cause(_ends_of_peers(context, since, child))
    return End(cause.named(), cause.pod) if cause else own


def record_cut(context: Context, run: CurrentRun, end: End) -> None:
    """End the current run without its pod's report; only its time is counted."""
    child = next((one for one in context.observed.own if one.attempt == run.attempt), None)
    ended = _end_run(context, run, end, _latest_end(context, run, child), _steps(context, run))
    record_run(context, ended, child)
    bookkeeping.record_current_run(context.status, None)


def _latest_end(context: Context, run: CurrentRun, child: Job | None) -> datetime:
    """Return when a run whose end was not observed has ended: at the latest when its Job created the next pod, or
    ended."""
    latest = bookkeeping.read(context.status).pod_missing_since_time or context.observed.now
    if child is None or run.start_time is None:
        return latest
    created = [pod.created for pod in _later_pods(context, run, child)]
    times = [time for time in (*created, child.completed, child.failed) if time and time > run.start_time]
    return min([latest, *times])


def _later_pods(context: Context, run: CurrentRun, child: Job) -> list[Pod]:
    """Return the pods of rank 0 that the run's Job created after that of the run."""
    began = run.start_time
    if began is None or child.attempt != run.attempt:
        return []
    # By the clock of its node, a run may have begun some seconds before its own pod or an earlier one was created.
    known = {run.pod_uid, *(one.pod_uid for one in history(context.status))}
    pods = [pod for pod in context.observed.pods_of(child.uid) if pod.rank == 0 and pod.uid not in known]
    return [pod for pod in pods if pod.created and pod.created > began]


def _outcome_of_unseen(context: Context, run: CurrentRun, child: Job | None) -> PodOutcome:
    message = "the pod's exit status was not observed"
    if run.stopping_reason == Reason.NO_PROGRESS:
        return PodOutcome(RESULT_FAILED, Reason.NO_PROGRESS, STALLED)
    if child is None:
        return PodOutcome(RESULT_FAILED, Reason.JOB_DELETED, "the Job was deleted while the pod ran")
    if child.failed_pods > _failed_of(context.status, child):
        return PodOutcome(RESULT_FAILED, Reason.UNOBSERVED, message)
    if child.completed and not _later_pods(context, run, child):
        return PodOutcome(
            RESULT_FAILED, Reason.RESULT_MISSING, "the pod exited with 0, and its report was not observed"
        )
    if run.stopping_reason == Reason.USER_REQUESTED:
        return PodOutcome(RESULT_SUSPENDED, Reason.USER_REQUESTED, message)
    return PodOutcome(RESULT_PREEMPTED, run.stopping_reason or Reason.UNOBSERVED, run.stopping_message or message)


def _record_unseen_failures(context: Context, attempts: Sequence[Job]) -> None:
    """Count failed pods of the current Job without a recorded run: they ended and were deleted while the operator was
    down."""
    status = context.status
    current = next((one for one in attempts if status.job_ref and one.uid == status.job_ref.uid), None)
    if current is None or status.job_ref is None or status.current_run:
        return
    missing = current.failed_pods - _failed_of(status, current)
    if missing > 0 and current.nodes > 1:
        _record_without_run(context, current)
    elif missing > 0:
        counters.add_failures(status, Reason.UNOBSERVED, missing)
        status.runs = (status.runs or 0) + missing
        bookkeeping.record(status, counted_job_failures=current.failed_pods)


def _record_without_run(context: Context, child: Job) -> None:
    """Record a failure of another rank while the first pod did not run, once all pods have ended.

    After the first pod has published, the ends of the others count only if they failed the Job.
    """
    status, pods = context.status, context.observed.pods_of(child.uid)
    is_done = child.completed is not None or (has_succeeded(status, child) and child.failed is None)
    if is_done or any(not pod.is_over for pod in pods):
        return
    cause = rank_outcomes.first_cause(_ends_of_peers(context, pods, child))
    if cause and cause.outcome.result == RESULT_PREEMPTED:
        preemptions.add(status, cause.outcome.reason)
    else:
        counters.add_failures(status, cause.named().reason if cause else Reason.UNOBSERVED)
    if cause and cause.pod:
        run = _begin_run(context, cause.pod, child.attempt)
        run.start_time = None  # its time is part of the first pod's runs
        entry = _end_run(context, run, End(cause.named(), cause.pod), _times(context, cause.pod)[1], {})
        status.history = [*history(status), entry][-HISTORY:]
    status.runs = (status.runs or 0) + 1
    bookkeeping.record(status, counted_job_failures=1)


def has_succeeded(status: FineTuneJobStatus, child: Job) -> bool:
    """Return whether a run of that Job has published; the Job completes within seconds."""
    return any(run.attempt == child.attempt and run.result == RESULT_SUCCEEDED for run in history(status))


def has_stalled(status: FineTuneJobStatus) -> bool:
    """Return whether the operator stopped the last run because it made no progress."""
    known = history(status)
    return bool(known) and known[-1].reason == Reason.NO_PROGRESS and known[-1].attempt == status.attempts


def has_ended_by_deletion(status: FineTuneJobStatus) -> bool:
    """Return whether the deletion of the Job is observed to have ended its last pod, which then published nothing."""
    known = history(status)
    return bool(known) and known[-1].reason == Reason.JOB_DELETED and bool(known[-1].exit_code)


def last_sentence(status: FineTuneJobStatus, result: str | None = None) -> str:
    """Return reason and message of the last run, or of the last one with that result."""
    known = [run for run in history(status) if result in {None, run.result}]
    return f"{known[-1].reason}: {known[-1].message or ''}".rstrip(": ") if known else ""


def dataset_sentence(dataset: DatasetStatus | None) -> str:
    """Return the counts of a valid dataset as a sentence."""
    if dataset is None or dataset.rows is None:
        return "Dataset, model and storage are usable."
    sentence = f"{dataset.accepted_rows or 0} of {dataset.rows} rows can be trained on"
    if dataset.rejected_rows:
        codes = ", ".join(f"{code} {count}" for code, count in sorted((dataset.rejected_rows_by_code or {}).items()))
        sentence += f"; {dataset.rejected_rows} rejected ({codes})" if codes else f"; {dataset.rejected_rows} rejected"
    return f"{sentence}."
