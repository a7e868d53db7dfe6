"""Keep the pods of an attempt from nodes whose GPU failed before."""

from collections.abc import Sequence

from finetune_operator.kube.objects import Object

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def avoid_nodes(affinity: Object | None, nodes: Sequence[str]) -> Object:
    """Return the job's affinity with every term also excluding the nodes; Kubernetes takes one name for each
    requirement."""
    others = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
    given = affinity or {}
    of_nodes = given.get("nodeAffinity") or {}
    terms = (of_nodes.get(REQUIRED) or {}).get("nodeSelectorTerms") or [{}]
    excluding = [term | {"matchFields": [*term.get("matchFields", []), *others]} for term in terms]
    return given | {"nodeAffinity": of_nodes | {REQUIRED: {"nodeSelectorTerms": excluding}}}
