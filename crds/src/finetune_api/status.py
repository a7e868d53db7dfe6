"""`FineTuneJob.status`. The docstring under a field is its `kubectl explain` text; an absent field is not known yet."""

from typing import Annotated

from pydantic import Field, StringConstraints

from finetune_api import conditions
from finetune_api.blocks import ATOMIC, ATOMIC_LIST, SET, map_list
from finetune_api.evaluation import EvaluationStatus
from finetune_api.names import ConditionType
from finetune_api.output import HubPush, RegistryPush
from finetune_api.resolved import Resolved
from finetune_api.runs import CurrentRun, Internal, JobRef, PreflightRuns, Run, WorkloadRef
from finetune_api.scalars import (
    MAX_INTEGER,
    Count,
    CountByName,
    Digest,
    Line,
    Measure,
    Name,
    StatusBlock,
    Time,
    Uri,
    Word,
)

__all__ = [
    "Count",
    "CurrentRun",
    "JobRef",
    "Line",
    "PreflightRuns",
    "Resolved",
    "Run",
    "StatusBlock",
    "Word",
    "WorkloadRef",
]
"""Names that other modules import from here although they are defined elsewhere."""


class Condition(StatusBlock):
    """A `metav1.Condition`."""

    type: Annotated[str, StringConstraints(max_length=64)] = Field(description=conditions.explain())
    status: Annotated[str, StringConstraints(pattern=r"^(True|False|Unknown)$", max_length=7)]
    """`True`, `False` or `Unknown`."""
    reason: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9]*$")]
    """Reason as one CamelCase word."""
    message: Annotated[str, StringConstraints(max_length=2048)]
    """Human-readable message in one line, with the fix if there is one."""
    last_transition_time: Time
    """When `status` last changed."""
    observed_generation: Count | None = None
    """Generation of the spec for which the condition was set."""


class Progress(StatusBlock):
    """Progress of the running trainer."""

    display: Word | None = None
    """Human-readable progress, for example `42%`."""
    percent: Annotated[int, Field(ge=0, le=100)] | None = None
    """Share of the steps that are done, in percent."""
    step: Count | None = None
    """Optimiser steps done."""
    total_steps: Count | None = None
    """Optimiser steps planned."""
    epoch: Measure | None = None
    """Completed passes over the rows."""
    stage: Word | None = None
    """Current stage: `Loading`, `Reference`, `Baseline`, `Training`, `Evaluating`, `Saving`, `Answering`, `Merging`,
    `Publishing` or `Done`."""
    estimated_remaining_seconds: Count | None = None
    """Estimated seconds until the last step."""
    resumed_from_step: Count | None = None
    """Step of the checkpoint that the run resumed from; absent if it started at the first step."""
    note: Line | None = None
    """Anything unusual about the run, for example a broken checkpoint that was skipped."""
    last_updated_time: Time | None = None
    """Time of the trainer's last progress report; up to a minute older if its reports have no news."""


class CheckpointStatus(StatusBlock):
    """The last checkpoint that is complete in storage, from which the next run resumes."""

    uri: Uri
    """Folder of the checkpoint."""
    step: Count
    """Optimiser steps done when it was saved."""
    saved_time: Time
    """When it was saved."""
    sha256: Digest
    """SHA-256 of its manifest, which contains the digest of every file."""
    save_seconds: Measure | None = None
    """Seconds that writing and uploading it took; a trainer that receives SIGTERM has `checkpoint.gracePeriodSeconds`
    for it."""


class TrainedWeights(StatusBlock):
    """The stored weights of a completed training, which a Job without GPUs merges and publishes."""

    uri: Uri
    """Folder of the weights, removed once the result is published."""
    step: Count
    """Optimiser steps done."""
    saved_time: Time
    """When they were stored."""
    sha256: Digest
    """SHA-256 of their manifest, which contains the digest of every file."""


class Metrics(StatusBlock):
    """Metrics of the training, to five significant digits; losses are nats per trained token, with DPO, KTO and
    RewardModel per row; with Distillation they are divergences from the teacher, in nats per token of an answer."""

    train_loss: Measure | None = None
    """Mean training loss since the last report."""
    eval_loss: Measure | None = None
    """Latest evaluation loss; at the end, the loss of the published weights."""
    best_eval_loss: Measure | None = None
    """Lowest evaluation loss so far."""
    best_step: Count | None = None
    """Step of `bestEvalLoss`."""
    baseline_eval_loss: Measure | None = None
    """Evaluation loss before training."""
    learning_rate: Measure | None = None
    """Learning rate of the last step."""
    grad_norm: Measure | None = None
    """Gradient norm of the last step, before clipping."""
    tokens_per_second: Measure | None = None
    """Trained input tokens per second."""
    reward_margin: Measure | None = None
    """Mean reward of the chosen minus that of the rejected held-out answers (DPO, KTO, RewardModel)."""
    reward_accuracy: Annotated[Measure, Field(ge=0, le=1)] | None = None
    """Share (0 to 1) of held-out pairs whose chosen answer has the higher reward (DPO, RewardModel)."""
    reward: Measure | None = None
    """Mean reward of the sampled answers in the last step (RLHF)."""
    eval_reward: Measure | None = None
    """Mean reward of the answers to held-out prompts (RLHF)."""
    baseline_eval_reward: Measure | None = None
    """`evalReward` before training (RLHF)."""
    kl: Measure | None = None
    """Mean KL divergence from the reference model in the last step, in nats per token (RLHF)."""
    trainable_parameters: Count | None = None
    """Number of trained weights."""
    gpu_memory_peak_bytes: Count | None = None
    """Peak of the allocated GPU memory, in bytes."""


class EarlyStoppingStatus(StatusBlock):
    """State of early stopping."""

    stopped: bool | None = None
    """Whether early stopping ended the training."""
    stopped_at_step: Count | None = None
    """Step at which early stopping ended the training."""
    best_step: Count | None = None
    """Step of the best evaluation, whose weights are published."""
    evaluations_without_improvement: Count | None = None
    """Evaluations since the last improvement."""
    patience: Count | None = None
    """Evaluations without improvement after which training stops."""


class SourceStatus(StatusBlock):
    """What one of several sources of training rows brings to the blend."""

    uri: Uri
    """Its `uri`."""
    config: Annotated[Name, StringConstraints(max_length=128)] | None = None
    """Its `config`."""
    split: Word | None = None
    """Its `split`."""
    sha256: Digest | None = None
    """SHA-256 of its object, or over names and digests of its objects."""
    rows: Count | None = None
    """Rows read."""
    accepted_rows: Count | None = None
    """Rows that can be trained on."""
    rejected_rows: Count | None = None
    """Rows that were skipped."""
    rejected_rows_by_code: CountByName | None = None
    """Skipped rows by reject code."""
    train_rows: Count | None = None
    """Rows trained on in one pass; a row that the blend repeats counts each time."""
    trained_tokens: Count | None = None
    """Tokens with a loss in one pass."""
    p99_length_tokens: Count | None = None
    """Length in tokens that 99 % of its rows do not exceed, before truncation."""


class DatasetStatus(StatusBlock):
    """Results of the dataset checks in preflight."""

    rows: Count | None = None
    """Rows read from all files."""
    accepted_rows: Count | None = None
    """Rows that can be trained on."""
    repaired_rows: Count | None = None
    """Accepted rows that were repaired, for example by removing a trailing question."""
    rejected_rows: Count | None = None
    """Rows that were skipped."""
    rejected_rows_by_code: CountByName | None = None
    """Skipped rows by reject code."""
    repaired_rows_by_code: CountByName | None = None
    """Repaired rows by repair code."""
    rows_by_format: CountByName | None = None
    """Accepted rows by detected format; `Alpaca` are questions or instructions with their answer, each in a column."""
    train_rows: Count | None = None
    """Rows trained on."""
    validation_rows: Count | None = None
    """Rows evaluated with."""
    truncated_rows: Count | None = None
    """Accepted rows that are longer than `maxLength` and are truncated."""
    p99_length_tokens: Count | None = None
    """Length in tokens that 99 % of the training samples do not exceed, before truncation."""
    sources: Annotated[list[SourceStatus], Field(max_length=16, json_schema_extra=ATOMIC_LIST)] | None = None
    """What each source brings, in the order of `dataset.train.sources`; absent with a single source. Absent too if the
    report of the pod would become too long; the report of the result and `dataset/summary.json` have it then."""


class KeptCheckpoint(StatusBlock):
    """An adapter of another step than the result's, published by `checkpoint.keep`."""

    step: Count
    """Optimiser steps done."""
    epoch: Measure | None = None
    """Completed passes over the rows."""
    eval_loss: Measure | None = None
    """Its evaluation loss in the training."""
    eval_reward: Measure | None = None
    """Mean reward of its answers to held-out prompts (RLHF)."""
    uri: Uri
    """Folder of the adapter, as PEFT loads it."""


class Artifacts(StatusBlock):
    """URIs, digests and size of the published files."""

    uri: Uri | None = None
    """Prefix of all published files."""
    adapter_uri: Uri | None = None
    """Folder of the adapter, as PEFT loads it."""
    merged_uri: Uri | None = None
    """Folder of the merged or fully tuned model."""
    gguf_uri: Uri | None = None
    """Folder of the GGUF files and their Modelfile."""
    kept_checkpoints: Annotated[list[KeptCheckpoint], Field(max_length=10, json_schema_extra=ATOMIC_LIST)] | None = None
    """Adapters of other steps, the best first; absent without `checkpoint.keep`. Absent too if the report of the pod
    would become too long; the report of the result and the manifest name them then."""
    config_uri: Uri | None = None
    """URI of the configuration in use, with every default resolved."""
    report_uri: Uri | None = None
    """URI of the report."""
    lineage_uri: Uri | None = None
    """URI of the lineage record."""
    lineage_sha256: Digest | None = None
    """SHA-256 of the lineage record."""
    manifest_uri: Uri | None = None
    """URI of the manifest, which lists every file with size and SHA-256."""
    manifest_sha256: Digest | None = None
    """SHA-256 of the manifest."""
    size_bytes: Count | None = None
    """Total size of the published files, in bytes."""
    hub: HubPush | None = None
    """What was pushed to `output.hub`, or why not; absent without it."""
    oci: RegistryPush | None = None
    """What was pushed to `output.oci`, or why not; absent without it."""


class PublishedJob(StatusBlock):
    """A complete FineTuneJob that this one builds on, as recorded when this one was accepted."""

    name: Annotated[str, StringConstraints(max_length=253)]
    """Name of the FineTuneJob."""
    uid: Word
    """UID of the FineTuneJob."""
    objective: Word
    """Objective of the FineTuneJob."""
    output_uri: Uri
    """Prefix of its result."""
    manifest_sha256: Digest
    """SHA-256 of its manifest."""


class Lineage(StatusBlock):
    """Origin of the result."""

    parent: PublishedJob | None = None
    """The job named by `lineage.parentRef`."""
    reward_job: PublishedJob | None = None
    """The job named by `rlhf.rewardModel.jobRef`."""
    teacher_revision: Annotated[Name, StringConstraints(max_length=64)] | None = None
    """Commit on its hub of the teacher of objective Distillation."""
    teacher_sha256: Digest | None = None
    """SHA-256 over the names and digests of the teacher's files."""
    initial_adapter_sha256: Digest | None = None
    """SHA-256 of the weights of the initial adapter."""
    base_model_uri: Uri | None = None
    """URI of the base model."""
    base_model_revision: Annotated[Name, StringConstraints(max_length=64)] | None = None
    """Commit of the base model on its hub."""
    base_model_sha256: Digest | None = None
    """SHA-256 over the names and digests of the base model's files."""
    dataset_sha256: Digest | None = None
    """SHA-256 of the canonical training rows."""
    preflight_sha256: Digest | None = None
    """SHA-256 of preflight's summary (`dataset/summary.json`), which has the digests of all rows and of the base
    model's text files. The trainer reads nothing else."""
    config_sha256: Digest | None = None
    """SHA-256 of the fields of the spec that are fixed at creation."""
    trainer_image: Line | None = None
    """Image of the first run, by digest if the node reports one; later runs use the same."""
    seed: Count | None = None
    """Seed in use."""
    library_versions: Annotated[dict[Word, Word], Field(max_length=32, json_schema_extra=ATOMIC)] | None = None
    """Versions of the training libraries."""


class FineTuneJobStatus(StatusBlock):
    """Observed state of the job. Counters and times never decrease; the conditions are authoritative. Only `internal`
    is not part of the API."""

    observed_generation: Annotated[int, Field(ge=-1, le=MAX_INTEGER)] | None = None
    """Generation of the spec that this status describes; -1 = not observed yet."""
    phase: Word | None = None
    """One-word summary, derived from the conditions."""
    reason: Word | None = None
    """Reason of the phase, in one word."""
    message: Annotated[str, StringConstraints(max_length=2048)] | None = None
    """Human-readable reason of the phase in one line, with the fix if there is one."""
    conditions: Annotated[list[Condition], Field(max_length=32, json_schema_extra=map_list("type"))] | None = None
    """The state as `metav1.Condition`s, first Ready, which has reason and message of the job. Each describes a state;
    `type` has its meaning. Reconciling and Stalled are for GitOps tools."""
    eligible_time: Time | None = None
    """Since when the job could start: accepted, and not suspended; `startDeadlineSeconds` counts from here."""
    start_time: Time | None = None
    """Start of the first run; never reset."""
    completion_time: Time | None = None
    """When the job ended, successfully or not: the end of its last Job, or the time of the deadline or limit."""
    attempts: Count | None = None
    """Trainer and merge Jobs created so far."""
    runs: Count | None = None
    """Trainer and merge pods that ended so far."""
    failures: Count | None = None
    """Failed runs; limited by `backoffLimit`."""
    failures_by_reason: CountByName | None = None
    """Failed runs by reason."""
    preemptions: Count | None = None
    """Preempted or evicted runs; limited by `maxPreemptions`, or while no new checkpoint is saved."""
    preemptions_by_reason: CountByName | None = None
    """Preempted or evicted runs by reason."""
    active_seconds: Count | None = None
    """Total seconds of the ended runs; limited by `activeDeadlineSeconds`."""
    gpu_seconds: Count | None = None
    """Total seconds of the ended runs, each multiplied by the GPUs of all its pods."""
    history: Annotated[list[Run], Field(max_length=10, json_schema_extra=ATOMIC_LIST)] | None = None
    """The last ten ended runs."""
    avoided_node_names: (
        Annotated[
            list[Annotated[str, StringConstraints(max_length=253)]],
            Field(max_length=16, json_schema_extra=SET),
        ]
        | None
    ) = None
    """Nodes whose GPU failed in a run (`GPUFault`): the next attempts run on others."""
    progress: Progress | None = None
    """Progress of the running trainer."""
    metrics: Metrics | None = None
    """Metrics of the training."""
    checkpoint: CheckpointStatus | None = None
    """The last complete checkpoint; absent once the result is published, because checkpoints are deleted then."""
    trained_weights: TrainedWeights | None = None
    """What the training stored for a separate merge; absent if the trainer merges by itself, or is not done."""
    early_stopping: EarlyStoppingStatus | None = None
    """State of early stopping."""
    evaluation: EvaluationStatus | None = None
    """The verdict on the result, and the results of the gates."""
    dataset: DatasetStatus | None = None
    """Results of the dataset checks in preflight."""
    artifacts: Artifacts | None = None
    """URIs, digests and size of the published files."""
    resolved: Resolved | None = None
    """Settings in use, with every default filled in."""
    lineage: Lineage | None = None
    """Origin of the result."""
    preflight: PreflightRuns | None = None
    """Counts of the ended preflight pods."""
    current_run: CurrentRun | None = None
    """The running trainer pod."""
    job_ref: JobRef | None = None
    """The current trainer Job."""
    workload_ref: WorkloadRef | None = None
    """Kueue's Workload of the current Job, if Kueue queues it."""
    internal: Internal | None = None
    """Unstable. Bookkeeping of the operator between two reconciles: any version may rename, change or remove these
    fields without notice. Do not read them; what they lead to is in the other fields. Absent once the job has ended."""

    def condition(self, kind: ConditionType) -> Condition | None:
        """Return the condition of that type, or None."""
        for one in self.conditions or ():  # a loop takes half the time of a generator, in what every look does often
            if one.type == kind:
                return one
        return None

    def is_true(self, kind: ConditionType) -> bool:
        """Return whether the condition of that type is `True`."""
        found = self.condition(kind)
        return found is not None and found.status == "True"
