"""Set condition Running of an open Job without a running pod, for preflight, training and merge."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from finetune_api.names import Component, ConditionType, Reason
from finetune_api.status import FineTuneJobStatus
from finetune_operator.kube.objects import Job
from finetune_operator.kube.pod import Pod
from finetune_operator.manifests.avoidance import find_doubtful_node
from finetune_operator.policy.conditions import Truth
from finetune_operator.policy.decision import Context, Effect, set_condition
from finetune_operator.policy.history import runs
from finetune_operator.policy.pods import pod_diagnosis, rank_outcomes
from finetune_operator.policy.pods.pod_diagnosis import Diagnosis
from finetune_operator.settings import Settings

C, R = ConditionType, Reason


@dataclass(frozen=True)
class Finding:
    """Why a pod does not run."""

    prefix: str
    """Which of several pods it is about."""
    pods: Sequence[Pod]
    diagnosis: Diagnosis


def watch_start(context: Context, child: Job, pods: Sequence[Pod]) -> Effect:
    """Set condition Running to what the pods wait for; requeue if that may change without an event."""
    running = next((pod for pod in pods if pod.is_running), None)
    if child.nodes == 1 and running and not pod_diagnosis.is_lost(running, context.observed.now):
        return set_condition(C.RUNNING, "False", R.NOT_STARTED)
    findings = list(_find(context, child, pods))
    worst = min(findings, key=_weight, default=Finding("", pods, Diagnosis(R.PODS_STARTING)))
    if child.component == Component.TRAINER:
        worst = replace(worst, prefix=_where(context.status, context.settings) + worst.prefix)
    times = [one.diagnosis.check_after for one in findings if one.diagnosis.check_after is not None]
    query = worst.diagnosis.query
    return _show(context, child, worst) + Effect(fetch_events_for=query, requeue_after=min(times, default=None))


def _where(status: FineTuneJobStatus, settings: Settings) -> str:
    """Return which nodes the attempt leaves to others, as the beginning of a sentence."""
    words = ""
    if settings.node_avoidance == "Off":
        return words
    if status.avoided_node_names:
        words = f"avoiding {', '.join(status.avoided_node_names)}, whose GPU failed: "
    if node := find_doubtful_node(status):
        words += f"preferring other nodes than {node}, on which two runs in succession ended: "
    return words


def _show(context: Context, child: Job, worst: Finding) -> Effect:
    found = worst.diagnosis
    if runs.has_succeeded(context.status, child):
        return set_condition(C.RUNNING, "False", R.FINISHED)
    if context.acceptance.events_forbidden and found.query:
        return set_condition(C.RUNNING, "False", R.API_DENIED, str(context.observed.obstacle))
    if found.reason is not R.NODE_LOST and child.nodes > 1 and child.failed_pods:
        detail = "a pod has failed, and the others are being stopped"
        return set_condition(C.RUNNING, "False", R.BACKING_OFF, detail)
    if found.reason is R.PODS_STARTING:
        return _show_starting(context, child, worst)
    truth: Truth = "Unknown" if found.reason is R.NODE_LOST else "False"
    return set_condition(C.RUNNING, truth, found.reason, found.detail, prefix=worst.prefix)


def _show_starting(context: Context, child: Job, worst: Finding) -> Effect:
    """Show why a pod is being started: it is the first one, or the one before has ended."""
    if child.component == Component.PREFLIGHT:
        return set_condition(C.RUNNING, "False", R.NOT_STARTED)
    last, is_merge = runs.last_sentence(context.status), child.component == Component.MERGE
    is_first = is_merge and not worst.pods  # the last run was then the trainer's
    if last and not is_first and all(pod.is_over for pod in worst.pods):
        return set_condition(C.RUNNING, "False", R.BACKING_OFF, last, prefix=worst.prefix)
    reason = R.TRAINED if is_merge else R.PODS_STARTING
    return set_condition(C.RUNNING, "False", reason, worst.diagnosis.detail, prefix=worst.prefix)


def _find(context: Context, child: Job, pods: Sequence[Pod]) -> Iterator[Finding]:
    """Yield why each missing pod does not run."""
    observed = context.observed
    if child.nodes == 1:
        yield Finding("", pods, pod_diagnosis.diagnose(child, pods, observed.warnings, observed.now))
        return
    ranks = rank_outcomes.missing_ranks(child, pods, observed.now)
    for rank in ranks:
        own = tuple(pod for pod in pods if pod.rank == rank)
        found = pod_diagnosis.diagnose(child, own, observed.warnings, observed.now)
        if observed.warnings:  # one query per reconcile, because a result replaces the one before
            found = replace(found, query=None)
        yield Finding(
            f"{child.nodes - len(ranks)} of {child.nodes} pods are running; {_named(rank, own)}: ", own, found
        )


def _named(rank: int, pods: Sequence[Pod]) -> str:
    alive = next((pod for pod in reversed(pods) if not pod.is_over), None)
    return rank_outcomes.describe_pod(alive) if alive else f"pod {rank} (does not exist)"


def _weight(finding: Finding) -> tuple[bool, bool, bool]:
    found = finding.diagnosis
    return (found.reason is not R.NODE_LOST, found.reason is R.PODS_STARTING, found.query is None)
