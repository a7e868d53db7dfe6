"""The steps that decisions about a release consist of: wait with a reason, or end with one. Pure."""

from dataclasses import dataclass, replace

from finetune_api.release import (
    FineTuneReleaseStatus,
    KServeTarget,
    ReleaseCondition,
    ReleaseConditionType,
    ReleaseReason,
    ReleaseRefusal,
    ReleaseReport,
)
from finetune_api.text.printable import printable
from finetune_operator.release.objects import Seen

C, R = ReleaseConditionType, ReleaseReason
SOON_SECONDS, SLOW_SECONDS = 3.0, 30.0
"""Between two looks at a pod or a service that works, and at what only a user or another job changes."""


@dataclass(frozen=True)
class Plan:
    """The next status, and at most one action after it is written."""

    status: FineTuneReleaseStatus
    requeue_after: float | None = None
    creates_job: bool = False
    sets_adapter: bool = False
    adapter_uri: str | None = None
    """With `sets_adapter`: the URI of the entry in the LLMInferenceService; None removes it."""
    undoes: KServeTarget | None = None
    """With `sets_adapter`: the entry, if it is that of an earlier spec."""


def change(seen: Seen, **changes: object) -> Seen:
    """Return what was observed with other fields in the status."""
    return replace(seen, release=replace(seen.release, status=seen.release.status.model_copy(update=changes)))


def wait(seen: Seen, ready: str, reason: str, message: str, after: float = SLOW_SECONDS) -> Plan:
    """Return a wait of this generation, with its reason."""
    return Plan(_summarise(seen, seen.release.status, ready, reason, message), after)


def end(seen: Seen, reason: ReleaseReason, message: str, found: ReleaseReport | None = None) -> Plan:
    """Return the end of this generation; what answers changes only if the pod has established that."""
    status = seen.release.status
    changes: dict[str, object] = {
        "replaced_adapter_uri": None,
        "trial": None,
        "comparison": found.comparison if found else None,
    }
    if found and found.answering:
        old = found.replaced or status.answering
        is_same = old is not None and old.manifest_sha256 == found.answering.manifest_sha256
        since = status.answering if is_same and found.answering.released_time is None else found.answering
        changes |= {"answering": since, "previous": status.previous if is_same else old}
    if reason is not R.RELEASED:
        digest = status.candidate.manifest_sha256 if status.candidate else None
        changes["last_refusal"] = ReleaseRefusal(
            manifest_sha256=digest, refused_time=seen.now, reason=reason.value, message=message[:1024]
        )
    ready = "True" if reason is R.RELEASED else "False"
    return Plan(_summarise(seen, status.model_copy(update=changes), ready, reason, message))


def _summarise(
    seen: Seen, status: FineTuneReleaseStatus, ready: str, reason: str, message: str
) -> FineTuneReleaseStatus:
    """Return the status with its conditions; a transition time changes only with the condition's value."""
    text = printable(message)[:2048]
    values = {
        C.READY: ready,
        C.RELEASED: ready,
        C.RECONCILING: "True" if ready == "Unknown" else "False",
        C.STALLED: "True" if ready == "False" else "False",
    }
    conditions = []
    for kind, value in values.items():
        old = status.condition(kind)
        moved = old is None or old.status != value or (kind is C.RELEASED and old.reason != reason)
        conditions.append(
            ReleaseCondition(
                type=kind.value,
                status=value,
                reason=str(reason),
                message=text,
                last_transition_time=seen.now if old is None or moved else old.last_transition_time,
                observed_generation=seen.release.generation,
            )
        )
    changes = {
        "observed_generation": seen.release.generation,
        "reason": str(reason),
        "message": text,
        "conditions": conditions,
    }
    return status.model_copy(update=changes)
