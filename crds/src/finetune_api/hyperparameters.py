"""`spec.hyperparameters`: training arguments."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from finetune_api.blocks import Block, cel, with_rules


class Precision(StrEnum):
    """Number format of the computation."""

    AUTO = "Auto"
    BF16 = "BF16"
    FP16 = "FP16"
    FP32 = "FP32"


class Schedule(StrEnum):
    """Course of the learning rate, under transformers' names."""

    LINEAR = "linear"
    COSINE = "cosine"
    CONSTANT = "constant"
    CONSTANT_WITH_WARMUP = "constant_with_warmup"
    POLYNOMIAL = "polynomial"
    COSINE_WITH_MIN_LR = "cosine_with_min_lr"
    WARMUP_STABLE_DECAY = "warmup_stable_decay"


class Optimiser(StrEnum):
    """Optimiser, under transformers' names: those whose libraries the trainer's image has."""

    ADAMW_TORCH = "adamw_torch"
    ADAMW_TORCH_FUSED = "adamw_torch_fused"
    ADAMW_8BIT = "adamw_8bit"
    PAGED_ADAMW_8BIT = "paged_adamw_8bit"
    PAGED_ADAMW = "paged_adamw_32bit"
    ADAFACTOR = "adafactor"
    LION = "lion_32bit"
    LION_8BIT = "lion_8bit"
    PAGED_LION = "paged_lion_32bit"
    PAGED_LION_8BIT = "paged_lion_8bit"
    ADEMAMIX = "ademamix"
    ADEMAMIX_8BIT = "ademamix_8bit"
    PAGED_ADEMAMIX = "paged_ademamix_32bit"
    PAGED_ADEMAMIX_8BIT = "paged_ademamix_8bit"
    ADAGRAD = "adagrad"
    RMSPROP = "rmsprop"
    SGD = "sgd"


class Attention(StrEnum):
    """Implementation of attention in the training of supervised objectives."""

    AUTO = "Auto"
    SDPA = "SDPA"
    FLASH = "FlashAttention"


class Packing(StrEnum):
    """Packing of short rows into shared sequences."""

    AUTO = "Auto"
    ALWAYS = "Always"
    NEVER = "Never"


class FusedKernels(StrEnum):
    """Use of fused GPU kernels."""

    AUTO = "Auto"
    NEVER = "Never"


HAS_LOWEST_RATE = (
    "!has(self.minLrRatio) || (has(self.lrSchedulerType) && "
    "self.lrSchedulerType in ['cosine_with_min_lr', 'warmup_stable_decay'])"
)
HAS_DECAY = "!has(self.decaySteps) || (has(self.lrSchedulerType) && self.lrSchedulerType == 'warmup_stable_decay')"
WHOLE_DECAY = "!has(self.decaySteps) || self.decaySteps < 1.0 || double(int(self.decaySteps)) == self.decaySteps"
FITTING_DECAY = (
    "!has(self.decaySteps) || !has(self.warmupSteps) || self.decaySteps >= 1.0 || self.warmupSteps >= 1.0 || "
    "self.warmupSteps + self.decaySteps <= 1.0"
)
HAS_WARMUP = (
    "!has(self.warmupSteps) || self.warmupSteps == 0.0 || !has(self.lrSchedulerType) || "
    "self.lrSchedulerType != 'constant'"
)
WITHOUT_BETAS = (Optimiser.ADAFACTOR, Optimiser.ADAGRAD, Optimiser.RMSPROP, Optimiser.SGD)
"""Optimisers without averages that decay by two betas."""
WITHOUT_EPSILON = (*WITHOUT_BETAS, Optimiser.LION, Optimiser.LION_8BIT, Optimiser.PAGED_LION, Optimiser.PAGED_LION_8BIT)
"""Optimisers that do not read `adam_epsilon`."""
HAS_BETAS = (
    "!(has(self.adamBeta1) || has(self.adamBeta2)) || !has(self.optim) || "
    f"!(self.optim in {[one.value for one in WITHOUT_BETAS]})"
)
HAS_EPSILON = f"!has(self.adamEpsilon) || !has(self.optim) || !(self.optim in {[one.value for one in WITHOUT_EPSILON]})"
NOISE_WITHOUT_PACKING = "!has(self.neftuneNoiseAlpha) || self.packing != 'Always'"
NOISE_WITHOUT_FLASH = "!has(self.neftuneNoiseAlpha) || !has(self.attention) || self.attention != 'FlashAttention'"


class Hyperparameters(Block):
    """Training arguments under the names of `transformers.TrainingArguments`; every field is optional."""

    model_config = with_rules(
        cel(
            "!(has(self.numTrainEpochs) && has(self.maxSteps))",
            "give at most one of numTrainEpochs and maxSteps: remove one",
            ".maxSteps",
        ),
        cel(
            "!has(self.warmupSteps) || self.warmupSteps < 1.0 || double(int(self.warmupSteps)) == self.warmupSteps",
            "warmupSteps must be a fraction of the training below 1, or a whole number of steps: set 0.03 or 100, "
            "for example",
            ".warmupSteps",
        ),
        cel(
            HAS_LOWEST_RATE,
            "minLrRatio is the end of schedules cosine_with_min_lr and warmup_stable_decay: set lrSchedulerType to "
            "one of them, or remove minLrRatio",
            ".minLrRatio",
        ),
        cel(
            HAS_DECAY,
            "decaySteps is the end of schedule warmup_stable_decay: set lrSchedulerType to it, or remove decaySteps",
            ".decaySteps",
        ),
        cel(
            WHOLE_DECAY,
            "decaySteps must be a fraction of the training below 1, or a whole number of steps: set 0.1 or 100, "
            "for example",
            ".decaySteps",
        ),
        cel(
            FITTING_DECAY,
            "warmupSteps and decaySteps together are more than the whole training: lower one of them",
            ".decaySteps",
        ),
        cel(
            HAS_WARMUP,
            "schedule constant has no warm-up: set lrSchedulerType to constant_with_warmup, or remove warmupSteps",
            ".warmupSteps",
        ),
        cel(
            HAS_BETAS,
            "adamBeta1 and adamBeta2 are of AdamW, Lion and AdEMAMix: set optim to one of them, or remove them",
            ".optim",
        ),
        cel(
            HAS_EPSILON,
            "adamEpsilon is of AdamW and AdEMAMix: set optim to one of them, or remove adamEpsilon",
            ".optim",
        ),
        cel(
            NOISE_WITHOUT_PACKING,
            "the noise of NEFTune depends on the length of a row, which packing hides: set packing to Auto or "
            "Never, or remove neftuneNoiseAlpha",
            ".packing",
        ),
        cel(
            NOISE_WITHOUT_FLASH,
            "the noise of NEFTune depends on the length of a row, which FlashAttention hides: set attention to "
            "Auto or SDPA, or remove neftuneNoiseAlpha",
            ".attention",
        ),
    )

    num_train_epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Passes over the training rows; exclusive with `maxSteps`.
    Default: {epochs}."""
    max_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Total optimiser steps; exclusive with `numTrainEpochs`. Default: derived from `numTrainEpochs`."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak learning rate. Default: {learning_rate}."""
    lr_scheduler_type: Schedule | None = None
    """Learning-rate schedule: `linear`, `cosine`, `constant`, `constant_with_warmup`, `polynomial`,
    `cosine_with_min_lr` (down to `minLrRatio`) or `warmup_stable_decay` (constant until the last `decaySteps`).
    With `warmupSteps` and without this field, `constant` becomes `constant_with_warmup`. Default: {schedule}."""
    warmup_steps: Annotated[float, Field(ge=0, le=10_000_000)] | None = None
    """Warm-up: a value below 1 is a fraction of all steps, any other a number of steps; not with
    schedule `constant`. Default: {warmup}."""
    decay_steps: Annotated[float, Field(ge=0, le=10_000_000)] | None = None
    """Final decay of schedule `warmup_stable_decay`, along half a cosine: a value below 1 is a fraction of all steps,
    any other a number of steps. Default: 0.1 with that schedule."""
    min_lr_ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Learning rate at the end, as a fraction of `learningRate`. Default: 0.1 with schedule `cosine_with_min_lr`, 0
    with `warmup_stable_decay`."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] | None = None
    """Weight decay; decoupled, except with `sgd`, `adagrad` and `rmsprop`. Default: 0."""
    max_grad_norm: Annotated[float, Field(ge=0, le=1000)] | None = None
    """Gradient-norm clip; 0 = none. Default: {clip}."""
    optim: Optimiser | None = None
    """Optimiser: `adamw_torch`, `adafactor`, `lion_8bit`, `sgd` or another under transformers' names. One with 8 bits
    keeps a quarter of the state; a `paged` one moves it to the host's memory if the GPU's is short; both need a GPU.
    The default `learningRate` is for AdamW: Lion needs a third of it or less, `sgd` far more.
    Default: `paged_adamw_8bit` with QLoRA on a GPU, else `adamw_torch_fused`."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Decay of the optimiser's average of gradients; with AdamW, Lion and AdEMAMix. Default: 0.9."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Decay of the optimiser's average of squared gradients, of Lion's average of gradients; with AdamW, Lion and
    AdEMAMix. Default: 0.999."""
    adam_epsilon: Annotated[float, Field(gt=0, le=1)] | None = None
    """Term against a division by zero; with AdamW and AdEMAMix. Default: 1e-8."""
    per_device_train_batch_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Rows per batch and GPU; with KTO at least 2. Default: 2; with neither this nor `gradientAccumulationSteps`, the
    trainer takes as many as fit its GPU, with the same effective batch (not with KTO)."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Batches accumulated before a step. Default: the number that makes the effective batch
    {batch}."""
    max_length: Annotated[int, Field(ge=16, le=1_048_576)] = 2048
    """Maximum sequence length in tokens; longer rows are truncated and counted. Default: 2048."""
    packing: Packing = Packing.AUTO
    """Put several short rows into one sequence, without attention between them; with objectives Instruction, Chat and
    DomainAdaptation. `Auto`: pack if it is exact for the attention implementation in use and saves work. `Always`: fail
    if that is not exact. Default: `Auto`."""
    precision: Precision = Precision.AUTO
    """Number format of the computation. `Auto`: BF16 if the GPU supports it, else FP16; FP32 on a CPU. Default:
    `Auto`."""
    attention: Attention | None = None
    """Attention kernel. `SDPA`: PyTorch's scaled dot product attention. `FlashAttention`: a kernel for rows of
    different lengths without padding; needs objective Instruction, Chat or DomainAdaptation, a GPU of compute
    capability 8.0 or later, and BF16 or FP16. `Auto`: FlashAttention if GPU, image and model support it, else SDPA,
    else the model's own. Default: `Auto`."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass to save memory. Default: true with QLoRA, with Full, and with several
    training processes, else false."""
    neftune_noise_alpha: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Add noise to the embeddings in training (NEFTune), uniform up to `alpha / sqrt(length * hidden size)`; 5 to 15 is
    usual. With objectives Instruction, Chat and DomainAdaptation; rows are neither packed nor joined. Default: no
    noise."""
    fused_kernels: FusedKernels | None = None
    """Compute RMSNorm, rotary positions and the gated MLP each in one GPU kernel, which saves memory traffic. `Auto`:
    for model types whose fused kernels are exact; `resolved.fusedKernels` has the outcome. Default: `Never`."""
    seed: Annotated[int, Field(ge=0, le=4_294_967_295)] = 42
    """Seed of the split, the shuffling and the initial adapter. Default: 42."""
