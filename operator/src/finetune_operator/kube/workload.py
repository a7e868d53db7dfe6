"""Kueue's Workload, reduced to what is read."""

from dataclasses import dataclass, field
from typing import Self

from finetune_api import names
from finetune_operator.kube.objects import Key, Object, key_of_child, version_of


def key_of_workload(obj: Object) -> Key | None:
    """Return the FineTuneJob of a Workload, from the pod template that Kueue has copied into it; None of others."""
    for one in (obj.get("spec") or {}).get("podSets") or []:
        template = one.get("template") or {}
        if template.get("metadata"):
            meta = template["metadata"] | {"namespace": obj["metadata"]["namespace"]}
            return key_of_child({"metadata": meta})
    return None


@dataclass(frozen=True, slots=True)
class Workload:
    """Kueue's Workload of a Job: whether the Job may run, and why not."""

    name: str
    uid: str
    job_uid: str
    cluster_queue: str
    is_active: bool
    """Whether it is queued; Kueue suspends the Job of an inactive Workload."""
    is_ours_to_activate: bool
    """Whether the operator deactivated it, not another controller."""
    has_quota: bool
    is_admitted: bool
    message: str
    """Why there is no quota yet."""
    eviction_reason: str
    """Why Kueue evicted it, until it is admitted again."""
    eviction_message: str
    is_for_other_cluster: bool = False
    """Whether MultiKueue has rejected it, because its Job was created before the queue became one of MultiKueue."""
    version: int = field(default=0, compare=False)

    @classmethod
    def from_object(cls, obj: Object) -> Self:
        """Read a Workload."""
        meta, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
        found = {one["type"]: one for one in status.get("conditions") or []}
        reserved, evicted = found.get("QuotaReserved", {}), found.get("Evicted", {})
        is_evicted = evicted.get("status") == "True"
        rejections = [one for one in status.get("admissionChecks") or [] if one.get("state") == "Rejected"]
        return cls(
            name=meta["name"],
            uid=meta["uid"],
            job_uid=(meta.get("labels") or {}).get(names.LABEL_QUEUED_JOB_UID, ""),
            cluster_queue=(status.get("admission") or {}).get("clusterQueue", ""),
            is_active=spec.get("active", True),
            is_ours_to_activate=names.ANNOTATION_SUSPENDED_BY in (meta.get("annotations") or {}),
            has_quota=reserved.get("status") == "True",
            is_admitted=found.get("Admitted", {}).get("status") == "True",
            message=reserved.get("message", ""),
            eviction_reason=evicted.get("reason", "") if is_evicted else "",
            eviction_message=evicted.get("message", "") if is_evicted else "",
            # Only the message names the controller of a check, and only of this controller `spec.managedBy`.
            is_for_other_cluster=any(names.MULTIKUEUE in (one.get("message") or "") for one in rejections),
            version=version_of(meta),
        )
