"""Turn ended pods into runs: each is counted once, by its pod's UID, and counters never decrease."""

from collections.abc import Sequence
from datetime import datetime

from finetune_api.names import Reason
from finetune_api.status import CurrentRun, FineTuneJobStatus, Run
from finetune_operator.kube.objects import Job
from finetune_operator.kube.pod import Pod
from finetune_operator.policy.decision import Context, Effect, requeue_in
from finetune_operator.policy.history import bookkeeping, clocks, counters, preemptions, run_ends, runs
from finetune_operator.policy.pods import rank_outcomes
from finetune_operator.policy.pods.rank_outcomes import End
from finetune_operator.policy.pods.run_outcome import RESULT_FAILED, RESULT_PREEMPTED, PodOutcome

Steps = dict[str, int | None]


def record_ended(context: Context, attempts: Sequence[Job]) -> Effect:
    """Record the ended pods of this job's attempts that are not in the history yet; requeue for those not decided."""
    status, effect = context.status, Effect()
    by_uid = {child.uid: child for child in attempts}
    deleted = {status.job_ref.uid} - by_uid.keys() if status.job_ref else set()
    for pod in _ended(context, [*by_uid, *deleted]):
        effect += _record_ended_pod(context, pod, by_uid.get(pod.job_uid))
    effect += _record_missing(context, attempts)
    _record_unseen_failures(context, attempts)
    return effect


def _record_ended_pod(context: Context, pod: Pod, child: Job | None) -> Effect:
    """Record an ended pod of rank 0, unless it is recorded or another pod's end may still change how it counts."""
    status, ended = context.status, _times(context, pod)[1]
    if not runs.is_counted(status, pod.uid, ended, pod.created):
        end, seconds_to_wait = run_ends.decide_end(context, pod, child)
        if seconds_to_wait:
            return requeue_in(seconds_to_wait)
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
    if runs.current_run_of(status, pod):
        bookkeeping.record_current_run(status, None)
    return Effect()


def record_running(context: Context, child: Job, pod: Pod) -> None:
    """Record the running pod; if the end of the pod before was not observed, it ends now."""
    status = context.status
    if runs.current_run_of(status, pod):
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
    status.history = [*runs.history(status), run][-runs.HISTORY :]
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
    if not is_single and runs.count_failures(status, child):
        return
    is_the_jobs = outcome.reason != (Reason.RESULT_MISSING if is_single else Reason.NO_PROGRESS)
    if outcome.result == RESULT_FAILED:
        counters.add_failures(status, outcome.reason)
    if status.job_ref and is_the_jobs and (outcome.result == RESULT_FAILED or outcome.is_rejection):
        counted = bookkeeping.read(status).counted_job_failures or 0
        bookkeeping.record(status, counted_job_failures=counted + 1)
    if outcome.result == RESULT_PREEMPTED:
        preemptions.add(status, outcome.reason)


def _record_followed(context: Context, pod: Pod, child: Job) -> None:
    """Record the current run before the pod of its Job that followed it, if its own is gone: it has ended before.

    If the Job counts a failure more, either may be meant, and the other pods come first.
    """
    run = context.status.current_run
    if run is None or not run_ends.is_pod_missing(context):
        return
    is_open = child.failed_pods > runs.count_failures(context.status, child)
    if not is_open and pod in run_ends.find_later_pods(context, run, child):
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
    left = run_ends.UNSEEN_SECONDS - (context.observed.now - since).total_seconds()
    if left > 0:
        return requeue_in(left)
    _record_unseen_end(context, run, next((one for one in attempts if one.attempt == run.attempt), None))
    return Effect()


def _record_unseen_end(context: Context, run: CurrentRun, child: Job | None) -> None:
    end = run_ends.decide_unseen_end(context, run, child)
    record_cut(context, run, end)
    if child:
        _record_counters(context.status, end.outcome, child)


def record_cut(context: Context, run: CurrentRun, end: End, *, ended: datetime | None = None) -> None:
    """End the current run without its pod's report, by default now; only its time is counted."""
    child = next((one for one in context.observed.own if one.attempt == run.attempt), None)
    cut = _end_run(context, run, end, ended or _latest_end(context, run, child), _steps(context, run))
    record_run(context, cut, child)
    bookkeeping.record_current_run(context.status, None)


def _latest_end(context: Context, run: CurrentRun, child: Job | None) -> datetime:
    """Return when a run whose end was not observed has ended: at the latest when its Job created the next pod, or
    ended."""
    latest = bookkeeping.read(context.status).pod_missing_since_time or context.observed.now
    if child is None or run.start_time is None:
        return latest
    created = [pod.created for pod in run_ends.find_later_pods(context, run, child)]
    times = [time for time in (*created, child.completed, child.failed) if time and time > run.start_time]
    return min([latest, *times])


def _record_unseen_failures(context: Context, attempts: Sequence[Job]) -> None:
    """Count failed pods of the current Job without a recorded run: they ended and were deleted while the operator was
    down."""
    status = context.status
    current = next((one for one in attempts if status.job_ref and one.uid == status.job_ref.uid), None)
    if current is None or status.job_ref is None or status.current_run:
        return
    missing = current.failed_pods - runs.count_failures(status, current)
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
    is_done = child.completed is not None or (runs.has_succeeded(status, child) and child.failed is None)
    if is_done or any(not pod.is_over for pod in pods):
        return
    cause = rank_outcomes.first_cause(run_ends.ends_of_peers(context, pods, child))
    if cause and cause.outcome.result == RESULT_PREEMPTED:
        preemptions.add(status, cause.outcome.reason)
    else:
        counters.add_failures(status, cause.named().reason if cause else Reason.UNOBSERVED)
    if cause and cause.pod:
        run = _begin_run(context, cause.pod, child.attempt)
        run.start_time = None  # its time is part of the first pod's runs
        entry = _end_run(context, run, End(cause.named(), cause.pod), _times(context, cause.pod)[1], {})
        status.history = [*runs.history(status), entry][-runs.HISTORY :]
    status.runs = (status.runs or 0) + 1
    bookkeeping.record(status, counted_job_failures=1)
