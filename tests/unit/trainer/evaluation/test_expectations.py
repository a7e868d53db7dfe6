"""What answers are to hold, and what the tuned model is to reach."""

import pytest

from finetune_api.evaluation import Gate, Prompt, Verdict
from finetune_api.handoff import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.expectations import Expectations, find_unmet
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
    assert find_unmet(None, Verdict.NOT_EVALUATED, "not evaluated", None, []) == []


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (Gate(max_eval_loss=1.4), "the evaluation loss is 1.5, above maxEvalLoss 1.4"),
        (Gate(must_improve=True), "mustImprove needs verdict Better, and the result is no better"),
        (
            Gate(must_match_expected=True),
            'the answer to prompt 2, "Rome \\u001b[2J is it.", does not match evaluation.prompts[1].expected '
            '"(?i)paris": add rows with answers as you expect them, or correct the pattern',
        ),
    ],
)
def test_what_is_not_reached_is_reported_with_the_figures(gate: Gate, message: str) -> None:
    missed = Answer("b?", "", "Rome\n\x1b[2J  is it.", expected="(?i)paris", is_expected=False)
    answers = [Answer("a?", "", "", is_expected=True), missed]
    assert find_unmet(gate, Verdict.NO_MEASURABLE_DIFFERENCE, "no better", 1.5, answers) == [message]


def test_of_many_missed_patterns_the_first_two_are_shown_and_long_texts_are_cut() -> None:
    answers = [Answer("a?", "", "n" * 5000, expected="p" * 512, is_expected=False) for _ in range(16)]
    (message,) = find_unmet(Gate(must_match_expected=True), Verdict.BETTER, "better", 1.5, answers)
    assert f'prompt 1, "{"n" * 79}…", does not match evaluation.prompts[0].expected "{"p" * 59}…", ' in message
    assert 'that to prompt 2, "nnn' in message
    assert " nor do those to prompts 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16: add rows" in message
    assert len(message) < 600


def test_an_empty_answer_that_misses_its_pattern_is_named_as_empty() -> None:
    answers = [Answer("a?", "", " ", expected="x", is_expected=False)]
    (message,) = find_unmet(Gate(must_match_expected=True), Verdict.BETTER, "better", 1.5, answers)
    assert message.startswith(
        'the answer to prompt 1, which is empty, does not match evaluation.prompts[0].expected "x"'
    )


def test_what_is_reached_is_met() -> None:
    gate = Gate(max_eval_loss=1.5, must_improve=True, must_match_expected=True)
    assert find_unmet(gate, Verdict.BETTER, "better", 1.5, [Answer("a?", "", "", is_expected=True)]) == []


@pytest.mark.parametrize("verdict", [Verdict.WORSE, Verdict.NO_MEASURABLE_DIFFERENCE, Verdict.NOT_EVALUATED])
def test_only_a_better_model_meets_must_improve(verdict: Verdict) -> None:
    assert len(find_unmet(Gate(must_improve=True), verdict, "so", 1.5, [])) == 1


def test_an_unmeasured_loss_meets_no_gate() -> None:
    gate = Gate(max_eval_loss=9.0, must_improve=True)
    assert find_unmet(gate, Verdict.NOT_EVALUATED, "not evaluated: it needs 16 GiB", None, []) == [
        "there is no evaluation loss to compare with maxEvalLoss 9 (not evaluated: it needs 16 GiB)",
        "mustImprove needs verdict Better, and the result is not evaluated: it needs 16 GiB",
    ]
