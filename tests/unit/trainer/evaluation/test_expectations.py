"""What answers are to hold, and what the tuned model is to reach."""

import pytest

from finetune_api.evaluation import Gate, Prompt
from finetune_api.handoff import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.expectations import Expectations, find_unmet
from finetune_trainer.evaluation.measurements import Measured
from finetune_trainer.evaluation.run_record import Answer

PROMPTS = [Prompt(prompt="a?", expected="(?i)paris"), Prompt(prompt="b?")]


def test_a_pattern_is_searched_in_the_answer_and_an_absent_one_has_no_result() -> None:
    expected = Expectations(PROMPTS)
    assert [expected.is_met(0, "It is Paris."), expected.is_met(0, "Rome"), expected.is_met(1, "Rome")] == [
        True, False, None,
    ]  # fmt: skip
    assert expected.are_met(0, ["paris", "rome"]) == [True, False]
    assert expected.are_met(1, ["paris", "rome"]) == []


def test_a_pattern_that_cannot_be_read_is_refused_by_its_field() -> None:
    with pytest.raises(TrainerError, match=r"evaluation\.prompts\[0\]\.expected is not a regular expression") as caught:
        Expectations([Prompt(prompt="a?", expected="(")])
    assert caught.value.code is ExitCode.INVALID_CONFIG


def test_a_pattern_without_end_counts_as_not_found() -> None:
    assert Expectations([Prompt(prompt="a?", expected="^(a+)+$")]).is_met(0, "a" * 40 + "b") is False


def test_without_a_gate_everything_is_met() -> None:
    assert find_unmet(None, None, None, []) == []


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (Gate(max_eval_loss=1.4), "the evaluation loss is 1.5, above maxEvalLoss 1.4"),
        (Gate(must_improve=True), "the evaluation loss did not fall (1.5 before, 1.5 after)"),
        (Gate(must_match_expected=True), "the answer to prompt 2 does not match its pattern"),
    ],
)
def test_what_is_not_reached_is_reported_with_the_figures(gate: Gate, message: str) -> None:
    answers = [Answer("a?", "", "", is_expected=True), Answer("b?", "", "", is_expected=False)]
    assert find_unmet(gate, Measured(1.5, 10), Measured(1.5, 10), answers) == [message]


def test_what_is_reached_is_met() -> None:
    gate = Gate(max_eval_loss=1.5, must_improve=True, must_match_expected=True)
    assert find_unmet(gate, Measured(1.6, 10), Measured(1.5, 10), [Answer("a?", "", "", is_expected=True)]) == []


def test_an_unmeasured_loss_meets_no_gate() -> None:
    assert find_unmet(Gate(max_eval_loss=9.0, must_improve=True), None, None, []) == [
        "the evaluation loss is unknown, above maxEvalLoss 9",
        "the evaluation loss did not fall (unknown before, unknown after)",
    ]
