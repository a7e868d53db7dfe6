"""`FineTuneJob.spec`. The docstring under a field is its `kubectl explain` text and its row in the field reference."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from finetune_api.blocks import GRANULAR, Block, JobReference, QualifiedName, cel, combined_cel, rules, with_rules
from finetune_api.evaluate_mode import EVALUATE_RULE, Mode
from finetune_api.evaluation import EarlyStopping, Evaluation, Prompt
from finetune_api.hyperparameters import Attention, FusedKernels, Hyperparameters, Packing, Precision
from finetune_api.inputs.sources import Dataset, DatasetFormat, DataSource, Hub, Model, ModelCache, Storage, TrainOn
from finetune_api.manifest.fixed_fields import FROZEN, INSTEAD, FixedField, is_unchanged
from finetune_api.objectives import Distillation, Dpo, Kto, Objective, Rlhf
from finetune_api.output import Merge, Output
from finetune_api.pods.containers import Preflight, Trainer
from finetune_api.pods.resources import Resources
from finetune_api.pods.scheduling import Scheduling
from finetune_api.recipes import WITHOUT_DROPOUT, join_words
from finetune_api.rewards import Reward
from finetune_api.tracking import Tracking
from finetune_api.tuning import InitialAdapter, Lora, Method, Quantization, Tuning

__all__ = [
    "Attention",
    "DataSource",
    "Dataset",
    "DatasetFormat",
    "FusedKernels",
    "Hub",
    "InitialAdapter",
    "Lora",
    "Merge",
    "Method",
    "Mode",
    "Model",
    "ModelCache",
    "Objective",
    "Output",
    "Packing",
    "Precision",
    "Quantization",
    "Storage",
]
"""Names that other modules import from here although they are defined elsewhere."""


class ResumePolicy(StrEnum):
    """Whether a run resumes from a checkpoint."""

    AUTO = "Auto"
    NEVER = "Never"


class Checkpoint(Block):
    """Checkpoints of the training, from which an interrupted run resumes."""

    steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Optimiser steps between checkpoints; a trainer that receives SIGTERM saves at once. Not with `resumePolicy`
    `Never`, except for `keep`. Default: at every evaluation (without evaluation: every tenth of the training), and at
    least every 30 minutes."""
    save_total_limit: Annotated[int, Field(ge=1, le=100)] = 2
    """Number of newest checkpoints to keep, each with the best weights so far. Default: 2."""
    resume_policy: ResumePolicy = ResumePolicy.AUTO
    """`Auto` resumes from the newest complete checkpoint. `Never` starts every run at the first step and saves no
    checkpoint. Default: `Auto`."""
    grace_period_seconds: Annotated[int, Field(ge=5, le=86400)] = 120
    """Seconds between SIGTERM and SIGKILL, in which the trainer saves and uploads a checkpoint. Default: 120."""
    keep: Annotated[int, Field(ge=0, le=10)] = 0
    """Number of adapters of other steps to publish in addition to the result, in `kept-checkpoints/`: those with the
    lowest held-out loss (with objective RLHF: the highest reward), without held-out rows those of the last multiples of
    `steps`. Not with method `Full`. Fixed at creation. Default: 0."""


class JobLineage(Block):
    """Ancestors of this job."""

    parent_ref: JobReference | None = None
    """FineTuneJob whose result this job builds on; this job waits until it is complete. Default: none."""
    annotations: (
        Annotated[
            dict[QualifiedName, Annotated[str, StringConstraints(max_length=256)]],
            Field(max_length=16, json_schema_extra=GRANULAR),
        ]
        | None
    ) = None
    """Notes to copy into the lineage record, for example a ticket or a commit. Takes effect with the next attempt.
    Default: none."""


_CHATS = ("Alpaca", "ShareGPT", "OpenAI", "PromptCompletion")
FORMATS = {
    Objective.INSTRUCTION.value: ["Auto", *_CHATS, "Preference", "Unpaired"],
    Objective.CHAT.value: ["Auto", *_CHATS, "Preference", "Unpaired"],
    Objective.DPO.value: ["Auto", "Preference"],
    Objective.KTO.value: ["Auto", "Unpaired", "Preference"],
    Objective.REWARD_MODEL.value: ["Auto", "Preference"],
    Objective.RLHF.value: ["Auto", *_CHATS, "Preference", "Unpaired"],
    Objective.DISTILLATION.value: ["Auto", *_CHATS, "Preference", "Unpaired"],
    Objective.DOMAIN_ADAPTATION.value: ["Auto", "Text"],
}
"""Row formats that each objective accepts."""
FIXED = (
    FixedField("mode"),
    FixedField("objective"),
    FixedField("model", block=Model, but=("credentialsSecretRef",)),
    FixedField("tuning"),
    FixedField("dataset", block=Dataset, but=("train.credentialsSecretRef", "validation.credentialsSecretRef")),
    FixedField("hyperparameters"),
    FixedField("evaluation", block=Evaluation, but=("prompts",)),
    FixedField("output", block=Output, but=("hub", "oci")),
    *(FixedField(name, is_optional=True) for name in ("earlyStopping", "dpo", "kto", "rlhf")),
    FixedField("distillation", is_optional=True, block=Distillation, but=("teacher.credentialsSecretRef",)),
    FixedField("lineage", is_optional=True, block=JobLineage, but=("annotations",)),
)
"""Fields that cannot change after creation, without the parts that decide nothing about the result."""
AT_ONCE = (
    *("suspend", "backoff_limit", "max_preemptions", "start_deadline_seconds", "active_deadline_seconds"),
    *("stall_timeout_seconds", "ttl_seconds_after_finished"),
)
"""Fields whose change takes effect at once, also on pods that run; all others take effect with the next attempt."""

SYSTEM_MESSAGE = "!has(self.dataset.systemMessage) || self.objective != 'DomainAdaptation'"
LONG_ROWS = "!has(self.dataset.longRows) || self.dataset.longRows == 'Truncate' || self.objective != 'DomainAdaptation'"
TRAIN_ON = "!has(self.dataset.trainOn) || self.objective in ['Instruction', 'Chat']"
LABELLED_AS = {TrainOn.LAST_ANSWER: "Instruction", TrainOn.ALL_ANSWERS: "Chat", TrainOn.EVERYTHING: "Everything"}
"""By `dataset.trainOn`: the objective that has a loss on these tokens, or a word of its own."""
BLOCKS = {"dpo": "DPO", "kto": "KTO", "rlhf": "RLHF", "distillation": "Distillation"}
"""The objective that each block of settings belongs to."""
PLAIN_HEAD = (
    "self.objective != 'Distillation' || !has(self.tuning.lora) || (!has(self.tuning.lora.modulesToSave) && "
    "(!has(self.tuning.lora.targetModules) || "
    "!self.tuning.lora.targetModules.exists(one, one == 'lm_head' || one.endsWith('.lm_head'))))"
)
_ONE_PROCESS = "self.resources.numNodes == 1 && self.resources.gpusPerNode <= 1"
_WITH_VLLM = "has(self.rlhf) && has(self.rlhf.rollouts) && self.rlhf.rollouts.engine == 'VLLM'"
MERGED_FOR_VLLM = f"!({_WITH_VLLM}) || self.tuning.method in ['LoRA', 'Full']"
LINEAR_FOR_VLLM = (
    f"!({_WITH_VLLM}) || !has(self.tuning.lora) || (!has(self.tuning.lora.modulesToSave) && "
    "(!has(self.tuning.lora.targetExperts) || !self.tuning.lora.targetExperts))"
)
HOLDS_WHOLE_GROUPS = (
    "!has(self.rlhf) || !has(self.hyperparameters.perDeviceTrainBatchSize) || "
    "!has(self.hyperparameters.gradientAccumulationSteps) || "
    "self.hyperparameters.perDeviceTrainBatchSize * self.hyperparameters.gradientAccumulationSteps * "
    "self.resources.numNodes * (self.resources.gpusPerNode > 0 ? self.resources.gpusPerNode : 1) % "
    "self.rlhf.numGenerations == 0"
)
ALONE_FOR_VLLM = f"!({_WITH_VLLM}) || ({_ONE_PROCESS})"
_OUTPUT = "(self.output.uri + '/').startsWith"
SHARES_OUT = (
    f"!has(self.tuning.lora) || !has(self.tuning.lora.shardBase) || !self.tuning.lora.shardBase || !({_ONE_PROCESS})"
)
SHARES_TEACHER = (
    "!has(self.distillation) || !has(self.distillation.shardTeacher) || !self.distillation.shardTeacher || "
    f"!({_ONE_PROCESS})"
)
OUTSIDE_OF_ROWS = (
    "![has(self.dataset.train.uri) ? self.dataset.train.uri : '-', "
    "has(self.dataset.validation) ? self.dataset.validation.uri : '-']"
    f".exists(uri, {_OUTPUT}(uri.endsWith('/') ? uri : uri + '/')) && (!has(self.dataset.train.sources) || "
    f"!self.dataset.train.sources.exists(one, {_OUTPUT}(one.uri.endsWith('/') ? one.uri : one.uri + '/')))"
)
EVALUATES = "!has(self.evaluation.steps) || has(self.dataset.validation) || has(self.dataset.validationSplitPercent)"
SAVES_CHECKPOINTS = (
    "!has(self.checkpoint.steps) || self.checkpoint.resumePolicy != 'Never' || (self.checkpoint.keep > 0 && "
    "!has(self.dataset.validation) && !has(self.dataset.validationSplitPercent))"
)
"""Without held-out rows, the steps also choose the adapters that `checkpoint.keep` publishes."""
MERGES = (
    "!has(self.resources.merge) || self.output.merge != 'None' || self.tuning.method in ['Full', 'Auto'] || "
    "self.mode == 'Evaluate'"
)
"""Mode Evaluate has a rule of its own."""
KEEPS_ADAPTERS = "self.checkpoint.keep == 0 || self.tuning.method != 'Full'"
FORMAT = f"self.dataset.format == 'Auto' || self.dataset.format in {FORMATS}[self.objective]"
FORMAT_OF_SOURCES = (
    "!has(self.dataset.train.sources) || self.dataset.train.sources.all(one, !has(one.format) || "
    f"one.format in {FORMATS}[self.objective])"
)
_FORMATS = "; ".join(f"{', '.join(formats)} (objective {objective})" for objective, formats in FORMATS.items())


def _fixed(name: str) -> Any:
    """Return what refuses a change of a field that is always there."""
    (field,) = (one for one in FIXED if one.name == name)
    return Field(json_schema_extra=rules(field.rule()))


def _accepted(place: str) -> str:
    """Return the CEL text of the message about a format that the objective does not accept."""
    messages = {
        objective: f"objective {objective} cannot use rows of this format: set {place} one of {', '.join(formats)}"
        for objective, formats in FORMATS.items()
    }
    return f"{messages}[self.objective]"


class FineTuneJobSpec(Block):
    """Model, data, tuning and destination of the result."""

    model_config = with_rules(
        cel(
            "!has(self.earlyStopping) || has(self.dataset.validation) || has(self.dataset.validationSplitPercent)",
            "earlyStopping needs held-out rows: set dataset.validation or dataset.validationSplitPercent",
            ".earlyStopping",
        ),
        cel(
            EVALUATES,
            "evaluation.steps needs held-out rows: set dataset.validation or dataset.validationSplitPercent, or "
            "remove it",
            ".evaluation.steps",
            at_creation=True,
        ),
        cel(
            SAVES_CHECKPOINTS,
            "resumePolicy Never saves no checkpoint: remove checkpoint.steps, or set resumePolicy Auto",
            ".checkpoint.steps",
            at_creation=True,  # Never is also a way out for a job that cannot resume
        ),
        cel(
            "!has(self.evaluation.gate) || (!has(self.evaluation.gate.maxEvalLoss) && "
            "!self.evaluation.gate.mustImprove) || has(self.dataset.validation) || "
            "has(self.dataset.validationSplitPercent)",
            "maxEvalLoss and mustImprove need held-out rows: set dataset.validation or dataset.validationSplitPercent",
            ".evaluation.gate",
        ),
        cel(
            "!has(self.evaluation.gate) || !self.evaluation.gate.mustMatchExpected || "
            "(has(self.evaluation.prompts) && self.evaluation.prompts.exists(one, has(one.expected)))",
            "mustMatchExpected needs an expected answer: set expected in one of evaluation.prompts",
            ".evaluation.gate.mustMatchExpected",
        ),
        cel(
            "!has(self.evaluation.gate) || self.objective != 'RLHF' || !has(self.evaluation.gate.maxEvalLoss)",
            "RLHF has no held-out loss: remove evaluation.gate.maxEvalLoss; mustImprove compares the rewards",
            ".evaluation.gate.maxEvalLoss",
        ),
        cel(
            "!has(self.evaluation.gate) || !self.evaluation.gate.mustImprove || self.evaluation.baseline",
            "mustImprove compares with the model before training: set evaluation.baseline true",
            ".evaluation.gate.mustImprove",
        ),
        *(
            cel(
                f"!has(self.{block}) || self.objective == '{objective}'",
                f"{block} is only for objective {objective}: remove {block}",
                f".{block}",
            )
            for block, objective in BLOCKS.items()
        ),
        cel(
            "self.objective != 'RLHF' || has(self.rlhf)",
            "objective RLHF needs a reward: set rlhf.rewardModel or rlhf.rewards",
            ".rlhf",
        ),
        cel(
            "self.objective != 'Distillation' || has(self.distillation)",
            "objective Distillation needs a model to learn from: set distillation.teacher",
            ".distillation",
        ),
        cel(
            PLAIN_HEAD,
            "objective Distillation compares the output heads as they are: remove tuning.lora.modulesToSave, and "
            "lm_head from tuning.lora.targetModules",
            ".tuning.lora",
        ),
        cel(
            "self.objective != 'RLHF' || !has(self.earlyStopping)",
            "RLHF has no held-out loss for earlyStopping: remove it, and watch status.metrics.evalReward",
            ".earlyStopping",
        ),
        cel(
            "self.objective != 'RewardModel' || self.output.merge == 'None'",
            "objective RewardModel publishes no merged model: remove output.merge",
            ".output.merge",
        ),
        cel(
            "self.objective != 'RewardModel' || !has(self.evaluation.prompts)",
            "a reward model generates no answers: remove evaluation.prompts",
            ".evaluation.prompts",
        ),
        cel(
            "self.objective != 'RewardModel' || !has(self.evaluation.ability)",
            "a reward model answers no questions: remove evaluation.ability",
            ".evaluation.ability",
        ),
        cel(
            "self.objective in ['Instruction', 'Chat', 'DPO', 'KTO'] || !has(self.evaluation.answers)",
            "evaluation.answers is for rows with an answer to imitate or prefer (Instruction, Chat, DPO, KTO): "
            "remove it",
            ".evaluation.answers",
        ),
        cel(
            "!has(self.evaluation.answers) || has(self.dataset.validation) || has(self.dataset.validationSplitPercent)",
            "evaluation.answers needs held-out rows: set dataset.validation or dataset.validationSplitPercent",
            ".evaluation.answers",
        ),
        cel(
            "self.hyperparameters.packing != 'Always' || self.objective in ['Instruction', 'Chat', 'DomainAdaptation']",
            "packing works with objectives Instruction, Chat and DomainAdaptation: set it to Auto or Never",
            ".hyperparameters.packing",
        ),
        cel(
            "self.objective != 'RewardModel' || !has(self.tuning.lora) || !has(self.tuning.lora.initLoraWeights) "
            "|| self.tuning.lora.initLoraWeights in ['Default', 'Gaussian', 'EVA']",
            "a reward model's adapter does not start from the weights: set tuning.lora.initLoraWeights to Default "
            "or Gaussian",
            ".tuning.lora.initLoraWeights",
        ),
        cel(
            "!has(self.hyperparameters.neftuneNoiseAlpha) || "
            "self.objective in ['Instruction', 'Chat', 'DomainAdaptation']",
            "NEFTune works with objectives Instruction, Chat and DomainAdaptation: remove "
            "hyperparameters.neftuneNoiseAlpha",
            ".hyperparameters.neftuneNoiseAlpha",
        ),
        cel(
            "!has(self.tuning.lora) || !has(self.tuning.lora.dropout) || self.tuning.lora.dropout == 0.0 || "
            f"!(self.objective in {list(WITHOUT_DROPOUT)})",
            f"objectives {join_words(list(WITHOUT_DROPOUT))} train without dropout: remove tuning.lora.dropout",
            ".tuning.lora.dropout",
            at_creation=True,
        ),
        cel(
            "!has(self.hyperparameters.attention) || self.hyperparameters.attention != 'FlashAttention' || "
            "self.objective in ['Instruction', 'Chat', 'DomainAdaptation']",
            "FlashAttention works with objectives Instruction, Chat and DomainAdaptation: set attention to Auto or "
            "SDPA",
            ".hyperparameters.attention",
        ),
        cel(
            HOLDS_WHOLE_GROUPS,
            "a step must contain whole groups of answers: perDeviceTrainBatchSize times gradientAccumulationSteps, "
            "times all GPUs, must be a multiple of rlhf.numGenerations",
            ".rlhf.numGenerations",
            at_creation=True,  # a step keeps its answers if a later attempt has other GPUs
        ),
        cel(
            "self.objective != 'KTO' || !has(self.hyperparameters.perDeviceTrainBatchSize) || "
            "self.hyperparameters.perDeviceTrainBatchSize > 1",
            "objective KTO measures its divergence over the rows of a batch: set perDeviceTrainBatchSize to 2 or more",
            ".hyperparameters.perDeviceTrainBatchSize",
            at_creation=True,
        ),
        cel(
            MERGED_FOR_VLLM,
            "engine VLLM gets the adapter merged into its base, which 4 bits would round away: set tuning.method "
            "LoRA or Full, or rlhf.rollouts.engine Transformers",
            ".rlhf.rollouts.engine",
        ),
        cel(
            LINEAR_FOR_VLLM,
            "engine VLLM gets adapters on linear layers only: remove tuning.lora.modulesToSave and targetExperts, "
            "or set rlhf.rollouts.engine Transformers",
            ".rlhf.rollouts.engine",
        ),
        cel(
            ALONE_FOR_VLLM,
            "engine VLLM samples in one process: set resources.numNodes 1 and resources.gpusPerNode 1, or "
            "rlhf.rollouts.engine Transformers",
            ".rlhf.rollouts.engine",
        ),
        cel(
            "!has(self.tuning.initialAdapter) || !has(self.tuning.initialAdapter.fromParent) || "
            "(has(self.lineage) && has(self.lineage.parentRef))",
            "initialAdapter.fromParent needs a parent: set lineage.parentRef",
            ".tuning.initialAdapter.fromParent",
        ),
        cel(
            f"!has(self.preflight) || self.preflight.enabled || ({_ONE_PROCESS} && !has(self.resources.merge))",
            "without preflight one process checks and trains: set resources.numNodes 1 and resources.gpusPerNode 1 "
            "and remove resources.merge, or set preflight.enabled true",
            ".preflight.enabled",
        ),
        cel(
            SHARES_OUT,
            "the base is shared out over several GPUs: set resources.gpusPerNode or numNodes above 1, or remove "
            "tuning.lora.shardBase",
            ".tuning.lora.shardBase",
        ),
        cel(
            SHARES_TEACHER,
            "the teacher is shared out over several GPUs: set resources.gpusPerNode or numNodes above 1, or remove "
            "distillation.shardTeacher",
            ".distillation.shardTeacher",
        ),
        cel(
            MERGES,
            "without a full model no pod merges: set output.merge to a number format, or remove resources.merge",
            ".resources.merge",
            at_creation=True,  # of a job that exists only resources can change
        ),
        cel(
            KEEPS_ADAPTERS,
            "checkpoint.keep publishes adapters, which method Full does not train: set tuning.method to QLoRA or "
            "LoRA, or remove checkpoint.keep",
            ".checkpoint.keep",
        ),
        cel(
            OUTSIDE_OF_ROWS,
            "output.uri is below a folder of the rows, in which the files of a result would be read as rows: write "
            "an output.uri outside of it",
            ".output.uri",
            at_creation=True,
        ),
        cel(
            SYSTEM_MESSAGE,
            "rows of objective DomainAdaptation are plain text, without messages: remove dataset.systemMessage",
            ".dataset.systemMessage",
        ),
        cel(
            LONG_ROWS,
            "rows of objective DomainAdaptation are plain text, which is split at maxLength: remove dataset.longRows",
            ".dataset.longRows",
        ),
        cel(
            TRAIN_ON,
            "trainOn works with objectives Instruction and Chat: remove dataset.trainOn",
            ".dataset.trainOn",
        ),
        combined_cel(
            FORMAT,
            f"the objective cannot use rows of this format: set dataset.format to one of {_FORMATS}",
            _accepted("dataset.format to"),
            ".dataset.format",
        ),
        combined_cel(
            FORMAT_OF_SOURCES,
            f"the objective cannot use rows of this format: set format of each source to one of {_FORMATS}",
            _accepted("format of each source to"),
            ".dataset.train.sources",
        ),
        EVALUATE_RULE,
        *(one.rule() for one in FIXED if one.is_optional),
        cel(
            "(has(self.preflight) && !self.preflight.enabled) == "
            "(has(oldSelf.preflight) && !oldSelf.preflight.enabled)",
            f"preflight.enabled {FROZEN}: {INSTEAD}",
            ".preflight.enabled",
        ),
        cel(
            is_unchanged("checkpoint.keep", []),
            f"checkpoint.keep {FROZEN}: {INSTEAD}",
            ".checkpoint.keep",
        ),
        cel(
            "!has(self.evaluation.gate) || !self.evaluation.gate.mustMatchExpected || "
            f"({is_unchanged('evaluation.prompts', ['evaluation.prompts'])})",
            f"evaluation.prompts, by which mustMatchExpected judges the result, {FROZEN}: {INSTEAD}",
            ".evaluation.prompts",
        ),
    )

    mode: Annotated[Mode, _fixed("mode")] = Mode.TRAIN
    """`Train`, or `Evaluate`: train nothing, and measure the adapter in `tuning.initialAdapter`. The base in 16 bits
    answers the prompts and is measured on the held-out rows, without and with the adapter; verdict, `evaluation.gate`,
    `output.merge`, report and lineage are those of a training, and the adapter is published with them. With
    objectives Instruction, Chat and DomainAdaptation. `dataset.train` is required too: `validationSplitPercent` holds
    out the same rows as in the training, and of a job with `dataset.validation` its rows are checked and not used.
    Fixed at creation. Default: `Train`."""
    objective: Annotated[Objective, _fixed("objective")]
    """What to train for. `Instruction`: the last answer of each row. `Chat`: every assistant turn. `DPO`: preference
    for chosen over rejected answers. `KTO`: the same, from answers labelled good or bad. `RewardModel`: scoring of
    answers. `RLHF`: a high reward for generated answers. `Distillation`: the probabilities of a larger model on
    generated answers. `DomainAdaptation`: continued pretraining on plain text."""
    storage: Storage | None = None
    """S3-compatible storage of the job. Default: the operator's default storage."""
    hub: Hub | None = None
    """Hub of the job's `hf://` URIs. Takes effect with the next attempt. Default: the operator's default hub."""
    model_cache: ModelCache | None = None
    """Folder of downloaded models that runs share. Takes effect with the next attempt. Default: none; every run
    downloads its model."""
    model: Annotated[Model, _fixed("model")]
    """The pretrained model. Fixed at creation, except `credentialsSecretRef`."""
    tuning: Annotated[Tuning, _fixed("tuning")] = Tuning()
    """How the model is tuned. Fixed at creation. Default: QLoRA."""
    dataset: Annotated[Dataset, _fixed("dataset")]
    """The rows to train on and to evaluate with. Fixed at creation, except `credentialsSecretRef` of each source."""
    hyperparameters: Annotated[Hyperparameters, _fixed("hyperparameters")] = Hyperparameters()
    """Training arguments. Fixed at creation. Default: by method and objective; `status.resolved` shows the values in
    use."""
    dpo: Dpo | None = None
    """Settings of objective DPO; only with it. Fixed at creation. Default: by field."""
    kto: Kto | None = None
    """Settings of objective KTO; only with it. Fixed at creation. Default: by field."""
    rlhf: Rlhf | None = None
    """Settings of objective RLHF; required with it, refused with any other. Fixed at creation. Default: none."""
    distillation: Distillation | None = None
    """Settings of objective Distillation; required with it, refused with any other. Fixed at creation, except
    `teacher.credentialsSecretRef`. Default: none."""
    lineage: JobLineage | None = None
    """Ancestors of this job. Fixed at creation, except `annotations`. Default: none."""
    evaluation: Annotated[Evaluation, _fixed("evaluation")] = Evaluation()
    """Evaluation during training. Fixed at creation, except `prompts` without `gate.mustMatchExpected`. Default: every
    tenth of the training."""
    early_stopping: EarlyStopping | None = None
    """Stop on a plateau of the evaluation loss. Fixed at creation. Default: off."""
    checkpoint: Checkpoint = Checkpoint()
    """Checkpoints of the training, from which an interrupted run resumes. Takes effect with the next attempt, except
    `keep`."""
    output: Annotated[Output, _fixed("output")]
    """Destination and form of the result. Fixed at creation, except `hub` and `oci`."""
    resources: Resources = Resources()
    """Resources of the trainer's pods. Takes effect with the next attempt."""
    scheduling: Scheduling | None = None
    """Queue, placement and priority of the pods. Takes effect with the next attempt."""
    trainer: Trainer = Trainer()
    """Image and identity of the pods. Takes effect with the next attempt."""
    preflight: Preflight | None = None
    """The check before training. Takes effect with the next attempt, except `enabled`."""
    tracking: Tracking | None = None
    """Trackers that receive the metrics of the training. Takes effect with the next attempt. Default: none."""
    suspend: bool = False
    """Stop the job's pods and free their GPUs; a running trainer saves a checkpoint first. False resumes it. Takes
    effect at once. Default: false."""
    backoff_limit: Annotated[int, Field(ge=0, le=100)] = 3
    """Failed runs that the training may have, and again a separate merge; one more fails the job. Preemptions do not
    count, and preflight has three retries of its own. Takes effect at once. Default: 3."""
    max_preemptions: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Number of preemptions that the job may have in all; one more fails it, so that 0 allows none. Takes effect at
    once. Default: no limit while the training advances, and 20 without a new checkpoint in between."""
    start_deadline_seconds: Annotated[int, Field(ge=1, le=31_536_000)] | None = None
    """Maximum seconds until the first trainer pod runs, including preflight and queueing; counted from the acceptance
    of the job, and again from each resume. Takes effect at once. Default: the operator's setting, else none."""
    active_deadline_seconds: Annotated[int, Field(ge=1, le=31_536_000)] | None = None
    """Maximum running time of trainer and merge pods in seconds, summed over all runs; waiting and suspended time does
    not count. Takes effect at once. Default: the operator's setting, else none."""
    stall_timeout_seconds: Annotated[int, Field(ge=10, le=2_592_000)] = 1800
    """Seconds without progress after which a reachable trainer is restarted, which counts as a failed run, and after
    which a preflight ends, which is tried again; set it longer than the longest step, row or transfer. Takes effect at
    once for trainers. Default: 1800."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=315_360_000)] | None = None
    """Seconds after the end of the job until its Jobs, pods and ConfigMaps are deleted; the FineTuneJob stays as the
    record. Takes effect at once. Default: the operator's setting, else 3600 with
    `resources.workspace.storageClassName`, else they are deleted with the FineTuneJob."""

    @property
    def labelled_as(self) -> str:
        """The objective by whose rule the tokens of a row are labelled, or `Everything`."""
        asked = self.dataset.train_on
        return self.objective.value if asked is None else LABELLED_AS[asked]

    @property
    def prompts(self) -> list[Prompt] | None:
        """`evaluation.prompts`, with the rows' system message in those without one of their own."""
        shared = {"system": self.dataset.system_message}
        asked = self.evaluation.prompts
        return [one if one.system else one.model_copy(update=shared) for one in asked] if asked is not None else None

    @property
    def rewards(self) -> list[Reward]:
        """The computed rewards of objective RLHF; empty without any."""
        return (self.rlhf.rewards if self.rlhf else None) or []

    @property
    def has_preflight(self) -> bool:
        """Whether the job is checked in a pod of its own, before a GPU is requested."""
        return self.preflight is None or self.preflight.enabled


def dump_fixed(spec: FineTuneJobSpec) -> dict[str, Any]:
    """Return what is fixed at creation, without default values."""
    found = {one.name: value for one in FIXED if (value := one.dump(spec)) is not None}
    if spec.evaluation.gate and spec.evaluation.gate.must_match_expected:
        given = spec.evaluation.model_dump(mode="json", by_alias=True, exclude_defaults=True, include={"prompts"})
        found["evaluation"] = found.get("evaluation", {}) | given
    if spec.checkpoint.keep:
        found["checkpoint"] = {"keep": spec.checkpoint.keep}
    return found
