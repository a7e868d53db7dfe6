"""A FineTuneJob as the API server sends it, with its status typed."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from finetune_api.manifest.yaml_document import find_value
from finetune_api.names import ConditionType, Phase
from finetune_api.status import FineTuneJobStatus
from finetune_api.text.printable import printable
from finetune_client.errors import FineTuneError

Object = dict[str, Any]


NEWER = "install the kubectl-finetune of the operator's version (or its client)"
FIX = f"{NEWER}, or read it with kubectl get -o yaml"


def _explain(raw: Object, error: ValidationError) -> str:
    place = ".".join(map(str, ("status", *error.errors()[0]["loc"])))
    return f"the status of {raw['metadata']['name']} cannot be read ({place})"


@dataclass(frozen=True)
class Job:
    """One FineTuneJob; `raw` is the object itself."""

    raw: Object
    status: FineTuneJobStatus
    unreadable: str = ""
    """Why the status is not complete, for a job in a list; empty if it is."""

    @classmethod
    def from_object(cls, raw: Object) -> "Job":
        """Read the status; fields that only a newer operator knows are dropped."""
        try:
            return cls(raw, FineTuneJobStatus.model_validate(raw.get("status") or {}))
        except ValidationError as error:
            raise FineTuneError(_explain(raw, error), FIX) from None

    @classmethod
    def from_list(cls, raw: Object) -> "Job":
        """Read one of several jobs, without the parts of its status that cannot be read."""
        status = raw.get("status") or {}
        try:
            return cls(raw, FineTuneJobStatus.model_validate(status))
        except ValidationError as error:
            broken = {one["loc"][0] if one["loc"] else "" for one in error.errors()}
            kept = {} if "" in broken else {name: value for name, value in status.items() if name not in broken}
            return cls(raw, FineTuneJobStatus.model_validate(kept), f"{_explain(raw, error)}: {FIX}")

    @property
    def printed(self) -> Object:
        """The object as kubectl prints it, without `managedFields`."""
        metadata = {name: value for name, value in self.raw["metadata"].items() if name != "managedFields"}
        return self.raw | {"metadata": metadata}

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
    def deletion(self) -> str:
        """Since when it is being deleted, and what keeps it; empty if it is not."""
        metadata = self.raw["metadata"]
        if not (since := metadata.get("deletionTimestamp")):
            return ""
        return f"since {since}, until these finalizers are removed: {', '.join(metadata.get('finalizers') or [])}"

    @property
    def has_ended(self) -> bool:
        """Return whether it is complete or has failed."""
        return self.status.is_true(ConditionType.COMPLETE) or self.status.is_true(ConditionType.FAILED)

    @property
    def is_observed(self) -> bool:
        """Return whether an operator has observed it."""
        return (self.status.observed_generation or -1) >= 0 or self.status.phase is not None

    @property
    def why(self) -> str:
        """The reason for its state, with the fix if the operator has one."""
        if not self.is_observed:
            return "no operator has observed it yet: check that finetune-operator is running and watches this namespace"
        return printable(self.status.message or "")

    def field(self, path: str) -> Any:
        """Return a field of the spec by its dotted path, or None."""
        return find_value(self.spec, path.split("."))
