"""The counters of the status, which only grow; each of them by a reason out of a closed set too."""

from finetune_api.names import Reason
from finetune_api.status import FineTuneJobStatus
from finetune_operator.policy import remediation

OTHER = "Other"
"""A reason that somebody else made up: anything may suspend or evict, with any word."""
_QUEUES = ("ClusterQueueStopped", "LocalQueueStopped")
_KUEUES = frozenset(("PodsReadyTimeout", "AdmissionCheck", "NodeFailures", "Deactivated", *_QUEUES))
KNOWN = frozenset(map(str, Reason)) | remediation.DISRUPTIONS.keys() | _KUEUES
"""The words of the conditions, of the API server's disruptions, and of Kueue's evictions."""


def add_failures(status: FineTuneJobStatus, reason: str, count: int = 1) -> None:
    """Counts failed runs."""
    status.failures = (status.failures or 0) + count
    status.failures_by_reason = _more(status.failures_by_reason, reason, count)


def add_preemption(status: FineTuneJobStatus, reason: str) -> None:
    """Counts a run that was preempted or evicted."""
    status.preemptions = (status.preemptions or 0) + 1
    status.preemptions_by_reason = _more(status.preemptions_by_reason, reason, 1)


def add_time(status: FineTuneJobStatus, seconds: int, gpus: int) -> None:
    """Adds what an ended run took."""
    status.active_seconds = (status.active_seconds or 0) + max(0, seconds)
    status.gpu_seconds = (status.gpu_seconds or 0) + max(0, seconds) * gpus


def known(reason: str) -> str:
    """The reason, if it is one that this operator knows."""
    return str(reason) if reason in KNOWN else OTHER


def _more(counts: dict[str, int] | None, reason: str, count: int) -> dict[str, int]:
    word = known(reason)
    return {**(counts or {}), word: (counts or {}).get(word, 0) + count}
