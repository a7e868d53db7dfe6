"""`status.resolved`: the settings in use."""

from typing import Annotated

from pydantic import AfterValidator, Field

from finetune_api.blocks import ATOMIC, SET
from finetune_api.scalars import Count, Expression, Line, Measure, StatusBlock, Word

Modules = Annotated[
    list[Word],
    AfterValidator(lambda modules: list(dict.fromkeys(modules))),
    Field(max_length=64, json_schema_extra=SET),
]
CountByExpression = Annotated[dict[Expression, Count], Field(max_length=32, json_schema_extra=ATOMIC)]


class Resolved(StatusBlock):
    """Settings in use, with every default filled in; fixed once preflight has passed."""

    mode: Word | None = None
    """`Evaluate` if nothing is trained; absent in a training."""
    method: Word | None = None
    """Tuning method in use."""
    method_reason: Line | None = None
    """Why this method was chosen."""
    num_train_epochs: Measure | None = None
    """Passes over the training rows that are planned; `progress.epoch` counts those that are done."""
    total_steps: Count | None = None
    """Optimiser steps planned."""
    learning_rate: Measure | None = None
    """Peak learning rate."""
    lr_scheduler_type: Word | None = None
    """Learning-rate schedule in use."""
    warmup_steps: Measure | None = None
    """Optimiser steps of the warm-up."""
    decay_steps: Count | None = None
    """Optimiser steps of the final decay; only with schedule `warmup_stable_decay`."""
    min_lr_ratio: Measure | None = None
    """Learning rate at the end, as a fraction of the peak; only with a schedule that has one."""
    weight_decay: Measure | None = None
    """Weight decay."""
    max_grad_norm: Measure | None = None
    """Gradient-norm clip; 0 = none."""
    optim: Word | None = None
    """Optimiser in use."""
    adam_beta1: Measure | None = None
    """Decay of the optimiser's average of gradients; absent with the optimiser's default."""
    adam_beta2: Measure | None = None
    """Decay of its average of squared gradients; absent with the optimiser's default."""
    adam_epsilon: Measure | None = None
    """Its term against a division by zero; absent with the optimiser's default."""
    per_device_train_batch_size: Count | None = None
    """Rows per batch and device; with `packing` sequences of rows, with RLHF answers."""
    gradient_accumulation_steps: Count | None = None
    """Batches accumulated before a step."""
    global_batch_size: Count | None = None
    """Rows per optimiser step; with `packing` sequences of rows, with RLHF answers."""
    max_length: Count | None = None
    """Maximum sequence length in tokens."""
    neftune_noise_alpha: Measure | None = None
    """Noise on the embeddings in training (NEFTune); absent without."""
    precision: Word | None = None
    """Number format of the computation; `Auto` until a trainer has detected its device."""
    attention: Word | None = None
    """Attention in use: `SDPA`, `FlashAttention` or `Eager`, the model's own. Until a trainer has loaded the model: the
    requested one, if any."""
    gradient_checkpointing: bool | None = None
    """Whether activations are recomputed in the backward pass."""
    fused_kernels: bool | None = None
    """Whether the model uses fused GPU kernels; absent with `fusedKernels: Never`."""
    seed: Count | None = None
    """Seed of split, shuffling and initial adapter."""
    eval_steps: Count | None = None
    """Optimiser steps between evaluations."""
    packing: bool | None = None
    """Whether short rows share a sequence."""
    estimated_gpu_memory_bytes: Count | None = None
    """Estimated GPU memory for training, per GPU, in bytes."""
    beta: Measure | None = None
    """Weight of the penalty for deviating from the reference model (DPO, KTO, RLHF), or the divergence from the teacher
    (Distillation)."""
    loss_type: Word | None = None
    """Loss of DPO, or of RLHF with GRPO."""
    label_smoothing: Measure | None = None
    """Share of pairs whose labels are taken to be swapped (DPO); absent without."""
    sft_weight: Measure | None = None
    """Weight of the chosen answer's own loss (DPO); absent without."""
    desirable_weight: Measure | None = None
    """Weight of the answers labelled good (KTO)."""
    undesirable_weight: Measure | None = None
    """Weight of the answers labelled bad (KTO)."""
    algorithm: Word | None = None
    """Reinforcement learning algorithm (RLHF)."""
    num_generations: Count | None = None
    """Answers sampled for each prompt (RLHF)."""
    max_completion_length: Count | None = None
    """Maximum length of a sampled answer, in tokens (RLHF, Distillation)."""
    temperature: Measure | None = None
    """Sampling temperature (RLHF, Distillation)."""
    scale_rewards: Word | None = None
    """What the differences of rewards are divided by (RLHF with GRPO)."""
    mask_truncated_completions: bool | None = None
    """Whether answers that were cut are left out of the loss (RLHF); absent if not."""
    shard_teacher: bool | None = None
    """Whether each GPU holds a share of the teacher (Distillation); absent if each holds the whole."""
    rollouts_gpu_memory_fraction: Measure | None = None
    """Share of the GPU's memory for vLLM, which samples the answers (RLHF); absent without vLLM."""
    lora_rank: Count | None = None
    """Rank of the adapter."""
    lora_alpha: Count | None = None
    """Scaling of the adapter."""
    rank_pattern: CountByExpression | None = None
    """Ranks of single modules, by a pattern of their names; absent without, and if they are too long for a report."""
    alpha_pattern: CountByExpression | None = None
    """Scalings of single modules, by a pattern of their names; absent without, and if they are too long for a
    report."""
    lora_dropout: Measure | None = None
    """Dropout on the adapter's input."""
    use_rslora: bool | None = None
    """Whether the scaling is divided by the square root of the rank."""
    use_dora: bool | None = None
    """Whether the magnitude of each output is trained; absent if not."""
    init_lora_weights: Word | None = None
    """First values of the adapter; absent with PEFT's default."""
    lora_plus_lr_ratio: Measure | None = None
    """Learning rate of the factors B by that of the factors A; absent if they are the same."""
    shard_base: bool | None = None
    """Whether each GPU holds a share of the frozen base; absent if each holds the whole."""
    exclude_modules: Modules | None = None
    """Modules that were left out of the adapter."""
    modules_to_save: Modules | None = None
    """Modules that are trained in full next to the adapter; absent without."""
    double_quant: bool | None = None
    """Whether the quantisation constants are quantised too."""
    target_modules: Modules | None = None
    """Modules with an adapter; absent until a trainer has loaded the model, unless set in `tuning.lora`."""
    target_experts: bool | None = None
    """Whether the experts of a mixture have an adapter."""
    target_parameters: (
        Annotated[
            list[Word],
            AfterValidator(lambda names: list(dict.fromkeys(names))),
            Field(max_length=16, json_schema_extra=SET),
        ]
        | None
    ) = None
    """Parameters of experts with an adapter; absent until a trainer has loaded the model, and without
    `targetExperts`."""
