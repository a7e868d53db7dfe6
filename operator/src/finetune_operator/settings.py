"""The operator's settings, read from environment variables at start."""

import json
import re
import secrets
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from finetune_api import names
from finetune_api.blocks import Endpoint, LabelValue, QualifiedName, Quantity, SecretName, SecretRef
from finetune_api.pods.scheduling import Toleration
from finetune_api.scalars import parse_quantity
from finetune_api.spec import Hub, Storage

DEFAULT_UID = 65532
_PROXY = re.compile(r"https?://[^\s/?#]+/?")
_PREFIX = re.compile(r"s3://([a-z0-9.-]|\{namespace\})+(/(?!\.{1,2}(/|$))([^/{}*?\s]|\{namespace\})+)*/?")


def _split_commas(value: Any) -> Any:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _empty_is_none(value: Any) -> Any:
    return None if value == "" else value


def _parse_json(value: Any) -> Any:
    if not isinstance(value, str) or not value:
        return _empty_is_none(value)
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"must be JSON: {error}") from None


def _check_egress(rules: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    for rule in rules or []:
        if unknown := rule.keys() - {"to", "ports"}:
            raise ValueError(f"{', '.join(sorted(unknown))} is not a field of an egress rule: use to and ports")
    return rules


def _check_proxy(value: str | None) -> str | None:
    if value and "@" in value:
        raise ValueError("the password would be visible in every pod: use a proxy without credentials")
    if value and not _PROXY.fullmatch(value):
        raise ValueError("must be http://host:port")
    return value


def _check_quantity(value: str | None) -> str | None:
    if value is not None:
        parse_quantity(value)
    return value


def _check_prefixes(value: list[str]) -> list[str]:
    for one in value:
        if not _PREFIX.fullmatch(one):
            raise ValueError(f"{one} must be s3://bucket/path/, without patterns; {{namespace}} is the job's namespace")
    return value


Port = Annotated[int, Field(ge=1, le=65535)]
CommaSeparated = Annotated[list[str], NoDecode, BeforeValidator(_split_commas)]
OptionalText = Annotated[str | None, BeforeValidator(_empty_is_none)]
Proxy = Annotated[str | None, AfterValidator(_check_proxy), BeforeValidator(_empty_is_none)]
Peers = Annotated[list[dict[str, Any]] | None, NoDecode, BeforeValidator(_parse_json)]
EgressRules = Annotated[
    list[dict[str, Any]] | None, NoDecode, AfterValidator(_check_egress), BeforeValidator(_parse_json)
]
Labels = Annotated[dict[QualifiedName, str] | None, NoDecode, BeforeValidator(_parse_json)]
NodeLabels = Annotated[dict[QualifiedName, LabelValue] | None, NoDecode, BeforeValidator(_parse_json)]
Tolerations = Annotated[list[Toleration] | None, NoDecode, BeforeValidator(_parse_json)]
Url = Annotated[Endpoint | None, BeforeValidator(_empty_is_none)]
Name = Annotated[SecretName | None, BeforeValidator(_empty_is_none)]
Seconds = Annotated[int | None, Field(ge=1, le=31_536_000), BeforeValidator(_empty_is_none)]
OptionalQuantity = Annotated[str | None, AfterValidator(_check_quantity), BeforeValidator(_empty_is_none)]


class Settings(BaseSettings):
    """The operator's settings; every field is the environment variable `FINETUNE_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix="FINETUNE_", use_attribute_docstrings=True, frozen=True)

    trainer_image: Annotated[str, Field(min_length=1)]
    """Image for training, merge and, by default, preflight; its repository is always allowed."""
    preflight_image: OptionalText = None
    """Image for preflight alone, without PyTorch; not used for a job with `spec.trainer.image`."""
    preflight_memory_limit: OptionalQuantity = "4Gi"
    """Memory limit of preflight pods whose job sets none; empty = none."""
    preflight_workspace_limit: OptionalQuantity = "50Gi"
    """Size limit of the workspace of preflight pods whose job sets none; empty = none."""
    watch_namespaces: CommaSeparated = []
    """Namespaces to serve; empty = all."""
    allowed_images: CommaSeparated = []
    """Additional image repositories that `spec.trainer.image` may name."""
    allowed_service_accounts: CommaSeparated = []
    """Service accounts that `spec.trainer.serviceAccountName` may name, as `name` or `namespace/name`."""
    allowed_priority_classes: CommaSeparated = []
    """Priority classes that `spec.scheduling.priorityClassName` may name."""
    allowed_workload_priority_classes: CommaSeparated = []
    """Kueue WorkloadPriorityClasses that `spec.scheduling.workloadPriorityClassName` may name."""
    allowed_runtime_classes: CommaSeparated = ["nvidia", "nvidia-cdi", "nvidia-legacy"]
    """Runtime classes that `spec.scheduling.runtimeClassName` may name; by default those of NVIDIA's GPU Operator."""
    allowed_tolerations: CommaSeparated = ["*", "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]
    """Keys that `spec.scheduling.tolerations` may name; a `*` at the end matches any rest, but keys that begin with
    `node-role.kubernetes.io/` or `node.kubernetes.io/` only in an entry that begins so too."""
    allowed_node_selectors: CommaSeparated = ["*"]
    """Labels that `spec.scheduling.nodeSelector` and node affinity may name, written in the same way; those that begin
    with `node-role.kubernetes.io/` need an entry that begins so too. `metadata.name` is the name of a node."""
    allowed_model_cache_claims: CommaSeparated = ["*"]
    """Claims that `spec.modelCache.claimName` may name, as `name` or `namespace/name`; a `*` at the end matches any
    rest."""
    allowed_source_claims: CommaSeparated = ["*"]
    """Claims that `pvc://` URIs may name, written in the same way."""
    max_grace_period_seconds: PositiveInt = 3600
    """Largest `spec.checkpoint.gracePeriodSeconds`: so long may a pod delay the drain of its node."""
    allowed_env: CommaSeparated = ["NCCL_*", "FI_*", "GLOO_*", "UCX_*", "TORCH_NCCL_*", "TORCH_DISTRIBUTED_*"]
    """Environment variables that `spec.trainer.env` may set; a `*` at the end matches any rest."""
    allowed_pod_annotations: CommaSeparated = [
        "karpenter.sh/do-not-disrupt",
        "cluster-autoscaler.kubernetes.io/safe-to-evict",
    ]
    """Annotations that `spec.trainer.podAnnotations` may set, written in the same way; by default those that keep an
    autoscaler from ending a training."""
    allowed_pod_labels: CommaSeparated = []
    """Labels that `spec.trainer.podLabels` may set, written in the same way."""
    allowed_storage_endpoints: CommaSeparated = []
    """URLs of storage that jobs may use; `*` matches any text within the host or one path segment. Empty = all
    except link-local and metadata addresses. The default storage is always allowed; without one, a job that names no
    endpoint needs an entry for `https://s3.amazonaws.com`."""
    allowed_hub_endpoints: CommaSeparated = []
    """URLs of hubs that jobs may use, written as for storage. Empty = all except link-local and metadata addresses. The
    default hub is always allowed; without one, a job that names no hub needs an entry for `https://huggingface.co`."""
    allowed_registry_endpoints: CommaSeparated = []
    """URLs of registries that results may be pushed to, written as for storage: `https://` with the host of
    `spec.output.oci.repository`, or `http://` with `insecure`. Empty = all except link-local and metadata addresses."""
    allowed_tracking_endpoints: CommaSeparated = []
    """URLs of MLflow and W&B servers that jobs may use, written as for storage. Empty = all except link-local and
    metadata addresses. A W&B run that names no server needs an entry for `https://api.wandb.ai`."""
    allowed_reward_endpoints: CommaSeparated = []
    """URLs of servers in `spec.rlhf.rewards[].service`, written as for storage. Empty = all except link-local and
    metadata addresses."""
    allowed_release_endpoints: CommaSeparated = []
    """URLs of the servers of FineTuneReleases, `target.vllm.url` or `http://SERVICE.NAMESPACE.svc:PORT`, written as for
    storage. Empty = all except link-local and metadata addresses."""
    allowed_storage_prefixes: Annotated[CommaSeparated, AfterValidator(_check_prefixes)] = []
    """Prefixes in storage that jobs may read and write, such as `s3://bucket/{namespace}/`, in which `{namespace}` is
    the job's own. They are for every `s3://` URI of a spec, whatever its endpoint. Empty = all."""
    default_storage_endpoint: Url = None
    """Endpoint of the default storage."""
    default_storage_region: OptionalText = None
    """Region of the default storage."""
    default_storage_force_path_style: Annotated[bool | None, BeforeValidator(_empty_is_none)] = None
    """Whether the default storage uses path-style addressing."""
    default_storage_credentials_secret: Name = None
    """Secret with the default storage's credentials, in each job's own namespace."""
    default_storage_ca_secret: Name = None
    """Secret with the default storage's CA certificate, in each job's own namespace."""
    default_hub_endpoint: Url = None
    """Endpoint of the default hub."""
    default_hub_ca_secret: Name = None
    """Secret with the default hub's CA certificate, in each job's own namespace."""
    default_hub_token_secret: Name = None
    """Secret with the default hub's token, in each job's own namespace; used if it exists."""
    http_proxy: Proxy = None
    """Proxy for `http://` addresses, set in the pods."""
    https_proxy: Proxy = None
    """Proxy for `https://` addresses, set in the pods."""
    no_proxy: OptionalText = None
    """Hosts that the pods reach without a proxy, separated by commas; add the host of in-cluster storage."""
    isolate_training_pods: bool = False
    """Whether each attempt with several pods gets a NetworkPolicy: only its own pods reach them, and the clients of
    their progress."""
    progress_clients: Peers = None
    """NetworkPolicyPeers (JSON) that reach port 8080 of these pods, the operator included; empty = all."""
    pod_egress: EgressRules = None
    """NetworkPolicyEgressRules (JSON) of all pods of jobs, in addition to DNS and the pods of the same attempt; empty =
    egress is not limited."""
    dns_ports: Annotated[list[Port], Field(min_length=1), NoDecode, BeforeValidator(_split_commas)] = [53]
    """Ports that count as DNS when egress is limited; most network plugins compare the port of the DNS server's pod."""
    trainer_run_as_user: Annotated[int | None, BeforeValidator(_empty_is_none)] = DEFAULT_UID
    """User, group and fsGroup of the pods; if empty, the platform chooses them."""
    default_cpu_request: OptionalQuantity = "1"
    """CPU request of each training process of a job without `spec.resources.requests`; empty = none."""
    default_memory_request: OptionalQuantity = "2Gi"
    """Memory request of each of these processes; empty = none."""
    default_image_pull_secrets: Annotated[list[SecretName], NoDecode, BeforeValidator(_split_commas)] = []
    """Secrets to pull the image with, in each job's own namespace, for jobs without `spec.trainer.imagePullSecrets`."""
    default_tolerations: Tolerations = None
    """Tolerations of the pods of jobs without `spec.scheduling.tolerations`, as a JSON list."""
    default_node_selector: NodeLabels = None
    """Node labels of the trainer pods of jobs without `spec.scheduling.nodeSelector`, as a JSON object."""
    default_runtime_class: Name = None
    """Runtime class of the trainer pods of jobs without `spec.scheduling.runtimeClassName`."""
    default_pod_labels: Labels = None
    """Labels of the pods of every job and release, and of what is created for them, as a JSON object; those of
    `spec.trainer.podLabels` take precedence."""
    default_pod_annotations: Labels = None
    """Annotations of the pods of every job and release, as a JSON object; those of `spec.trainer.podAnnotations` take
    precedence."""
    cpu_pod_node_selector: NodeLabels = None
    """Node labels of the pods that need no GPU (preflight, merge, release), as a JSON object."""
    cpu_pod_tolerations: Tolerations = None
    """Tolerations of these pods, in place of those of the job, as a JSON list; empty = those of the job."""
    node_avoidance: Literal["Required", "Preferred", "Off"] = "Required"
    """Whether the next attempt must, should or need not leave out a node whose GPU has failed."""
    node_shutdown_seconds: Seconds = None
    """Seconds that a node leaves a pod when it shuts down or is reclaimed, if that may be less than the pod's grace
    period; condition GracePeriodSufficient compares with it. Empty = the grace period."""
    default_start_deadline_seconds: Seconds = None
    """`spec.startDeadlineSeconds` of jobs that set none; empty = none."""
    default_active_deadline_seconds: Seconds = None
    """`spec.activeDeadlineSeconds` of jobs that set none; empty = none."""
    default_ttl_seconds_after_finished: Annotated[
        int | None, Field(ge=0, le=315_360_000), BeforeValidator(_empty_is_none)
    ] = None
    """`spec.ttlSecondsAfterFinished` of jobs that set none; empty = none."""
    releases: bool = False
    """Whether FineTuneReleases are served; their CRD and the rights on them are then needed."""
    simulated_gpus: bool = False
    """Whether jobs whose GPUs are missing train on the CPU: only for clusters where the GPU resource is simulated."""
    progress_interval_seconds: PositiveFloat = 10
    """Shortest time between two polls of a running trainer's progress."""
    finished_job_metrics_seconds: Annotated[int, Field(ge=7200, le=315_360_000)] = 604_800
    """Time after its end for which a finished job has series of its own; alerts need two hours."""
    resync_seconds: PositiveFloat = 300
    """Time after which every job is reconciled again, even without a watch event."""
    workers: PositiveInt = 16
    """Number of jobs that are reconciled concurrently; one namespace gets at most half of them."""
    api_qps: NonNegativeFloat = 0
    """Requests per second to the API server; 0 = as many as it answers, of at most `workers` at once."""
    api_burst: PositiveInt = 100
    """Burst of requests above `api_qps`."""
    api_timeout_seconds: PositiveFloat = 15
    """Timeout of one request to the API server."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Port of `/metrics`."""
    health_port: Annotated[int, Field(ge=0, le=65535)] = 8081
    """Port of `/healthz` and `/readyz`."""
    log_format: Literal["json", "text"] = "json"
    """Format of the log."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Lowest severity that is logged."""
    lease_namespace: str = ""
    """Namespace of the Lease by which one of several replicas leads; empty = this process is the only one."""
    lease_name: Annotated[str, Field(min_length=1, max_length=253)] = names.MANAGED_BY
    """Name of the Lease; operators that serve different namespaces have different ones."""
    pod_name: str = ""
    """Name of the operator's own pod, for the events that it posts."""

    @property
    def has_network_policies(self) -> bool:
        """Return whether pods get NetworkPolicies."""
        return self.isolate_training_pods or self.pod_egress is not None

    @cached_property
    def identity(self) -> str:
        """The field manager of this process, by which a second operator is noticed."""
        return f"{names.MANAGED_BY}-{self.pod_name or secrets.token_hex(4)}"[:128]

    def default_requests(self) -> dict[str, Quantity]:
        """Return the requests of each training process of a job that names none."""
        given: dict[str, Quantity | None] = {"cpu": self.default_cpu_request, "memory": self.default_memory_request}
        return {name: quantity for name, quantity in given.items() if quantity is not None}

    def storage_prefixes_of(self, namespace: str) -> list[str]:
        """Return the prefixes of storage that jobs of a namespace may use, each ending with a slash; empty = all."""
        return [one.replace("{namespace}", namespace).rstrip("/") + "/" for one in self.allowed_storage_prefixes]

    def default_storage(self) -> Storage | None:
        """Return the storage of a job that names none, or None for AWS with the pod's own identity."""
        credentials, authority = self.default_storage_credentials_secret, self.default_storage_ca_secret
        storage = Storage(
            endpoint=self.default_storage_endpoint,
            region=self.default_storage_region,
            force_path_style=self.default_storage_force_path_style,
            credentials_secret_ref=SecretRef(name=credentials) if credentials else None,
            ca_secret_ref=SecretRef(name=authority) if authority else None,
        )
        return storage if storage.model_dump(exclude_none=True) else None

    def default_hub(self) -> Hub | None:
        """Return the hub of a job that names none, or None for the public hub."""
        authority = self.default_hub_ca_secret
        hub = Hub(endpoint=self.default_hub_endpoint, ca_secret_ref=SecretRef(name=authority) if authority else None)
        return hub if hub.model_dump(exclude_none=True) else None
