"""Resources, placement and images of a job's pods. The docstring under a field is its documentation."""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from finetune_api.blocks import Block, LabelValue, QualifiedName, Quantity, SecretName, SecretRef, cel, rules


class Workspace(Block):
    """The trainer's scratch space."""

    size_limit: Quantity | None = None
    """Maximum scratch space of a pod, for example `100Gi`. Default: the node's."""


ResourceList = Annotated[dict[QualifiedName, Quantity], Field(max_length=16)]


class PodResources(Block):
    """Requests and limits of a container."""

    requests: ResourceList | None = None
    """Resource requests. Default: none."""
    limits: ResourceList | None = None
    """Resource limits. Default: none."""


class Resources(Block):
    """Resources of the trainer's pods."""

    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of trainer pods; the scheduler may place several on one node. Default: 1."""
    gpus_per_node: Annotated[int, Field(ge=0, le=16)] = 1
    """GPUs per pod, with one training process for each; 0 trains on the CPU. Default: 1."""
    gpu_resource_name: QualifiedName = "nvidia.com/gpu"
    """Name of the extended resource of a GPU. Default: `nvidia.com/gpu`."""
    requests: ResourceList | None = None
    """Resource requests of the trainer container, for example `{cpu: 4, memory: 24Gi}`. Default: 1 CPU and 2Gi memory
    for each training process (the operator's setting), at most the limit; they win over the defaults of a LimitRange.
    `{}`: only the GPUs and what a LimitRange adds."""
    limits: ResourceList | None = None
    """Resource limits of the trainer container. The CPU limit, else the CPU in `requests`, also sets the number of
    threads of its processes (`OMP_NUM_THREADS`); without both, they use all cores of the node. Default: only the
    GPUs."""
    shm_size: Quantity | None = None
    """Size of `/dev/shm`, which counts as memory. Default: `1Gi`."""
    workspace: Workspace | None = None
    """Scratch space for model, rows and result. Default: unbounded."""
    collective_timeout_seconds: Annotated[int, Field(ge=10, le=7200)] | None = None
    """Seconds that a training process waits for the others in one exchange (NCCL or gloo). After it, all end, with the
    stacks of every process in their logs. Default: 600."""
    merge: PodResources | None = None
    """Resources of the pod that merges and validates a full model. It is separate and holds no GPU if the job has more
    than one GPU or this is set. Default: CPU, memory and ephemeral storage of the trainer's pod; without requests,
    those of one training process."""

    @property
    def ranks(self) -> int:
        """Number of training processes: one per GPU, or one per pod without GPUs."""
        return self.nodes * max(1, self.gpus_per_node)


class Toleration(Block):
    """A toleration, as in a pod's spec."""

    key: QualifiedName | None = None
    """Key of the taint. Default: every key, with operator `Exists`."""
    operator: Annotated[str, StringConstraints(pattern=r"^(Exists|Equal)$", max_length=8)] | None = None
    """`Exists` or `Equal`. Default: `Equal`."""
    value: LabelValue | None = None
    """Value of the taint, with operator `Equal`. Default: empty."""
    effect: (
        Annotated[str, StringConstraints(pattern=r"^(NoSchedule|PreferNoSchedule|NoExecute)$", max_length=16)] | None
    ) = None
    """`NoSchedule`, `PreferNoSchedule` or `NoExecute`. Default: every effect."""
    toleration_seconds: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    """Seconds that a `NoExecute` taint is tolerated. Default: forever."""


QueueName = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
"""A name that is also a label's value."""


class TopologyMode(StrEnum):
    """How strictly the pods of a job are kept together."""

    REQUIRED = "Required"
    PREFERRED = "Preferred"
    UNCONSTRAINED = "Unconstrained"


class Topology(Block):
    """Placement of a job's trainer pods relative to each other, by Kueue."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "(self.mode == 'Unconstrained') != has(self.level)",
                "modes Required and Preferred need a level, mode Unconstrained must not have one: set or remove "
                "scheduling.topology.level",
                ".level",
            )
        )
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
    workload_priority_class: QueueName | None = None
    """Kueue WorkloadPriorityClass; sets queueing order and preemption. Default: the pods' priority."""
    topology: Topology | None = None
    """Placement of the trainer pods by Kueue's Topology. Default: none."""
    node_selector: Annotated[dict[QualifiedName, LabelValue], Field(max_length=32)] | None = None
    """Labels that the trainer's nodes must have. Default: none."""
    tolerations: (
        Annotated[list[Toleration], Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "atomic"})] | None
    ) = None
    """Taints that the trainer pods tolerate. Default: none."""
    priority_class_name: SecretName | None = None
    """PriorityClass of the trainer and merge pods; must be on the operator's allow-list. Default: the cluster's."""
    runtime_class_name: SecretName | None = None
    """RuntimeClass of the trainer pods. Default: the node's."""


class EnvironmentVariable(Block):
    """An environment variable, as in a pod's spec."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Z][A-Z0-9_]*$")]
    """Name, for example `NCCL_SOCKET_IFNAME`."""
    value: Annotated[str, StringConstraints(max_length=1024, pattern=r"^[ -~]*$")]
    """Value, in printable ASCII characters."""


class Trainer(Block):
    """Image, identity and environment of the job's pods; each must be on the operator's allow-list."""

    image: (
        Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$")]
        | None
    ) = None
    """Image of preflight, training and merge. Default: the operator's images."""
    image_pull_policy: Annotated[str, StringConstraints(pattern=r"^(Always|IfNotPresent|Never)$", max_length=16)] = (
        "IfNotPresent"
    )
    """`Always`, `IfNotPresent` or `Never`. Default: `IfNotPresent`."""
    image_pull_secrets: (
        Annotated[list[SecretRef], Field(max_length=8, json_schema_extra={"x-kubernetes-list-type": "atomic"})] | None
    ) = None
    """Secrets to pull the image with. Default: the service account's."""
    service_account_name: SecretName | None = None
    """ServiceAccount of the job's pods, for storage access by workload identity.
    Default: `default`, without a token."""
    env: (
        Annotated[
            list[EnvironmentVariable],
            Field(
                max_length=32,
                json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
            ),
        ]
        | None
    ) = None
    """Environment variables of the trainer pods, for the network of several GPUs or nodes, for example
    `[{name: NCCL_SOCKET_IFNAME, value: eth1}]`. Default: none."""
    pod_annotations: (
        Annotated[dict[QualifiedName, Annotated[str, StringConstraints(max_length=1024)]], Field(max_length=16)] | None
    ) = None
    """Annotations of the trainer pods, for example `{k8s.v1.cni.cncf.io/networks: rdma}`. Default: none."""


class Preflight(Block):
    """Checks of dataset, model and storage, which run before a GPU is requested."""

    queue_name: QueueName | None = None
    """LocalQueue of Kueue in which preflight waits. Default: the trainer's."""
    resources: PodResources | None = None
    """Resources of the preflight container. Default: requests of 250m CPU and 512Mi memory."""
