"""Derive the Kubernetes event of a release from the difference of two statuses."""

from finetune_api.release import FineTuneReleaseStatus, ReleaseReason
from finetune_operator.controller.events import Event

R = ReleaseReason
_NORMAL = frozenset({R.WAITING_FOR_JOB, R.RELEASING, R.WAITING_FOR_SERVER, R.RELEASED})


def derive_event(old: FineTuneReleaseStatus, new: FineTuneReleaseStatus) -> Event | None:
    """Return the event of a new reason, or of the same reason for another spec; None if neither has changed."""
    if new.reason is None or (old.reason, old.observed_generation) == (new.reason, new.observed_generation):
        return None
    reason = R(new.reason)
    return Event(reason, new.message or "", is_warning=reason not in _NORMAL)
