"""The one table of training defaults: what an absent hyper-parameter becomes, by method, model size and rows."""

import math
from dataclasses import dataclass
from typing import TypeVar

from finetune_api.spec import FineTuneJobSpec, Lora, Method
from finetune_api.status import Resolved

_T = TypeVar("_T")
BILLION = 1_000_000_000


@dataclass(frozen=True)
class Facts:
    """What preflight has counted: weights of the base model and rows on each side of the split."""

    parameters: int
    train_rows: int
    validation_rows: int


def resolve(spec: FineTuneJobSpec, facts: Facts) -> Resolved:
    """Every training setting with its default filled in; precision, optimiser and targets stay open where only a
    trainer on its device can tell."""
    method, reason = _method(spec.tuning.method)
    hyper = spec.hyperparameters
    batch = hyper.per_device_train_batch_size or min(2, max(facts.train_rows, 1))
    accumulation = hyper.gradient_accumulation_steps or max(1, _effective_batch(method) // batch)
    epochs, steps = _length(spec, method, facts, batch * accumulation)
    resolved = Resolved(
        method=method.value,
        method_reason=reason,
        num_train_epochs=epochs,
        total_steps=steps,
        learning_rate=_given(hyper.learning_rate, _learning_rate(method, facts.parameters)),
        lr_scheduler_type=hyper.lr_scheduler_type or "cosine",
        warmup_steps=_given(hyper.warmup_steps, 0.03),
        weight_decay=_given(hyper.weight_decay, 0.0),
        max_grad_norm=_given(hyper.max_grad_norm, 0.3 if method is Method.QLORA else 1.0),
        optim=hyper.optim,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        global_batch_size=batch * accumulation,
        max_length=hyper.max_length,
        precision=hyper.precision.value,
        gradient_checkpointing=_given(hyper.gradient_checkpointing, method is Method.QLORA),
        seed=hyper.seed,
        eval_steps=(spec.evaluation.steps or max(1, steps // 10)) if facts.validation_rows else None,
    )
    return resolved if method is Method.FULL else resolved.model_copy(update=_adapter(spec, method))


def _method(asked: Method) -> tuple[Method, str]:
    if asked is Method.AUTO:
        return Method.QLORA, "Auto is QLoRA"
    return asked, "set in tuning.method"


def _learning_rate(method: Method, parameters: int) -> float:
    if method is Method.FULL:
        return 1e-5 if parameters > 7 * BILLION else 2e-5
    return 1e-4 if method is Method.QLORA and parameters > 13 * BILLION else 2e-4


def _effective_batch(method: Method) -> int:
    return 32 if method is Method.FULL else 16


def _length(spec: FineTuneJobSpec, method: Method, facts: Facts, global_batch: int) -> tuple[float, int]:
    """Epochs and steps; a last partial batch is a step of its own, as in transformers' Trainer."""
    steps_per_epoch = max(1, math.ceil(facts.train_rows / global_batch))
    if spec.hyperparameters.max_steps:
        return spec.hyperparameters.max_steps / steps_per_epoch, spec.hyperparameters.max_steps
    epochs = spec.hyperparameters.num_train_epochs or _default_epochs(method, facts.train_rows)
    return epochs, max(1, math.ceil(epochs * steps_per_epoch))


def _default_epochs(method: Method, rows: int) -> float:
    if method is Method.FULL:
        return 2.0
    return 1.0 if rows > 50_000 else 3.0


def _adapter(spec: FineTuneJobSpec, method: Method) -> dict[str, object]:
    lora = spec.tuning.lora or Lora()
    settings: dict[str, object] = {
        "lora_rank": lora.rank or 16,
        "lora_alpha": lora.alpha or 32,
        "lora_dropout": _given(lora.dropout, 0.05),
        "use_rslora": bool(lora.use_rslora),
        "target_modules": lora.target_modules,
    }
    if method is Method.QLORA:
        quantization = spec.tuning.quantization
        settings["double_quant"] = quantization is None or quantization.double_quant is not False
    return settings


def _given(value: _T | None, default: _T) -> _T:
    return default if value is None else value
