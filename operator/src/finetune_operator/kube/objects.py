"""API objects as the policies read them: a FineTuneJob and its batch/v1 Jobs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from finetune_api import names
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus

EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(3000, 1, 1, tzinfo=UTC)
"""The times of any two objects can be added and subtracted without leaving the years that Python has."""
Object = dict[str, Any]
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, order=True)
class Key:
    """Namespace and name of a FineTuneJob."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def moment(text: str | None) -> datetime | None:
    """Return a Kubernetes timestamp as an aware datetime, with which every calculation is possible."""
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):  # after the year 9999, which users can write
        return LATEST
    return min(max(found, EARLIEST), LATEST)


def small_number(text: str) -> int:
    """Parse a number from a label or annotation; anything else is 0, because users can edit both."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 9 else 0


def version_of(meta: Object) -> int:
    """Return an object's resourceVersion, by which two states of it can be ordered; 0 if it is not a number."""
    text = meta.get("resourceVersion") or ""
    return int(text) if text.isascii() and text.isdecimal() else 0


def controller_of(obj: Object) -> Object:
    """Return the owner reference of the controller, or an empty one."""
    references = obj["metadata"].get("ownerReferences") or []
    return next((reference for reference in references if reference.get("controller")), {})


def key_of_child(obj: Object) -> Key | None:
    """Return the FineTuneJob in a Job's or pod's annotation: enough to queue that job, but no proof of ownership."""
    meta = obj["metadata"]
    name = (meta.get("annotations") or {}).get(names.ANNOTATION_JOB_NAME)
    return Key(meta["namespace"], name) if name else None


_METADATA = (
    *("namespace", "name", "uid", "generation", "resourceVersion", "creationTimestamp", "deletionTimestamp"),
    *("finalizers", "labels"),
)


@dataclass(frozen=True)
class FineTuneJob:
    """A FineTuneJob."""

    key: Key
    uid: str
    generation: int
    created: datetime | None
    is_deleting: bool
    keeps_children: bool
    """Whether its deletion leaves its children (`--cascade=orphan`)."""
    resource_version: str
    writers: Mapping[str, str]
    """When each operator has last written the status."""
    queue_label: str | None
    """Kueue's LocalQueue by the job's own label, which counts if the spec names none."""
    spec: FineTuneJobSpec | None
    spec_error: str
    status: FineTuneJobStatus
    status_error: str
    text: bytes = field(default=b"", compare=False, repr=False)
    """JSON of the object, from which it can be read again."""

    @classmethod
    def from_object(cls, obj: Object) -> Self:
        """Read what the API server sent; a spec or status that this version cannot read is kept as its error."""
        meta = obj["metadata"]
        spec, spec_error = read_part(obj.get("spec"), "spec", FineTuneJobSpec)
        status, status_error = read_part(obj.get("status") or {}, "status", FineTuneJobStatus)
        return cls(
            key=Key(meta["namespace"], meta["name"]),
            uid=meta["uid"],
            generation=meta.get("generation", 0),
            created=moment(meta.get("creationTimestamp")),
            is_deleting=bool(meta.get("deletionTimestamp")),
            keeps_children="orphan" in (meta.get("finalizers") or []),
            resource_version=meta.get("resourceVersion", ""),
            writers={
                one.get("manager", ""): one.get("time", "")
                for one in meta.get("managedFields") or []
                if one.get("subresource") == "status" and one.get("manager", "").startswith(names.MANAGED_BY)
            },
            queue_label=(meta.get("labels") or {}).get(names.LABEL_QUEUE),
            spec=spec,
            spec_error=spec_error,
            status=status or FineTuneJobStatus(),
            status_error=status_error,
            text=_pack({"metadata": _reduced(meta), "spec": obj.get("spec"), "status": obj.get("status")}),
        )

    @property
    def version(self) -> int:
        """The resourceVersion as a number."""
        return version_of({"resourceVersion": self.resource_version})

    @property
    def is_settled(self) -> bool:
        """Whether it is finished, and its status is of the current generation."""
        return self.is_finished and self.status.observed_generation == self.generation

    @property
    def is_finished(self) -> bool:
        """Whether it is Complete or Failed, which is final."""
        return self.status.is_true(names.ConditionType.COMPLETE) or self.status.is_true(names.ConditionType.FAILED)

    def require_spec(self) -> FineTuneJobSpec:
        """Return the spec; raise ValueError if this version cannot read it."""
        if self.spec is None:
            raise ValueError(f"{self.key} has no readable spec")
        return self.spec


def _pack(obj: Object) -> bytes:
    """Return the JSON of an object, as a copy: orjson's own bytes keep a buffer of up to three times their length."""
    return bytes(memoryview(orjson.dumps(obj)))


def _reduced(meta: Object) -> Object:
    """Return the metadata without what a FineTuneJob does not hold; the field sets are longer than many a spec."""
    written = [one for one in meta.get("managedFields") or [] if one.get("subresource") == "status"]
    managed = [{name: one.get(name, "") for name in ("manager", "time", "subresource")} for one in written]
    return {name: meta[name] for name in _METADATA if name in meta} | {"managedFields": managed}


def read_part(content: object, name: str, model: type[M]) -> tuple[M | None, str]:
    """Return the spec or the status of an object; None and its first three faults if this version cannot read it."""
    try:
        return model.model_validate(content), ""
    except ValidationError as problem:
        faults = (
            f"{'.'.join(map(str, item['loc'])) or name}: {item['msg'].removeprefix('Value error, ')}"
            for item in problem.errors()[:3]
        )
        return None, "; ".join(faults)


@dataclass(frozen=True, slots=True)
class Job:
    """A preflight, trainer or merge Job."""

    name: str
    uid: str
    owner_uid: str
    component: str
    attempt: int
    image: str
    """The image that it was built with."""
    created: datetime | None
    completed: datetime | None
    failed: datetime | None
    failed_reason: str
    failed_message: str
    nodes: int
    """Number of pods, each with a rank from 0."""
    failed_pods: int
    """Failed pods that the Job controller has counted or is counting; 1 if several nodes fail together."""
    backoff_limit: int
    is_suspended: bool
    is_ours_to_resume: bool
    """Whether the operator suspended it, not another controller."""
    is_deleting: bool
    queue: str | None = None
    """The Kueue LocalQueue that it waits in."""
    is_queued_by_us: bool = False
    """Whether the operator put it into its queue, not Kueue's default or a policy of the cluster."""
    is_for_other_cluster: bool = False
    """Whether MultiKueue copies it to another cluster; its pods are never in this one."""
    grace_seconds: int | None = None
    """The termination grace period of its pods."""
    limits: Mapping[str, str] = field(default_factory=dict)
    """The resource limits of one of its pods."""
    settings_sha256: str = ""
    """Digest of the spec that it was built from."""
    alive_pods: int = field(default=0, compare=False)
    """Its pods that have not ended, by the Job controller, which finds them by owner and not by our labels."""
    version: int = field(default=0, compare=False)

    @classmethod
    def from_object(cls, obj: Object) -> Self:
        """Read a batch/v1 Job."""
        meta, status = obj["metadata"], obj.get("status") or {}
        labels, annotations = meta.get("labels") or {}, meta.get("annotations") or {}
        ends = {one["type"]: one for one in status.get("conditions") or [] if one["status"] == "True"}
        complete, failed = ends.get("Complete", {}), ends.get("Failed", {})
        template = obj["spec"]["template"]
        # Those of a Job can be overwritten while it runs, those of its template cannot.
        fixed = labels | (template.get("metadata", {}).get("labels") or {})
        uncounted = (status.get("uncountedTerminatedPods") or {}).get("failed") or []
        nodes, failed_pods = obj["spec"].get("completions") or 1, (status.get("failed") or 0) + len(uncounted)
        pod = template["spec"]
        containers = pod["containers"]  # a webhook may have put others before the trainer's
        container = next((one for one in containers if one.get("name") == names.TRAINER_CONTAINER), containers[0])
        limits = (container.get("resources") or {}).get("limits") or {}
        return cls(
            name=meta["name"],
            uid=meta["uid"],
            owner_uid=controller_of(obj).get("uid", ""),
            component=fixed.get(names.LABEL_COMPONENT, ""),
            attempt=small_number(fixed.get(names.LABEL_ATTEMPT, "0")),
            image=annotations.get(names.ANNOTATION_IMAGE) or container.get("image", ""),
            created=moment(meta.get("creationTimestamp")),
            completed=moment(status.get("completionTime") or complete.get("lastTransitionTime")) if complete else None,
            failed=moment(failed.get("lastTransitionTime")),
            failed_reason=failed.get("reason", ""),
            failed_message=failed.get("message", ""),
            nodes=nodes,
            failed_pods=min(failed_pods, 1) if nodes > 1 else failed_pods,  # one failure ends all pods
            backoff_limit=obj["spec"].get("backoffLimit", 6),
            is_suspended=bool(obj["spec"].get("suspend")),
            is_ours_to_resume=names.ANNOTATION_SUSPENDED_BY in annotations,
            is_deleting=bool(meta.get("deletionTimestamp")),
            queue=labels.get(names.LABEL_QUEUE),
            is_queued_by_us=names.ANNOTATION_QUEUED_BY in annotations,
            is_for_other_cluster=obj["spec"].get("managedBy") == names.MULTIKUEUE,
            grace_seconds=pod.get("terminationGracePeriodSeconds"),
            limits={name: str(value) for name, value in limits.items()},
            settings_sha256=annotations.get(names.ANNOTATION_SETTINGS_SHA256, ""),
            alive_pods=(status.get("active") or 0) + (status.get("terminating") or 0),
            version=version_of(meta),
        )

    def gpus(self, resource: str) -> int:
        """Return the GPUs of all its pods; extended resources are whole numbers."""
        count = self.limits.get(resource, "0")
        return self.nodes * int(count) if count.isdigit() else 0

    @property
    def is_attempt(self) -> bool:
        """Whether it is a trainer Job or a merge Job; both are numbered, and their pods are runs."""
        return self.component in {names.Component.TRAINER, names.Component.MERGE} and self.attempt > 0

    @property
    def is_over(self) -> bool:
        """Whether it is Complete or Failed."""
        return self.completed is not None or self.failed is not None
