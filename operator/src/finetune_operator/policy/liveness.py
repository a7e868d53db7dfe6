"""Condition Running of a running trainer: what it last reported, and the likely reason if it makes no progress.

Times are absolute, so that the text, and with it the status, changes only with the state.
"""

from datetime import datetime, timedelta

from finetune_api.names import ConditionType, Reason
from finetune_api.status import Progress
from finetune_operator.kube.objects import Job
from finetune_operator.kube.observed import Reading
from finetune_operator.kube.pod import Pod
from finetune_operator.policy.decision import Context, Effect, set_condition
from finetune_operator.policy.pods import pod_diagnosis

C, R = ConditionType, Reason
QUIET_SECONDS = 120.0
"""Seconds without progress after which the condition shows it; less if half of stallTimeoutSeconds is."""
WITHOUT_CPU = "the pod requests no CPU, so that other pods of its node come first: set resources.requests"
_NO_ANSWER = "a NetworkPolicy may block port 8080, or the node is overloaded or cut off"
_NO_STEP = "a long step, row or transfer, or a hang: see its log"


def show_running(context: Context, current: Job, pod: Pod, reading: Reading | None) -> Effect:
    """Set condition Running of a Job all of whose pods run; `pod` is the one that reports."""
    if reading and reading.unreachable_since and pod_diagnosis.is_unreachable(reading, context.observed.now):
        since, problem = format_time(reading.unreachable_since), reading.problem.strip(": ")
        detail = f"{problem}: {_last_report(context, pod)}; {_reason(pod, _NO_ANSWER)}"
        return set_condition(C.RUNNING, "True", R.UNREACHABLE, f"{since}: {detail}")
    are_running = f"All {current.nodes} trainer pods are running"
    text = are_running if current.nodes > 1 else f"The {current.component} pod is running"
    shown = context.status.condition(C.RUNNING)
    if reading is None and shown and shown.status == "True" and shown.message.startswith(text):
        return Effect()  # the operator has just started: what its last process read holds until the first poll
    return set_condition(C.RUNNING, "True", R.PODS_RUNNING, text + _silence(context, pod, reading))


def describe_place(progress: Progress) -> str:
    """Return stage and step."""
    of = f" of {progress.total_steps}" if progress.total_steps else ""
    step = f", step {progress.step or 0}{of}" if progress.step or progress.total_steps else ""
    return f"{progress.stage or 'an unknown stage'}{step}"


def _silence(context: Context, pod: Pod, reading: Reading | None) -> str:
    run = context.status.current_run
    if reading is None or reading.report is None:
        return "; no progress is reported yet" if pod.ip else ""
    limit = context.spec.stall_timeout_seconds
    if run is None or run.last_moved_time is None:
        return ""
    if (context.observed.now - run.last_moved_time).total_seconds() < min(QUIET_SECONDS, limit / 2):
        return ""
    restart = format_time(run.last_moved_time + timedelta(seconds=limit))
    return (
        f", without progress since {format_time(run.last_moved_time)} ({describe_place(reading.report.progress)}): "
        f"{_reason(pod, _NO_STEP)}; it is restarted at {restart}, after stallTimeoutSeconds"
    )


def _reason(pod: Pod, otherwise: str) -> str:
    return otherwise if pod.requests_cpu else WITHOUT_CPU


def _last_report(context: Context, pod: Pod) -> str:
    """Return the last report of this pod; the status may have that of an earlier run."""
    progress, started = context.status.progress, pod.started
    if progress and progress.last_updated_time and started and progress.last_updated_time >= started:
        return f"last report {describe_place(progress)}, at {format_time(progress.last_updated_time)}"
    return f"no report since the container started at {format_time(started)}" if started else "no report"


def format_time(time: datetime) -> str:
    """Return a time in UTC, as in the status."""
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"
