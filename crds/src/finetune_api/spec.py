"""`FineTuneJob.spec`. The docstring under a field is its `kubectl explain` text and its row in the field reference."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, StringConstraints

from finetune_api.blocks import Block, ModuleName, S3Uri, SecretRef, Text, cel, rules
from finetune_api.pods import Preflight, Resources, Scheduling, Trainer


class Objective(StrEnum):
    """What the model is trained for."""

    INSTRUCTION = "Instruction"
    CHAT = "Chat"


class Method(StrEnum):
    """How weights are updated."""

    AUTO = "Auto"
    QLORA = "QLoRA"
    LORA = "LoRA"
    FULL = "Full"


class DatasetFormat(StrEnum):
    """The shape of the dataset's rows."""

    AUTO = "Auto"
    ALPACA = "Alpaca"
    SHAREGPT = "ShareGPT"
    OPENAI = "OpenAI"


class Precision(StrEnum):
    """The number format of the computation."""

    AUTO = "Auto"
    BF16 = "BF16"
    FP16 = "FP16"
    FP32 = "FP32"


class Merge(StrEnum):
    """Whether, and in which number format, the adapter is merged into the base weights."""

    NONE = "None"
    BF16 = "BF16"
    FP16 = "FP16"
    FP32 = "FP32"


class Storage(Block):
    """The S3-compatible storage behind every `s3://` URI of the job."""

    endpoint: (
        Annotated[str, StringConstraints(max_length=512, pattern=r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$")] | None
    ) = None
    """URL of the S3 endpoint, for example `http://minio.minio:9000`.
    Default: the operator's default storage, else AWS."""
    region: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[a-z0-9-]+$")] | None = None
    """Region to sign requests for. Default: `us-east-1`."""
    force_path_style: bool | None = None
    """Address buckets as `endpoint/bucket` instead of `bucket.endpoint`.
    Default: true when `endpoint` is set, else false."""
    ca_secret_ref: SecretRef | None = None
    """Secret whose key `ca.crt` holds the certificate authority (PEM) of the endpoint.
    Default: the image's authorities."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with the keys `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, optionally, `AWS_SESSION_TOKEN`.
    Default: the credential chain of the pod's service account."""


class Model(Block):
    """The pretrained model to adapt."""

    uri: S3Uri
    """Folder of the model in storage, as `s3://bucket/path`: `config.json`, safetensors weights, `tokenizer.json`.
    Pickle weights and models that need remote code are refused."""


class Lora(Block):
    """Low-rank adapter settings, under PEFT's names."""

    rank: Annotated[int, Field(ge=1, le=256)] | None = None
    """Rank of the adapter matrices (PEFT's `r`). Default: 16, the most that inference servers accept unconfigured."""
    alpha: Annotated[int, Field(ge=1, le=512)] | None = None
    """Scaling of the adapter (PEFT's `lora_alpha`). Default: 32."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Dropout on the adapter's input (PEFT's `lora_dropout`). Default: 0.05."""
    target_modules: (
        Annotated[
            list[ModuleName], Field(min_length=1, max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"})
        ]
        | None
    ) = None
    """Modules that get an adapter, by the end of their name, for example `[q_proj, v_proj]`.
    Default: every linear layer but the output head."""
    use_rslora: bool | None = None
    """Scale by `alpha / sqrt(rank)` instead of `alpha / rank`. Default: false."""


class Quantization(Block):
    """How the frozen base is quantised under QLoRA."""

    double_quant: bool | None = None
    """Quantise the quantisation constants too, which saves 0.4 bit a weight. Default: true."""


class Tuning(Block):
    """How the model is tuned."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "self.method != 'Full' || !has(self.lora)",
                "lora has no effect with method Full: remove tuning.lora, or set method to QLoRA or LoRA",
                ".lora",
            ),
            cel(
                "self.method in ['QLoRA', 'Auto'] || !has(self.quantization)",
                "quantization needs method QLoRA or Auto: remove tuning.quantization, or change tuning.method",
                ".quantization",
            ),
        )
    )

    method: Method = Method.AUTO
    """`QLoRA`: a 4-bit NF4 base with a low-rank adapter. `LoRA`: a 16-bit base with one. `Full`: every weight.
    `Auto` is QLoRA. Default: `Auto`."""
    lora: Lora | None = None
    """Settings of the low-rank adapter; not with method `Full`."""
    quantization: Quantization | None = None
    """Settings of the quantised base; only with method `QLoRA` or `Auto`."""


class DataSource(Block):
    """Where rows are read from."""

    uri: S3Uri
    """Object with the rows, as `s3://bucket/key`: JSON lines, JSON, CSV or TSV, each also gzipped."""
    sha256: Annotated[str, StringConstraints(min_length=64, max_length=64, pattern=r"^[0-9a-f]{64}$")] | None = None
    """Expected SHA-256 of the object (64 hexadecimal digits); another content fails the job. Default: not checked."""


class Dataset(Block):
    """The rows to train on and to evaluate with."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!(has(self.validation) && has(self.validationSplitPercent))",
                "give either validation or validationSplitPercent, not both: remove one",
                ".validationSplitPercent",
            )
        )
    )

    train: DataSource
    """Rows to train on."""
    validation: DataSource | None = None
    """Held-out rows to evaluate with; exclusive with `validationSplitPercent`. Rows that also stand in `train` are
    dropped from `train` and counted."""
    validation_split_percent: Annotated[int, Field(ge=1, le=50)] | None = None
    """Share of the training rows (percent) held out for evaluation, chosen by a hash of the prompt so that one prompt
    never lands on both sides. At least 20 and at most 512 rows. Default: no split."""
    format: DatasetFormat = DatasetFormat.AUTO
    """Format of the rows; `Auto` detects it row by row. Default: `Auto`."""
    max_rejected_percent: Annotated[int, Field(ge=0, le=100)] = 20
    """Most malformed rows (percent) that the job tolerates; 100 = any number. Malformed rows are reported and skipped.
    Default: 20."""
    max_samples: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Use at most this many accepted rows, in file order. Default: all."""


class Hyperparameters(Block):
    """Training arguments under the names of `transformers.TrainingArguments`; every field is optional."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!(has(self.numTrainEpochs) && has(self.maxSteps))",
                "give at most one of numTrainEpochs and maxSteps: remove one",
                ".maxSteps",
            ),
            cel(
                "!has(self.warmupSteps) || self.warmupSteps < 1.0 || double(int(self.warmupSteps)) == self.warmupSteps",
                "warmupSteps is a fraction of the training below 1, else a whole number of steps",
                ".warmupSteps",
            ),
        )
    )

    num_train_epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Passes over the training rows; exclusive with `maxSteps`.
    Default: 3 (1 above 50,000 rows) with an adapter, 2 with `Full`."""
    max_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Optimiser steps in all; exclusive with `numTrainEpochs`. Default: by `numTrainEpochs`."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak learning rate. Default: 2e-4 (QLoRA: 1e-4 above 13 billion weights); `Full`: 2e-5 (1e-5 above 7 billion)."""
    lr_scheduler_type: (
        Annotated[
            str, StringConstraints(pattern=r"^(linear|cosine|constant|constant_with_warmup|polynomial)$", max_length=32)
        ]
        | None
    ) = None
    """Learning-rate schedule: `linear`, `cosine`, `constant`, `constant_with_warmup` or `polynomial`.
    Default: `cosine`."""
    warmup_steps: Annotated[float, Field(ge=0, le=10_000_000)] | None = None
    """Warm-up: below 1 a fraction of all steps, else a number of steps. Default: 0.03."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] | None = None
    """Decoupled weight decay. Default: 0."""
    max_grad_norm: Annotated[float, Field(ge=0, le=1000)] | None = None
    """Gradient-norm clip; 0 = none. Default: 0.3 with QLoRA, else 1.0."""
    optim: (
        Annotated[
            str,
            StringConstraints(pattern=r"^(adamw_torch|adamw_torch_fused|adamw_8bit|paged_adamw_8bit)$", max_length=32),
        ]
        | None
    ) = None
    """Optimiser: `adamw_torch`, `adamw_torch_fused`, `adamw_8bit` or `paged_adamw_8bit`.
    Default: `paged_adamw_8bit` with QLoRA on a GPU, else `adamw_torch_fused`."""
    per_device_train_batch_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Rows per step and GPU. Default: 2."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Batches accumulated before a step. Default: what makes the effective batch 16 (`Full`: 32)."""
    max_length: Annotated[int, Field(ge=16, le=1_048_576)] = 2048
    """Longest sequence in tokens; longer rows are truncated, and counted. Default: 2048."""
    precision: Precision = Precision.AUTO
    """Number format of the computation. `Auto`: BF16 where the GPU has it, else FP16; FP32 on a CPU.
    Default: `Auto`."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass to save memory. Default: true with QLoRA, else false."""
    seed: Annotated[int, Field(ge=0, le=4_294_967_295)] = 42
    """Seed of the split, the shuffling and the initial adapter. Default: 42."""


class Prompt(Block):
    """A question that the report shows answered by the base and by the tuned model."""

    prompt: Text
    """The question, as a user would put it (at most 4,096 characters)."""


class Evaluation(Block):
    """Evaluation on the held-out rows while training."""

    steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Evaluate every this many optimiser steps. Default: a tenth of the training, at least 1."""
    baseline: bool = True
    """Evaluate the untouched model at step 0. Default: true."""
    prompts: (
        Annotated[list[Prompt], Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "atomic"})] | None
    ) = None
    """Questions answered by the base and by the tuned model in the report (at most 16). Default: none."""
    max_new_tokens: Annotated[int, Field(ge=1, le=2048)] = 128
    """Longest answer to `prompts`, in tokens. Default: 128."""


class EarlyStopping(Block):
    """Stop when the evaluation loss no longer falls; needs a validation source."""

    patience: Annotated[int, Field(ge=1, le=1000)] = 3
    """Evaluations without improvement before training stops. Default: 3."""
    min_delta: Annotated[float, Field(ge=0, le=100)] = 0.001
    """Smallest fall of the evaluation loss (nats per token) that counts as an improvement. Default: 0.001."""


class Checkpoint(Block):
    """How a trainer that is asked to stop is treated."""

    grace_period_seconds: Annotated[int, Field(ge=5, le=86400)] = 120
    """Seconds between SIGTERM and SIGKILL. Default: 120."""


class Output(Block):
    """Where and how the result is published."""

    uri: S3Uri
    """Prefix for adapter, report, lineage and manifest, as `s3://bucket/path`. One prefix belongs to one job."""
    merge: Merge = Merge.NONE
    """Also publish the base with the adapter merged in, in this number format. Default: `None`."""


IMMUTABLE_REQUIRED = ("objective", "model", "tuning", "dataset", "hyperparameters", "evaluation", "output")
IMMUTABLE_OPTIONAL = ("earlyStopping",)
_FROZEN = "is fixed when the job is created: create a new FineTuneJob with another name and output.uri instead"


class FineTuneJobSpec(Block):
    """What to train, on what, how, and where the result goes."""

    IMMUTABLE: ClassVar[tuple[str, ...]] = IMMUTABLE_REQUIRED + IMMUTABLE_OPTIONAL

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!has(self.earlyStopping) || has(self.dataset.validation) || has(self.dataset.validationSplitPercent)",
                "earlyStopping needs held-out rows: set dataset.validation or dataset.validationSplitPercent",
                ".earlyStopping",
            ),
            *(cel(f"self.{name} == oldSelf.{name}", f"{name} {_FROZEN}", f".{name}") for name in IMMUTABLE_REQUIRED),
            *(
                cel(
                    f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || self.{name} == oldSelf.{name})",
                    f"{name} {_FROZEN}",
                    f".{name}",
                )
                for name in IMMUTABLE_OPTIONAL
            ),
        )
    )

    objective: Objective
    """What the model is trained for. `Instruction`: the last answer of each row. `Chat`: every assistant turn."""
    storage: Storage | None = None
    """S3-compatible storage of the job. Default: the operator's default storage."""
    model: Model
    """The pretrained model. Fixed at creation."""
    tuning: Tuning = Tuning()
    """How the model is tuned. Fixed at creation. Default: QLoRA."""
    dataset: Dataset
    """The rows to train on and to evaluate with. Fixed at creation."""
    hyperparameters: Hyperparameters = Hyperparameters()
    """Training arguments. Fixed at creation. Default: by method; see `status.resolved` for the values in use."""
    evaluation: Evaluation = Evaluation()
    """Evaluation while training. Fixed at creation. Default: every tenth of the training."""
    early_stopping: EarlyStopping | None = None
    """Stop on a plateau of the evaluation loss. Fixed at creation. Default: off."""
    checkpoint: Checkpoint = Checkpoint()
    """How a trainer that is asked to stop is treated. Takes effect with the next attempt."""
    output: Output
    """Where and how the result is published. Fixed at creation."""
    resources: Resources = Resources()
    """What the trainer asks of its node. Takes effect with the next attempt."""
    scheduling: Scheduling | None = None
    """Where the pods may run. Takes effect with the next attempt."""
    trainer: Trainer = Trainer()
    """Image and identity of the pods. Takes effect with the next attempt."""
    preflight: Preflight | None = None
    """The check before training. Takes effect with the next attempt."""
    backoff_limit: Annotated[int, Field(ge=0, le=100)] = 3
    """Failed runs before the job fails; preemptions do not count. Default: 3."""
    max_preemptions: Annotated[int, Field(ge=0, le=10_000)] = 20
    """Preemptions before the job fails; 0 = any number. Default: 20."""
