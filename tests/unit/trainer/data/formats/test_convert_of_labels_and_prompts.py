"""Rows of labels, texts, prompts and completions: what they are read as, and what is refused."""

from typing import Any

import pytest

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.rows import ChatRow, DataFormat, PreferenceRow, PromptRow, Rejected, TextRow, UnpairedRow

Q = {"role": "user", "content": "q"}
A = {"role": "assistant", "content": "a"}
HUMAN = {"from": "human", "value": "q"}
GPT = {"from": "gpt", "value": "a"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "response": "a"},
        {"prompt": [Q], "completion": [A]},
        {"prompt": [Q], "completion": "a"},
        {"prompt": "q", "completion": A},
        {"prompt": '[{"role": "user", "content": "q"}]', "completion": "a"},
        {"prompt": "\n\nHuman: q\n\nAssistant:", "completion": "a"},
    ],
)
def test_prompt_and_completion_are_a_conversation(check: Any, row: dict[str, Any]) -> None:
    (kept,), _ = check(row)
    assert isinstance(kept, ChatRow)
    assert kept.messages == [Q, A]


@pytest.mark.parametrize("prompt", ["q", [Q], [{"role": "system", "content": "s"}, Q]])
def test_a_judged_answer_may_hold_the_whole_conversation(check: Any, prompt: Any) -> None:
    (kept,), _ = check(
        {"prompt": prompt, "completion": [Q, A, {**Q, "content": "q2"}, A], "label": True}, objective="KTO"
    )
    assert isinstance(kept, UnpairedRow)
    system = [turn for turn in prompt if isinstance(turn, dict) and turn["role"] == "system"]
    assert kept.prompt == [*system, Q, A, {**Q, "content": "q2"}]
    assert kept.completion == [A]


def test_an_answer_in_the_column_of_metharme_is_an_answer(check: Any) -> None:
    (kept,), _ = check({"prompt": "q", "generation": "a"})
    assert kept.messages == [Q, A]


def test_of_a_prompt_with_answers_only_the_completion_is_trained(check: Any) -> None:
    (kept,), _ = check({"prompt": [Q, A, Q], "completion": [A]})
    assert kept.format is DataFormat.PROMPT_COMPLETION
    assert kept.messages == [Q, {**A, "train": False}, Q, A]


HH = "\n\nHuman: q0\n\nAssistant: a0\n\nHuman: q\n\nAssistant:"


@pytest.mark.parametrize("prompt", [HH, HH + " ", HH + "\n"])
@pytest.mark.parametrize(
    ("answers", "objective", "texts"),
    [
        ({"chosen": " good", "rejected": " bad\n"}, "DPO", [["good", "bad"]]),
        ({"chosen": " good", "rejected": " bad"}, "KTO", [["good"], ["bad"]]),
        ({"chosen": " good", "rejected": " bad"}, "Chat", [["good"]]),
        ({"responses": [" good", " bad"], "scores": [2, 1]}, "DPO", [["good", "bad"]]),
        ({"completion": " good", "label": True}, "KTO", [["good"]]),
        ({"completion": " good"}, "Chat", [["good"]]),
        ({"output": " good"}, "Instruction", [["good"]]),
    ],
)
def test_an_answer_after_the_name_of_its_speaker_begins_without_a_space(
    check: Any, prompt: str, answers: dict[str, Any], objective: str, texts: list[list[str]]
) -> None:
    rows, _ = check({"prompt": prompt} | answers, objective=objective)
    assert [answer_texts(row) for row in rows] == texts
    assert all(len(row.turns()) == 4 for row in rows)


def answer_texts(row: Any) -> list[str]:
    """The texts of the answers that are trained or compared."""
    match row:
        case ChatRow():
            return [row.messages[-1]["content"]]
        case PreferenceRow():
            return [row.chosen[0]["content"], row.rejected[0]["content"]]
        case _:
            return [row.completion[0]["content"]]


@pytest.mark.parametrize("row", [{"prompt": "q"}, {"prompt": "\n\nAssistant:"}, {"prompt": HH, "instruction": "q"}])
def test_an_answer_after_another_prompt_keeps_its_space(check: Any, row: dict[str, Any]) -> None:
    (kept,), _ = check(row | {"chosen": " good", "rejected": " bad"}, objective="DPO")
    assert answer_texts(kept) == [" good", " bad"]


@pytest.mark.parametrize("text", ["[1, 2]", "[not a list", "[]", "Human: is this one?", "{}"])
def test_a_text_that_only_looks_like_turns_stays_a_text(check: Any, text: str) -> None:
    (kept,), _ = check({"prompt": text, "completion": text})
    assert [message["content"] for message in kept.messages] == [text, text]


@pytest.mark.parametrize(
    ("said", "label"),
    [
        (True, True),
        (False, False),
        (1, True),
        (0, False),
        (1.0, True),
        ("true", True),
        ("False", False),
        (" 0 ", False),
    ],
)
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a", "label": None},
        {"prompt": [Q], "completion": [A], "label": None},
        {"instruction": "q", "input": "", "output": "a", "kto_tag": None},
        {"conversations": [HUMAN, GPT], "kto_tag": None},
        {"messages": [Q, A], "label": None},
    ],
)
def test_an_answer_with_a_label_is_judged(check: Any, row: dict[str, Any], said: object, label: bool) -> None:
    column = "label" if "label" in row else "kto_tag"
    (kept,), _ = check({**row, column: said}, objective="KTO")
    assert isinstance(kept, UnpairedRow)
    assert kept.content() == {"prompt": [Q], "completion": [A], "label": label}


def test_the_last_answer_of_a_conversation_is_the_one_that_is_judged(check: Any) -> None:
    (kept,), _ = check({"messages": [Q, A, Q, A, Q], "label": True}, objective="KTO")
    assert (kept.prompt, kept.completion) == ([Q, A, Q], [A])


@pytest.mark.parametrize("label", [2, -1, 0.5, "", "good", "yes please", [], {}, [True]])
def test_a_label_that_is_neither_true_nor_false_is_refused(check: Any, label: object) -> None:
    (refused,), _ = check({"prompt": "q", "completion": "a", "label": label}, objective="KTO")
    assert isinstance(refused, Rejected)
    assert refused.code is RejectCode.BAD_LABEL
    assert "label" in refused.detail


def test_an_answer_whose_label_is_null_is_not_judged(check: Any) -> None:
    row = {"prompt": "q", "completion": "a", "label": None}
    assert check(row, objective="KTO")[0][0].code is RejectCode.NOT_FOR_OBJECTIVE
    assert check(row, objective="KTO", format="Unpaired")[0][0].code is RejectCode.BAD_LABEL


def test_rows_of_a_table_are_detected_by_the_columns_with_values(check: Any) -> None:
    columns = ["messages", "prompt", "completion", "chosen", "rejected", "label", "text", "system", "tools"]
    table = [
        {"messages": [Q, A]},
        {"prompt": "q", "completion": "b"},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "completion": "a", "label": True},
        {"text": "t"},
        {"prompt": "q"},
    ]
    rows, _ = check(*(dict.fromkeys(columns) | row for row in table), objective=None)
    plain, _ = check(*table, objective=None)
    assert [getattr(row, "format", None) for row in rows[:5]] == [
        DataFormat.OPENAI,
        DataFormat.PROMPT_COMPLETION,
        DataFormat.PREFERENCE,
        DataFormat.UNPAIRED,
        DataFormat.TEXT,
    ]
    assert [row.content() for row in rows[:5]] == [row.content() for row in plain[:5]]
    assert rows[5].code is RejectCode.NULL_FIELD  # an answer was meant to be there


def test_a_label_that_means_something_else_is_ignored_under_a_given_format(check: Any) -> None:
    (kept,), _ = check({"instruction": "q", "output": "a", "label": "sports"}, format="Alpaca")
    assert kept.messages == [Q, A]


def test_a_text_keeps_its_spaces_and_line_ends(check: Any) -> None:
    (kept,), _ = check({"text": " a\n\n  b \n"}, objective="DomainAdaptation")
    assert isinstance(kept, TextRow)
    assert kept.text == " a\n\n  b \n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (" \n", RejectCode.EMPTY_RESPONSE),
        (None, RejectCode.NULL_FIELD),
        ({"a": 1}, RejectCode.WRONG_TYPE),
        (["a", "b"], RejectCode.WRONG_TYPE),
    ],
)
def test_a_row_that_is_not_a_text_is_refused(check: Any, text: object, code: RejectCode) -> None:
    (refused,), _ = check({"text": text}, objective="DomainAdaptation")
    assert refused.code is code


@pytest.mark.parametrize(
    "row", [{"prompt": "q"}, {"prompt": [Q]}, {"messages": [Q]}, {"instruction": "q"}, {"conversations": [HUMAN]}]
)
def test_a_prompt_alone_is_a_row(check: Any, row: dict[str, Any]) -> None:
    (kept,), _ = check(row, objective="RLHF")
    assert isinstance(kept, PromptRow)
    assert kept.content() == {"prompt": [Q]}


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"prompt": ""}, RejectCode.EMPTY_PROMPT),
        ({"prompt": []}, RejectCode.EMPTY_PROMPT),
        ({"messages": [{"role": "system", "content": "s"}]}, RejectCode.EMPTY_PROMPT),
        ({"prompt": [Q, A]}, RejectCode.BAD_ALTERNATION),
        ({"prompt": [Q, A, {"role": "user", "content": " "}]}, RejectCode.EMPTY_TURN),
        ({"prompt": None}, RejectCode.NULL_FIELD),
    ],
)
def test_a_row_that_is_not_a_prompt_is_refused(check: Any, row: dict[str, Any], code: RejectCode) -> None:
    (refused,), _ = check(row, objective="RLHF")
    assert refused.code is code


@pytest.mark.parametrize(
    ("row", "asked", "code"),
    [
        ({"instruction": "q", "output": "a"}, "Preference", RejectCode.MISSING_COLUMN),
        ({"instruction": "q", "output": "a"}, "Unpaired", RejectCode.MISSING_COLUMN),
        ({"instruction": "q", "output": "a"}, "Text", RejectCode.MISSING_COLUMN),
        ({"text": "t"}, "PromptCompletion", RejectCode.MISSING_COLUMN),
        ({"prompt": "q", "label": True}, "Unpaired", RejectCode.NO_ASSISTANT),
    ],
)
def test_a_given_format_is_held_to(check: Any, row: dict[str, Any], asked: str, code: RejectCode) -> None:
    (refused,), _ = check(row, format=asked, objective=None)
    assert refused.code is code


def test_a_given_format_decides_where_columns_fit_several(check: Any) -> None:
    row = {"instruction": "q", "output": "a", "text": "### q a"}
    (as_text,), _ = check(row, format="Text", objective="DomainAdaptation")
    assert as_text.text == "### q a"
    (as_chat,), _ = check({"prompt": "q", "completion": "a", "label": True}, format="PromptCompletion")
    assert as_chat.messages == [Q, A]


@pytest.mark.parametrize("column", ["messages", "conversations"])
@pytest.mark.parametrize("answer", ["42", 42, {"role": "assistant", "content": "42"}, [{"from": "gpt", "value": "42"}]])
def test_turns_that_end_with_the_question_are_answered_by_the_answers_column(
    check: Any, column: str, answer: object
) -> None:
    turns = [{"role": "user", "content": "6 * 7?"}]
    (kept,), _ = check({column: turns, "answer": answer}, objective="Chat")
    assert kept.messages == [*turns, {"role": "assistant", "content": "42"}]
    (prompt,), _ = check({column: turns, "answer": answer}, objective="RLHF")
    assert prompt.prompt == turns
    (judged,), _ = check({column: turns, "completion": answer, "label": True}, objective="KTO")
    assert judged.completion == [{"role": "assistant", "content": "42"}]


@pytest.mark.parametrize("answer", [None, "", " ", ["a", "b"], {"text": ["a"]}])
def test_turns_without_an_answer_stay_a_prompt_whatever_else_the_column_of_answers_holds(
    check: Any, answer: object
) -> None:
    turns = [{"role": "user", "content": "6 * 7?"}]
    (kept,), _ = check({"messages": turns, "answer": answer}, objective="RLHF")
    assert kept.prompt == turns


def test_a_conversation_with_an_answer_keeps_it_whatever_its_other_columns(check: Any) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (kept,), _ = check({"messages": turns, "output": "b"}, objective="Chat")
    assert kept.messages == turns
