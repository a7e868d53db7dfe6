"""Interface between operator and trainer: configuration, progress, report, exit codes, paths, object names."""

import hashlib
import json
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints

from finetune_api.evaluation import EvaluationStatus
from finetune_api.runs import StoppedRun
from finetune_api.scalars import Time, Uri
from finetune_api.spec import FineTuneJobSpec, dump_fixed
from finetune_api.status import (
    Artifacts,
    CheckpointStatus,
    Count,
    DatasetStatus,
    EarlyStoppingStatus,
    Line,
    Lineage,
    Metrics,
    Progress,
    PublishedJob,
    Resolved,
    StatusBlock,
    Word,
)

HANDOFF_VERSION = 1

CONFIG_DIR = "/etc/finetune/config"
CONFIG_FILE = "config.json"
CREDENTIALS_DIR = "/etc/finetune/credentials"
CA_DIR = "/etc/finetune/ca"
CA_FILE = "ca.crt"
HUB_TOKENS_DIR = "/etc/finetune/hub"
"""Holds a folder for each `HubRole` whose token is mounted."""
HUB_TOKEN_FILE = "HF_TOKEN"  # noqa: S105 - a file's name
HUB_CA_DIR = "/etc/finetune/hub-ca"
REGISTRY_DIR = "/etc/finetune/registry"
REGISTRY_KEY_FILE = ".dockerconfigjson"
REGISTRY_CA_DIR = "/etc/finetune/registry-ca"
MLFLOW_DIR = "/etc/finetune/mlflow"
MLFLOW_CA_DIR = "/etc/finetune/mlflow-ca"
WANDB_DIR = "/etc/finetune/wandb"
WANDB_CA_DIR = "/etc/finetune/wandb-ca"
REWARDS_DIR = "/etc/finetune/rewards"
"""Holds a folder for each of `rlhf.rewards` whose server has a Secret, named by the reward's position."""
REWARD_TOKEN_FILE = "REWARD_TOKEN"  # noqa: S105 - a file's name
SERVER_DIR = "/etc/finetune/server"
"""Only in the pod of a release to a server that needs a key or has an authority of its own."""
SERVER_KEY_FILE = "VLLM_API_KEY"
PEER_TOKEN_DIR = "/etc/finetune/peers"  # noqa: S105 - a folder's name
"""Only in an attempt of several pods."""
PEER_TOKEN_FILE = "token"  # noqa: S105 - a file's name
"""64 hexadecimal digits, with which the pods of one attempt recognise each other."""
CHAT_TEMPLATE_DIR = "/etc/finetune/chat-template"
"""Only in the pod that checks a job with `model.chatTemplate.configMapKeyRef`."""
CHAT_TEMPLATE_FILE = "chat_template.jinja"
MODEL_CACHE_DIR = "/model-cache"
CLAIMS_DIR = "/claims"
"""Holds a folder for each PersistentVolumeClaim that a `pvc://` URI of the job names, mounted read-only."""
WORKSPACE_DIR = "/workspace"
TERMINATION_LOG = "/dev/termination-log"
TERMINATION_LIMIT_BYTES = 4096
PROGRESS_PORT = 8080
RENDEZVOUS_PORT = 29500
"""Port of the first pod's rank 0, where the processes of all pods meet (`MASTER_PORT`)."""
PEER_LINK_PORT = 29400
"""Port of the first pod's PID 1, which keeps a connection from the PID 1 of every other pod."""
PROGRESS_PATH = "/progress"
METRICS_PATH = "/metrics"
PROGRESS_LIMIT_BYTES = 65_536

ENV_POD_UID = "FINETUNE_POD_UID"
ENV_POD_NAME = "FINETUNE_POD_NAME"
ENV_POD_IP = "FINETUNE_POD_IP"
"""The address at which the other pods of an attempt reach this one."""
ENV_IMAGE = "FINETUNE_TRAINER_IMAGE"
ENV_CONFIG_SHA256 = "FINETUNE_CONFIG_SHA256"
"""SHA-256 of the configuration's file: another client may have made the ConfigMap of that name."""


class HubRole(StrEnum):
    """What a hub's token is for; also the name of its folder."""

    MODEL = "model"
    TRAIN = "train"
    VALIDATION = "validation"
    TEACHER = "teacher"
    OUTPUT = "output"


class ExitCode(IntEnum):
    """The trainer's exit codes; the operator's podFailurePolicy and decisions are made from the same table."""

    OK = 0
    INVALID_CONFIG = 64
    DATASET_UNUSABLE = 65
    MODEL_UNAVAILABLE = 66
    STORAGE_UNAVAILABLE = 69
    INTERNAL_ERROR = 70
    WONT_FIT = 71
    GPU_UNUSABLE = 72
    OUTPUT_CONFLICT = 73
    PREEMPTED = 75
    DIVERGED = 76
    STORAGE_DENIED = 77
    GATE_NOT_MET = 78
    GPU_OUT_OF_MEMORY = 79
    GPU_FAULT = 80
    REWARD_UNAVAILABLE = 81

    @property
    def reason(self) -> str:
        """The code as the CamelCase reason that status and events show, for example `DatasetUnusable`."""
        return self.name.title().replace("_", "").replace("Gpu", "GPU")

    @property
    def meaning(self) -> str:
        """The code in a few words, for `--help`."""
        special = {ExitCode.OK: "success", ExitCode.WONT_FIT: "does not fit", ExitCode.PREEMPTED: "stopped by SIGTERM"}
        return special.get(self, self.name.lower().replace("_", " ").replace("gpu", "GPU"))


TERMINAL_EXIT_CODES = frozenset(
    {
        ExitCode.INVALID_CONFIG,
        ExitCode.DATASET_UNUSABLE,
        ExitCode.MODEL_UNAVAILABLE,
        ExitCode.WONT_FIT,
        ExitCode.GPU_UNUSABLE,
        ExitCode.OUTPUT_CONFLICT,
        ExitCode.DIVERGED,
        ExitCode.STORAGE_DENIED,
        ExitCode.GATE_NOT_MET,
        ExitCode.GPU_OUT_OF_MEMORY,
    }
)
"""Exit codes after which a retry would fail in the same way."""


class Artifact(StrEnum):
    """Names under `output.uri`."""

    OWNER = "owner.json"
    ADAPTER = "adapter"
    MERGED = "merged"
    GGUF = "gguf"
    CONFIG = "finetune_config.yaml"
    REPORT = "finetune_report.md"
    REPORT_PAGE = "report.html"
    CURVES = "curves.png"
    LENGTHS = "lengths.png"
    METRICS = "metrics.jsonl"
    LINEAGE = "lineage.json"
    VALIDATION = "validation.json"
    HELD_OUT = "held_out.json"
    WITHHELD = "withheld.safetensors"
    OPENLINEAGE = "openlineage.jsonl"
    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    REJECTED = "rejected_rows.jsonl"
    REFUSED = "refused"
    TRAIN_ROWS = "dataset/train.jsonl"
    VALIDATION_ROWS = "dataset/validation.jsonl"
    ABILITY_ROWS = "dataset/ability.jsonl"
    TRAIN_TOKENS = "dataset/train.arrow"
    VALIDATION_TOKENS = "dataset/validation.arrow"
    CHAT_TEMPLATE = "dataset/chat_template.jinja"
    DATASET_SUMMARY = "dataset/summary.json"
    KEPT = "kept-checkpoints"
    CHECKPOINTS = "checkpoints"
    STOPPED_RUNS = "checkpoints/stopped-runs"
    TRAINED = "checkpoints/trained"
    REFERENCE = "checkpoints/reference"
    MANIFEST = "manifest.json"


ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""File name of an adapter's weights, as PEFT writes it."""

StoppedRuns = Annotated[list[StoppedRun], Field(max_length=50)]


class HandoffBlock(StatusBlock):
    """Base of the documents exchanged; unknown fields are ignored, a newer version is refused."""

    model_config = ConfigDict(extra="ignore")

    handoff_version: int = HANDOFF_VERSION
    """Version of the document."""


class JobDocument(HandoffBlock):
    """A document of one job."""

    namespace: str
    """Namespace of the FineTuneJob."""
    name: str
    """Name of the FineTuneJob."""
    uid: str
    """UID of the FineTuneJob."""
    config_sha256: str
    """SHA-256 of the immutable part of the spec."""

    def is_of(self, job: "JobDocument") -> bool:
        """Return whether the document is the job's, even if it was deleted and recreated unchanged since."""
        ours, theirs = self.identity(), job.identity()
        return ours | {"uid": None} == theirs | {"uid": None}

    def identity(self) -> dict[str, Any]:
        """Return the fields that name the job."""
        return {name: getattr(self, name) for name in ("namespace", "name", "uid", "config_sha256")}


class JobConfig(JobDocument):
    """The configuration of a pod: one JSON file from an immutable ConfigMap."""

    attempt: int = 0
    """Number of the trainer Job, from 1; 0 in preflight."""
    first_pod: str | None = None
    """Host name under which all pods of the attempt reach the first of them; absent where there is one pod."""
    spec: FineTuneJobSpec
    """The spec as the API server stores it, with the operator's default storage filled in."""
    resolved: Resolved | None = None
    """The settings that preflight resolved; absent in preflight."""
    dataset: DatasetStatus | None = None
    """What preflight found; absent in preflight."""
    preflight_sha256: Annotated[str, StringConstraints(max_length=64)] | None = None
    """SHA-256 of preflight's summary, which the pod must find in storage; absent in preflight, and for jobs that an
    older operator checked."""
    parent: PublishedJob | None = None
    """The complete job that `lineage.parentRef` names."""
    reward_job: PublishedJob | None = None
    """The complete job that `rlhf.rewardModel.jobRef` names."""
    storage_prefixes: list[str] | None = None
    """Prefixes of storage, each with a slash at its end, under which the pod may read what a file in storage names;
    absent without a limit. Those of the spec's own fields are checked before."""
    has_hub: bool = True
    """Whether the pod may ask the hub for what a file in storage names. A hub that the spec needs is checked before."""
    simulated_gpus: bool = False
    """Whether the requested GPUs may be missing, as in the demo, where only the scheduler counts them."""
    separate_merge: bool = False
    """Whether the trainer stores the trained weights and ends, because another pod merges and publishes them."""
    is_local: Annotated[bool, Field(exclude=True)] = False
    """Whether the job runs without a cluster, and its result is in a local folder. Never part of a pod's file."""
    config_maps: Annotated[dict[str, dict[str, str]] | None, Field(exclude=True)] = None
    """Texts by ConfigMap and key, for a job that runs without a cluster. Never part of a pod's file."""

    def output_key(self) -> str:
        """Return `output.uri` without a trailing slash."""
        return self.spec.output.uri.rstrip("/")

    def with_spec(self, **changes: Any) -> Self:
        """Return the job with other values of these fields of the spec."""
        return self.model_copy(update={"spec": self.spec.model_copy(update=changes)})


class Outcome(StrEnum):
    """How a pod ended."""

    VALIDATED = "Validated"
    TRAINED = "Trained"
    ADOPTED = "Adopted"
    PUBLISHED = "Published"
    GATE_NOT_MET = "GateNotMet"
    PREEMPTED = "Preempted"
    FAILED = "Failed"


class Report(HandoffBlock):
    """The termination message: at most 4,096 bytes of JSON, untrusted until its uid and digest are checked."""

    outcome: Outcome
    """How the pod ended."""
    reason: Word
    """One word: the exit code's reason, or the outcome."""
    message: Line
    """Human-readable message in one line, with the fix if there is one."""
    job_uid: Word
    """Echo of the FineTuneJob's UID."""
    config_sha256: Annotated[str, StringConstraints(max_length=64)]
    """Echo of the config digest."""
    last_step: Count | None = None
    """Last optimiser step."""
    checkpoint: CheckpointStatus | None = None
    """The last complete checkpoint; with outcome `Trained`, what was stored for the merge."""
    resumed_from_step: Count | None = None
    """Step of the checkpoint that the run resumed from."""
    dataset: DatasetStatus | None = None
    """Results of the dataset checks in preflight."""
    resolved: Resolved | None = None
    """The settings in use."""
    metrics: Metrics | None = None
    """Final metrics."""
    early_stopping: EarlyStoppingStatus | None = None
    """Final state of early stopping."""
    evaluation: EvaluationStatus | None = None
    """The verdict on the result, and the results of the gates."""
    artifacts: Artifacts | None = None
    """What was published; `manifestSHA256` is the proof of success."""
    lineage: Lineage | None = None
    """Where the result comes from."""
    stopped_runs: StoppedRuns | None = None
    """The last runs that ended by SIGTERM."""

    def to_termination_message(self) -> str:
        """Return JSON of at most 4,096 bytes; the largest blocks are left out, in a fixed order, until it fits."""
        data = self.to_wire()
        for dropped in _DROPPED:
            _drop(data, dropped)
            text = json.dumps(data, separators=(",", ":"), ensure_ascii=True)
            if len(text) <= TERMINATION_LIMIT_BYTES:
                return text
        raise ValueError("a report without its optional blocks is above the limit")


_DROPPED = (
    None, "evaluation.gateMessage", "lineage.libraryVersions", "dataset.sources", "resolved.rankPattern",
    "resolved.alphaPattern", "resolved", "stoppedRuns", "dataset.rowsByFormat", "dataset", "lineage", "message",
    "checkpoint",
    *(
        f"artifacts.{name}"
        for name in (
            "keptCheckpoints", "configURI", "lineageURI", "reportURI", "ggufURI", "mergedURI", "adapterURI",
            "lineageSHA256", "oci", "hub",
        )
    ),
)  # fmt: skip
"""Blocks left out of a long report, in this order; the manifest's URI and digest always stay.

The trainer reads the two patterns from the spec or the adapter that it continues.
Of `message` and of the two pushes a part stays: without a push, the operator would report one that failed.
"""


def _drop(data: dict[str, Any], path: str | None) -> None:
    if path is None:
        return
    if path == "message":
        data["message"] = data["message"][:200]
        return
    head, _, tail = path.partition(".")
    if head == "artifacts" and tail in {"hub", "oci"}:
        push = data.get(head, {}).get(tail, {})
        for name in ("url", "adapterReference", "ggufReference"):
            push.pop(name, None)
        push.update({"message": push["message"][:200]} if "message" in push else {})
        return
    if tail:
        data.get(head, {}).pop(tail, None)
    else:
        data.pop(head, None)


class ProgressReport(HandoffBlock):
    """Body of `GET /progress`."""

    job_uid: Word
    """UID of the FineTuneJob."""
    pod_uid: Word | None = None
    """UID of the trainer's pod."""
    heartbeat: Count
    """Counter that increases with every step, batch, row or transferred part; it does not increase while the trainer is
    stalled."""
    progress: Progress
    """Progress of the run."""
    metrics: Metrics = Metrics()
    """Metrics so far."""
    checkpoint: CheckpointStatus | None = None
    """The last complete checkpoint."""
    early_stopping: EarlyStoppingStatus | None = None
    """State of early stopping so far."""
    resolved: Resolved | None = None
    """The settings in use, once the trainer has seen device and model."""
    stopped_runs: StoppedRuns | None = None
    """Runs that ended by SIGTERM, oldest first."""


class ManifestFile(StatusBlock):
    """One published file."""

    path: Annotated[str, StringConstraints(max_length=512)]
    """Key relative to `output.uri`."""
    size: Count
    """Size in bytes."""
    sha256: Annotated[str, StringConstraints(min_length=64, max_length=64)]
    """SHA-256 of the content."""


class Manifest(JobDocument):
    """`manifest.json`, written last: a prefix without it has no result."""

    files: list[ManifestFile]
    """Every other file of the result."""
    result: Report
    """The report without `artifacts.manifestSHA256`, from which an adopting job fills its status."""


class CheckpointManifest(JobDocument):
    """`manifest.json` of a checkpoint, written last: a checkpoint without it is incomplete."""

    base_model: Uri
    """The base model, with its commit where it has one."""
    base_sha256: str | None = None
    """One SHA-256 over names and digests of the base model's files."""
    rows: dict[str, str]
    """SHA-256 of each file of canonical rows, by its key under `output.uri`."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of each other input, such as the chat template; checkpoints of older versions have none."""
    step: Count
    """Optimiser steps done."""
    saved_time: Time
    """When it was saved."""
    files: list[ManifestFile]
    """Files of the checkpoint, with paths relative to it."""


class Owner(JobDocument):
    """`owner.json`: the claim on a prefix, written before any other file with a conditional write."""


def config_sha256(spec: FineTuneJobSpec) -> str:
    """SHA-256 (hex) of the canonical JSON of the fields that are fixed at creation.

    Defaults are left out: a field added by a later version must not change the digest of an older job.
    """
    fixed = dump_fixed(spec)
    return hashlib.sha256(json.dumps(fixed, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


Stage = Literal[
    "Loading", "Reference", "Baseline", "Training", "Evaluating", "Saving", "Answering", "Merging", "Publishing", "Done"
]
