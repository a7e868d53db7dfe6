"""The gate's rules, on figures alone."""

import math
from dataclasses import replace

import pytest

from finetune_trainer.evaluation.gate_rules import (
    GatePrompt,
    GateResult,
    MergeCheck,
    ValidationResult,
    choose_candidate,
    find_faults,
    is_loop,
)
from finetune_trainer.merging.gate_messages import GateReply

GOOD = ValidationResult("unquantised base", [], 2.0, 2.0, 0.001, 0.98, 0.995, 0.1, 2048, ["yes"])


def faults(seen: ValidationResult, trained_loss: float | None = 2.0, *asked: GatePrompt) -> list[str]:
    return find_faults(seen, trained_loss, asked, 0)


def test_a_good_full_model_has_no_fault() -> None:
    assert faults(GOOD) == []


def test_rounding_may_turn_first_choices_round_where_they_are_close() -> None:
    assert faults(replace(GOOD, top1_agreement=0.9, clear_agreement=0.999)) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean_kl": 0.9}, "its mean KL divergence from its source is 0.9, not below 0.05 nats"),
        ({"mean_kl": float("nan")}, "its mean KL divergence from its source is not a number"),
        ({"clear_agreement": 0.9}, "its top token equals its source's on 90.0 % of clear tokens, below 97%"),
        ({"loss": 2.06}, "its held-out loss is 2.06, above 2.05, the limit for the trained model's 2"),
        ({"loss": float("nan")}, "its held-out loss is not a number"),
    ],
)
def test_each_rule_names_figure_and_limit(changes: dict[str, float], message: str) -> None:
    (fault,) = faults(replace(GOOD, **changes))  # type: ignore[arg-type]
    assert fault.startswith(message)


def test_figures_that_are_not_finite_are_faults_also_after_json() -> None:
    seen = GateReply(results=[replace(GOOD, mean_kl=math.nan, loss=math.inf)])
    (read,) = GateReply.model_validate_json(seen.model_dump_json()).results
    assert [fault.split(" is ")[1].split(",")[0] for fault in faults(read)] == ["not a number"] * 2


def test_without_the_trained_models_loss_that_of_the_source_counts() -> None:
    assert faults(replace(GOOD, loss=2.5), None) == faults(replace(GOOD, loss=2.5), 2.0)


def test_faults_of_the_files_are_the_only_ones_reported() -> None:
    assert faults(ValidationResult("unquantised base", ["tensor w is missing"])) == ["tensor w is missing"]


def test_an_answer_that_loops_counts_where_the_trained_models_does_not() -> None:
    loop = replace(GOOD, answers=["It is " + "very " * 12])
    assert faults(loop, 2.0, GatePrompt("a?", "It is."))[0].startswith("its answer to prompt 1 repeats endlessly")
    assert faults(loop, 2.0, GatePrompt("a?", "It is " + "so " * 12)) == []


def test_what_is_expected_counts_where_the_trained_model_meets_it() -> None:
    assert "does not match its pattern" in faults(GOOD, 2.0, GatePrompt("a?", "yes", [True, False]))[0]
    assert faults(GOOD, 2.0, GatePrompt("a?", "no", [False, False])) == []
    assert faults(GOOD, 2.0, GatePrompt("a?", "yes", [True, True])) == []


def test_each_candidate_is_judged_by_its_own_answer() -> None:
    asked = [GatePrompt("a?", "yes", [True, True, False])]
    assert find_faults(GOOD, 2.0, asked, 0) == []
    assert find_faults(GOOD, 2.0, asked, 1) == [
        "its answer to prompt 1 does not match its pattern, unlike the trained model's"
    ]


@pytest.mark.parametrize("answer", ["", "yes", "no no no", "aaaaaa", "| a | b |\n|---|---|", "1, 2, 3, 4, 5, 6, 7"])
def test_ordinary_answers_are_not_loops(answer: str) -> None:
    assert not is_loop(answer)


@pytest.mark.parametrize("answer", ["the sky " * 6, "a" * 30, "Well. I think so.\n" * 7, "x" * 100_000])
def test_a_piece_that_comes_again_and_again_at_the_end_is_a_loop(answer: str) -> None:
    assert is_loop(answer)


def test_of_two_that_pass_the_lower_loss_is_chosen_and_of_none_nothing() -> None:
    lower = replace(GOOD, name="dequantised base", loss=1.9)
    assert choose_candidate([GOOD, lower], [[], []]) == lower
    assert choose_candidate([GOOD, lower], [[], ["x"]]) == GOOD
    assert choose_candidate([GOOD, lower], [["x"], ["x"]]) is None


def test_a_gate_that_could_not_run_is_not_one_that_was_not_met() -> None:
    checks = [MergeCheck("BF16", 2.0, [GOOD], [["its loss is 3"]], None, not_run=why) for why in ("", "no memory")]
    assert [one.result for one in checks] == [GateResult.NOT_MET, GateResult.NOT_RUN]
    assert [one.sentence for one in checks] == [
        "the full model in BF16 is withheld: its loss is 3. Set output.merge to FP32",
        "the full model is withheld because its gate could not run: no memory",
    ]


def test_a_fault_of_both_candidates_is_in_the_sentence_once() -> None:
    check = MergeCheck("FP16", 2.0, [GOOD, GOOD], [["its loss is not a number"]] * 2, None)
    assert check.sentence.count("not a number") == 1
