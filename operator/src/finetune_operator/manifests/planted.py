"""Whether a child of a job was built by the operator: anyone in the namespace can set an owner reference."""

from typing import Any

from finetune_api import handoff
from finetune_api.scalars import read_quantity
from finetune_operator.kube.objects import Object
from finetune_operator.manifests.network import FINDING_LABELS, is_token

NEVER_SET = (
    "initContainers",
    "ephemeralContainers",
    "hostNetwork",
    "hostPID",
    "hostIPC",
    "shareProcessNamespace",
)
"""Fields of a pod that the operator never sets, and that Kueue does not add to a Job."""
OF_A_CONTAINER = ("command", "args", "image", "env", "envFrom", "lifecycle", "securityContext", "volumeMounts")
DEFAULTED = frozenset({"apiVersion", "defaultMode", "optional", "protocol", "targetPort", "readOnly", "divisor"})
"""Fields that the API server adds to what the operator writes."""
QUANTITIES = frozenset({"sizeLimit", "storage"})
"""Fields that the API server spells in its own way: it stores 1024Mi as 1Gi."""
OF_A_POD = ("automountServiceAccountToken", "serviceAccountName", "securityContext", "volumes")


def find_foreign_content(kind: str, built: Object, found: Object) -> str:
    """Return the field in which an existing object differs from the one that the operator builds; empty if it has its
    content. Fields that Kueue or an administrator may change, such as node selectors and labels, are not compared."""
    match kind:
        case "ConfigMap" if handoff.PEER_TOKEN_FILE in built["data"]:  # random: the first one that was made counts
            return "" if is_token(found.get("data") or {}) and not found.get("binaryData") else "data"
        case "ConfigMap":
            is_same = all((built.get(part) or {}) == (found.get(part) or {}) for part in ("data", "binaryData"))
            return "" if is_same else "data"
        case "Service":
            return "spec" if _find_missing(built["spec"], found["spec"], ("selector", "ports", "clusterIP")) else ""
        case "NetworkPolicy":
            parts = ("podSelector", "policyTypes", "ingress", "egress")
            return "spec" if _find_missing(built["spec"], found["spec"], parts) else ""
        case _:
            return _find_in_pod(built["spec"]["template"]["spec"], found["spec"]["template"]["spec"])


def find_changed_labels(built: Object, found: Object) -> list[str]:
    """Return the labels by which the operator finds a Job and its pods, and which a webhook has changed in the Job."""
    pairs = [(built, found), (built["spec"]["template"], found["spec"]["template"])]
    changed = {
        label
        for ours, theirs in pairs
        for label in FINDING_LABELS
        if (theirs["metadata"].get("labels") or {}).get(label) != ours["metadata"]["labels"][label]
    }
    return sorted(changed)


def _find_in_pod(built: Object, found: Object) -> str:
    added = next((name for name in NEVER_SET if found.get(name) and not built.get(name)), "")
    if added:
        return added
    if len(found["containers"]) != 1:
        return "containers"
    if missing := _find_missing(built["containers"][0], found["containers"][0], OF_A_CONTAINER):
        return f"containers[0].{missing}"
    return _find_missing(built, found, OF_A_POD)


def _find_missing(built: Object, found: Object, fields: tuple[str, ...]) -> str:
    """Return the first of these fields that does not have what was built; empty if all have it."""
    return next((name for name in fields if not _is_subset(built.get(name), found.get(name))), "")


def _is_subset(built: Any, found: Any, name: str = "") -> bool:
    """Return whether everything that was built is there, in lists of the same length; the API server adds defaults."""
    if isinstance(built, dict) and isinstance(found, dict):
        added = found.keys() - built.keys()
        return all(_is_subset(value, found.get(key), key) for key, value in built.items()) and all(
            _is_default(key, found[key]) for key in added
        )
    if isinstance(built, list) and isinstance(found, list):
        return len(built) == len(found) and all(map(_is_subset, built, found))
    is_same = bool(built == found) or (not built and not found)
    return is_same or (name in QUANTITIES and _is_same_quantity(built, found))


def _is_default(name: str, value: Any) -> bool:
    """Return whether the API server adds a field with that value."""
    match name:
        case "volumeMode":  # of a volume's claim, as the metadata
            return bool(value == "Filesystem")
        case "metadata":
            return not any(value.values())
        case _:
            return name in DEFAULTED or value is None  # such as the creationTimestamp of a claim's template


def _is_same_quantity(built: Any, found: Any) -> bool:
    try:
        return read_quantity(built) == read_quantity(found)
    except ValueError:
        return False
