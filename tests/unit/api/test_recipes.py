"""The field descriptions state the defaults that a job gets, for every objective and method."""

import math
import re
from typing import Any

import pytest

from finetune_api.defaults import Facts, resolve
from finetune_api.objectives import Objective
from finetune_api.recipes import fill_in_defaults, number_text
from finetune_api.schema.crd import structural_schema
from finetune_api.spec import FineTuneJobSpec

OBJECTIVES = [one.value for one in Objective]
FACTS = Facts(parameters=1_000_000_000, train_rows=1000, validation_rows=50)


def resolved(objective: str, method: str, facts: Facts = FACTS) -> Any:
    spec: dict[str, Any] = {
        "objective": objective,
        "model": {"uri": "s3://models/base"},
        "dataset": {"train": {"uri": "s3://data/train.jsonl"}},
        "output": {"uri": "s3://models/out"},
        "tuning": {"method": method},
    }
    if objective == "RLHF":
        spec["rlhf"] = {"rewards": [{"type": "Length", "targetTokens": 8}]}
    if objective == "Distillation":
        spec["distillation"] = {"teacher": {"uri": "s3://models/larger"}}
    return resolve(FineTuneJobSpec.model_validate(spec), facts)


SCHEMA = structural_schema(FineTuneJobSpec)


def description(path: str) -> str:
    node = SCHEMA
    for part in path.split("."):
        node = node["properties"][part]
    return str(node["description"])


def stated(text: str, objective: str) -> str:
    """Return the value that `A; B with X and Y` states for an objective."""
    usual, *others = text.split("; ")
    for other in others:
        value, _, names = other.partition(" with ")
        if objective in re.split(r", | and ", names.split(", and with")[0]):
            return value
    return usual


def split_by_method(text: str, marker: str) -> tuple[str, str]:
    """Return what follows `Default:` in general, and what follows the marker of a method."""
    usual, found, special = text.partition("Default: ")[2].partition(marker)
    assert found, text
    return usual.rstrip(". "), special.split(". ")[0].rstrip(".")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_stated_learning_rate_and_epochs_are_those_that_a_job_gets(objective: str) -> None:
    for field, name in (("learningRate", "learning_rate"), ("numTrainEpochs", "num_train_epochs")):
        usual, full = split_by_method(description(f"hyperparameters.{field}"), "With method `Full`: ")
        for method, text in (("QLoRA", usual), ("LoRA", usual), ("Full", full)):
            assert stated(text, objective) == number_text(getattr(resolved(objective, method), name)), (field, method)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_stated_clip_is_the_one_that_a_job_gets(objective: str) -> None:
    usual, quantised = split_by_method(description("hyperparameters.maxGradNorm"), "With QLoRA: ")
    for method, text in (("QLoRA", quantised), ("LoRA", usual), ("Full", usual)):
        assert stated(text, objective) == number_text(resolved(objective, method).max_grad_norm), method


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("hyperparameters.lrSchedulerType", "lr_scheduler_type"),
        ("tuning.lora.dropout", "lora_dropout"),
    ],
)
def test_the_other_stated_defaults_are_those_that_a_job_gets(objective: str, path: str, name: str) -> None:
    value = getattr(resolved(objective, "LoRA"), name)
    text = description(path).partition("Default: ")[2].rstrip(".")
    assert stated(text, objective).strip("`") == (value if isinstance(value, str) else number_text(value))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_stated_warm_up_is_the_share_of_the_steps_that_a_job_gets(objective: str) -> None:
    share = float(stated(description("hyperparameters.warmupSteps").partition("Default: ")[2].rstrip("."), objective))
    settings = resolved(objective, "LoRA")
    assert settings.warmup_steps == math.ceil(share * settings.total_steps)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_stated_effective_batch_is_the_one_that_a_job_gets(objective: str) -> None:
    text = description("hyperparameters.gradientAccumulationSteps").partition("effective batch ")[2].rstrip(".")
    usual, full = text.split("; with method `Full` ")
    assert stated(usual, objective) == str(resolved(objective, "LoRA").global_batch_size)
    assert stated(full, objective) == str(resolved(objective, "Full").global_batch_size)


@pytest.mark.parametrize(("method", "billions"), [("QLoRA", 13), ("Full", 7)])
def test_the_learning_rate_is_halved_exactly_above_the_stated_size(method: str, billions: int) -> None:
    assert f"{billions} billion" in description("hyperparameters.learningRate")
    at, above = (
        resolved("DPO", method, Facts(parameters=billions * 10**9 + more, train_rows=10, validation_rows=0))
        for more in (0, 1)
    )
    assert above.learning_rate == at.learning_rate / 2


def test_a_placeholder_without_defaults_is_an_error() -> None:
    assert fill_in_defaults("for example `{cpu: 4}`") == "for example `{cpu: 4}`"
    with pytest.raises(KeyError):
        fill_in_defaults("Default: {colour}.")


@pytest.mark.parametrize(
    ("value", "text"), [(2e-4, "2e-4"), (1.5e-5, "1.5e-5"), (0.05, "0.05"), (0.001, "0.001"), (3.0, "3"), (0, "0")]
)
def test_a_number_is_written_as_users_write_it(value: float, text: str) -> None:
    assert number_text(value) == text
    assert float(text) == value
