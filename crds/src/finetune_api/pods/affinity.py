"""Affinity of a job's pods to nodes and to other pods, and their spread, with the fields of a pod's spec."""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from finetune_api.blocks import ATOMIC, ATOMIC_LIST, Block, LabelValue, QualifiedName, with_rule

DnsLabel = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
Labels = Annotated[dict[str, LabelValue], Field(max_length=16, json_schema_extra=ATOMIC)]
Values = Annotated[list[LabelValue], Field(max_length=32, json_schema_extra=ATOMIC_LIST)]
Names = Annotated[list[DnsLabel], Field(max_length=16, json_schema_extra=ATOMIC_LIST)]
LabelKeys = Annotated[list[QualifiedName], Field(max_length=16, json_schema_extra=ATOMIC_LIST)]
Weight = Annotated[int, Field(ge=1, le=100)]


class LabelOperator(StrEnum):
    """How a label is compared with values."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class NodeOperator(StrEnum):
    """How a node's label is compared with values."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"
    GT = "Gt"
    LT = "Lt"


HAS_VALUES = "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)"
HAS_VALUES_OR_INTEGER = (
    "self.operator in ['Gt', 'Lt'] ? has(self.values) && size(self.values) == 1 && "
    f"self.values[0].matches('^[0-9]{{1,18}}$') : {HAS_VALUES}"
)


class LabelRequirement(Block):
    """One requirement of a label selector."""

    model_config = with_rule(
        HAS_VALUES,
        "operators In and NotIn need values, Exists and DoesNotExist have none: add or remove values",
        ".values",
    )

    key: QualifiedName
    """Key of the label."""
    operator: LabelOperator
    """`In`, `NotIn`, `Exists` or `DoesNotExist`."""
    values: Values | None = None
    """Values, with `In` and `NotIn`. Default: none."""


class LabelSelector(Block):
    """Objects that have these labels."""

    model_config = ConfigDict(json_schema_extra=ATOMIC)

    match_labels: Labels | None = None
    """Labels and their values. Default: none."""
    match_expressions: Annotated[list[LabelRequirement], Field(max_length=16, json_schema_extra=ATOMIC_LIST)] | None = (
        None
    )
    """Requirements, all of which must be met. Default: none."""


class NodeRequirement(Block):
    """One requirement of a node."""

    model_config = with_rule(
        HAS_VALUES_OR_INTEGER,
        "operators In and NotIn need values, Exists and DoesNotExist have none, and Gt and Lt one integer: "
        "add, change or remove values",
        ".values",
    )

    key: QualifiedName
    """Key of the node's label; in `matchFields` only `metadata.name`."""
    operator: NodeOperator
    """`In`, `NotIn`, `Exists`, `DoesNotExist`, `Gt` or `Lt`."""
    values: Values | None = None
    """Values; one integer with `Gt` and `Lt`. Default: none."""


Requirements = Annotated[list[NodeRequirement], Field(max_length=16, json_schema_extra=ATOMIC_LIST)]


class NodeSelectorTerm(Block):
    """Nodes that meet every requirement."""

    model_config = ConfigDict(json_schema_extra=ATOMIC)

    match_expressions: Requirements | None = None
    """Requirements of the node's labels. Default: none."""
    match_fields: Requirements | None = None
    """Requirements of the node's name. Default: none."""


class NodeSelector(Block):
    """Nodes that match one of the terms."""

    model_config = ConfigDict(json_schema_extra=ATOMIC)

    node_selector_terms: Annotated[
        list[NodeSelectorTerm], Field(min_length=1, max_length=16, json_schema_extra=ATOMIC_LIST)
    ]
    """Terms, one of which must match."""


class PreferredNodes(Block):
    """Nodes that are preferred."""

    weight: Weight
    """Weight of the preference, 1 to 100."""
    preference: NodeSelectorTerm
    """Nodes that get the weight."""


class NodeAffinity(Block):
    """Affinity to nodes."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    """Nodes on which the pods may run. Default: all."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[PreferredNodes], Field(max_length=16, json_schema_extra=ATOMIC_LIST)] | None
    ) = None
    """Nodes that are preferred. Default: none."""


class PodAffinityTerm(Block):
    """Pods that run in the same domain of a topology."""

    topology_key: QualifiedName
    """Label of nodes whose value is the domain, for example `topology.kubernetes.io/zone`."""
    label_selector: LabelSelector | None = None
    """Pods that count. Default: none."""
    namespaces: Names | None = None
    """Namespaces of these pods. Default: the job's."""
    namespace_selector: LabelSelector | None = None
    """Labels of further namespaces; empty for all. Default: none."""
    match_label_keys: LabelKeys | None = None
    """Labels whose value must be that of the job's pod. Default: none."""
    mismatch_label_keys: LabelKeys | None = None
    """Labels whose value must not be that of the job's pod. Default: none."""


class PreferredPods(Block):
    """Pods whose domain is preferred, or avoided."""

    weight: Weight
    """Weight of the preference, 1 to 100."""
    pod_affinity_term: PodAffinityTerm
    """Pods and topology."""


class PodAffinity(Block):
    """Affinity to other pods, or against them."""

    required_during_scheduling_ignored_during_execution: (
        Annotated[list[PodAffinityTerm], Field(max_length=16, json_schema_extra=ATOMIC_LIST)] | None
    ) = None
    """Terms that must all hold. Default: none."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[PreferredPods], Field(max_length=16, json_schema_extra=ATOMIC_LIST)] | None
    ) = None
    """Terms that are preferred. Default: none."""


class Affinity(Block):
    """Affinity, as in a pod's spec."""

    node_affinity: NodeAffinity | None = None
    """Affinity to nodes; their labels, and `metadata.name` for `matchFields`, must be on the operator's allow-list.
    Default: none."""
    pod_affinity: PodAffinity | None = None
    """Pods in whose domain the job's pods run. Default: none."""
    pod_anti_affinity: PodAffinity | None = None
    """Pods in whose domain the job's pods do not run. Default: none."""


class WhenUnsatisfiable(StrEnum):
    """What happens to a pod that would break a constraint."""

    DO_NOT_SCHEDULE = "DoNotSchedule"
    SCHEDULE_ANYWAY = "ScheduleAnyway"


class NodeInclusion(StrEnum):
    """Whether nodes are counted that the pod's own affinity or tolerations exclude."""

    HONOR = "Honor"
    IGNORE = "Ignore"


DOMAINS_OF_DO_NOT_SCHEDULE = "!has(self.minDomains) || self.whenUnsatisfiable == 'DoNotSchedule'"


class TopologySpreadConstraint(Block):
    """Spread of pods over the domains of a topology, as in a pod's spec."""

    model_config = with_rule(
        DOMAINS_OF_DO_NOT_SCHEDULE,
        "minDomains is only for whenUnsatisfiable DoNotSchedule: set it, or remove minDomains",
        ".minDomains",
    )

    max_skew: Annotated[int, Field(ge=1, le=1024)]
    """Largest difference of the number of pods between two domains."""
    topology_key: QualifiedName
    """Label of nodes whose value is the domain."""
    when_unsatisfiable: WhenUnsatisfiable
    """`DoNotSchedule` or `ScheduleAnyway`."""
    label_selector: LabelSelector | None = None
    """Pods that count. Default: none."""
    min_domains: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Least number of domains, with `DoNotSchedule`. Default: 1."""
    node_affinity_policy: NodeInclusion | None = None
    """`Honor` or `Ignore` node affinity and selector when domains are counted. Default: `Honor`."""
    node_taints_policy: NodeInclusion | None = None
    """`Honor` or `Ignore` taints when domains are counted. Default: `Ignore`."""
    match_label_keys: LabelKeys | None = None
    """Labels whose value must be that of the job's pod. Default: none."""


def node_keys(affinity: Affinity | None) -> list[str]:
    """Return the keys by which an affinity chooses nodes: their labels, and `metadata.name` for their names."""
    nodes = affinity.node_affinity if affinity else None
    if nodes is None:
        return []
    required = nodes.required_during_scheduling_ignored_during_execution
    terms = [*(required.node_selector_terms if required else ())]
    terms += [one.preference for one in nodes.preferred_during_scheduling_ignored_during_execution or ()]
    return [one.key for term in terms for one in [*(term.match_expressions or ()), *(term.match_fields or ())]]
