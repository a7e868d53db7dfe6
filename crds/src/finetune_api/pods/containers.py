"""Image, identity and environment of a job's pods, and what preflight has of its own."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from finetune_api.blocks import (
    GRANULAR,
    Block,
    LabelValue,
    QualifiedName,
    SecretName,
    SecretRef,
    map_list,
    with_rule,
)
from finetune_api.pods.resources import PodResources
from finetune_api.pods.scheduling import QueueName


class PullPolicy(StrEnum):
    """When the kubelet pulls an image."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


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
    image_pull_policy: PullPolicy = PullPolicy.IF_NOT_PRESENT
    """`Always`, `IfNotPresent` or `Never`. Default: `IfNotPresent`."""
    image_pull_secrets: Annotated[list[SecretRef], Field(max_length=8, json_schema_extra=map_list("name"))] | None = (
        None
    )
    """Secrets to pull the image with. Default: the operator's setting, else the service account's."""
    service_account_name: SecretName | None = None
    """ServiceAccount of the job's pods, for storage access by workload identity.
    Default: `default`, without a token."""
    env: Annotated[list[EnvironmentVariable], Field(max_length=32, json_schema_extra=map_list("name"))] | None = None
    """Environment variables of the trainer pods, for the network of several GPUs or nodes, for example
    `[{name: NCCL_SOCKET_IFNAME, value: eth1}]`. Default: none."""
    pod_annotations: (
        Annotated[
            dict[QualifiedName, Annotated[str, StringConstraints(max_length=1024)]],
            Field(max_length=16, json_schema_extra=GRANULAR),
        ]
        | None
    ) = None
    """Annotations of the trainer pods, for example `{k8s.v1.cni.cncf.io/networks: rdma}`. Default: none."""
    pod_labels: Annotated[dict[QualifiedName, LabelValue], Field(max_length=16, json_schema_extra=GRANULAR)] | None = (
        None
    )
    """Labels of all pods of the job and of what is created for them, for example `{example.com/cost-centre: a17}`; they
    cannot replace the operator's. Default: none."""


class Preflight(Block):
    """Checks of dataset, model and storage, which run before a GPU is requested."""

    model_config = with_rule(
        "self.enabled || (!has(self.queueName) && !has(self.resources))",
        "queueName and resources are those of the preflight pod: remove them, or set preflight.enabled true",
        ".enabled",
    )

    enabled: bool = True
    """Check in a pod of its own, which holds no GPU. False: the trainer's pod makes the same checks at the start of
    every run, while it holds its GPU; only for jobs that train in one process. Fixed at creation. Default: true."""
    queue_name: QueueName | None = None
    """LocalQueue of Kueue in which preflight waits. Default: the trainer's."""
    resources: PodResources | None = None
    """Resources of the preflight container. Default: requests of 250m CPU and 512Mi memory."""
