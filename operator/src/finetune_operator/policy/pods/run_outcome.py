"""Judge an ended pod by the exit table, and by its report if that can be trusted."""

import json
import re
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from finetune_api.handoff import (
    TERMINAL_EXIT_CODES,
    TERMINATION_LIMIT_BYTES,
    ExitCode,
    HandoffBlock,
    Outcome,
    Report,
    config_sha256,
)
from finetune_api.names import Reason
from finetune_operator.kube.objects import FineTuneJob, Job
from finetune_operator.kube.pod import Pod
from finetune_operator.policy import remediation

M = TypeVar("M", bound=HandoffBlock)
RESULT_SUCCEEDED = "Succeeded"
RESULT_FAILED = "Failed"
RESULT_PREEMPTED = "Preempted"
RESULT_SUSPENDED = "Suspended"
LOG_TAIL = 300
_PASSING = re.compile(r"UnexpectedAdmissionError|TopologyAffinityError|OutOf\S+")
"""Reasons of the kubelet that depend on what else the node holds, or on a device plugin that restarts."""
_NO_CONTAINER = "ContainerStatusUnknown"
"""The kubelet's reason, with exit code 137, for a container that it does not have when its pod ends."""
_EXIT_IN_MESSAGE = re.compile(r"exit code (\d+)")


@dataclass(frozen=True)
class PodOutcome:
    """How one ended pod counts."""

    result: str
    reason: str
    message: str
    is_terminal: bool = False
    report: Report | None = None
    is_rejection: bool = False
    """Whether the kubelet rejected the pod for a reason that passes; the Job controller counts it as failed."""

    @property
    def is_proven(self) -> bool:
        """Whether a trusted report makes it final, whatever has become of its Job."""
        return self.report is not None and (self.result == RESULT_SUCCEEDED or self.is_terminal)


def read_report(pod: Pod, job: FineTuneJob) -> Report | None:
    """Return the pod's report if it is small, well-formed, and echoes this job's UID and config digest, else None.

    The caller must have checked that the pod's controller is a Job of this FineTuneJob.
    """
    report = parse_message(pod, Report)
    if job.spec is None or report is None:
        return None
    is_ours = report.job_uid == job.uid and report.config_sha256 == config_sha256(job.spec)
    return report if is_ours else None


def parse_message(pod: Pod, model: type[M]) -> M | None:
    """Return the document in the pod's termination message if it is small and well-formed, else None."""
    if not pod.message or len(pod.message.encode()) > TERMINATION_LIMIT_BYTES:
        return None
    try:
        return model.model_validate(json.loads(pod.message, parse_constant=_refuse))
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")


def judge(pod: Pod, report: Report | None, *, failed_unseen: bool = False) -> PodOutcome:
    """Return the outcome by the exit table; `failed_unseen`: the Job counts a failed pod that was not observed."""
    code = pod.exit_code
    if code == ExitCode.OK:
        return _judge_success(report)
    if code in TERMINAL_EXIT_CODES:
        reason = ExitCode(code).reason
        return PodOutcome(RESULT_FAILED, reason, _message(pod, report, reason), is_terminal=True, report=report)
    is_disrupted = bool(pod.disruption) and code != ExitCode.GPU_FAULT
    if code == ExitCode.PREEMPTED or is_disrupted:  # by the first rule that matches, as the Job's podFailurePolicy
        lost_peer = report is not None and report.reason == Reason.PEER_LOST
        reason = pod.disruption or (Reason.PEER_LOST if lost_peer else Reason.PREEMPTED)
        return PodOutcome(RESULT_PREEMPTED, reason[:64], _message(pod, report, reason), report=report)
    if absent := _explain_absent_container(pod):
        return PodOutcome(RESULT_FAILED, Reason.UNOBSERVED, absent)
    if code is None:
        return _judge_without_code(pod, failed_unseen=failed_unseen)
    reason = _counted_reason(pod, code, report)
    return PodOutcome(RESULT_FAILED, reason, _message(pod, report, reason), report=report)


def _judge_without_code(pod: Pod, *, failed_unseen: bool) -> PodOutcome:
    """Judge a pod that the kubelet rejected or evicted before its container ended, or whose end was not observed."""
    if pod.phase == "Failed":
        reason = _eviction(pod) or Reason.POD_REJECTED
        is_rejected = reason is Reason.POD_REJECTED
        words = f"{pod.container_reason}: {pod.message}" if is_rejected else pod.message
        passes = is_rejected and bool(_PASSING.fullmatch(pod.container_reason))
        result = RESULT_PREEMPTED if passes else RESULT_FAILED
        return PodOutcome(result, reason, remediation.append_fix(reason, words[:LOG_TAIL]), is_rejection=passes)
    result = RESULT_FAILED if failed_unseen else RESULT_PREEMPTED
    return PodOutcome(result, Reason.UNOBSERVED, pod.message[:LOG_TAIL] or "the pod's exit status was not observed")


def _explain_absent_container(pod: Pod) -> str:
    """Return what a deleted pod shows that had no container to stop; "" if it had one. Its Job counts a failure."""
    if pod.deleting is None or pod.started is not None:
        return ""
    if pod.container_reason == _NO_CONTAINER:
        return "the pod was deleted, and its node had no container of it: it had not started, or was lost"
    is_without_cause = pod.exit_code is None and not pod.container_reason and not pod.message
    return "the pod was deleted before its container started" if is_without_cause and pod.phase == "Failed" else ""


def _eviction(pod: Pod) -> Reason | None:
    if not pod.evicted:
        return None
    return Reason.WORKSPACE_FULL if remediation.is_disk_eviction(pod.evicted) else Reason.EVICTED


def _judge_success(report: Report | None) -> PodOutcome:
    is_published = report is not None and report.outcome in {Outcome.PUBLISHED, Outcome.ADOPTED}
    if report and is_published and report.artifacts and report.artifacts.manifest_sha256:
        return PodOutcome(RESULT_SUCCEEDED, Reason.SUCCEEDED, report.message, report=report)
    if report and report.outcome is Outcome.TRAINED and report.checkpoint:
        return PodOutcome(RESULT_SUCCEEDED, Reason.TRAINED, report.message, report=report)
    return PodOutcome(
        RESULT_FAILED, Reason.RESULT_MISSING, "the trainer exited with 0 without reporting a published result"
    )


def _counted_reason(pod: Pod, code: int, report: Report | None) -> str:
    if pod.container_reason == "OOMKilled":
        return Reason.OUT_OF_MEMORY
    if eviction := _eviction(pod):
        return eviction
    if code == ExitCode.INTERNAL_ERROR and report and report.reason == Reason.WORKSPACE_FULL:
        return Reason.WORKSPACE_FULL
    known = {member.value for member in ExitCode}
    return ExitCode(code).reason if code in known else Reason.CONTAINER_ERROR


def _message(pod: Pod, report: Report | None, reason: str) -> str:
    """Return the report's message, else the kubelet's or the last line of the container's log, with the fix."""
    if report:
        return report.message
    if reason in remediation.DISRUPTIONS:
        return remediation.DISRUPTIONS[reason]
    if pod.evicted:
        return remediation.append_fix(reason, pod.evicted[:LOG_TAIL])
    if reason == Reason.OUT_OF_MEMORY:
        return remediation.append_fix(reason, "the container ran out of memory")
    lines = [line.strip() for line in pod.message.splitlines() if line.strip()]
    words = [line for line in lines if not line.startswith("{")]  # a progress line is not a cause
    tail = words[-1][:LOG_TAIL] if words else f"the container ended with exit code {pod.exit_code}"
    by_code = remediation.HINTS_BY_EXIT_CODE.get(pod.exit_code or 0)
    return f"{tail}: {by_code}" if by_code else remediation.append_fix(reason, tail)


def exit_code_of_failed_job(child: Job) -> int:
    """Return the exit code in the Job controller's message; -1 without one."""
    found = _EXIT_IN_MESSAGE.search(child.failed_message)
    return int(found.group(1)) if found else -1


def reason_of_failed_job(child: Job) -> str | None:
    """Return the exit table's reason from the Job controller's message, for a Job whose pods are gone."""
    code = exit_code_of_failed_job(child)
    return ExitCode(code).reason if code in TERMINAL_EXIT_CODES else None


def explain_foreign_deadline(child: Job) -> str:
    """Return how long a Job ran that a deadline has ended, which the operator never sets; "" if it ended otherwise."""
    is_late = child.failed_reason == Reason.DEADLINE_EXCEEDED
    return f"longer than the activeDeadlineSeconds of Job {child.name}, which another client has set" if is_late else ""
