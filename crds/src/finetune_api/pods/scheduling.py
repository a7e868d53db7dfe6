"""Queue, placement and priority of a job's pods."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from finetune_api.blocks import (
    ATOMIC,
    ATOMIC_LIST,
    Block,
    LabelValue,
    QualifiedName,
    SecretName,
    cel,
    map_list,
    with_rule,
    with_rules,
)
from finetune_api.pods.affinity import Affinity, DnsLabel, TopologySpreadConstraint


class TolerationOperator(StrEnum):
    """How a toleration compares with a taint."""

    EXISTS = "Exists"
    EQUAL = "Equal"


class TaintEffect(StrEnum):
    """Effect of a taint."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


EXISTS_WITHOUT_VALUE = "!has(self.value) || self.value == '' || !has(self.operator) || self.operator != 'Exists'"
SECONDS_OF_NO_EXECUTE = "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')"


class Toleration(Block):
    """A toleration, as in a pod's spec."""

    model_config = with_rules(
        cel(
            EXISTS_WITHOUT_VALUE,
            "a toleration with operator Exists has no value: remove the value, or set operator Equal",
            ".value",
        ),
        cel(
            SECONDS_OF_NO_EXECUTE,
            "tolerationSeconds is only for effect NoExecute: set effect NoExecute, or remove tolerationSeconds",
            ".effect",
        ),
    )

    key: QualifiedName
    """Key of the taint: one toleration of every taint is not possible."""
    operator: TolerationOperator | None = None
    """`Exists` or `Equal`. Default: `Equal`."""
    value: LabelValue | None = None
    """Value of the taint, with operator `Equal`. Default: empty."""
    effect: TaintEffect | None = None
    """`NoSchedule`, `PreferNoSchedule` or `NoExecute`. Default: every effect."""
    toleration_seconds: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    """Seconds that a `NoExecute` taint is tolerated, with effect `NoExecute`. Default: forever."""


QueueName = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
"""A name that is also a label's value."""


class TopologyMode(StrEnum):
    """How strictly the pods of a job are kept together."""

    REQUIRED = "Required"
    PREFERRED = "Preferred"
    UNCONSTRAINED = "Unconstrained"


class Topology(Block):
    """Placement of a job's trainer pods relative to each other, by Kueue."""

    model_config = with_rule(
        "(self.mode == 'Unconstrained') != has(self.level)",
        "modes Required and Preferred need a level, mode Unconstrained must not have one: set or remove "
        "scheduling.topology.level",
        ".level",
    )

    mode: TopologyMode
    """`Required`: all pods within one domain of the level, else the job waits. `Preferred`: within one domain if there
    is room. `Unconstrained`: on any nodes, with their capacity counted by Kueue."""
    level: QualifiedName | None = None
    """Node label of the level, as the queue's Topology names it, for example `cloud.provider.com/topology-rack`.
    Default: none."""


class Scheduling(Block):
    """Queue, placement and priority of the job's pods."""

    queue_name: QueueName | None = None
    """Kueue LocalQueue, in the job's namespace, in which the job's Jobs wait for quota. Default: the job's label
    `kueue.x-k8s.io/queue-name`, else none."""
    workload_priority_class_name: QueueName | None = None
    """Kueue WorkloadPriorityClass; sets queueing order and preemption. Default: the pods' priority."""
    topology: Topology | None = None
    """Placement of the trainer pods by Kueue's Topology. Default: none."""
    node_selector: Annotated[dict[QualifiedName, LabelValue], Field(max_length=32, json_schema_extra=ATOMIC)] | None = (
        None
    )
    """Labels that the trainer's nodes must have. Default: the operator's setting, else none."""
    tolerations: Annotated[list[Toleration], Field(max_length=32, json_schema_extra=ATOMIC_LIST)] | None = None
    """Taints that the job's pods tolerate. Default: the operator's setting, else none."""
    priority_class_name: SecretName | None = None
    """PriorityClass of the pods; must be on the operator's allow-list. Default: the cluster's."""
    runtime_class_name: SecretName | None = None
    """RuntimeClass of the trainer pods. Default: the operator's setting, else the node's."""
    affinity: Affinity | None = None
    """Affinity of the trainer pods to nodes and to other pods. Default: none."""
    topology_spread_constraints: (
        Annotated[
            list[TopologySpreadConstraint],
            Field(max_length=8, json_schema_extra=map_list("topologyKey", "whenUnsatisfiable")),
        ]
        | None
    ) = None
    """Spread of the trainer pods over domains of a topology. Default: the cluster's."""
    scheduler_name: DnsLabel | None = None
    """Scheduler of all pods of the job. Volcano and KAI Scheduler are asked to place all trainer pods of a job or none.
    Default: `default-scheduler`."""
