"""Which held-out rows are answered, and which of the answers are correct."""

from collections.abc import Iterator
from typing import Any

import pytest

from finetune_api.evaluation import Gate
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.rows import ChatRow, DataFormat, PreferenceRow, Row, Source
from finetune_trainer.evaluation.ability import Ability
from finetune_trainer.evaluation.held_out_answers import (
    FrequentAnswer,
    HeldOutAnswers,
    answers_status,
    describe_answers,
    find_too_few,
)
from finetune_trainer.evaluation.questions import Question
from finetune_trainer.pipeline.held_out_answers import count_correct, explain_incomparable, list_counted_rows

SOURCE = Source("rows.jsonl", 1)


def spec(**answers: Any) -> FineTuneJobSpec:
    asked = {"match": "Exact"} | answers
    return FineTuneJobSpec.model_validate(
        {
            "objective": "Chat",
            "model": {"uri": "s3://bucket/base"},
            "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}, "validationSplitPercent": 10},
            "output": {"uri": "s3://bucket/out"},
            "evaluation": {"answers": asked},
        }
    )


def chat(prompt: str, answer: str, **changes: Any) -> ChatRow:
    messages: Any = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return ChatRow(messages, SOURCE, DataFormat.OPENAI, **changes)


def many(count: int) -> Iterator[Row]:
    for number in range(count):
        yield chat(f"{number // 2}?", str(number // 2))


def test_different_prompts_are_answered_up_to_the_number_of_rows() -> None:
    found = list_counted_rows(spec(rows=20), many(100))
    assert [one.text for one in found] == [f"{number}?" for number in range(20)]
    assert all(one.is_counted and one.reference == one.text.removesuffix("?") for one in found)
    assert len(list_counted_rows(spec(rows=1000), many(100))) == 50


def test_rows_that_cannot_be_compared_are_passed_over() -> None:
    pair = PreferenceRow(
        [{"role": "user", "content": "pair?"}],
        [{"role": "assistant", "content": "7"}],
        [{"role": "assistant", "content": "8"}],
        SOURCE,
        DataFormat.OPENAI,
    )
    tools: Any = [{"type": "function", "function": {"name": "f"}}]
    rows = [chat("words?", "many"), chat("tools?", "1", tools=tools), chat("long" * 2000, "2"), chat("3?", "3"), pair]
    assert [one.text for one in list_counted_rows(spec(match="Numeric"), rows)] == ["3?", "pair?"]


def test_with_a_schema_of_the_job_the_rows_own_answers_need_not_be_schemas() -> None:
    asked = spec(match="JsonSchema", jsonSchema='{"type": "object", "required": ["type"]}')
    rows = [chat("invoice?", '{"type": "invoice"}'), chat("list?", "[1]"), chat("word?", "yes")]
    questions = list_counted_rows(asked, rows)
    assert [one.text for one in questions] == ["invoice?", "list?", "word?"]
    found = count_correct(asked, questions, ["no"] * 3, ['{"type": "order"}', "{}", "no"])
    assert found
    assert found.counted.after == [True, False, False]


def test_a_match_that_no_row_can_be_compared_with_is_refused_with_the_fix() -> None:
    why = explain_incomparable(spec(match="Numeric"), [chat("words?", "many")])
    assert why
    assert "match Numeric" in why
    assert "choose another match" in why
    assert explain_incomparable(spec(match="Numeric"), [chat("words?", "many"), chat("3?", "3")]) is None


def test_a_job_that_does_not_ask_for_it_counts_nothing() -> None:
    plain = spec().model_copy(update={"evaluation": spec().evaluation.model_copy(update={"answers": None})})
    assert list_counted_rows(plain, many(10)) == []
    assert explain_incomparable(plain, []) is None
    assert count_correct(plain, [], [], []) is None


def test_correct_answers_are_counted_before_and_after_and_the_wrong_ones_shown() -> None:
    asked = spec(match="Exact", ignoreCase=True)
    shown = Question([{"role": "user", "content": "only shown?"}])
    questions = [shown, *list_counted_rows(asked, [chat(f"{n}?", "Yes" if n % 2 else "No") for n in range(20)])]
    before, after = ["-", *["maybe"] * 20], ["-", *["yes", " yes "] * 10]
    found = count_correct(asked, questions, before, after)
    assert found
    assert (found.counted.before, found.rows, found.percent) == ([False] * 20, 20, 50.0)
    assert (found.counted.gained, found.counted.lost) == (10, 0)
    assert found.frequent == FrequentAnswer("yes", 20, 10)
    assert [(one.prompt, one.reference, one.answer) for one in found.wrong] == [
        (f"{n}?", "No", "yes") for n in (0, 2, 4, 6, 8)
    ]


@pytest.mark.parametrize(("before", "after"), [([], ["a"]), (["a"], []), ([], [])])
def test_a_process_without_the_answers_counts_nothing(before: list[str], after: list[str]) -> None:
    asked = spec()
    questions = list_counted_rows(asked, [chat("a?", "a")])
    assert count_correct(asked, questions, before, after) is None


def of(lost: int, gained: int, both: int, neither: int) -> HeldOutAnswers:
    before = [True] * lost + [False] * gained + [True] * both + [False] * neither
    after = [False] * lost + [True] * gained + [True] * both + [False] * neither
    return HeldOutAnswers(Ability(before, after))


def test_the_status_has_the_shares_and_an_interval_that_is_wider_the_more_weights_were_compared() -> None:
    found, chosen = (answers_status(of(5, 30, 40, 25), choices) for choices in (1, 10))
    assert found
    assert chosen
    assert (found.rows, found.before_percent, found.after_percent, found.difference_points) == (100, 45, 70, 25)
    assert found.difference_low_points is not None
    assert chosen.difference_low_points is not None
    assert 0 < chosen.difference_low_points < found.difference_low_points < 25
    assert answers_status(None, 1) is None


def test_a_difference_by_chance_includes_zero() -> None:
    found = of(2, 6, 46, 46).compare(1)
    assert found
    assert found.low is not None
    assert found.low <= 0


def test_a_gate_on_correct_answers_names_their_share_and_where_to_read_the_wrong_ones() -> None:
    found = of(0, 30, 40, 30)
    assert find_too_few(Gate(min_correct=70), found) == []
    (missed,) = find_too_few(Gate(min_correct=70.5), found)
    assert "70 of 100 answers to held-out rows (70.0 %) are correct, below minCorrect 70.5" in missed
    assert "in the report" in missed
    assert find_too_few(Gate(min_correct=1), None, "it does not fit")[0].endswith("it does not fit")
    assert find_too_few(Gate(must_improve=True), None) == find_too_few(None, None) == []


def test_the_sentence_has_both_shares_and_the_interval() -> None:
    assert describe_answers(of(0, 30, 40, 30), 1).startswith(
        "correct answers to held-out rows: 40.0 % → 70.0 % of 100, +30.0 percentage points (95 % interval +"
    )
