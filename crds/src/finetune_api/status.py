"""`FineTuneJob.status`. The docstring under a field is its `kubectl explain` text; absent means not known yet."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints

from finetune_api.evaluation import EvaluationStatus
from finetune_api.names import ConditionType
from finetune_api.runs import CurrentRun, JobRef, PreflightRuns, Run, WorkloadRef
from finetune_api.scalars import Count, CountByName, Digest, Line, Measure, StatusBlock, Time, Uri, Word

__all__ = [
    "Count",
    "CurrentRun",
    "JobRef",
    "Line",
    "PreflightRuns",
    "Run",
    "StatusBlock",
    "Word",
    "WorkloadRef",
]
"""What other modules import from here although it is defined elsewhere."""


class Condition(StatusBlock):
    """A `metav1.Condition`."""

    type: Annotated[str, StringConstraints(max_length=64)]
    """Name of the condition."""
    status: Annotated[str, StringConstraints(pattern=r"^(True|False|Unknown)$", max_length=7)]
    """`True`, `False` or `Unknown`."""
    reason: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9]*$")]
    """Reason as one CamelCase word."""
    message: Annotated[str, StringConstraints(max_length=2048)]
    """One line for people, with the fix where there is one."""
    last_transition_time: Time
    """When `status` last changed."""
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """Generation of the spec that this was decided for."""


class Progress(StatusBlock):
    """Progress of the running trainer."""

    display: Word | None = None
    """Progress for people, for example `42%`."""
    percent: Annotated[int, Field(ge=0, le=100)] | None = None
    """Share of the steps done, in percent."""
    step: Count | None = None
    """Optimiser steps done."""
    total_steps: Count | None = None
    """Optimiser steps planned."""
    epoch: Measure | None = None
    """Passes over the rows done."""
    stage: Word | None = None
    """What the trainer does now: `Loading`, `Reference`, `Baseline`, `Training`, `Evaluating`, `Saving`, `Answering`,
    `Merging`, `Publishing` or `Done`."""
    estimated_remaining_seconds: Count | None = None
    """Estimated seconds to the last step."""
    resumed_from_step: Count | None = None
    """Step of the checkpoint that the run resumed from; absent if it began at the first step."""
    note: Line | None = None
    """What is unusual about the run, for example a broken checkpoint that was passed over."""
    last_updated_time: Time | None = None
    """When the trainer last answered."""


class CheckpointStatus(StatusBlock):
    """The last checkpoint that is complete in storage, from which the next run resumes."""

    uri: Uri
    """Folder of the checkpoint."""
    step: Count
    """Optimiser steps done when it was saved."""
    saved_time: Time
    """When it was saved."""
    sha256: Digest
    """SHA-256 of its manifest, which has the digest of every file."""
    save_seconds: Measure | None = None
    """Seconds that writing and uploading it took, of which a trainer that must stop has
    `checkpoint.gracePeriodSeconds`."""


class Metrics(StatusBlock):
    """The training's figures, to five significant digits; losses are nats per trained token, with DPO, KTO and
    RewardModel per row."""

    train_loss: Measure | None = None
    """Training loss, mean since the last report."""
    eval_loss: Measure | None = None
    """Latest evaluation loss; at the end, that of what is published."""
    best_eval_loss: Measure | None = None
    """Lowest evaluation loss so far."""
    best_step: Count | None = None
    """Step of `bestEvalLoss`."""
    baseline_eval_loss: Measure | None = None
    """Evaluation loss of the untouched model."""
    learning_rate: Measure | None = None
    """Learning rate of the last step."""
    grad_norm: Measure | None = None
    """Gradient norm of the last step, before clipping."""
    tokens_per_second: Measure | None = None
    """Trained input tokens per second."""
    reward_margin: Measure | None = None
    """Held-out rewards of the chosen less those of the rejected answers, mean (DPO, KTO, RewardModel)."""
    reward_accuracy: Annotated[Measure, Field(ge=0, le=1)] | None = None
    """Share of held-out pairs whose chosen answer has the higher reward (DPO, RewardModel)."""
    reward: Measure | None = None
    """Reward of the sampled answers, mean of the last step (RLHF)."""
    eval_reward: Measure | None = None
    """Reward of the answers to held-out prompts, mean (RLHF)."""
    baseline_eval_reward: Measure | None = None
    """`evalReward` of the untouched model (RLHF)."""
    kl: Measure | None = None
    """Divergence from the reference, nats per token, mean of the last step (RLHF)."""
    trainable_parameters: Count | None = None
    """Weights that are trained."""
    gpu_memory_peak_bytes: Count | None = None
    """Most GPU memory that was allocated, in bytes."""


class EarlyStoppingStatus(StatusBlock):
    """The state of early stopping."""

    stopped: bool | None = None
    """Whether patience ran out."""
    step: Count | None = None
    """Step at which training stopped."""
    best_step: Count | None = None
    """Step of the best evaluation, whose weights are published."""
    evaluations_without_improvement: Count | None = None
    """Evaluations since the last improvement."""
    patience: Count | None = None
    """Evaluations without improvement that stop the training."""


class DatasetStatus(StatusBlock):
    """What preflight found in the dataset."""

    rows: Count | None = None
    """Rows read from all files."""
    accepted: Count | None = None
    """Rows that can be trained on."""
    repaired: Count | None = None
    """Accepted rows that were repaired, for example by a trimmed trailing question."""
    rejected: Count | None = None
    """Rows that were skipped."""
    rejected_by_code: CountByName | None = None
    """Skipped rows by reject code."""
    repaired_by_code: CountByName | None = None
    """Repaired rows by repair code."""
    format: CountByName | None = None
    """Accepted rows by detected format."""
    train_rows: Count | None = None
    """Rows trained on."""
    validation_rows: Count | None = None
    """Rows evaluated with."""
    truncated: Count | None = None
    """Accepted rows that are longer than `maxLength` and are cut."""
    length_p99: Count | None = None
    """Length (tokens) that 99 of 100 training samples do not exceed, before anything is cut."""


class Artifacts(StatusBlock):
    """What was published, and where."""

    uri: Uri | None = None
    """Prefix of everything below."""
    adapter_uri: Uri | None = None
    """Folder of the adapter, as PEFT loads it."""
    merged_uri: Uri | None = None
    """Folder of the merged or fully tuned model."""
    config_uri: Uri | None = None
    """The configuration in use, with every default resolved."""
    report_uri: Uri | None = None
    """The readable report."""
    lineage_uri: Uri | None = None
    """The lineage record."""
    lineage_sha256: Digest | None = None
    """SHA-256 of the lineage record."""
    manifest_uri: Uri | None = None
    """The manifest: every file with size and SHA-256."""
    manifest_sha256: Digest | None = None
    """SHA-256 of the manifest."""
    size_bytes: Count | None = None
    """Size of all published files, in bytes."""


class Resolved(StatusBlock):
    """The settings in use, with every default filled in; pinned when preflight has passed."""

    method: Word | None = None
    """Tuning method in use."""
    method_reason: Line | None = None
    """Why this method."""
    num_train_epochs: Measure | None = None
    """Passes over the training rows."""
    total_steps: Count | None = None
    """Optimiser steps planned."""
    learning_rate: Measure | None = None
    """Peak learning rate."""
    lr_scheduler_type: Word | None = None
    """Learning-rate schedule in use."""
    warmup_steps: Measure | None = None
    """Warm-up: below 1 a fraction of all steps, else a number of steps."""
    weight_decay: Measure | None = None
    """Decoupled weight decay."""
    max_grad_norm: Measure | None = None
    """Gradient-norm clip; 0 = none."""
    optim: Word | None = None
    """Optimiser in use."""
    per_device_train_batch_size: Count | None = None
    """Rows per step and device."""
    gradient_accumulation_steps: Count | None = None
    """Batches accumulated before a step."""
    global_batch_size: Count | None = None
    """Rows per optimiser step."""
    max_length: Count | None = None
    """Longest sequence in tokens."""
    precision: Word | None = None
    """Number format of the computation; `Auto` until a trainer has detected its device."""
    gradient_checkpointing: bool | None = None
    """Whether activations are recomputed in the backward pass."""
    seed: Count | None = None
    """Seed of split, shuffling and initial adapter."""
    eval_steps: Count | None = None
    """Optimiser steps between evaluations."""
    packing: bool | None = None
    """Whether short rows share a sequence."""
    estimated_gpu_memory_bytes: Count | None = None
    """Estimated GPU memory that training takes, per GPU, in bytes."""
    beta: Measure | None = None
    """How strongly the model is held to the reference (DPO, KTO, RLHF)."""
    loss_type: Word | None = None
    """Loss of DPO."""
    desirable_weight: Measure | None = None
    """Weight of the answers labelled good (KTO)."""
    undesirable_weight: Measure | None = None
    """Weight of the answers labelled bad (KTO)."""
    algorithm: Word | None = None
    """How the policy learns from rewards (RLHF)."""
    num_generations: Count | None = None
    """Answers sampled for each prompt (RLHF)."""
    max_completion_length: Count | None = None
    """Longest sampled answer, in tokens (RLHF)."""
    temperature: Measure | None = None
    """Temperature of sampling (RLHF)."""
    lora_rank: Count | None = None
    """Rank of the adapter."""
    lora_alpha: Count | None = None
    """Scaling of the adapter."""
    lora_dropout: Measure | None = None
    """Dropout on the adapter's input."""
    use_rslora: bool | None = None
    """Whether scaling is by the square root of the rank."""
    double_quant: bool | None = None
    """Whether the quantisation constants are quantised too."""
    target_modules: (
        Annotated[
            list[Word],
            AfterValidator(lambda modules: list(dict.fromkeys(modules))),
            Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"}),
        ]
        | None
    ) = None
    """Modules with an adapter; absent until a trainer has loaded the model, unless given."""


class PublishedJob(StatusBlock):
    """A complete FineTuneJob that this one builds on, as it was when this one was accepted."""

    name: Annotated[str, StringConstraints(max_length=253)]
    """Name of the FineTuneJob."""
    uid: Word
    """UID of the FineTuneJob."""
    objective: Word
    """What it was trained for."""
    output_uri: Uri
    """Prefix of its result."""
    manifest_sha256: Digest
    """SHA-256 of its manifest."""


class Lineage(StatusBlock):
    """Where the result comes from."""

    parent: PublishedJob | None = None
    """The job named by `lineage.parentRef`."""
    reward_job: PublishedJob | None = None
    """The job named by `rlhf.rewardModel.jobRef`."""
    initial_adapter_sha256: Digest | None = None
    """SHA-256 of the weights of the adapter that was continued."""
    base_model: Uri | None = None
    """URI of the base model."""
    base_model_revision: Word | None = None
    """Commit of the base model on its hub."""
    base_model_sha256: Digest | None = None
    """SHA-256 over the names and digests of the base model's files."""
    dataset_sha256: Digest | None = None
    """SHA-256 of the canonical training rows."""
    config_sha256: Digest | None = None
    """SHA-256 of the fields of the spec that are fixed at creation."""
    trainer_image: Line | None = None
    """Image of the first run, by digest where the node reports one; later runs use the same."""
    seed: Count | None = None
    """Seed in use."""
    versions: Annotated[dict[Word, Word], Field(max_length=32)] | None = None
    """Versions of the libraries that trained."""


class FineTuneJobStatus(StatusBlock):
    """What the operator has observed and decided. Counters and times only grow; conditions carry the truth."""

    observed_generation: Annotated[int, Field(ge=-1)] | None = None
    """Generation of the spec that this status describes; -1 = not observed yet."""
    phase: Word | None = None
    """Summary in one word, derived from the conditions."""
    reason: Word | None = None
    """Why it is in this phase, one word."""
    message: Annotated[str, StringConstraints(max_length=2048)] | None = None
    """Why it is in this phase, one line, with the fix where there is one."""
    conditions: (
        Annotated[
            list[Condition],
            Field(
                max_length=32,
                json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
            ),
        ]
        | None
    ) = None
    """The state as `metav1.Condition`s: Accepted, Suspended, Validated, QuotaReserved (only with Kueue), Running,
    SavesInTime, EarlyStopped, Published, Complete, Failed, and Ready, Reconciling, Stalled for GitOps tools."""
    queued_time: Time | None = None
    """When the job could start, accepted and not suspended; `startDeadlineSeconds` counts from here."""
    start_time: Time | None = None
    """Start of the first run; never reset."""
    completion_time: Time | None = None
    """When the trainer Job ended for good."""
    attempts: Count | None = None
    """Trainer Jobs created so far."""
    runs: Count | None = None
    """Trainer pods that ended so far."""
    failures: Count | None = None
    """Runs that failed, which `backoffLimit` bounds."""
    failures_by_reason: CountByName | None = None
    """Failed runs by reason."""
    preemptions: Count | None = None
    """Runs that were preempted or evicted, which `maxPreemptions` bounds."""
    preemptions_by_reason: CountByName | None = None
    """Preempted or evicted runs by reason."""
    active_seconds: Count | None = None
    """Seconds that the ended runs took, summed, which `activeDeadlineSeconds` bounds."""
    gpu_seconds: Count | None = None
    """Seconds that the ended runs took, each times the GPUs of all its pods, summed."""
    history: (
        Annotated[list[Run], Field(max_length=10, json_schema_extra={"x-kubernetes-list-type": "atomic"})] | None
    ) = None
    """The last ten ended runs."""
    progress: Progress | None = None
    """Progress of the running trainer."""
    metrics: Metrics | None = None
    """The training's figures."""
    checkpoint: CheckpointStatus | None = None
    """The last checkpoint; absent once the result is published, because checkpoints are removed then."""
    early_stopping: EarlyStoppingStatus | None = None
    """The state of early stopping."""
    evaluation: EvaluationStatus | None = None
    """Verdict of the gates on the result."""
    dataset: DatasetStatus | None = None
    """What preflight found in the dataset."""
    artifacts: Artifacts | None = None
    """What was published, and where."""
    resolved: Resolved | None = None
    """The settings in use."""
    lineage: Lineage | None = None
    """Where the result comes from."""
    preflight: PreflightRuns | None = None
    """The ended preflight pods."""
    current_run: CurrentRun | None = None
    """The trainer pod that runs now."""
    job_ref: JobRef | None = None
    """The current trainer Job."""
    workload_ref: WorkloadRef | None = None
    """Kueue's Workload of the current Job, if Kueue queues it."""

    def condition(self, kind: ConditionType) -> Condition | None:
        """Return the condition of that type, or None."""
        return next((one for one in self.conditions or [] if one.type == kind), None)

    def is_true(self, kind: ConditionType) -> bool:
        """Return whether the condition of that type is `True`."""
        found = self.condition(kind)
        return found is not None and found.status == "True"

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON form for the status subresource, without absent fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
