"""What each condition of a FineTuneJob means: the text of `kubectl explain`, and the table of the field reference."""

from dataclasses import dataclass

from finetune_api.names import ConditionType

C = ConditionType
NORMAL_TRUE = "`True`"
NORMAL_FALSE = "`False`"
NEUTRAL = "both"


@dataclass(frozen=True)
class Meaning:
    """The meaning of a condition; a value that it never has is empty."""

    true: str
    false: str
    unknown: str = ""
    normal: str = NORMAL_TRUE
    """Polarity: the value of a job that goes well."""


CONDITIONS: dict[ConditionType, Meaning] = {
    C.READY: Meaning(
        "the job is in the requested state: complete, or suspended by the user and without pods",
        "it has failed",
        "it is waiting or running",
    ),
    C.ACCEPTED: Meaning(
        "the spec is allowed here, and the jobs that it builds on are complete",
        "nothing is created until the spec, the operator's settings or its rights change",
        "not checked yet, waiting for another job, or the API server does not complete a request",
    ),
    C.SUSPENDED: Meaning(
        "`spec.suspend` is true: nothing is started, and running pods are stopped",
        "`spec.suspend` is false",
        normal=NEUTRAL,
    ),
    C.QUEUED: Meaning(
        "Kueue or another controller holds the job's Job",
        "nothing but `spec.suspend` holds it; always at the end",
        normal=NEUTRAL,
    ),
    C.VALIDATED: Meaning(
        "the checks of dataset, model, storage and memory have passed",
        "they have failed, and with them the job",
        "they have not ended; without preflight, the result is not published yet",
    ),
    C.QUOTA_RESERVED: Meaning(
        "Kueue has reserved quota for the job's Job",
        "the Job waits in its queue",
        "the Workloads cannot be read",
    ),
    C.RUNNING: Meaning(
        "every pod of the training or merge runs; with reason `Unreachable` its progress cannot be read",
        "not all pods run: not yet, not any more, or the reason names the problem, also that of a preflight pod",
        "the node of a pod is lost, so that the pod may still run",
    ),
    C.GRACE_PERIOD_SUFFICIENT: Meaning(
        "a checkpoint is saved well within the time that a preempted trainer has",
        "it takes longer: a preemption may lose the steps since the last checkpoint",
        "no checkpoint is saved yet",
    ),
    C.EARLY_STOPPED: Meaning(
        "early stopping ended the training, and the best weights are used",
        "it did not, or not yet",
        normal=NEUTRAL,
    ),
    C.PUBLISHED: Meaning(
        "every published file was read back from storage; also of a job that failed with `GateNotMet`",
        "nothing is published",
    ),
    C.HUB_PUSHED: Meaning(
        "the result is in the repository of `output.hub`; `status.artifacts.hub` has the commit",
        "it is published, and the push failed or was not made; the message has the cause and the fix",
    ),
    C.REGISTRY_PUSHED: Meaning(
        "the result is in the registry of `output.oci`; `status.artifacts.oci` has the digests",
        "it is published, and the push failed or was not made; the message has the cause and the fix",
    ),
    C.COMPLETE: Meaning("the job has succeeded; final", "it has not, or not yet"),
    C.FAILED: Meaning("the job has failed; final", "it has not, or not yet", normal=NORMAL_FALSE),
    C.RECONCILING: Meaning(
        "kstatus: the operator works towards the requested state",
        "kstatus: the state is reached, or cannot be",
        normal=NEUTRAL,
    ),
    C.STALLED: Meaning(
        "kstatus: the job has failed, and nothing is retried",
        "kstatus: it has not failed",
        normal=NORMAL_FALSE,
    ),
}
"""In the order in which a job shows them. A job shows all from the first reconcile on, except QuotaReserved, which is
absent without a queue and at the end, and HubPushed and RegistryPushed,
which a job with `output.hub` or `output.oci` has once it is published."""


def explain() -> str:
    """Return the types and when each is true, as one text."""
    return " ".join(("Name of the condition.", *(f"`{kind}`: {one.true}." for kind, one in CONDITIONS.items())))


def table() -> list[str]:
    """Return the lines of the table in the field reference."""
    rows = (
        f"| `{kind}` | {one.true} | {one.false} | {one.unknown or 'never'} | {one.normal} |"
        for kind, one in CONDITIONS.items()
    )
    return ["| type | True | False | Unknown | normal |", "| --- | --- | --- | --- | --- |", *rows]
