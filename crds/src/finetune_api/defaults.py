"""Resolve the training settings: a job's own, else the defaults of its objective, method, model size and rows."""

import math
from dataclasses import dataclass
from typing import Any, TypeVar

from finetune_api.hyperparameters import Hyperparameters, Schedule
from finetune_api.objectives import (
    SAMPLED,
    SMALLEST_KTO_BATCH,
    Algorithm,
    Dpo,
    Kto,
    LossType,
    Objective,
    PolicyLoss,
    RewardScale,
    Rlhf,
    RolloutEngine,
)
from finetune_api.recipes import RECIPES, Recipe
from finetune_api.spec import FineTuneJobSpec, Lora, Method, Mode
from finetune_api.status import Resolved
from finetune_api.tuning import InitLoraWeights

_T = TypeVar("_T")

AS_SERVED = "mode Evaluate measures the adapter on the base in 16 bits"
OF_A_TRAINING = (
    "num_train_epochs", "total_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay",
    "max_grad_norm", "optim", "gradient_accumulation_steps", "global_batch_size", "gradient_checkpointing",
    "eval_steps", "lora_dropout", "lora_plus_lr_ratio", "decay_steps", "min_lr_ratio", "neftune_noise_alpha",
    "adam_beta1", "adam_beta2", "adam_epsilon",
)  # fmt: skip
"""Settings that are absent if nothing is trained."""
SMOOTHING = {LossType.ROBUST: 0.1, LossType.EXO_PAIR: 0.001}
"""The label smoothing that the papers of these losses advise."""


@dataclass(frozen=True)
class Facts:
    """Results of preflight: the base model's weights, the samples on each side of the split, and the method that the
    memory estimate chose (`method` is None if no estimate was needed)."""

    parameters: int
    train_rows: int
    validation_rows: int
    method: Method | None = None
    method_reason: str = ""
    estimated_gpu_memory_bytes: int | None = None
    packing: bool = False


def resolve(spec: FineTuneJobSpec, facts: Facts) -> Resolved:
    """Return every training setting with its default filled in; precision, optimiser and target modules stay open if
    only the trainer can determine them on its device."""
    method, reason = (facts.method, facts.method_reason) if facts.method else _method(spec)
    hyper, recipe = spec.hyperparameters, RECIPES[spec.objective]
    batch, accumulation = _batch(spec, method, facts.train_rows)
    epochs, steps = _length(spec, method, facts, batch * accumulation * spec.resources.ranks)
    schedule = hyper.lr_scheduler_type or _default_schedule(recipe, hyper.warmup_steps)
    # transformers ignores a warm-up of this schedule
    warmup = _count_warmup(_given(hyper.warmup_steps, recipe.warmup), steps) if schedule != Schedule.CONSTANT else 0
    resolved = Resolved(
        method=method.value,
        method_reason=reason,
        num_train_epochs=epochs,
        total_steps=steps,
        learning_rate=_given(hyper.learning_rate, recipe.learning_rate(method, facts.parameters)),
        lr_scheduler_type=schedule,
        warmup_steps=warmup,
        weight_decay=_given(hyper.weight_decay, 0.0),
        max_grad_norm=_given(hyper.max_grad_norm, recipe.max_grad_norm(method)),
        optim=hyper.optim,
        adam_beta1=hyper.adam_beta1,
        adam_beta2=hyper.adam_beta2,
        adam_epsilon=hyper.adam_epsilon,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        global_batch_size=batch * accumulation * spec.resources.ranks,
        max_length=hyper.max_length,
        neftune_noise_alpha=hyper.neftune_noise_alpha,
        precision=hyper.precision.value,
        attention=hyper.attention.value if hyper.attention else None,
        gradient_checkpointing=_given(
            hyper.gradient_checkpointing, method is not Method.LORA or spec.resources.ranks > 1
        ),
        seed=hyper.seed,
        eval_steps=(spec.evaluation.steps or max(1, steps // 10)) if facts.validation_rows else None,
        packing=facts.packing,
        estimated_gpu_memory_bytes=facts.estimated_gpu_memory_bytes,
    )
    resolved = resolved.model_copy(update=_end_of_schedule(hyper, warmup, steps))
    settings = _objective(spec) if method is Method.FULL else _objective(spec) | _adapter(spec, method)
    if spec.mode is Mode.EVALUATE:
        settings |= {"mode": spec.mode.value} | dict.fromkeys(OF_A_TRAINING)
    return resolved.model_copy(update=settings)


def _default_schedule(recipe: Recipe, warmup: float | None) -> Schedule:
    """Return the schedule of a job that sets none; a warm-up that it sets has an effect."""
    schedule = Schedule(recipe.schedule)
    return Schedule.CONSTANT_WITH_WARMUP if schedule is Schedule.CONSTANT and warmup else schedule


def _method(spec: FineTuneJobSpec) -> tuple[Method, str]:
    asked = spec.tuning.method
    if spec.mode is Mode.EVALUATE:
        return Method.LORA, AS_SERVED
    if asked is Method.AUTO:
        return Method.QLORA, "Auto is QLoRA"
    return asked, "set in tuning.method"


def _batch(spec: FineTuneJobSpec, method: Method, rows: int) -> tuple[int, int]:
    """Return batch size and accumulation steps of a process; under RLHF rows are sampled answers, and a step contains
    whole groups, which processes may share."""
    hyper, ranks = spec.hyperparameters, spec.resources.ranks
    wanted = max(1, RECIPES[spec.objective].effective_batch(method) // ranks)
    if spec.rlhf is None:
        fewest = SMALLEST_KTO_BATCH if spec.objective is Objective.KTO else 1
        wanted = max(fewest, wanted)
        batch = hyper.per_device_train_batch_size or min(2, wanted, max(rows, fewest))
        return batch, hyper.gradient_accumulation_steps or max(1, wanted // batch)
    group = spec.rlhf.num_generations
    if accumulation := hyper.gradient_accumulation_steps:
        return hyper.per_device_train_batch_size or group // math.gcd(group, accumulation * ranks), accumulation
    batch = hyper.per_device_train_batch_size or min(2, wanted)
    unit = group // math.gcd(group, batch * ranks)
    return batch, unit * max(1, wanted // (batch * unit))


def _length(spec: FineTuneJobSpec, method: Method, facts: Facts, global_batch: int) -> tuple[float, int]:
    """Return epochs and steps; a last partial batch is a step, as in transformers' Trainer, unless answers are sampled:
    TRL then fills every step."""
    rows = facts.train_rows * (spec.rlhf.num_generations if spec.rlhf else 1)
    has_full_steps = spec.objective in SAMPLED
    steps_per_epoch = rows / global_batch if has_full_steps else max(1, math.ceil(rows / global_batch))
    if spec.hyperparameters.max_steps:
        steps = spec.hyperparameters.max_steps
        return count_epochs(steps, global_batch, rows, has_full_steps=has_full_steps), steps
    usual = RECIPES[spec.objective].num_epochs(method, facts.train_rows)
    epochs = spec.hyperparameters.num_train_epochs or usual
    return epochs, max(1, math.ceil(epochs * steps_per_epoch))


def count_epochs(steps: int, batch: int, rows: int, *, has_full_steps: bool) -> float:
    """Return the passes over the rows that the steps make; the last step of a pass takes the rows that are left, unless
    every step is full."""
    if has_full_steps:
        return steps * batch / max(rows, 1)
    whole, rest = divmod(steps, max(1, math.ceil(rows / batch)))
    return whole + rest * batch / max(rows, 1)


def _count_steps(value: float, steps: int) -> int:
    """Return the steps of a warm-up or decay, as transformers counts them: a value below 1 is a share of all steps."""
    return math.ceil(value * steps) if value < 1 else int(value)


def _count_warmup(value: float, steps: int) -> int:
    """Return the steps of a warm-up; a share leaves one step at the peak: the first step of a warm-up has the rate 0,
    so that a training of one step would learn nothing."""
    warmup = _count_steps(value, steps)
    return min(warmup, steps - 1) if value < 1 else warmup


def _end_of_schedule(hyper: Hyperparameters, warmup: int, steps: int) -> dict[str, Any]:
    """Return what follows the peak, for the schedules that have a setting for it; the decay ends with the training."""
    match hyper.lr_scheduler_type:
        case Schedule.COSINE_WITH_MIN_LR:
            return {"min_lr_ratio": _given(hyper.min_lr_ratio, 0.1)}
        case Schedule.WARMUP_STABLE_DECAY:
            decay = _count_steps(_given(hyper.decay_steps, 0.1), steps)
            return {
                "decay_steps": min(decay, max(0, steps - warmup)),
                "min_lr_ratio": _given(hyper.min_lr_ratio, 0.0),
            }
        case _:
            return {}


def _objective(spec: FineTuneJobSpec) -> dict[str, Any]:
    """Return the settings of the objective's own block."""
    match spec.objective:
        case Objective.DPO:
            dpo = spec.dpo or Dpo()
            return {
                "beta": dpo.beta,
                "loss_type": dpo.loss_type.value,
                "label_smoothing": _given(dpo.label_smoothing, SMOOTHING.get(dpo.loss_type)),
                "sft_weight": dpo.sft_weight,
            }
        case Objective.KTO:
            return (spec.kto or Kto()).model_dump(include={"beta", "desirable_weight", "undesirable_weight"})
        case Objective.RLHF:
            rlhf = spec.rlhf or Rlhf()
            names = {"num_generations", "max_completion_length", "temperature", "beta", "mask_truncated_completions"}
            of_groups = {
                "loss_type": _given(rlhf.loss_type, PolicyLoss.DAPO).value,
                "scale_rewards": _given(rlhf.scale_rewards, RewardScale.GROUP).value,
            }
            return (
                rlhf.model_dump(include=names)
                | {"algorithm": rlhf.algorithm.value, "rollouts_gpu_memory_fraction": rollouts_share(rlhf)}
                | (of_groups if rlhf.algorithm is Algorithm.GRPO else {})
            )
        case Objective.DISTILLATION if spec.distillation:
            return spec.distillation.model_dump(
                include={"max_completion_length", "temperature", "beta", "shard_teacher"}
            )
        case _:
            return {}


def rollouts_share(rlhf: Rlhf | None) -> float | None:
    """Return vLLM's share of the GPU's memory; None if vLLM samples no answers."""
    rollouts = rlhf and rlhf.rollouts
    if not rollouts or rollouts.engine is not RolloutEngine.VLLM:
        return None
    return _given(rollouts.gpu_memory_fraction, 0.3)


def _adapter(spec: FineTuneJobSpec, method: Method) -> dict[str, Any]:
    lora, usual = spec.tuning.lora or Lora(), RECIPES[spec.objective].dropout
    if lora.target_experts:  # PEFT has no dropout for them
        usual = None
    initial = lora.init_lora_weights
    settings: dict[str, Any] = {
        "lora_rank": lora.rank or 16,
        "lora_alpha": lora.alpha or 32,
        "rank_pattern": lora.rank_pattern,
        "alpha_pattern": lora.alpha_pattern,
        "lora_dropout": 0.0 if usual is None else _given(lora.dropout, 0.0 if lora.use_dora else usual),
        "use_rslora": bool(lora.use_rslora),
        "target_modules": lora.target_modules,
        "target_experts": bool(lora.target_experts),
        "exclude_modules": lora.exclude_modules,
        "modules_to_save": lora.modules_to_save,
        "use_dora": lora.use_dora,
        "init_lora_weights": None if initial in {None, InitLoraWeights.DEFAULT} else initial.value,
        "lora_plus_lr_ratio": None if lora.lora_plus_lr_ratio == 1 else lora.lora_plus_lr_ratio,
        "shard_base": lora.shard_base,
    }
    if method is Method.QLORA:
        quantization = spec.tuning.quantization
        settings["double_quant"] = quantization is None or quantization.double_quant is not False
    return settings


def _given(value: _T | None, default: _T) -> _T:
    return default if value is None else value
