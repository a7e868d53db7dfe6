"""Resources of a job's pods. The docstring under a field is its documentation."""

from typing import Annotated

from pydantic import Field

from finetune_api.blocks import (
    GRANULAR,
    Block,
    ObjectName,
    QualifiedName,
    Quantity,
    cel,
    map_list,
    with_rule,
    with_rules,
)
from finetune_api.pods.affinity import DnsLabel
from finetune_api.pods.scheduling import QueueName


def _in_bytes(field: str) -> str:
    return f"!has(self.{field}) || !quantity(string(self.{field})).isLessThan(quantity('1Mi'))"


WORKSPACE_IN_BYTES = _in_bytes("sizeLimit")
SHM_IN_BYTES = _in_bytes("shmSize")


class Workspace(Block):
    """The trainer's scratch space."""

    model_config = with_rules(
        cel(
            "!has(self.storageClassName) || has(self.sizeLimit)",
            "sizeLimit is required with storageClassName: set it to the size of the volume, for example 500Gi",
            ".sizeLimit",
        ),
        cel(
            WORKSPACE_IN_BYTES,
            "sizeLimit below 1Mi: without a unit it is in bytes: write 100Gi in place of 100, for example",
            ".sizeLimit",
        ),
    )

    size_limit: Quantity | None = None
    """Maximum scratch space of a pod, for example `100Gi`. Required with `storageClassName`. Default: the node's."""
    storage_class_name: ObjectName | None = None
    """StorageClass of a volume of `sizeLimit` that each pod gets as scratch space. A pod that has ended keeps it until
    it is deleted, an hour after the end of the job unless `ttlSecondsAfterFinished` is set. Default: the node's
    disk."""


ResourceList = Annotated[dict[QualifiedName, Quantity], Field(max_length=16, json_schema_extra=GRANULAR)]


IN_BYTES = " && ".join(
    f"(!has(self.{one}) || !('memory' in self.{one}) || "
    f"!quantity(string(self.{one}['memory'])).isLessThan(quantity('1Mi')))"
    for one in ("requests", "limits")
)
DIVISIBLE = ("cpu", "memory", "ephemeral-storage")
"""Resources of which a container may request less than its limit."""
# Kubernetes 1.31 estimates the cost of a rule without the length of a quantity: a quantity may be read a few times.
WITHIN_LIMITS = (
    f"!has(self.requests) || !has(self.limits) || {list(DIVISIBLE)}.all(name, !(name in self.requests) || "
    "!(name in self.limits) || "
    "!quantity(string(self.requests[name])).isGreaterThan(quantity(string(self.limits[name]))))"
)
GPUS_BY_COUNT = (
    "!['nvidia.com/gpu', has(self.gpuResourceName) ? self.gpuResourceName : ''].exists(gpu, "
    "(has(self.requests) && gpu in self.requests) || (has(self.limits) && gpu in self.limits))"
)
RESOURCE = "/|^(cpu|memory|ephemeral-storage|hugepages-.+)$"
"""Names that Kubernetes accepts for a container."""
KNOWN_RESOURCES = " && ".join(
    f"(!has(self.{one}) || self.{one}.all(name, name.matches('{RESOURCE}')))" for one in ("requests", "limits")
)
WHOLE_DEVICES = (
    f"!has(self.requests) || self.requests.all(name, name in {list(DIVISIBLE)} || (has(self.limits) && "
    "name in self.limits && self.requests[name] == self.limits[name]))"
)
ONE_SLICE = (
    "!has(self.gpuResourceName) || !self.gpuResourceName.contains('/mig-') || !has(self.gpusPerNode) || "
    "self.gpusPerNode <= 1"
)
"""NCCL connects whole GPUs, not MIG devices."""
GPU_WITH_VENDOR = "!has(self.gpuResourceName) || self.gpuResourceName.contains('/')"
_AMOUNTS = (
    cel(
        KNOWN_RESOURCES,
        "not a resource of a container: write cpu, memory, ephemeral-storage, hugepages-2Mi, or vendor/device",
    ),
    cel(WHOLE_DEVICES, "a request of a device must be its limit: write it in limits alone", ".requests"),
    cel(IN_BYTES, "memory below 1Mi: without a unit it is in bytes: write 16Gi in place of 16, for example"),
    cel(WITHIN_LIMITS, "a request is above its limit: lower it, or raise the limit", ".requests"),
)


class PodResources(Block):
    """Requests and limits of a container."""

    model_config = with_rules(*_AMOUNTS)

    requests: ResourceList | None = None
    """Resource requests. Default: the operator's for this pod, or the limit where one is set."""
    limits: ResourceList | None = None
    """Resource limits. Default: none, but preflight has the operator's limit of memory."""


class MergePod(PodResources):
    """Queue and resources of the pod that merges."""

    queue_name: QueueName | None = None
    """LocalQueue of Kueue in which the merge waits, for example one of nodes without GPUs. Default: the trainer's."""


class DeviceClaim(Block):
    """Devices by Dynamic Resource Allocation, as in a pod's spec."""

    model_config = with_rule(
        "has(self.resourceClaimName) != has(self.resourceClaimTemplateName)",
        "give the claim either by resourceClaimName or by resourceClaimTemplateName: set one of the two",
        ".resourceClaimName",
    )

    name: DnsLabel
    """Name of the claim within the pod."""
    resource_claim_name: ObjectName | None = None
    """ResourceClaim in the job's namespace, which all pods of the job share. Exclusive with
    `resourceClaimTemplateName`. Default: none."""
    resource_claim_template_name: ObjectName | None = None
    """ResourceClaimTemplate in the job's namespace, of which each pod gets a claim. Exclusive with
    `resourceClaimName`. Default: none."""
    request: DnsLabel | None = None
    """Request of the claim that the container uses. Default: all."""


class Resources(Block):
    """Resources of the trainer's pods."""

    model_config = with_rules(
        *_AMOUNTS,
        cel(
            GPUS_BY_COUNT,
            "the GPUs of a pod are not in requests or limits: set resources.gpusPerNode to their number, and "
            "resources.gpuResourceName to their resource",
            ".gpusPerNode",
        ),
        cel(
            GPU_WITH_VENDOR,
            "name the vendor of the GPU too: write nvidia.com/gpu, for example",
            ".gpuResourceName",
        ),
        cel(
            ONE_SLICE,
            "several slices of a GPU (MIG) cannot train together: set resources.gpusPerNode to 1 and name a larger "
            "slice, or nvidia.com/gpu",
            ".gpusPerNode",
        ),
        cel(
            SHM_IN_BYTES,
            "shmSize below 1Mi: without a unit it is in bytes: write 8Gi in place of 8, for example",
            ".shmSize",
        ),
    )

    num_nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of trainer pods; the scheduler may place several on one node. Default: 1."""
    gpus_per_node: Annotated[int, Field(ge=0, le=16)] = 1
    """GPUs per pod, with one training process for each; 0 trains on the CPU. Default: 1."""
    gpu_resource_name: QualifiedName = "nvidia.com/gpu"
    """Name of the extended resource of a GPU. Default: `nvidia.com/gpu`."""
    claims: Annotated[list[DeviceClaim], Field(max_length=8, json_schema_extra=map_list("name"))] | None = None
    """Claims of devices for the trainer's pods, in place of the extended resource; `gpusPerNode` is then the number of
    their GPUs with which a pod trains. Default: none."""
    requests: ResourceList | None = None
    """Resource requests of the trainer container, for example `{cpu: 4, memory: 24Gi}`. Default: 1 CPU and 2Gi memory
    for each training process (the operator's setting), or the limit of a resource that has one; they win over the
    defaults of a LimitRange. `{}`: only the GPUs and what a LimitRange adds."""
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
    merge: MergePod | None = None
    """Queue and resources of the pod that merges and validates a full model, if the job publishes one. It is separate
    and holds no GPU if the job has more than one GPU or this is set. Default: CPU, memory and ephemeral storage of the
    trainer's pod; without requests, those of one training process."""

    @property
    def ranks(self) -> int:
        """Number of training processes: one per GPU, or one per pod without GPUs."""
        return self.num_nodes * max(1, self.gpus_per_node)
