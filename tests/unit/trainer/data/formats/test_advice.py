"""What a row is advised to do whose columns have names that no format knows."""

from typing import Any

import pytest

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.rows import Rejected

NAME_YOURS = "; name yours in dataset.columns, for example "


def advice(check: Any, row: dict[str, Any], **options: Any) -> str:
    """What follows the columns that the row has."""
    (refused,), _ = check(row, **options)
    assert isinstance(refused, Rejected), refused
    return refused.detail.partition("columns found: ")[2].partition("; ")[2]


def example(check: Any, row: dict[str, Any], **options: Any) -> str:
    given, _, shown = advice(check, row, **options).partition(", for example ")
    assert given in ("", "name yours in dataset.columns")
    return shown


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"Question": "q", "Answer": "a"}, "{question: Question, answer: Answer}"),
        ({"Prompt": "q", "Completion": "a", "ID": 3}, "{prompt: Prompt, completion: Completion}"),
        ({"Question": "q", "Complex_CoT": "c", "Response": "r"}, "{question: Question, response: Response}"),
        ({"question": "q", "ANSWER": "a", "note": "n"}, "{answer: ANSWER}"),
        ({"INSTRUCTION": "q", "INPUT": "i", "OUTPUT": "a"}, "{instruction: INSTRUCTION, output: OUTPUT, input: INPUT}"),
        ({"Question": "q", "System": "s", "Answer": "a"}, "{question: Question, answer: Answer, system: System}"),
        ({"Question": "q", "Context": "", "Answer": "a"}, "{question: Question, answer: Answer}"),
    ],
)
def test_a_column_whose_name_differs_in_case_is_suggested(check: Any, row: dict[str, Any], shown: str) -> None:
    assert example(check, row) == shown


def test_the_case_of_a_pair_s_columns_is_suggested_too(check: Any) -> None:
    row = {"Prompt": "q", "Chosen": "a", "Rejected": "b"}
    assert example(check, row, objective="DPO") == "{prompt: Prompt, chosen: Chosen, rejected: Rejected}"


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"question": "q", "id": "x7", "source": "s"}, ""),
        ({"question": "q", "score": 4}, "{answer: YOURS}"),
        ({"question": "q", "score": "4.5", "topic_id": "a"}, "{answer: YOURS}"),
        ({"question": "q", "score": 4, "reply": "r"}, "{answer: reply}"),
        ({"question": "q", "details": {"a": 1}}, "{answer: YOURS}"),
        ({"question": "q", "reply": "r", "note": "n"}, "{answer: YOURS}"),
    ],
)
def test_ids_numbers_and_objects_are_not_suggested(check: Any, row: dict[str, Any], shown: str) -> None:
    assert example(check, row) == shown


@pytest.mark.parametrize(
    ("answers", "extra", "detail"),
    [
        ('[{"name": "f"}]', {"id": 1, "tools": '[{"name": "f"}]'},
         "answers is a list, which is read only with ranks or scores: give the one to train on as a text in a column "
         "such as answer; write calls of tools as turns in messages"),
        (["a", "b"], {"topic": "t"},
         "answers is a list, which is read only with ranks or scores: give the one to train on as a text in a column "
         "such as answer"),
        ({"value": "a", "aliases": ["b"]}, {"id": "5a", "title": "T", "context": "c"},
         "answers is an object: give the text of one answer in a column of its own, such as answer"),
    ],
)  # fmt: skip
def test_several_answers_in_place_of_one_are_explained(
    check: Any, answers: object, extra: dict[str, Any], detail: str
) -> None:
    assert advice(check, extra | {"question": "q", "answers": answers}) == detail


def test_a_text_under_the_name_of_several_answers_is_suggested(check: Any) -> None:
    assert example(check, {"question": "q", "answers": "a"}) == "{answer: answers}"


@pytest.mark.parametrize("label", ["positive", 1, "0"])
def test_the_label_of_a_prompt_without_an_answer_is_suggested(check: Any, label: object) -> None:
    row = {"prompt": "p", "label": label}
    assert example(check, row) == "{answer: label}"
    (read,), _ = check(row, columns={"answer": "label"})
    assert read.messages[-1]["content"] == str(label)


def test_a_label_is_not_an_answer_for_an_objective_that_needs_both(check: Any) -> None:
    assert "answer: label" not in advice(check, {"prompt": "p", "label": "positive"}, objective="KTO")


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"Text": "t", "Label": "good"}, "{prompt: Text, answer: Label}"),
        ({"document": "d", "summary": "s"}, "{question: document, answer: summary}"),
        ({"review": "d", "id": 1, "sentiment": "bad"}, "{question: review, answer: sentiment}"),
    ],
)
def test_a_text_and_its_class_are_suggested_as_question_and_answer(check: Any, row: dict[str, Any], shown: str) -> None:
    assert example(check, row) == shown


@pytest.mark.parametrize("objective", ["Chat", "Instruction"])
@pytest.mark.parametrize(
    ("row", "columns", "shown"),
    [
        ({"text": "t", "label": "good"}, {}, "{prompt: text, answer: label}"),
        ({"text": "t", "note": "n", "Sentiment": 1}, {}, "{prompt: text, answer: Sentiment}"),
        ({"text": "t", "is_ok": 1, "class": True}, {}, "{prompt: text, answer: class}"),
        ({"body": "t", "category": "c"}, {"text": "body"}, "{prompt: body, answer: category}"),
        ({"text": "t", "target": "a"}, {}, "{prompt: text, answer: target}"),
    ],
)
def test_a_text_with_a_class_is_advised_to_name_both_before_another_objective(
    check: Any, objective: str, row: dict[str, Any], columns: dict[str, str], shown: str
) -> None:
    (refused,), _ = check(row, objective=objective, columns=columns)
    prompt, answer = (name.partition(": ")[2] for name in shown.strip("{}").split(", "))
    assert (refused.code, refused.detail) == (
        RejectCode.NOT_FOR_OBJECTIVE,
        f"the row is a text, but {objective} trains on "
        f"{'conversations' if objective == 'Chat' else 'prompts'} with answers: name both columns in dataset.columns, "
        f"for example {shown}; or choose the objective DomainAdaptation, which does not train {answer}",
    )
    (read,), _ = check(row, objective=objective, columns={"prompt": prompt, "answer": answer})
    assert [turn["content"] for turn in read.messages] == ["t", str(row[answer]).replace("True", "true")]


@pytest.mark.parametrize("row", [{"text": "t"}, {"text": "t", "label": " "}, {"text": "t", "note": "n"}])
def test_a_text_without_a_class_is_advised_on_the_objective(check: Any, row: dict[str, Any]) -> None:
    (refused,), _ = check(row)
    assert refused.detail.endswith(": choose the objective DomainAdaptation")


def test_a_list_of_objects_is_suggested_as_the_turns(check: Any) -> None:
    row = {"id": 1, "title": "t", "dialog": [{"who": "a", "said": "b"}]}
    assert example(check, row) == "{messages: dialog}"
    assert "choices}" not in advice(check, {"messages": [{"role": "user", "content": "q"}], "choices": [{"index": 0}]})


def test_a_list_of_ratings_is_not_suggested_as_the_turns(check: Any) -> None:
    row = {"context": "c", "ratings_of": [{"score": -2, "reasoning": "r", "feedback": "f"}]}
    assert example(check, row) == "{question: YOURS, answer: YOURS}"


def test_a_text_under_the_name_of_turns_is_suggested_as_the_prompt(check: Any) -> None:
    assert example(check, {"dialogue": "Ann: hi", "summary": "s"}) == "{prompt: dialogue, answer: summary}"


TURNS = [{"role": "user", "content": "q"}]
CHOICES = [{"index": 0, "message": {"role": "assistant", "content": "a"}}]


@pytest.mark.parametrize(
    ("row", "shown", "columns"),
    [
        ({"request": {"model": "m", "messages": TURNS}, "response": {"choices": CHOICES}},
         "{messages: request.messages, answer: response.choices.0.message}",
         {"messages": "request.messages", "answer": "response.choices.0.message"}),
        ({"messages": TURNS, "choices": CHOICES}, "{answer: choices.0.message}", {"answer": "choices.0.message"}),
        ({"question": "q", "context": "c", "answers": {"text": ["a"], "answer_start": [3]}},
         "{answer: answers.text.0}", {"answer": "answers.text.0"}),
        ({"user": "q", "assistant": "a"}, "{prompt: user, answer: assistant}",
         {"prompt": "user", "answer": "assistant"}),
        ({"input_text": "q", "target_text": "a", "prefix": "k"}, "{prompt: input_text, answer: target_text}",
         {"prompt": "input_text", "answer": "target_text"}),
        ({"inputs": "q", "targets": "a", "kind": "k"}, "{prompt: inputs, answer: targets}",
         {"prompt": "inputs", "answer": "targets"}),
        ({"source": "q", "target": "a"}, "{prompt: source, answer: target}", {"prompt": "source", "answer": "target"}),
        ({"System": "s", "Human": "q", "AI": "a"}, "{prompt: Human, answer: AI, system: System}",
         {"prompt": "Human", "answer": "AI", "system": "System"}),
    ],
)  # fmt: skip
def test_what_is_advised_makes_the_row_usable(
    check: Any, row: dict[str, Any], shown: str, columns: dict[str, str]
) -> None:
    assert example(check, row) == shown
    (read,), _ = check(row, columns=columns)
    assert not isinstance(read, Rejected), read


def test_turns_inside_a_column_are_suggested(check: Any) -> None:
    row = {"custom_id": "1", "method": "POST", "body": {"model": "m", "messages": TURNS}}
    assert example(check, row, objective="RLHF") == "{messages: body.messages}"
    assert example(check, {"conversation": {"messages": TURNS}}) == "{messages: conversation.messages}"


def test_an_answer_without_its_question_is_suggested_with_a_gap(check: Any) -> None:
    assert example(check, {"id": "1", "choices": CHOICES}) == "{question: YOURS, answer: choices.0.message}"


@pytest.mark.parametrize(
    "row", [{"role": "user", "content": "q", "turn": 1}, {"text": "q", "role": "prompter", "rank": 0}]
)
def test_a_row_that_is_one_turn_is_explained(check: Any, row: dict[str, Any]) -> None:
    (refused,), _ = check(row)
    assert refused.detail.endswith(
        "each row is one turn: write the turns of a conversation into one row, as an array in messages"
    )
