"""A pod of a Job, as the policies read it."""

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Self

from finetune_api import names
from finetune_api.handoff import TERMINATION_LIMIT_BYTES
from finetune_operator.kube.images import repository, strip_tag
from finetune_operator.kube.objects import Object, controller_of, moment, small_number, version_of

IMAGE_PROBLEMS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
)
OVER = frozenset({"Succeeded", "Failed"})
"""Phases of a pod whose containers have ended and will not be restarted."""
START_PROBLEMS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
MAX_GRACE_SECONDS = 31_536_000
"""The API server stores any number, also more seconds than Python's times have."""
MAX_TEXT = 2 * TERMINATION_LIMIT_BYTES


def _text(text: str) -> str:
    """Cut a text of others to twice what a report may have, so that one that is too long stays too long."""
    return text[:MAX_TEXT]


def _word(reason: str) -> str:
    """Return another controller's reason in letters and digits only: Kubernetes allows more than our conditions."""
    found = re.sub(r"[^A-Za-z0-9]", "", reason).lstrip("0123456789")[:64]
    return found or (names.Reason.PREEMPTED.value if reason else "")


def is_removed(pod: Object) -> bool:
    """Return whether the last state of a pod shows that it was removed.

    Before the API server removes a pod, also by force, it sets the grace period to 0. Without that, a watch shows the
    same event if only the labels no longer match.
    """
    meta = pod["metadata"]
    return bool(meta.get("deletionTimestamp")) and not meta.get("deletionGracePeriodSeconds")


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of a preflight, trainer or merge Job."""

    namespace: str
    name: str
    uid: str
    job_uid: str
    component: str
    rank: int
    """Its completion index; the pod of rank 0 is the run, and reports."""
    node: str | None
    ip: str | None
    """Its own address; None for a pod with hostNetwork, because another process of the node may listen there."""
    phase: str
    is_gone: bool
    created: datetime | None
    started: datetime | None
    ended: datetime | None
    deleting: datetime | None
    """The end of its grace period, once it is being deleted."""
    deletion_requested: datetime | None
    exit_code: int | None
    container_reason: str
    message: str
    image: str
    image_id: str
    waiting_reason: str
    waiting_message: str
    unschedulable: str
    ignored_by: str
    """The scheduler that has to place it and has not handled it yet."""
    unclaimed: str
    """Its resource claims that may not exist, and its templates without a claim."""
    disruption: str
    requests_cpu: bool
    """Whether a container requests CPU; without, the pod gets what others of its node leave."""
    evicted: str
    """Why the kubelet evicted it, also if its container wrote a termination message."""
    has_volumes: bool = False
    """Whether its volumes are mounted: the kubelet has made its sandbox, which comes after them."""
    companions: str = ""
    """The running containers that others have added to it, such as the proxy of a service mesh."""
    version: int = field(default=0, compare=False)

    @classmethod
    def from_object(cls, obj: Object, *, gone: bool = False) -> Self:
        """Read a pod; `gone` marks the last state of a deleted one."""
        meta, status = obj["metadata"], obj.get("status") or {}
        conditions = {one["type"]: one for one in status.get("conditions") or []}
        scheduled, disrupted = conditions.get("PodScheduled", {}), conditions.get("DisruptionTarget", {})
        container: Object = next(
            (one for one in status.get("containerStatuses") or [] if one["name"] == names.TRAINER_CONTAINER), {}
        )
        state = container.get("state") or {}
        waiting, running, terminated = state.get("waiting", {}), state.get("running", {}), state.get("terminated", {})
        spec = obj.get("spec") or {}
        index = (meta.get("annotations") or {}).get(names.ANNOTATION_INDEX, "")
        created, deleting = moment(meta.get("creationTimestamp")), moment(meta.get("deletionTimestamp"))
        grace = timedelta(seconds=min(meta.get("deletionGracePeriodSeconds") or 0, MAX_GRACE_SECONDS))
        started = moment(terminated.get("startedAt") or running.get("startedAt"))
        ended = moment(terminated.get("finishedAt"))
        if ended is None and status.get("phase") in OVER:
            ended = started or created  # the kubelet rejected or lost it; a fixed time, so that it is counted once
        elif ended is None and gone:
            ended = deleting or started or created
        return cls(
            namespace=meta.get("namespace", ""),
            name=meta["name"],
            uid=meta["uid"],
            job_uid=_job_of(obj),
            component=(meta.get("labels") or {}).get(names.LABEL_COMPONENT, ""),
            rank=small_number(index),
            node=spec.get("nodeName"),
            ip=None if spec.get("hostNetwork") else status.get("podIP"),
            phase=status.get("phase", "Pending"),
            is_gone=gone,
            created=created,
            started=started,
            ended=ended,
            deleting=deleting,
            deletion_requested=deleting - grace if deleting else None,
            exit_code=terminated.get("exitCode"),
            container_reason=terminated.get("reason") or status.get("reason") or "",
            message=_text(terminated.get("message") or status.get("message") or ""),
            image=_image_of(spec),
            image_id=container.get("imageID", ""),
            waiting_reason=waiting.get("reason", ""),
            waiting_message=_text(waiting.get("message", "")),
            unschedulable=_unschedulable(spec, scheduled),
            ignored_by="" if scheduled or spec.get("nodeName") else str(spec.get("schedulerName") or ""),
            unclaimed=_unclaimed(spec, status),
            disruption=_word(disrupted.get("reason", "")) if disrupted.get("status") == "True" else "",
            requests_cpu=any(
                str(((one.get("resources") or {}).get("requests") or {}).get("cpu", "0")) != "0"
                for one in spec.get("containers") or []
            ),
            evicted=_text(status.get("message", "")) if status.get("reason") == names.Reason.EVICTED else "",
            has_volumes=conditions.get("PodReadyToStartContainers", {}).get("status") == "True",
            companions=_companions(status),
            version=version_of(meta),
        )

    @property
    def is_over(self) -> bool:
        """Whether its containers have ended and will not be restarted."""
        return self.exit_code is not None or self.phase in OVER or self.is_gone

    @property
    def is_alive(self) -> bool:
        """Whether the Job controller counts it as not ended: a container of others may run on after the trainer's."""
        return self.phase not in OVER and not self.is_gone

    @property
    def is_running(self) -> bool:
        """Whether its container is running."""
        return not self.is_over and self.started is not None

    @property
    def text_bytes(self) -> int:
        """The size of the texts that others have written."""
        return sum(len(text) for text in (self.message, self.waiting_message, self.unschedulable, self.evicted))

    @property
    def counts_as_run(self) -> bool:
        """Whether its end ends a run; a pod that was deleted before its container started has no run."""
        return self.is_over and (self.exit_code is not None or self.started is not None or self.phase == "Failed")

    def pin_image(self, asked: str) -> str:
        """Return the image that its Job asked for, by digest if the node reports one of what the pod runs.

        Its name stays as it was requested: an admission policy compares spellings, and a webhook that has put the name
        of a mirror into the pod would put it in front of that name again.
        """
        reference = re.sub(r"^[a-z-]+://", "", self.image_id)
        is_usable = "@sha256:" in reference and repository(reference) == repository(self.image)
        return f"{strip_tag(asked)}@{reference.partition('@')[2]}" if is_usable else asked


def _unschedulable(spec: Object, scheduled: Object) -> str:
    """Return why no node was chosen, from the condition PodScheduled."""
    if scheduled.get("reason") == "SchedulingGated":
        return _text(f"scheduling gates: {', '.join(one['name'] for one in spec.get('schedulingGates') or [])}")
    return _text(scheduled.get("message", "")) if scheduled.get("reason") == "Unschedulable" else ""


def _unclaimed(spec: Object, status: Object) -> str:
    made = {one["name"] for one in status.get("resourceClaimStatuses") or []}
    claims = (one for one in spec.get("resourceClaims") or [] if one["name"] not in made)
    return ", ".join(one.get("resourceClaimName") or one.get("resourceClaimTemplateName") or "" for one in claims)


def _companions(status: Object) -> str:
    running = (one["name"] for one in status.get("containerStatuses") or [] if "running" in (one.get("state") or {}))
    return ", ".join(name for name in running if name != names.TRAINER_CONTAINER)


def _job_of(pod: Object) -> str:
    """Return the UID of a pod's Job, also of one that was deleted without its pods (`--cascade=orphan`)."""
    owner = controller_of(pod)
    if not owner:
        return str((pod["metadata"].get("labels") or {}).get(names.LABEL_CONTROLLER_UID, ""))
    return str(owner.get("uid", "")) if owner.get("kind") == "Job" else ""


def _image_of(spec: Object) -> str:
    """Return the image of the trainer's container; a webhook may have put others before it."""
    containers = spec.get("containers") or []
    own = (one.get("image", "") for one in containers if one.get("name") == names.TRAINER_CONTAINER)
    return str(next(own, ""))
