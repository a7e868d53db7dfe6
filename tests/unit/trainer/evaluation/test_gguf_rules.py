"""Which GGUF files are published, by their figures."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_trainer.evaluation.gate_rules import GateResult, ValidationResult
from finetune_trainer.evaluation.gguf_rules import GgufCheck, find_gguf_faults, gguf_to_json

GOOD = ValidationResult(
    "Q8_0", [], loss=2.0, reference_loss=2.0, mean_kl=0.01, top1_agreement=0.98, tokens=512, answers=["Blue."],
    same_tokens=1.0,
)  # fmt: skip
LOOP = "blue and " * 20


@pytest.mark.parametrize("name", ["BF16", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"])
def test_a_file_that_is_close_to_the_full_model_is_published(name: str) -> None:
    assert find_gguf_faults(replace(GOOD, name=name), ["Blue."]) == []


def test_few_bits_may_differ_more() -> None:
    drifted = replace(GOOD, mean_kl=0.15, loss=2.15)
    assert len(find_gguf_faults(drifted, ["Blue."])) == 2
    assert find_gguf_faults(replace(drifted, name="Q4_K_M"), ["Blue."]) == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"mean_kl": 0.06}, "its mean KL divergence from the full model is 0.06, not below 0.05 nats"),
        ({"mean_kl": None}, "its mean KL divergence from the full model is not a number"),
        ({"mean_kl": float("nan")}, "its mean KL divergence from the full model is not a number"),
        ({"loss": 2.06}, "its held-out loss is 2.06, above 2.05, the limit for the full model's 2"),
        ({"loss": float("inf")}, "its held-out loss is not a number"),
        ({"same_tokens": 0.5}, "llama.cpp makes only 50% of the held-out tokens as the tokenizer does"),
        ({"answers": [LOOP]}, "its answer to prompt 1 repeats endlessly, unlike the full model's"),
        ({"faults": ["llama.cpp cannot load it"]}, "llama.cpp cannot load it"),
    ],
)
def test_a_file_that_differs_is_withheld_and_the_fault_has_its_figure(changes: dict[str, Any], fault: str) -> None:
    found = find_gguf_faults(replace(GOOD, **changes), ["Blue."])
    assert found[0].startswith(fault)


def test_a_loop_that_the_full_model_has_too_is_no_fault_of_the_file() -> None:
    assert find_gguf_faults(replace(GOOD, answers=[LOOP]), [LOOP]) == []


def test_the_sentence_names_each_withheld_type_its_first_fault_and_the_fix() -> None:
    bad = replace(GOOD, name="Q4_K_M")
    check = GgufCheck([GOOD, bad], [[], ["it is too far", "and more"]])
    assert [one.name for one in check.published] == ["Q8_0"]
    assert check.result is GateResult.NOT_MET
    assert check.sentence == "GGUF Q4_K_M is withheld: it is too far: name a type with more bits in output.gguf"
    passed = GgufCheck([GOOD], [[]])
    assert (passed.result, passed.sentence) == (GateResult.PASSED, "")
    failed = GgufCheck([], [], "the process was killed")
    assert (failed.result, failed.sentence) == (GateResult.NOT_RUN, "there are no GGUF files: the process was killed")


def test_the_record_has_the_limits_that_were_applied() -> None:
    found = gguf_to_json(GgufCheck([GOOD], [[]], seconds=1.25))
    assert found["rules"] == {"Q8_0": {"largestMeanKl": 0.05, "lossFactor": 1.02}}
    assert found["files"][0]["same_tokens"] == 1.0
    assert found["files"][0]["faults"] == []
