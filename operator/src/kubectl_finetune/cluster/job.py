"""A FineTuneJob as the API server sends it, with its status typed."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from finetune_api.names import ConditionType, Phase
from finetune_api.status import FineTuneJobStatus
from kubectl_finetune.errors import PluginError

Object = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One FineTuneJob; `raw` is the object itself."""

    raw: Object
    status: FineTuneJobStatus

    @classmethod
    def from_object(cls, raw: Object) -> "Job":
        """Read the status; fields that only a newer operator knows are dropped."""
        try:
            status = FineTuneJobStatus.model_validate(raw.get("status") or {})
        except ValidationError as error:
            place = ".".join(map(str, error.errors()[0]["loc"]))
            raise PluginError(
                f"the status of {raw['metadata']['name']} cannot be read (status.{place})",
                "install the kubectl-finetune of the operator's version, or read it with kubectl get -o yaml",
            ) from None
        return cls(raw, status)

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.raw["metadata"]["name"])

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return str(self.raw["metadata"].get("namespace", ""))

    @property
    def uid(self) -> str:
        """Its UID."""
        return str(self.raw["metadata"].get("uid", ""))

    @property
    def created(self) -> datetime | None:
        """When it was created."""
        stamp = self.raw["metadata"].get("creationTimestamp")
        return datetime.fromisoformat(stamp) if stamp else None

    @property
    def spec(self) -> Object:
        """Its spec, as stored."""
        return self.raw.get("spec") or {}

    @property
    def phase(self) -> str:
        """Its phase; `Pending` if no operator has observed it yet."""
        return self.status.phase or Phase.PENDING.value

    @property
    def has_ended(self) -> bool:
        """Return whether it is complete or has failed."""
        return self.status.is_true(ConditionType.COMPLETE) or self.status.is_true(ConditionType.FAILED)

    @property
    def is_observed(self) -> bool:
        """Return whether an operator has observed it."""
        return (self.status.observed_generation or -1) >= 0 or self.status.phase is not None

    def field(self, path: str) -> Any:
        """Return a field of the spec by its dotted path, or None."""
        value: Any = self.spec
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value
