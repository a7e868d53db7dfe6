"""A FineTuneRelease and what is observed of it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Self

from pydantic import ValidationError

from finetune_api.release import FineTuneReleaseSpec, FineTuneReleaseStatus, ReleaseConditionType
from finetune_operator.kube.errors import ClusterError
from finetune_operator.kube.objects import FineTuneJob, Job, Key, Object, Pod, describe_faults, version_of


@dataclass(frozen=True)
class Release:
    """A FineTuneRelease."""

    key: Key
    uid: str
    generation: int
    resource_version: str
    is_deleting: bool
    spec: FineTuneReleaseSpec | None
    spec_error: str
    status: FineTuneReleaseStatus

    @classmethod
    def from_object(cls, obj: Object) -> Self:
        """Read what the API server sent; a status that cannot be read is replaced as a whole."""
        meta, spec, spec_error, status = obj["metadata"], None, "", FineTuneReleaseStatus()
        try:
            spec = FineTuneReleaseSpec.model_validate(obj.get("spec"))
        except ValidationError as problem:
            spec_error = describe_faults(problem, "spec")
        try:
            status = FineTuneReleaseStatus.model_validate(obj.get("status") or {})
        except ValidationError:
            status = FineTuneReleaseStatus()
        return cls(
            key=Key(meta["namespace"], meta["name"]),
            uid=meta["uid"],
            generation=meta.get("generation", 0),
            resource_version=meta.get("resourceVersion", ""),
            is_deleting=bool(meta.get("deletionTimestamp")),
            spec=spec,
            spec_error=spec_error,
            status=status,
        )

    @property
    def version(self) -> int:
        """The resourceVersion; 0 if it cannot be compared."""
        return version_of({"resourceVersion": self.resource_version})

    def is_true(self, kind: ReleaseConditionType) -> bool:
        """Return whether a condition of the current generation is True."""
        found = self.status.condition(kind)
        return found is not None and found.status == "True" and self.status.observed_generation == self.generation


@dataclass(frozen=True)
class Service:
    """An LLMInferenceService of KServe."""

    resource_version: str
    adapters: tuple[Object, ...]
    ready: str
    """Status of its condition Ready, for its current generation; empty if its controller has not reported one."""
    message: str

    @classmethod
    def from_object(cls, obj: Object) -> Self:
        """Read what the API server sent."""
        meta, status = obj["metadata"], obj.get("status") or {}
        lora = ((obj.get("spec") or {}).get("model") or {}).get("lora") or {}
        ready: Object = next((one for one in status.get("conditions") or [] if one.get("type") == "Ready"), {})
        is_current = status.get("observedGeneration") == meta.get("generation")
        return cls(
            resource_version=meta["resourceVersion"],
            adapters=tuple(lora.get("adapters") or ()),
            ready=ready.get("status", "") if is_current else "",
            message=str(ready.get("message") or ready.get("reason") or ""),
        )

    def uri_of(self, name: str) -> str | None:
        """Return the URI of an adapter."""
        return next((str(one.get("uri", "")) for one in self.adapters if one.get("name") == name), None)


@dataclass(frozen=True)
class Seen:
    """What one reconcile of a release has read."""

    release: Release
    now: datetime
    job: FineTuneJob | None = None
    """The job of `jobRef`."""
    child: Job | None = None
    """The Job of this generation."""
    pods: tuple[Pod, ...] = ()
    """All pods of this release, also those of earlier generations."""
    service: Service | None = None
    problem: ClusterError | None = None
    """Why something could not be read or created."""
