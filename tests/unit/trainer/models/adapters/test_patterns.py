"""Patterns of modules with a rank or an alpha of their own: which module each matches, and which are refused."""

import time
from typing import Any

import pytest
from peft.utils.other import get_pattern_key

from finetune_api.handoff import ExitCode
from finetune_api.spec import Lora
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.adapters.patterns import (
    find_value,
    matches,
    require_expressions,
    require_matches,
    require_one_value,
)

MODULES = [f"model.layers.{at}.{name}" for at in (0, 1, 10) for name in ("self_attn.q_proj", "mlp.down_proj")]
PATTERNS = [
    "q_proj",
    "proj",
    "self_attn.q_proj",
    r"layers\.1\..*",
    r"layers\.[01]\.mlp\..*",
    ".*",
    "q_proj|down_proj",
    "^model.layers.0.*",
    "model.layers.10.mlp.down_proj",
    r".*\.layers\.1\..*(q_proj|k_proj)$",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_the_modules_that_it_matches_in_peft(pattern: str) -> None:
    theirs = [module for module in MODULES if get_pattern_key([pattern], module) == pattern]
    assert [module for module in MODULES if matches(pattern, module)] == theirs


def test_the_first_pattern_that_matches_has_the_value() -> None:
    patterns = {r"layers\.1\..*": 4, "q_proj": 2}
    assert [find_value(patterns, module, 8) for module in MODULES] == [2, 8, 4, 4, 2, 8]
    assert find_value(None, MODULES[0], 8) == 8


def refusal(check: Any, lora: dict[str, Any]) -> str:
    with pytest.raises(TrainerError) as caught:
        check(Lora.model_validate(lora), MODULES)
    assert caught.value.code is ExitCode.INVALID_CONFIG
    return caught.value.message


@pytest.mark.parametrize("field", ["rankPattern", "alphaPattern"])
def test_a_pattern_without_a_module_is_refused_with_its_field_and_a_module_that_has_an_adapter(field: str) -> None:
    sentence = refusal(require_matches, {field: {"q_proj": 4, "qproj": 2}})
    assert sentence == (
        f"tuning.lora.{field} names qproj, which matches no module with an adapter (for example "
        "model.layers.0.mlp.down_proj): correct or remove it"
    )


@pytest.mark.parametrize("field", ["rankPattern", "alphaPattern"])
def test_two_patterns_may_match_one_module_only_with_the_same_value(field: str) -> None:
    """An object's keys are sorted by the API server, and by PEFT when it saves an adapter."""
    require_one_value(Lora.model_validate({field: {"q_proj": 4, r"layers\.0\..*": 4}}), MODULES)
    sentence = refusal(require_one_value, {field: {"q_proj": 4, "down_proj": 8, r"layers\.0\..*": 2}})
    assert sentence.startswith(rf"tuning.lora.{field} has 4 for q_proj and 2 for layers\.0\..*, and both match model.l")


@pytest.mark.parametrize("pattern", ["q_proj(", "q_proj)|(down_proj", "(?i)q_proj", "*"])
def test_a_pattern_that_is_not_a_regular_expression_is_refused(pattern: str) -> None:
    with pytest.raises(TrainerError) as caught:
        require_expressions(Lora.model_validate({"rankPattern": {pattern: 4}}))
    assert caught.value.code is ExitCode.INVALID_CONFIG
    sentence = caught.value.message
    assert sentence.startswith(f"the pattern {pattern} of an adapter's modules is not a regular expression: ")


@pytest.mark.parametrize("pattern", [r"(\w|\w\w)*end", "(.+)+x", "(a+){9}", ".*a.*b.*c.*d.*", r"\w*.{1,9}\w+.+.*"])
def test_a_pattern_that_may_take_long_is_refused_by_its_form(pattern: str) -> None:
    with pytest.raises(TrainerError, match="repeats a group, or has more than four repetitions"):
        matches(pattern, MODULES[0])


def test_the_slowest_pattern_that_is_accepted_takes_no_time() -> None:
    started = time.monotonic()
    assert not matches(r".*.*.*.*x", ".".join(["a" * 15] * 6))
    assert time.monotonic() - started < 1
