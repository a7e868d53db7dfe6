"""Ended pods become runs: each is counted once, by its pod's UID, and counters only grow."""

from collections.abc import Sequence
from datetime import datetime

from finetune_api.names import Reason
from finetune_api.status import CurrentRun, DatasetStatus, FineTuneJobStatus, PreflightRuns, Run
from finetune_operator.kube.objects import Job, Pod
from finetune_operator.policy import counters, kueue, rank_outcomes
from finetune_operator.policy.decision import Draft
from finetune_operator.policy.rank_outcomes import End
from finetune_operator.policy.run_outcome import (
    RESULT_FAILED,
    RESULT_PREEMPTED,
    RESULT_SUCCEEDED,
    RESULT_SUSPENDED,
    PodOutcome,
    judge,
    suspended_since,
)

HISTORY = 10
STALLED = "it answered, but did not move for stallTimeoutSeconds: raise it if a step may take that long"
UNSEEN_SECONDS = 5.0
"""For how long the end of a pod that is gone may still arrive as a watch event."""


def of(status: FineTuneJobStatus) -> list[Run]:
    """The known runs, oldest first."""
    return status.history or []


def fold(draft: Draft, attempts: Sequence[Job]) -> None:
    """Counts the ended pods of this job's attempts that are not in the history yet."""
    status = draft.status
    number = {child.uid: child for child in attempts}
    deleted = status.job_ref.uid if status.job_ref and status.job_ref.uid not in number else None
    for pod in _ended(draft, [*number, *([deleted] if deleted else [])]):
        if not is_counted(status, pod.uid, pod.ended):
            child = number.get(pod.job_uid)
            end = _end_of(draft, pod, child)
            if end is None:
                continue
            if child:
                _count(status, end.verdict, child)
            run = _ended_run(draft, pod, end, child)
            append(draft, run, child)
            if child is None or child.nodes == 1 or run.last_step:  # else it may have waited for the others
                status.start_time = status.start_time or run.start_time
            if end.verdict.report and end.verdict.report.checkpoint:
                status.checkpoint = end.verdict.report.checkpoint
        if status.current_run and status.current_run.pod_uid == pod.uid:
            status.current_run = None
    _settle_missing(draft, attempts)
    _count_unseen(draft, attempts)


def fold_preflight(draft: Draft, pods: tuple[Pod, ...]) -> None:
    """Counts preempted preflight pods, of which there is one after the other."""
    known = draft.status.preflight or PreflightRuns()
    for pod in pods:
        if not pod.counts_as_run or pod.created is None or _is_suspension(draft, pod):
            continue
        last = (known.last_pod_time, known.last_pod_name or "")
        if last[0] is not None and (pod.created, pod.name) <= last:
            continue
        if judge(pod, draft.observed.job).result == RESULT_PREEMPTED:
            count = (known.preemptions or 0) + 1
            known = PreflightRuns(preemptions=count, last_pod_name=pod.name, last_pod_time=pod.created)
            draft.status.preflight = known


def note_running(draft: Draft, child: Job, pod: Pod) -> None:
    """Writes down which pod runs; the one before it, if nobody saw its end, has ended."""
    status = draft.status
    if status.current_run and status.current_run.pod_uid == pod.uid:
        return
    if status.current_run:
        _settle(draft, status.current_run, child)
    status.current_run = CurrentRun(
        attempt=child.attempt, pod_name=pod.name, pod_uid=pod.uid, node=pod.node, start_time=pod.started
    )


def _ended(draft: Draft, job_uids: Sequence[str]) -> list[Pod]:
    """A run is a pod of the first rank; the ends of the others tell why it ended."""
    observed = draft.observed
    pods = [pod for uid in job_uids for pod in observed.pods_of(uid) if pod.counts_as_run and pod.rank == 0]
    return sorted(pods, key=lambda pod: (pod.ended or observed.now, pod.name))


def is_counted(status: FineTuneJobStatus, pod_uid: str, ended: datetime | None) -> bool:
    """In the history, or older than all of a full history, from which it has dropped out."""
    known = of(status)
    if any(run.pod_uid == pod_uid for run in known):
        return True
    oldest = known[0].end_time if len(known) >= HISTORY else None
    return oldest is not None and ended is not None and ended <= oldest


def _end_of(draft: Draft, pod: Pod, child: Job | None) -> End | None:
    """How a run counts; None while another pod's end may still tell why."""
    own = End(_judge(draft, pod, child), pod)
    run = _running(draft.status, pod)
    if child is None or child.nodes == 1 or (run and run.stopping):  # all were stopped: none is the others' cause
        return own
    pods = draft.observed.pods_of(child.uid)
    is_last = rank_outcomes.is_last(pod, pods)
    peers = pods if is_last and child.failed_pods else rank_outcomes.of_the_time(pod, pods)
    is_unseen = is_last and child.failed_pods > _failed_of(draft.status, child)
    end = rank_outcomes.settle(own, _ends_of_peers(draft, peers, child), unseen=is_unseen)
    is_open = end.verdict.result == RESULT_PREEMPTED or end.pod is None or (end.pod is pod and bool(pod.deleting))
    left = rank_outcomes.seconds_to_wait(pod, pods, draft.observed.now) if is_open else 0.0
    if left:
        draft.decision.again_in(left)
    return None if left else end


def _ends_of_peers(draft: Draft, pods: Sequence[Pod], child: Job) -> list[End]:
    return [End(_judge(draft, pod, child), pod) for pod in pods if pod.rank and pod.counts_as_run]


def _judge(draft: Draft, pod: Pod, child: Job | None) -> PodOutcome:
    """The cause decides before the exit code does: what the operator, or who suspended the Job, has stopped."""
    status = draft.status
    failed_unseen = child is not None and child.failed_pods > _failed_of(status, child)
    verdict = judge(pod, draft.observed.job, failed_unseen=failed_unseen)
    run = _running(status, pod)
    if run and run.stopping == Reason.NO_PROGRESS:
        return PodOutcome(RESULT_FAILED, Reason.NO_PROGRESS, STALLED, report=verdict.report)
    if child is None:
        return PodOutcome(RESULT_FAILED, Reason.JOB_DELETED, "the Job was deleted while the pod ran")
    if verdict.result == RESULT_SUCCEEDED or not pod.deleting:
        return verdict
    return _of_suspension(draft, pod, child, verdict) or verdict


def _running(status: FineTuneJobStatus, pod: Pod) -> CurrentRun | None:
    """What is written of that pod as the one that runs."""
    return status.current_run if status.current_run and status.current_run.pod_uid == pod.uid else None


def _of_suspension(draft: Draft, pod: Pod, child: Job, verdict: PodOutcome) -> PodOutcome | None:
    """The verdict on a pod that was told to end with its Job: the user wanted it, Kueue, or somebody else.

    Kubernetes counts no pod that ends so, however it does.
    """
    run = _running(draft.status, pod)
    is_stopped = run is not None and run.stopping == Reason.USER_REQUESTED
    evicted = kueue.eviction(draft, child)
    if evicted and not is_stopped:
        return PodOutcome(RESULT_PREEMPTED, *evicted, report=verdict.report)
    if run and run.stopping and not is_stopped:
        return PodOutcome(
            RESULT_PREEMPTED, run.stopping, run.stopping_message or verdict.message, report=verdict.report
        )
    workload = draft.observed.workload_of(child)
    is_ours = child.is_suspended and child.is_ours_to_resume
    is_ours = is_ours or (workload is not None and not workload.is_active and workload.is_ours_to_activate)
    if is_stopped or _is_suspension(draft, pod) or is_ours:
        return PodOutcome(RESULT_SUSPENDED, Reason.USER_REQUESTED, verdict.message, report=verdict.report)
    if child.is_suspended:
        return PodOutcome(RESULT_PREEMPTED, Reason.JOB_SUSPENDED, verdict.message, report=verdict.report)
    return None


def _is_suspension(draft: Draft, pod: Pod) -> bool:
    """Whether the pod was deleted after the user's wish to suspend had been written."""
    since = suspended_since(draft.stored)
    return since is not None and pod.deletion_requested is not None and pod.deletion_requested >= since


def _ended_run(draft: Draft, pod: Pod, end: End, child: Job | None) -> Run:
    verdict = end.verdict
    return Run(
        run=(draft.status.runs or 0) + 1,
        attempt=child.attempt if child else draft.status.attempts or 1,
        pod_name=pod.name,
        pod_uid=pod.uid,
        node=pod.node,
        start_time=pod.started,
        end_time=pod.ended,
        result=verdict.result,
        reason=verdict.reason,
        message=verdict.message[:1024],
        exit_code=(end.pod or pod).exit_code,
        **_steps(draft, pod.uid, pod.started, verdict),
    )


def append(draft: Draft, run: Run, child: Job | None) -> None:
    """Adds a run to the history, which keeps the last ten, and its time to the job's."""
    status = draft.status
    status.runs = run.run
    status.history = [*of(status), run][-HISTORY:]
    if run.start_time and run.end_time:
        resources = draft.spec.resources  # of a Job that is gone nobody knows what it had
        gpus = child.gpus(resources.gpu_resource_name) if child else resources.nodes * resources.gpus_per_node
        counters.add_time(status, int((run.end_time - run.start_time).total_seconds()), gpus)


def _steps(
    draft: Draft, pod_uid: str, started: datetime | None, verdict: PodOutcome | None = None
) -> dict[str, int | None]:
    """Where a run began and where it ended: from its report, its last answer, or what an earlier look wrote of it."""
    reading, progress = draft.observed.reading, draft.status.progress
    report = verdict.report if verdict else None
    if report and report.last_step is not None:
        return {"last_step": report.last_step, "resumed_from_step": report.resumed_from_step}
    if reading and reading.pod_uid == pod_uid and reading.report:
        progress = reading.report.progress
    elif not (progress and progress.last_updated_time and started and progress.last_updated_time >= started):
        return {}
    return {"last_step": progress.step, "resumed_from_step": progress.resumed_from_step}


def _count(status: FineTuneJobStatus, verdict: PodOutcome, child: Job) -> None:
    """Of many pods the first failure ends the Job, so that nothing counts after it."""
    is_single = child.nodes == 1
    if not is_single and _failed_of(status, child):
        return
    is_the_jobs = verdict.reason != (Reason.RESULT_MISSING if is_single else Reason.NO_PROGRESS)
    if verdict.result == RESULT_FAILED:
        counters.add_failures(status, verdict.reason)
        if status.job_ref and is_the_jobs:
            status.job_ref.failures = (status.job_ref.failures or 0) + 1
    if verdict.result == RESULT_PREEMPTED:
        counters.add_preemption(status, verdict.reason)


def _failed_of(status: FineTuneJobStatus, child: Job) -> int:
    """Failed pods of that Job that are counted."""
    if status.job_ref and status.job_ref.uid == child.uid:
        return status.job_ref.failures or 0
    return sum(run.attempt == child.attempt and run.result == RESULT_FAILED for run in of(status))


def _settle_missing(draft: Draft, attempts: Sequence[Job]) -> None:
    """A run whose pod is gone: its end may still be on its way; after a while it counts as what its Job says."""
    run = draft.status.current_run
    if run is None:
        return
    if any(pod.uid == run.pod_uid for pod in draft.observed.pods):
        run.missing_since = None
        return
    run.missing_since = run.missing_since or draft.observed.now
    left = UNSEEN_SECONDS - (draft.observed.now - run.missing_since).total_seconds()
    if left > 0:
        draft.decision.again_in(left)
        return
    _settle(draft, run, next((one for one in attempts if one.attempt == run.attempt), None))


def _settle(draft: Draft, run: CurrentRun, child: Job | None) -> None:
    end = _unseen_end(draft, run, child)
    verdict = end.verdict
    cut(draft, run, verdict.reason, verdict.message, verdict.result, end.pod.exit_code if end.pod else None)
    if child:
        _count(draft.status, verdict, child)


def _unseen_end(draft: Draft, run: CurrentRun, child: Job | None) -> End:
    """What its Job says, unless another pod of that time has failed."""
    own = End(_judge_unseen(draft, run, child), None)
    if child is None or child.nodes == 1 or own.verdict.reason != Reason.UNOBSERVED:
        return own
    pods = draft.observed.pods_of(child.uid)
    since = [pod for pod in pods if pod.ended and (run.start_time is None or pod.ended >= run.start_time)]
    cause = rank_outcomes.first_cause(_ends_of_peers(draft, since, child))
    return End(cause.named(), cause.pod) if cause else own


def cut(  # noqa: PLR0917
    draft: Draft,
    run: CurrentRun,
    reason: str,
    message: str,
    result: str = RESULT_FAILED,
    exit_code: int | None = None,
) -> None:
    """Ends the run that is written down as running, without its pod's own word; counts nothing but its time."""
    status = draft.status
    child = next((one for one in draft.observed.own if one.attempt == run.attempt), None)
    ended = Run(
        run=(status.runs or 0) + 1,
        attempt=run.attempt,
        pod_name=run.pod_name,
        pod_uid=run.pod_uid,
        node=run.node,
        start_time=run.start_time,
        end_time=_latest_end(draft, run, child),
        result=result,
        reason=reason,
        message=message[:1024],
        exit_code=exit_code,
        **_steps(draft, run.pod_uid, run.start_time),
    )
    append(draft, ended, child)
    status.current_run = None


def _latest_end(draft: Draft, run: CurrentRun, child: Job | None) -> datetime:
    """When a run whose end nobody saw has ended: before its Job made the next pod, however late that is looked at."""
    pods = [pod for pod in draft.observed.pods_of(child.uid) if pod.rank == 0] if child and run.start_time else []
    later = [pod.created for pod in pods if pod.created and run.start_time and pod.created > run.start_time]
    return min([run.missing_since or draft.observed.now, *later])


def _judge_unseen(draft: Draft, run: CurrentRun, child: Job | None) -> PodOutcome:
    words = "nobody saw how the pod ended"
    if run.stopping == Reason.NO_PROGRESS:
        return PodOutcome(RESULT_FAILED, Reason.NO_PROGRESS, STALLED)
    if child is None:
        return PodOutcome(RESULT_FAILED, Reason.JOB_DELETED, "the Job was deleted while the pod ran")
    if child.failed_pods > _failed_of(draft.status, child):
        return PodOutcome(RESULT_FAILED, Reason.UNOBSERVED, words)
    if run.stopping == Reason.USER_REQUESTED:
        return PodOutcome(RESULT_SUSPENDED, Reason.USER_REQUESTED, words)
    return PodOutcome(RESULT_PREEMPTED, run.stopping or Reason.UNOBSERVED, run.stopping_message or words)


def _count_unseen(draft: Draft, attempts: Sequence[Job]) -> None:
    """Failed pods that the current Job has counted and that no run was: the operator was down, the pod is gone."""
    status = draft.status
    current = next((one for one in attempts if status.job_ref and one.uid == status.job_ref.uid), None)
    if current is None or status.job_ref is None or status.current_run:
        return
    missing = current.failed_pods - _failed_of(status, current)
    if missing > 0 and current.nodes > 1:
        _count_without_run(draft, current)
    elif missing > 0:
        counters.add_failures(status, Reason.UNOBSERVED, missing)
        status.runs = (status.runs or 0) + missing
        status.job_ref.failures = current.failed_pods


def _count_without_run(draft: Draft, child: Job) -> None:
    """Another pod has failed, and the first one has not run at that time: once all have ended, that is an entry too.

    After the first one has published, how the others end says nothing, unless the Job has failed for it.
    """
    status, pods = draft.status, draft.observed.pods_of(child.uid)
    is_done = child.completed is not None or (has_succeeded(status, child) and child.failed is None)
    if is_done or any(not pod.is_over for pod in pods):
        return
    cause = rank_outcomes.first_cause(_ends_of_peers(draft, pods, child))
    counters.add_failures(status, cause.named().reason if cause else Reason.UNOBSERVED)
    status.runs = (status.runs or 0) + 1
    if status.job_ref:
        status.job_ref.failures = 1
    if cause and cause.pod:
        verdict = cause.named()
        entry = Run(
            run=status.runs,
            attempt=child.attempt,
            pod_name=cause.pod.name,
            pod_uid=cause.pod.uid,
            node=cause.pod.node,
            end_time=cause.pod.ended,
            result=verdict.result,
            reason=verdict.reason,
            message=verdict.message[:1024],
            exit_code=cause.pod.exit_code,
        )
        status.history = [*of(status), entry][-HISTORY:]


def has_succeeded(status: FineTuneJobStatus, child: Job) -> bool:
    """Whether a run of that Job has published; the Job's own end follows within seconds."""
    return any(run.attempt == child.attempt and run.result == RESULT_SUCCEEDED for run in of(status))


def has_stalled(status: FineTuneJobStatus) -> bool:
    """Whether the last run was stopped by the operator because it did not move."""
    known = of(status)
    return bool(known) and known[-1].reason == Reason.NO_PROGRESS and known[-1].attempt == status.attempts


def last_sentence(status: FineTuneJobStatus, result: str | None = None) -> str:
    """How the last run, or the last one with that result, ended."""
    known = [run for run in of(status) if result in {None, run.result}]
    return f"{known[-1].reason}: {known[-1].message or ''}".rstrip(": ") if known else ""


def dataset_sentence(dataset: DatasetStatus | None) -> str:
    """The counts of a valid dataset."""
    if dataset is None or dataset.rows is None:
        return "Dataset, model and storage are usable."
    sentence = f"{dataset.accepted or 0} of {dataset.rows} rows can be trained on"
    if dataset.rejected:
        codes = ", ".join(f"{code} {count}" for code, count in sorted((dataset.rejected_by_code or {}).items()))
        sentence += f"; {dataset.rejected} rejected ({codes})" if codes else f"; {dataset.rejected} rejected"
    return f"{sentence}."
