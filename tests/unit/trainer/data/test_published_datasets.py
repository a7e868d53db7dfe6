"""Rows as public datasets and hosted services publish them; docs/datasets.md lists each with what a job has to set."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.rows import Rejected

GUIDE = (Path(__file__).parents[4] / "docs" / "datasets.md").read_text("utf-8")
SECTION = GUIDE.partition("### Public datasets")[2].partition("\n## ")[0]
LISTED = {
    name: (tuple(objectives.split(", ")), yaml.safe_load(columns.strip("`")) if columns.strip() else {})
    for names, objectives, columns in re.findall(
        r"^\| ([^|`]+) \| ([A-Z][^|]*) \| (`\{[^|]*\}`|) ?\|", SECTION, re.MULTILINE
    )
    for name in names.split("; ")
}

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
S = {"role": "system", "content": "s"}
F = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}
CALLS = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALL = '{"name": "f", "arguments": {"x": 1}}'
USE = {"toolUseId": "1", "name": "f", "input": {"x": 1}}
RESULT = {"toolUseId": "1", "content": [{"json": {"y": 2}}]}
CHAT = {"messages": [Q, A]}
PAIR = {"prompt": [Q], "chosen": [A], "rejected": [{"role": "assistant", "content": "b"}]}
TOOL_CHAT = {
    "messages": [Q, {"role": "assistant", "content": "", "tool_calls": [CALLS]}, {"role": "tool", "content": "1"}, A],
    "tools": [{"type": "function", "function": F}],
}
PROMPT = {"prompt": [Q]}


def human(*said: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[at % 2], "value": text} for at, text in enumerate(said)]


ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Alpaca": ({"instruction": "q", "input": "", "output": "a", "text": "Below is an instruction…"}, CHAT),
    "Dolly": ({"instruction": "q", "context": "", "response": "a", "category": "open_qa"}, CHAT),
    "OpenHermes 2.5": ({"conversations": human("q", "a"), "system_prompt": None, "idx": None, "model": None}, CHAT),
    "SlimOrca": (
        {"conversations": [{"from": "system", "value": "s", "weight": None},
                           {"from": "human", "value": "q", "weight": 0.0},
                           {"from": "gpt", "value": "a", "weight": 1.0}]},
        {"messages": [S, Q, A]},
    ),
    "UltraChat 200k": ({"prompt": "q", "prompt_id": "1", "messages": [Q, A]}, CHAT),
    "WildChat": ({"conversation": [Q | {"toxic": False}, A | {"country": None}], "turn": 1, "toxic": False}, CHAT),
    "OpenAI": (
        {"messages": [Q, {"role": "assistant", "content": None, "tool_calls":
                          [{"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]},
                      {"role": "tool", "content": "1"}, A],
         "tools": [{"type": "function", "function": F}], "parallel_tool_calls": False},
        TOOL_CHAT,
    ),
    "OpenAI's preferences": (
        {"input": {"messages": [Q], "tools": [], "parallel_tool_calls": True}, "preferred_output": [A],
         "non_preferred_output": [{"role": "assistant", "content": "b"}]},
        PAIR,
    ),
    "requests with their responses": (
        {"request": {"model": "m", "messages": [Q]}, "response": {"id": "1", "choices": [{"index": 0, "message": A}]}},
        CHAT,
    ),
    "responses next to messages": ({"messages": [Q], "choices": [{"index": 0, "message": A}]}, CHAT),
    "OpenAI's batches": ({"custom_id": "1", "method": "POST", "body": {"model": "m", "messages": [Q]}}, PROMPT),
    "Gemini": (
        {"systemInstruction": {"role": "system", "parts": [{"text": "s"}]},
         "contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}]},
        {"messages": [S, Q, A]},
    ),
    "Gemini with functions": (
        {"contents": [{"role": "user", "parts": [{"text": "q"}]},
                      {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"x": 1}}}]},
                      {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"y": 2}}}]},
                      {"role": "model", "parts": [{"text": "a"}]}],
         "tools": [{"functionDeclarations": [F]}]},
        TOOL_CHAT | {"messages": [*TOOL_CHAT["messages"][:2], {"role": "tool", "content": '{"y":2}'}, A]},
    ),
    "Bedrock": (
        {"schemaVersion": "bedrock-conversation-2024", "system": [{"text": "s"}],
         "messages": [{"role": "user", "content": [{"text": "q"}]}, {"role": "assistant", "content": [{"text": "a"}]}]},
        {"messages": [S, Q, A]},
    ),
    "Bedrock with tools": (
        {"toolConfig": {"tools": [{"toolSpec": {"name": "f", "description": "d",
                                                "inputSchema": {"json": F["parameters"]}}}]},
         "messages": [{"role": "user", "content": [{"text": "q"}]},
                      {"role": "assistant", "content": [{"toolUse": USE}]},
                      {"role": "user", "content": [{"toolResult": RESULT}]},
                      {"role": "assistant", "content": [{"text": "a"}]}]},
        {"messages": [Q, {"role": "assistant", "content": "", "tool_calls": [CALLS | {"id": "1"}]},
                      {"role": "tool", "content": '{"y":2}', "tool_call_id": "1"}, A],
         "tools": TOOL_CHAT["tools"]},
    ),
    "Mistral": ({"messages": [Q, A | {"weight": 0}, Q, A | {"prefix": False}]},
                {"messages": [Q, A | {"train": False}, Q, A]}),
    "LIMA": ({"conversations": ["q", "a"], "source": "stackexchange"}, CHAT),
    "UltraChat": ({"id": "0", "data": ["q", "a"]}, CHAT),
    "FLAN, P3, Aya": ({"inputs": "q", "targets": "a", "language": "x", "annotation_type": "original"}, CHAT),
    "OpenCodeReasoning": ({"input": "q", "output": "a", "solution": "a longer text", "source": "s"}, CHAT),
    "Dolphin R1": ({"messages": [Q], "reasoning": "r", "answer": "a", "model": "m"},
                   {"messages": [Q, A | {"reasoning_content": "r"}]}),
    "ShareGPT with function_call": (
        {"conversations": [human("q")[0], {"from": "function_call", "value": CALL},
                           {"from": "observation", "value": "1"}, {"from": "gpt", "value": "a"}],
         "tools": json.dumps([F])},
        TOOL_CHAT,
    ),
    "APIGen-MT": (
        {"conversations": [human("q")[0], {"from": "function_call", "value": CALL},
                           {"from": "observation", "value": "1"}, {"from": "gpt", "value": "a"}],
         "tools": json.dumps([F]), "system": "s"},
        TOOL_CHAT | {"messages": [S, *TOOL_CHAT["messages"]]},
    ),
    "Hermes function calling": (
        {"conversations": [human("q")[0], {"from": "gpt", "value": f"<tool_call>\n{CALL}\n</tool_call>"},
                           {"from": "tool", "value": "<tool_response>\n1\n</tool_response>"},
                           {"from": "gpt", "value": "a"}]},
        {"messages": [Q, {"role": "assistant", "content": f"<tool_call>\n{CALL}\n</tool_call>"},
                      {"role": "tool", "content": "<tool_response>\n1\n</tool_response>"}, A]},
    ),
    "ToolACE": (
        {"system": "s", "conversations": [human("q")[0], {"from": "assistant", "value": "[My API(x=1)]"},
                                          {"from": "tool", "value": "1"}, {"from": "assistant", "value": "a"}]},
        {"messages": [S, Q, {"role": "assistant", "content": "[My API(x=1)]"}, {"role": "tool", "content": "1"}, A]},
    ),
    "xLAM": (
        {"id": 0, "query": "q", "answers": f"[{CALL}]", "tools": json.dumps([F])},
        {"messages": TOOL_CHAT["messages"][:2], "tools": TOOL_CHAT["tools"]},
    ),
    "SWE-smith trajectories": ({"messages": json.dumps([S, Q, A]), "instance_id": "1", "resolved": True},
                               {"messages": [S, Q, A]}),
    "OpenThoughts": ({"system": "s", "conversations": human("q", "a")}, {"messages": [S, Q, A]}),
    "Nemotron": (
        {"input": [Q], "output": "<think>r</think>a", "reasoning": "on", "system_prompt": "detailed thinking on"},
        {"messages": [{"role": "system", "content": "detailed thinking on"}, Q,
                      {"role": "assistant", "content": "<think>r</think>a"}]},
    ),
    "gpt-oss": (
        {"analysis": "r", "final": "a", "messages": [Q | {"thinking": None}, A | {"thinking": "r"}]},
        {"messages": [Q, A | {"reasoning_content": "r"}]},
    ),
    "s1K": (
        {"question": "q", "solution": "4", "cot": None, "thinking_trajectories": ["r"], "attempt": "a"},
        {"messages": [Q, A | {"reasoning_content": "r"}]},
    ),
    "medical-o1": ({"Question": "q", "Complex_CoT": "r", "Response": "a"},
                   {"messages": [Q, A | {"reasoning_content": "r"}]}),
    "OpenR1-Math": ({"problem": "p", "solution": "s", "answer": "4", "generations": ["b"], "messages": [Q, A]}, CHAT),
    "NuminaMath 1.5": ({"problem": "q", "solution": "a", "answer": "4", "problem_is_valid": "Yes"}, CHAT),
    "DeepScaleR": ({"problem": "q", "solution": "s", "answer": "4"}, PROMPT),
    "MATH": ({"problem": "q", "level": "Level 5", "type": "Algebra", "solution": "a"}, CHAT),
    "OpenMathInstruct": ({"problem": "q", "generated_solution": "a", "expected_answer": "4"}, CHAT),
    "GSM8K": ({"question": "q", "answer": "a"}, CHAT),
    "MetaMathQA": ({"query": "q", "original_question": "o", "response": "a", "type": "GSM"}, CHAT),
    "SQuAD": (
        {"context": "c", "question": "q", "answers": {"text": ["a", "b"], "answer_start": [1, 2]}},
        {"messages": [{"role": "user", "content": "q\nc"}, A]},
    ),
    "Natural Questions": ({"question": "q", "answer": ["a", "b"]}, PROMPT),
    "AG News": ({"text": "q", "label": "a"}, CHAT),
    "WMT, OPUS": ({"translation": {"en": "q", "de": "a"}}, CHAT),
    "XSum": ({"document": "q", "summary": "a", "id": "1"}, CHAT),
    "CNN/DailyMail": ({"article": "q", "highlights": "a", "id": "1"}, CHAT),
    "SAMSum": ({"dialogue": "q", "summary": "a"}, CHAT),
    "HH-RLHF": ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}, PAIR),
    "UltraFeedback": (
        {"instruction": "q", "completions": [{"response": "a", "overall_score": 8.0},
                                             {"response": "b", "overall_score": 4.0}]},
        PAIR,
    ),
    "UltraFeedback binarized": (
        {"prompt": "q", "chosen": [Q, A], "rejected": [Q, PAIR["rejected"][0]], "messages": [Q, A], "score_chosen": 8},
        PAIR,
    ),
    "Orca DPO pairs": ({"system": "", "question": "q", "chosen": "a", "rejected": "b"}, PAIR),
    "Nectar": (
        {"prompt": "\n\nHuman: q\n\nAssistant: ", "turns": 1, "num_responses": 2,
         "answers": [{"answer": "a", "rank": 1.0}, {"answer": "b", "rank": 2.0}]},
        PAIR,
    ),
    "Skywork rewards": ({"chosen": [Q, A], "rejected": [Q, PAIR["rejected"][0]], "source": "s"}, PAIR),
    "HelpSteer2": ({"prompt": "q", "response_1": "b", "response_2": "a", "preference_strength": 2}, PAIR),
    "HelpSteer3": (
        {"context": [Q], "response1": "a", "response2": "b", "overall_preference": -1, "domain": "code",
         "individual_preference": [{"score": -1, "reasoning": "r", "feedback1": "f"}]},
        PAIR,
    ),
    "PKU-SafeRLHF": ({"prompt": "q", "response_0": "b", "response_1": "a", "better_response_id": 1}, PAIR),
    "SHP": ({"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_ratio": 2.0}, PAIR),
    "KTO mix": ({"prompt": [Q], "completion": [A], "label": True}, {"prompt": [Q], "completion": [A], "label": True}),
    "veRL": (
        {"data_source": "openai/gsm8k", "prompt": [Q], "ability": "math",
         "reward_model": {"style": "rule", "ground_truth": "4"}, "extra_info": {"index": 0}},
        PROMPT,
    ),
    "Tulu 3 RLVR": ({"messages": [Q], "ground_truth": "4", "dataset": "gsm8k"}, PROMPT),
    "FineWeb": ({"text": "a", "id": "1", "dump": "CC", "url": "u", "language_score": 0.9}, {"text": "a"}),
    "The Stack": ({"content": "a", "hexsha": "1", "ext": "py", "size": 1}, {"text": "a"}),
}  # fmt: skip


def test_the_guide_lists_every_dataset_and_no_other() -> None:
    assert sorted(LISTED) == sorted(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_a_published_dataset_is_read_with_what_the_guide_sets(check: Any, name: str) -> None:
    row, read = ROWS[name]
    objectives, columns = LISTED[name]
    for objective in objectives:
        (found, *others), _ = check(row, objective=objective, columns=columns)
        assert not isinstance(found, Rejected), found
        assert not others
        given = found.content()
        if objective != "RLHF" or "messages" not in read:
            assert given == read


@pytest.mark.parametrize(
    ("answers", "verdict", "better"),
    [
        (("response_1", "response_2"), {"preference_strength": -3}, 0),
        (("response_1", "response_2"), {"preference_strength": 1}, 1),
        (("response1", "response2"), {"overall_preference": 3}, 1),
        (("response_0", "response_1"), {"better_response_id": 0}, 0),
        (("human_ref_A", "human_ref_B"), {"labels": 0}, 1),
    ],
)
def test_a_number_states_which_of_two_answers_is_better(
    check: Any, answers: tuple[str, str], verdict: dict[str, int], better: int
) -> None:
    row = {"prompt": "q", answers[0]: "first", answers[1]: "second", **verdict}
    for objective in ("DPO", "RewardModel"):
        (read,), summary = check(row, objective=objective)
        assert [side[0]["content"] for side in (read.chosen, read.rejected)] == [
            ("first", "second")[better],
            ("second", "first")[better],
        ]
        assert not summary.unused


@pytest.mark.parametrize(
    ("number", "detail"),
    [
        (0, "overall_preference is 0: neither answer is better"),
        ("1", "overall_preference is a string instead of a number"),
    ],
)
def test_a_pair_without_a_better_answer_is_refused(check: Any, number: object, detail: str) -> None:
    (refused,), _ = check(
        {"prompt": "q", "response1": "a", "response2": "b", "overall_preference": number}, objective="DPO"
    )
    assert refused.detail == detail


def gemini(name: str, arguments: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    return {
        "contents": [
            {"role": "user", "parts": [{"text": "q"}]},
            {"role": "model", "parts": [{"functionCall": {"name": name, "args": arguments}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": name, "response": result}}]},
            {"role": "model", "parts": [{"text": "a"}]},
        ]
    }


def bedrock(name: str, arguments: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": [{"text": "q"}]},
            {"role": "assistant", "content": [{"toolUse": {"name": name, "input": arguments}}]},
            {"role": "user", "content": [{"toolResult": {"content": [{"json": result}]}}]},
            {"role": "assistant", "content": [{"text": "a"}]},
        ]
    }


@pytest.mark.parametrize("make", [gemini, bedrock])
def test_calls_and_results_in_a_table_have_only_the_fields_of_their_own_row(
    check: Any, make: Any, tmp_path: Path
) -> None:
    """A column of objects has the fields of all rows, and null for those that a row does not have."""
    pq.write_table(
        pa.Table.from_pylist([make("f", {"x": 1}, {"y": 2}), make("g", {"z": {"u": 3}}, {"w": 4})]), tmp_path / "rows"
    )
    read, _ = check((tmp_path / "rows").read_bytes(), name="rows.parquet")
    found = [(row.messages[1]["tool_calls"][0]["function"], row.messages[2]["content"]) for row in read]
    assert found == [
        ({"name": "f", "arguments": {"x": 1}}, '{"y":2}'),
        ({"name": "g", "arguments": {"z": {"u": 3}}}, '{"w":4}'),
    ]


@pytest.mark.parametrize("objective", ["Chat", "Instruction", "RLHF"])
@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "choices": ["w", "x"], "answer": 1},
        {"question": "q", "choices": ["w", "x"], "answer": "B"},
        {"question": "q", "choices": "['w', 'x']", "answer": "(B)"},
        {"question": "q", "choices": {"text": ["w", "x"], "label": ["A", "B"]}, "answerKey": "B"},
        {"question": "q", "options": {"A": "w", "B": "x"}, "answer": "B"},
    ],
)
def test_a_choice_without_the_choices_is_refused(check: Any, objective: str, row: dict[str, Any]) -> None:
    (refused,), _ = check(row, objective=objective)
    assert isinstance(refused, Rejected)
    fix = "is not read: write the choices into the question, and the correct one as a text in answer"
    assert refused.detail in {f"choices {fix}", f"options {fix}"}


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "choices": ["w", "x"], "answer": "x"},
        {"question": "q", "options": {"A": "one", "B": "two"}, "answer": "two"},
        {"question": "q (A) one (B) two", "choices": ["one", "two"], "answer": "B"},
        {"question": "q", "choices": ["w", "x"], "answer": True},
        {"question": "q", "choices": [], "answer": 1},
        {"question": "q", "choices": "none", "answer": 1},
        {"question": "q", "choices": [{"index": 0}], "answer": 1},
    ],
)
def test_an_answer_that_needs_no_choices_is_read(check: Any, row: dict[str, Any]) -> None:
    (read,), _ = check(row)
    assert not isinstance(read, Rejected), read


def test_a_result_next_to_its_solution_is_refused_until_one_of_them_is_named(check: Any) -> None:
    row = {"problem": "q", "solution": "worked", "answer": 4}
    (refused,), _ = check(row)
    assert refused.detail == (
        "the row has answer and solution, and only one of them is trained: name it in dataset.columns, as "
        "{answer: solution} or {answer: answer}"
    )
    for name, text in (("solution", "worked"), ("answer", "4")):
        (read,), _ = check(row, columns={"answer": name})
        assert read.messages[-1]["content"] == text
    (prompt,), _ = check(row, objective="RLHF")
    assert not isinstance(prompt, Rejected)
    (same,), _ = check({"problem": "q", "solution": "4", "answer": 4})
    assert not isinstance(same, Rejected)


@pytest.mark.parametrize("prompt", [{"problem": "q"}, {"prompt": "q"}, {"messages": [Q]}])
@pytest.mark.parametrize("column", ["completion", "generation", "target"])
def test_a_result_next_to_a_longer_answer_is_refused_until_one_of_them_is_named(
    check: Any, prompt: dict[str, Any], column: str
) -> None:
    row = prompt | {"answer": "4", column: "<think>2 + 2</think> It is 4."}
    (refused,), _ = check(row)
    assert (refused.code, refused.detail) == (
        RejectCode.NOT_FOR_OBJECTIVE,
        f"the row has answer and {column}, and only one of them is trained: name it in dataset.columns, as "
        f"{{answer: {column}}} or {{answer: answer}}",
    )
    for name in (column, "answer"):
        (read,), _ = check(row, columns={"answer": name})
        assert read.messages[-1]["content"] == row[name]
    (read,), _ = check(row, objective="RLHF")
    assert not isinstance(read, Rejected)
    (read,), _ = check(row | {column: "4."} | {"answer": "It is 4."})
    assert read.messages[-1]["content"] == "It is 4."


def test_all_longer_answers_are_named(check: Any) -> None:
    (refused,), _ = check({"problem": "q", "solution": "worked", "answer": "4", "generation": "sampled"})
    assert refused.detail == (
        "the row has answer, solution and generation, and only one of them is trained: name it in dataset.columns, as "
        "{answer: solution} or {answer: generation} or {answer: answer}"
    )


def test_answers_next_to_a_conversation_that_has_its_own_are_not_read(check: Any) -> None:
    (read,), _ = check({"messages": [Q, A], "answer": "4", "generation": "sampled", "choices": ["1", "2"]})
    assert read.messages == [Q, A]
