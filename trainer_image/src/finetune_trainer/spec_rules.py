"""The rules between fields that the API server checks in CEL, for manifests that never meet one.

Which rule stands where, and its message, come from the types; only the conditions are written again, by the CEL text.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel

from finetune_api.blocks import S3_URI

Condition = Callable[[Any], bool]

CONDITIONS: dict[str, Condition] = {
    "self.method != 'Full' || !has(self.lora)": lambda tuning: tuning.method != "Full" or tuning.lora is None,
    "self.method in ['QLoRA', 'Auto'] || !has(self.quantization)": lambda tuning: (
        tuning.method in {"QLoRA", "Auto"} or tuning.quantization is None
    ),
    "!(has(self.validation) && has(self.validationSplitPercent))": lambda dataset: (
        dataset.validation is None or dataset.validation_split_percent is None
    ),
    "!(has(self.numTrainEpochs) && has(self.maxSteps))": lambda hyper: (
        hyper.num_train_epochs is None or hyper.max_steps is None
    ),
    "!has(self.warmupSteps) || self.warmupSteps < 1.0 || double(int(self.warmupSteps)) == self.warmupSteps": (
        lambda hyper: hyper.warmup_steps is None or hyper.warmup_steps < 1 or hyper.warmup_steps.is_integer()
    ),
    "!has(self.earlyStopping) || has(self.dataset.validation) || has(self.dataset.validationSplitPercent)": (
        lambda spec: (
            spec.early_stopping is None
            or spec.dataset.validation is not None
            or spec.dataset.validation_split_percent is not None
        )
    ),
    f"self.matches({json.dumps(S3_URI.pattern)})": lambda uri: bool(S3_URI.match(uri)),
    r"!self.matches('(^|/)[.][.]?(/|$)')": lambda uri: not {".", ".."} & set(uri.split("/")),
}


def broken_rules(spec: BaseModel) -> list[str]:
    """One line for each rule that the spec breaks: the field's path and the message that names the fix."""
    return [f"{path}: {rule['message']}" for path, rule, value in find_rules(spec, "spec") if not _holds(rule, value)]


def find_rules(block: BaseModel, path: str) -> Iterator[tuple[str, dict[str, str], Any]]:
    """Every rule on a block, its fields and the blocks below, with the path to report and its value."""
    for rule in _rules(block.model_config.get("json_schema_extra")):
        yield path + rule.get("fieldPath", ""), rule, block
    for name, field in type(block).model_fields.items():
        value, here = getattr(block, name), f"{path}.{field.alias or name}"
        for rule in [rule for extra in _extras(field) for rule in _rules(extra)]:
            if value is not None:
                yield here, rule, value
        if isinstance(value, BaseModel):
            yield from find_rules(value, here)


def _holds(rule: dict[str, str], value: Any) -> bool:
    """Rules about a change (`oldSelf`) hold: there is no older object."""
    return "oldSelf" in rule["rule"] or CONDITIONS[rule["rule"]](value)


def _extras(field: Any) -> list[Any]:
    return [field.json_schema_extra, *(getattr(one, "json_schema_extra", None) for one in field.metadata)]


def _rules(extra: object) -> list[dict[str, str]]:
    return extra.get("x-kubernetes-validations", []) if isinstance(extra, dict) else []
