"""Pods that no list or watch shows, because another client has overwritten their labels."""

from finetune_api.names import Component, ConditionType
from finetune_operator.kube.objects import Job
from finetune_operator.kube.observed import Observed


def are_missing(observed: Observed) -> bool:
    """Return whether a Job has more live pods than were observed; the watch of the pods may also be behind."""
    return any(_lacks_alive(observed, child) for child in observed.own)


def find_jobs(observed: Observed) -> tuple[str, ...]:
    """Return the UIDs of the Jobs whose pods a live read has to find by the Job controller's label."""
    found = [child.uid for child in observed.own if _lacks_alive(observed, child) or _lacks_end(observed, child)]
    current = observed.job.status.job_ref
    if current and current.uid not in found and _lacks_current(observed, current.uid):
        found.append(current.uid)
    return tuple(found)


def _lacks_alive(observed: Observed, child: Job) -> bool:
    # The Job controller counts a pod that ended after its last look as alive: every end would cost a live read.
    alive = sum(pod.is_alive or pod.version > child.version for pod in observed.pods_of(child.uid))
    return alive < child.alive_pods and not child.is_for_other_cluster


def _lacks_end(observed: Observed, child: Job) -> bool:
    """Return whether a Job has ended, its end is not recorded, and no pod shows it."""
    if not child.is_over or not _is_awaited(observed, child):
        return False
    ended = [pod for pod in observed.pods_of(child.uid) if pod.is_over]
    return not any(pod.exit_code == 0 for pod in ended) if child.completed else not ended


def _is_awaited(observed: Observed, child: Job) -> bool:
    status = observed.job.status
    if child.component == Component.PREFLIGHT:
        return not status.is_true(ConditionType.VALIDATED)
    return status.job_ref is not None and status.job_ref.uid == child.uid


def _lacks_current(observed: Observed, job_uid: str) -> bool:
    """Return whether the current Job was deleted, so that its pods are being stopped, or its run is not shown."""
    run = observed.job.status.current_run
    is_shown = run is None or any(pod.uid == run.pod_uid for pod in observed.pods)
    return not is_shown or all(child.uid != job_uid for child in observed.own)
