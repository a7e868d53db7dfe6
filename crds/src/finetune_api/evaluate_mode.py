"""`spec.mode: Evaluate`: which fields it needs, and which have no effect with it; each part as CEL and in Python."""

from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any

from finetune_api.blocks import combined_cel
from finetune_api.objectives import SUPERVISED


class Mode(StrEnum):
    """Whether the job trains."""

    TRAIN = "Train"
    EVALUATE = "Evaluate"


OBJECTIVES = tuple(one.value for one in SUPERVISED)
WITHOUT_EFFECT = (
    *(
        f"hyperparameters.{name}"
        for name in (
            "numTrainEpochs", "maxSteps", "learningRate", "lrSchedulerType", "warmupSteps", "weightDecay",
            "maxGradNorm", "optim", "gradientAccumulationSteps", "gradientCheckpointing", "decaySteps", "minLrRatio",
            "neftuneNoiseAlpha", "adamBeta1", "adamBeta2", "adamEpsilon",
        )
    ),
    "tuning.lora",
    "tuning.quantization",
    "tuning.vramBudget",
    "evaluation.steps",
    "earlyStopping",
    "checkpoint.steps",
    "resources.merge",
)  # fmt: skip
"""Optional fields that only a training reads."""
Condition = Callable[[Any], bool]


def _is_absent(path: str) -> Condition:
    def check(spec: Any) -> bool:
        value = spec
        for name in path.split("."):
            fields = type(value).model_fields.items()
            value = getattr(value, next(field for field, about in fields if about.alias == name))
        return value is None

    return check


_PARTS: list[tuple[str, str, str, Condition]] = [
    (
        "has(self.tuning.initialAdapter)",
        "mode Evaluate evaluates an existing adapter: set tuning.initialAdapter",
        ".tuning.initialAdapter",
        lambda spec: spec.tuning.initial_adapter is not None,
    ),
    (
        "has(self.dataset.validation) || has(self.dataset.validationSplitPercent)",
        "mode Evaluate needs held-out rows: set dataset.validation or dataset.validationSplitPercent",
        ".dataset",
        lambda spec: spec.dataset.validation is not None or spec.dataset.validation_split_percent is not None,
    ),
    (
        f"self.objective in {list(OBJECTIVES)}",
        f"mode Evaluate measures a loss per token: set objective to {', '.join(OBJECTIVES[:-1])} or {OBJECTIVES[-1]}",
        ".objective",
        lambda spec: spec.objective in OBJECTIVES,
    ),
    (
        "self.tuning.method in ['Auto', 'LoRA']",
        "mode Evaluate loads the base in 16 bits, as it is served: set tuning.method to Auto or LoRA",
        ".tuning.method",
        lambda spec: spec.tuning.method in {"Auto", "LoRA"},
    ),
    (
        "self.evaluation.baseline",
        "mode Evaluate compares with the base: set evaluation.baseline true",
        ".evaluation.baseline",
        lambda spec: spec.evaluation.baseline,
    ),
    (
        "self.hyperparameters.packing != 'Always'",
        "mode Evaluate packs no rows: remove hyperparameters.packing",
        ".hyperparameters.packing",
        lambda spec: spec.hyperparameters.packing != "Always",
    ),
    (
        "self.checkpoint.keep == 0",
        "mode Evaluate trains nothing: remove checkpoint.keep",
        ".checkpoint.keep",
        lambda spec: spec.checkpoint.keep == 0,
    ),
    (
        "(self.resources.numNodes == 1 && self.resources.gpusPerNode <= 1)",
        "mode Evaluate runs in one process: set resources.numNodes 1 and resources.gpusPerNode 1",
        ".resources",
        lambda spec: spec.resources.num_nodes == 1 and spec.resources.gpus_per_node <= 1,
    ),
    *(
        (
            f"!has(self.{path})",
            f"mode Evaluate trains nothing: remove {path}",
            f".{path}",
            _is_absent(path),
        )
        for path in WITHOUT_EFFECT
    ),
]


EVALUATE_RULE = combined_cel(
    f"self.mode != 'Evaluate' || ({' && '.join(f'({rule})' for rule, *_ in _PARTS)})",
    "mode Evaluate evaluates tuning.initialAdapter on held-out rows, in one process and with the base in 16 bits, and "
    "trains nothing: remove the fields of a training",
    " + ".join(f"(({rule}) ? '' : '{message}. ')" for rule, message, _, _ in _PARTS),
    ".mode",
)


def find_evaluate_faults(spec: Any) -> Iterator[tuple[str, str]]:
    """Yield path and message of each part of the rule that a spec breaks."""
    for _, message, path, condition in _PARTS:
        if spec.mode == Mode.EVALUATE and not condition(spec):
            yield path, message
