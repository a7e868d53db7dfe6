"""Ended pods become runs: each is counted once, by its pod's UID, and counters only grow."""

from collections.abc import Sequence

from finetune_api.names import Reason
from finetune_api.status import DatasetStatus, FineTuneJobStatus, Run
from finetune_operator.evidence import RESULT_FAILED, RESULT_PREEMPTED, RESULT_SUCCEEDED, Verdict, judge
from finetune_operator.objects import ChildJob, Pod
from finetune_operator.state import Observed

HISTORY = 10


def of(status: FineTuneJobStatus) -> list[Run]:
    """The known runs, oldest first."""
    return status.history or []


def fold(status: FineTuneJobStatus, seen: Observed, attempts: Sequence[ChildJob]) -> None:
    """Counts the ended pods of this job's attempts that are not in the history yet."""
    number = {child.uid: child.attempt for child in attempts}
    deleted = status.job_ref.uid if status.job_ref and status.job_ref.uid not in number else None
    for pod in _ended(seen, [*number, *([deleted] if deleted else [])]):
        if _is_counted(status, pod):
            continue
        if pod.job_uid == deleted:
            verdict = Verdict(RESULT_FAILED, Reason.JOB_DELETED, "the Job was deleted while the pod ran")
            _append(status, pod, verdict, status.attempts or 1, _last_step(status, seen, pod, verdict))
            continue
        child = next(one for one in attempts if one.uid == pod.job_uid)
        verdict = judge(pod, seen.job, failed_unseen=child.failed_pods > _failed(status, child))
        _append(status, pod, verdict, child.attempt, _last_step(status, seen, pod, verdict))
        _count(status, verdict)
    _count_unseen(status, attempts)


def _ended(seen: Observed, job_uids: Sequence[str]) -> list[Pod]:
    pods = [pod for uid in job_uids for pod in seen.pods_of(uid) if pod.counts_as_run]
    return sorted(pods, key=lambda pod: (pod.ended or seen.now, pod.name))


def _is_counted(status: FineTuneJobStatus, pod: Pod) -> bool:
    """In the history, or older than all of a full history, from which it has dropped out."""
    known = of(status)
    if any(run.pod_uid == pod.uid for run in known):
        return True
    oldest = known[0].end_time if len(known) >= HISTORY else None
    return oldest is not None and pod.ended is not None and pod.ended <= oldest


def _append(status: FineTuneJobStatus, pod: Pod, verdict: Verdict, attempt: int, last_step: int | None) -> None:
    status.runs = (status.runs or 0) + 1
    run = Run(
        run=status.runs,
        attempt=attempt,
        pod_name=pod.name,
        pod_uid=pod.uid,
        node=pod.node,
        start_time=pod.started,
        end_time=pod.ended,
        result=verdict.result,
        reason=verdict.reason,
        message=verdict.message[:1024],
        exit_code=pod.exit_code,
        last_step=last_step,
    )
    status.history = [*of(status), run][-HISTORY:]
    if pod.started:
        status.start_time = status.start_time or pod.started


def _last_step(status: FineTuneJobStatus, seen: Observed, pod: Pod, verdict: Verdict) -> int | None:
    if verdict.report and verdict.report.last_step is not None:
        return verdict.report.last_step
    if seen.reading and seen.reading.pod_uid == pod.uid and seen.reading.report:
        return seen.reading.report.progress.step
    return None


def _count(status: FineTuneJobStatus, verdict: Verdict) -> None:
    if verdict.result == RESULT_FAILED:
        status.failures = (status.failures or 0) + 1
    if verdict.result == RESULT_PREEMPTED:
        status.preemptions = (status.preemptions or 0) + 1


def _failed(status: FineTuneJobStatus, child: ChildJob) -> int:
    return sum(run.attempt == child.attempt and run.result == RESULT_FAILED for run in of(status))


def _count_unseen(status: FineTuneJobStatus, attempts: Sequence[ChildJob]) -> None:
    """Failed pods that the current Job has counted and that nobody saw: the operator was down, the pod is gone."""
    current = next((one for one in attempts if status.job_ref and one.uid == status.job_ref.uid), None)
    if current is None or len(of(status)) >= HISTORY:
        return
    already = _failed(status, current) + _unseen_before(status)
    if current.failed_pods > already:
        missing = current.failed_pods - already
        status.failures = (status.failures or 0) + missing
        status.runs = (status.runs or 0) + missing


def _unseen_before(status: FineTuneJobStatus) -> int:
    """Runs that were counted without a line in the history."""
    return max(0, (status.runs or 0) - len(of(status)))


def has_succeeded(status: FineTuneJobStatus, child: ChildJob) -> bool:
    """Whether a run of that Job has published; the Job's own end follows within seconds."""
    return any(run.attempt == child.attempt and run.result == RESULT_SUCCEEDED for run in of(status))


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
