"""Counters of the status: they never decrease, and each is also kept by reason, from a closed set."""

from finetune_api.names import Reason
from finetune_api.status import FineTuneJobStatus
from finetune_operator.policy import remediation

OTHER = "Other"
"""Reason for an unknown controller, which may suspend or evict with any reason."""
_QUEUE_REASONS = ("ClusterQueueStopped", "LocalQueueStopped")
_KUEUE_REASONS = frozenset(("PodsReadyTimeout", "AdmissionCheck", "NodeFailures", "Deactivated", *_QUEUE_REASONS))
KNOWN = frozenset(map(str, Reason)) | remediation.DISRUPTIONS.keys() | _KUEUE_REASONS
"""The reasons of the conditions, of the API server's disruptions, and of Kueue's evictions."""


def add_failures(status: FineTuneJobStatus, reason: str, count: int = 1) -> None:
    """Count failed runs."""
    status.failures = (status.failures or 0) + count
    status.failures_by_reason = add_by_reason(status.failures_by_reason, reason, count)


def add_time(status: FineTuneJobStatus, seconds: int, gpus: int) -> None:
    """Add the time and the GPU time of an ended run."""
    status.active_seconds = (status.active_seconds or 0) + max(0, seconds)
    status.gpu_seconds = (status.gpu_seconds or 0) + max(0, seconds) * gpus


def known(reason: str) -> str:
    """Return the reason if it is in the closed set, else `Other`."""
    return str(reason) if reason in KNOWN else OTHER


def add_by_reason(counts: dict[str, int] | None, reason: str, count: int) -> dict[str, int]:
    """Return the counts with so many more of that reason, or of `Other`."""
    word = known(reason)
    return {**(counts or {}), word: (counts or {}).get(word, 0) + count}
