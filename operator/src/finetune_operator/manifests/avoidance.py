"""Keep the pods of an attempt from nodes whose GPU failed before, and from one that ended two runs in succession."""

from collections.abc import Sequence

from finetune_api.names import Reason
from finetune_api.status import FineTuneJobStatus
from finetune_operator.kube.objects import Object
from finetune_operator.settings import Settings

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def place_elsewhere(affinity: Object | None, status: FineTuneJobStatus, settings: Settings) -> Object | None:
    """Return the job's affinity against the nodes on which its runs ended, as the platform wants it; None if there is
    none."""
    if settings.node_avoidance == "Off":
        return affinity
    placed, broken = affinity, status.avoided_node_names or []
    if broken and settings.node_avoidance == "Required":
        placed = avoid_nodes(affinity, broken)
    elif broken:
        placed = prefer_others(affinity, broken)
    node = find_doubtful_node(status)
    return prefer_others(placed, [node]) if node else placed


def find_doubtful_node(status: FineTuneJobStatus) -> str | None:
    """Return the node on which the last two runs failed or were rejected; only the job's own runs are a reason.

    A run between them that ended otherwise, also by preemption, begins the count again, as it does for rejections.
    Other nodes are preferred, not required: the cause may be in the job, and the cluster may have no other node.
    """
    last = (status.history or [])[-2:]
    nodes = [one.node_name for one in last if one.result == "Failed" or one.reason == Reason.POD_REJECTED]
    return nodes[0] if len(nodes) == 2 and nodes[0] == nodes[1] else None


def prefer_others(affinity: Object | None, nodes: Sequence[str]) -> Object:
    """Return the affinity with a preference, of the greatest weight, for other nodes than these."""
    given = affinity or {}
    of_nodes = given.get("nodeAffinity") or {}
    term = {"weight": 100, "preference": {"matchFields": [_other_than(node) for node in nodes]}}
    return given | {"nodeAffinity": of_nodes | {PREFERRED: [*of_nodes.get(PREFERRED, []), term]}}


def _other_than(node: str) -> Object:
    return {"key": "metadata.name", "operator": "NotIn", "values": [node]}


def avoid_nodes(affinity: Object | None, nodes: Sequence[str]) -> Object:
    """Return the job's affinity with every term also excluding the nodes; Kubernetes takes one name for each
    requirement."""
    others = [_other_than(node) for node in nodes]
    given = affinity or {}
    of_nodes = given.get("nodeAffinity") or {}
    terms = (of_nodes.get(REQUIRED) or {}).get("nodeSelectorTerms") or [{}]
    excluding = [term | {"matchFields": [*term.get("matchFields", []), *others]} for term in terms]
    return given | {"nodeAffinity": of_nodes | {REQUIRED: {"nodeSelectorTerms": excluding}}}
