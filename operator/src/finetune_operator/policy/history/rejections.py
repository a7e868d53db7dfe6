"""Pods that nodes reject in succession: how many do not count as failures, and when and where the next one is tried."""

from dataclasses import replace

from finetune_api.names import Reason
from finetune_api.status import FineTuneJobStatus
from finetune_operator.policy.decision import Context
from finetune_operator.policy.pods.run_outcome import RESULT_FAILED, PodOutcome

MOST = 5
"""Rejections in succession that count as preemptions; a device plugin restarts within minutes."""
FIRST_SECONDS = 10.0
"""Wait before the next attempt after one rejection; it doubles with each, as the Job controller's does for pods."""


def limit(status: FineTuneJobStatus, outcome: PodOutcome) -> PodOutcome:
    """Return the outcome, as a failure if too many pods have been rejected before it."""
    if not outcome.is_rejection or count_last(status) < MOST:
        return outcome
    return replace(outcome, result=RESULT_FAILED, is_rejection=False)


def count_last(status: FineTuneJobStatus) -> int:
    """Return how many of the last runs in succession were rejected pods."""
    count = 0
    for run in reversed(status.history or []):
        if run.reason != Reason.POD_REJECTED:
            break
        count += 1
    return count


def seconds_to_wait(context: Context) -> float:
    """Return how long the next attempt has to wait because a node rejected the last pod."""
    count = count_last(context.status)
    if not count or not context.status.history:
        return 0.0
    ends = [context.status.history[-1].end_time, *(job.failed for job in context.observed.own if job.is_attempt)]
    last = max((at for at in ends if at), default=context.observed.now)
    wait: float = FIRST_SECONDS * 2 ** (min(count, MOST) - 1)
    return wait - (context.observed.now - last).total_seconds()
