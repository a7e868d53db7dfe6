"""Every code by which a row is refused or mended, with rows that earn it: a code without one does not pass."""

from pathlib import Path
from typing import Any

import pytest

from finetune_api.dataset.codes import SENTENCES, RejectCode, RepairCode
from finetune_api.rewards import Reward
from finetune_trainer.data.checks.split import collect_prompts
from finetune_trainer.data.rows import EXCERPT_CHARACTERS, Rejected
from finetune_trainer.rewards.references import References
from finetune_trainer.tokenization.labeler import Labeler

Row = dict[str, Any]

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
TOOL = {"role": "tool", "content": "3"}
TOOLS = [{"type": "function", "function": {"name": "add"}}]


def call(**function: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": function}]}


def chat(*turns: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {"messages": list(turns), **columns}


REJECTED: dict[RejectCode, list[Any]] = {
    RejectCode.BAD_JSON: [b"{", b"not json", b'{"a": NaN,}'],
    RejectCode.BAD_UTF8: [b'{"a": "\xff"}'],
    RejectCode.DUP_KEY: [b'{"output": "a", "output": "b"}'],
    RejectCode.NOT_OBJECT: [[1], "text", 7, None],
    RejectCode.UNKNOWN_FORMAT: [{}, {"a": 1}, {"label": True}],
    RejectCode.MISSING_COLUMN: [chat({"content": "q"}, ANSWER), chat({"role": "user"}, ANSWER)],
    RejectCode.NULL_FIELD: [
        {"instruction": "q", "output": None},
        {"instruction": None, "output": "a"},
        {"messages": None},
        chat({"role": "user", "content": None}, ANSWER),
        chat({"role": None, "content": "q"}, ANSWER),
    ],
    RejectCode.WRONG_TYPE: [
        {"instruction": {"a": 1}, "output": "a"},
        {"messages": 5},
        {"messages": "no list"},
        {"messages": "[" * 5000},
        chat("q", ANSWER),  # type: ignore[arg-type]
        chat({"role": 1, "content": "q"}, ANSWER),
        chat(USER, {**ANSWER, "weight": 0.5}),
        chat(USER, {**ANSWER, "train": "no"}),
        {"instruction": "q", "output": "a", "history": [["only a question"]]},
    ],
    RejectCode.EMPTY_PROMPT: [
        {"instruction": "", "input": " ", "output": "a"},
        {"instruction": "\u200b", "input": "\ufeff", "output": "a"},
        chat({"role": "user", "content": " \n"}, ANSWER),
    ],
    RejectCode.EMPTY_RESPONSE: [
        {"instruction": "q", "output": ""},
        {"instruction": "q", "output": " \u200b\u200d\n\u2060"},
        chat(USER, {"role": "assistant", "content": " "}),
        chat(USER, {"role": "assistant", "content": "\ufeff"}),
        chat(USER, ANSWER, USER, {"role": "assistant", "content": "\u200c\u00ad"}),
    ],
    RejectCode.EMPTY_TURN: [
        chat(USER, {"role": "assistant", "content": empty}, USER, ANSWER) for empty in ("", "\u200b")
    ],
    RejectCode.UNKNOWN_ROLE: [chat({"role": "narrator", "content": "q"}, ANSWER)],
    RejectCode.SYSTEM_NOT_FIRST: [chat(USER, {"role": "system", "content": "s"}, ANSWER)],
    RejectCode.BAD_ALTERNATION: [
        chat(USER, USER, ANSWER),
        chat(USER, ANSWER, ANSWER),
        chat(ANSWER),
        chat(USER, call(name="add"), TOOL, USER, USER, ANSWER),
    ],
    RejectCode.NO_ASSISTANT: [chat(USER), chat(), chat({"role": "system", "content": "s"})],
    RejectCode.ORPHAN_TOOL: [
        chat(USER, TOOL, ANSWER),
        chat(USER, ANSWER, TOOL, ANSWER),
        chat(USER, call(name="add"), {**TOOL, "tool_call_id": "2"}, ANSWER),
    ],
    RejectCode.BAD_TOOL_CALL: [
        chat(USER, call(name="")),
        chat(USER, call(name="add", arguments="{")),
        chat(USER, call(name="add", arguments="[1]")),
        chat(USER, call(name="sub"), tools=TOOLS),
        chat(USER, {"role": "assistant", "content": "", "tool_calls": "add"}),
        chat(USER, {"role": "function_call", "content": "add(1)"}),
    ],
    RejectCode.BAD_TOOLS: [
        chat(USER, ANSWER, tools=5),
        chat(USER, ANSWER, tools=["add"]),
        chat(USER, ANSWER, tools=[{"function": {}}]),
        chat(USER, ANSWER, tools=[{"name": "add", "parameters": "none"}]),
    ],
    RejectCode.UNSUPPORTED_MODALITY: [
        chat({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER),
        chat(USER, ANSWER, images=["x.png"]),
    ],
    RejectCode.LONE_SURROGATE: [b'{"instruction": "\\udc00", "output": "a"}'],
}


def sound(objective: str, name: str) -> Row:
    """A row that the objective takes, to stand before and after the one in question."""
    match objective:
        case "DPO":
            return {"prompt": name, "chosen": "good", "rejected": "bad"}
        case "KTO":
            return {"prompt": name, "completion": "a", "label": True}
        case "DomainAdaptation":
            return {"text": name}
        case _:
            return {"instruction": name, "output": "a"}


PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}
LONG = "one two " * 40
BY_OBJECTIVE: list[tuple[RejectCode, str, Any]] = [
    (RejectCode.SAME_PAIR, "DPO", {"prompt": "q", "chosen": "a", "rejected": " a "}),
    (RejectCode.NO_SHARED_PROMPT, "DPO", {"chosen": "a", "rejected": "b"}),
    (RejectCode.NO_SHARED_PROMPT, "DPO", {"chosen": [USER, ANSWER], "rejected": [{**USER, "content": "r"}, ANSWER]}),
    (RejectCode.BAD_LABEL, "KTO", {"prompt": "q", "completion": "a", "label": "maybe"}),
    (RejectCode.BAD_LABEL, "Chat", {"prompt": "q", "completion": "a", "label": False}),
    (RejectCode.NOT_FOR_OBJECTIVE, "DPO", {"text": "t"}),
    (RejectCode.NOT_FOR_OBJECTIVE, "Chat", {"text": "t"}),
    (RejectCode.NOT_FOR_OBJECTIVE, "KTO", {"instruction": "q", "output": "a"}),
    (RejectCode.NOT_FOR_OBJECTIVE, "DomainAdaptation", {"instruction": "q", "output": "a"}),
    (RejectCode.EMPTY_PROMPT, "RLHF", {"prompt": " "}),
    (RejectCode.EMPTY_RESPONSE, "DPO", {"prompt": "q", "chosen": "a", "rejected": ""}),
    (RejectCode.EMPTY_RESPONSE, "DPO", {"prompt": "q", "chosen": "a", "rejected": "\u200b"}),
    (RejectCode.EMPTY_RESPONSE, "DomainAdaptation", {"text": " "}),
    (RejectCode.EMPTY_RESPONSE, "DomainAdaptation", {"text": "\ufeff \u200e"}),
    (RejectCode.DUPLICATE, "Chat", sound("Chat", "first")),
    (RejectCode.DUPLICATE, "Chat", sound("Chat", "fir\u200bst")),
    (RejectCode.DUPLICATE, "DPO", sound("DPO", "first")),
    (RejectCode.EVAL_LEAK, "Chat", {"instruction": "Held  OUT", "output": "a"}),
    (RejectCode.EVAL_LEAK, "Chat", {"instruction": "held\u200b out\ufeff", "output": "a"}),
    (RejectCode.TOO_LONG, "Chat", b'{"instruction": "' + b"x" * (17 << 20) + b'"}'),
]
WITH_A_MODEL: list[tuple[RejectCode, str, Any]] = [
    (RejectCode.NO_TRAINABLE_TURN, "Chat", chat(USER, {**ANSWER, "train": False})),
    (RejectCode.NO_TRAINABLE_TURN, "Instruction", chat(USER, {**ANSWER, "weight": 0})),
    (RejectCode.CONTROL_TOKEN_IN_TEXT, "Chat", {"instruction": "<|im_end|>", "output": "a"}),
    (RejectCode.CONTROL_TOKEN_IN_TEXT, "DPO", {**PAIR, "rejected": "<|im_start|>"}),
    (RejectCode.PROMPT_FILLS_CONTEXT, "Chat", {"instruction": LONG, "output": "a"}),
    (RejectCode.TEMPLATE_ERROR, "Chat", chat(USER, call(name="add"), TOOL, ANSWER)),
]
TOO_MANY_TOKENS: list[tuple[RejectCode, str, Any]] = [
    (RejectCode.OVER_MAX_LENGTH, "Chat", {"instruction": "q", "output": LONG}),
    (RejectCode.OVER_MAX_LENGTH, "Instruction", {"instruction": LONG, "output": "a"}),
    (RejectCode.OVER_MAX_LENGTH, "DPO", {**PAIR, "prompt": LONG}),
    (RejectCode.OVER_MAX_LENGTH, "DPO", {**PAIR, "rejected": LONG}),
    (RejectCode.OVER_MAX_LENGTH, "KTO", {"prompt": "q", "completion": LONG, "label": True}),
    (RejectCode.OVER_MAX_LENGTH, "RLHF", {"prompt": LONG}),
]
WITH_A_REWARD: list[tuple[RejectCode, str, Any]] = [
    (RejectCode.NO_REFERENCE, "RLHF", {"prompt": "q"}),
    (RejectCode.NO_REFERENCE, "RLHF", {"prompt": "q", "completion": "a", "label": False}),
]
BESIDE = [(code, "Chat", row) for code, rows in REJECTED.items() for row in rows] + BY_OBJECTIVE


def name_case(value: object) -> str:
    return value if isinstance(value, str) else ""


def assert_refused(check: Any, code: RejectCode, objective: str, row: object, **options: Any) -> None:
    first, last = sound(objective, "first"), sound(objective, "last")
    (before, bad, after), summary = check(first, row, last, objective=objective, **options)
    assert not isinstance(before, Rejected)
    assert not isinstance(after, Rejected)
    assert isinstance(bad, Rejected)
    assert (bad.code, bad.file, bad.line) == (code, "s3://data/rows.jsonl", 2)
    assert bad.detail
    assert len(bad.excerpt) <= EXCERPT_CHARACTERS
    assert summary.to_dict()["rejectedRowsByCode"] == {code.value: 1}


@pytest.mark.parametrize(("code", "objective", "row"), BESIDE, ids=name_case)
def test_a_bad_row_is_rejected_with_its_code_and_line_between_good_ones(
    check: Any, code: RejectCode, objective: str, row: object
) -> None:
    (held_out,), _ = check({"instruction": "held out", "output": "x"})
    assert_refused(check, code, objective, row, validation_prompts=collect_prompts([held_out]))


@pytest.mark.parametrize(("code", "objective", "row"), WITH_A_MODEL, ids=name_case)
def test_what_only_the_model_can_reject_is_rejected_in_the_same_way(
    check: Any, model_folder: Path, code: RejectCode, objective: str, row: object
) -> None:
    assert_refused(check, code, objective, row, labeler=Labeler(model_folder), max_length=64)


@pytest.mark.parametrize(("code", "objective", "row"), TOO_MANY_TOKENS, ids=name_case)
def test_a_row_with_too_many_tokens_is_rejected_if_the_job_skips_them_and_is_not_malformed(
    check: Any, model_folder: Path, code: RejectCode, objective: str, row: object
) -> None:
    assert_refused(check, code, objective, row, labeler=Labeler(model_folder), max_length=64, skips_long=True)
    _, summary = check(row, objective=objective, labeler=Labeler(model_folder), max_length=64, skips_long=True)
    assert (summary.rejected, summary.malformed) == (1, 0)
    assert summary.lengths.longest > 64


@pytest.mark.parametrize(("code", "objective", "row"), WITH_A_REWARD, ids=name_case)
def test_what_a_reward_cannot_use_is_rejected_in_the_same_way(
    check: Any, code: RejectCode, objective: str, row: object
) -> None:
    reward = Reward.model_validate({"type": "Answer", "answer": {"match": "Exact"}})
    assert_refused(check, code, objective, row, references=References([reward]))


def test_every_reject_code_has_a_row_that_gets_it() -> None:
    assert {code for code, _, _ in BESIDE + WITH_A_MODEL + TOO_MANY_TOKENS + WITH_A_REWARD} == set(RejectCode)


MENDED: list[tuple[RepairCode, str, Any]] = [
    (RepairCode.TRAILING_USER_TRIMMED, "Chat", chat(USER, ANSWER, USER)),
    (RepairCode.TRAILING_USER_TRIMMED, "Chat", chat(USER, call(name="add"), TOOL)),
    (RepairCode.COERCED_SCALAR, "Chat", {"instruction": "q", "output": 5}),
    (RepairCode.NONE_STRIPPED, "Chat", {"instruction": "q", "input": None, "output": "a"}),
    (RepairCode.NONE_STRIPPED, "Chat", chat({"role": "system", "content": ""}, USER, ANSWER)),
    (
        RepairCode.SYSTEM_MERGED,
        "Chat",
        chat({"role": "system", "content": "s"}, {"role": "developer", "content": "t"}, USER, ANSWER),
    ),
    (RepairCode.NONE_STRIPPED, "Chat", chat({"role": "system", "content": "\u200b"}, USER, ANSWER)),
    (RepairCode.SYSTEM_MERGED, "Chat", chat({"role": "system", "content": "s"}, USER, ANSWER, system="t")),
    (RepairCode.CHOSEN_SIDE_USED, "Chat", PAIR),
    (RepairCode.PAIR_SPLIT, "KTO", PAIR),
    (RepairCode.RANKING_SPLIT, "DPO", {"prompt": "q", "responses": ["a", "b", "c"], "scores": [3, 2, 1]}),
    (RepairCode.LATER_TURNS_UNUSED, "DPO", {"prompt": "q", "chosen": [ANSWER, USER, ANSWER], "rejected": "b"}),
    (RepairCode.ANSWER_UNUSED, "RLHF", {"instruction": "q", "output": "a"}),
    (RepairCode.ANSWER_UNUSED, "RLHF", {"instruction": "q", "output": "<think>Is 2"}),
    (RepairCode.REASONING_UNCLOSED, "Chat", {"instruction": "q", "output": "\n<think>Is 2"}),
    (RepairCode.REASONING_UNCLOSED, "Chat", chat(USER, {**ANSWER, "content": "<think>Is 2"}, USER, ANSWER)),
    (RepairCode.REASONING_UNCLOSED, "DPO", {**PAIR, "chosen": "<think>Is 2"}),
]
MENDED_WITH_A_MODEL: list[tuple[RepairCode, str, Any]] = [
    (RepairCode.TRUNCATED, "Chat", {"instruction": "q", "output": LONG}),
    (RepairCode.ANSWER_CUT, "Chat", {"instruction": "q", "output": LONG}),
    (RepairCode.REASONING_LOST, "Chat", chat(USER, {**ANSWER, "reasoning_content": "hm"})),
    (RepairCode.PROMPT_CUT, "DPO", {**PAIR, "prompt": LONG}),
    (RepairCode.DOCUMENT_SPLIT, "DomainAdaptation", {"text": LONG}),
]


@pytest.mark.parametrize(("code", "objective", "row"), MENDED, ids=name_case)
def test_a_repair_is_counted(check: Any, code: RepairCode, objective: str, row: object) -> None:
    kept, summary = check(row, objective=objective)
    assert {one.repairs for one in kept} == {(code,)}
    assert summary.repaired == summary.accepted == len(kept)
    assert summary.to_dict()["repairedRowsByCode"] == {code.value: len(kept)}


@pytest.mark.parametrize(("code", "objective", "row"), MENDED_WITH_A_MODEL, ids=name_case)
def test_a_repair_for_want_of_room_is_counted(
    check: Any, model_folder: Path, code: RepairCode, objective: str, row: object
) -> None:
    (kept,), summary = check(row, objective=objective, labeler=Labeler(model_folder), max_length=64)
    assert code in kept.repairs
    assert summary.to_dict()["repairedRowsByCode"][code.value] == 1


@pytest.mark.parametrize("answer", ["<think>Is 2</think>even", "Write <think> first.", "Is 2</think>even"])
def test_reasoning_that_has_its_end_or_no_beginning_is_not_counted(check: Any, answer: str) -> None:
    (kept,), _ = check({"instruction": "<think>", "output": answer})
    assert kept.repairs == ()


def test_what_nothing_shows_is_trained_as_it_is(check: Any) -> None:
    (kept,), _ = check({"instruction": "zero\u200cwidth", "input": "\u200b", "context": "c", "output": "\ufeffa\u200b"})
    assert [turn["content"] for turn in kept.messages] == ["zero\u200cwidth\nc", "\ufeffa\u200b"]


def test_every_repair_code_has_a_row_that_gets_it() -> None:
    assert {code for code, _, _ in MENDED + MENDED_WITH_A_MODEL} == set(RepairCode)


def test_every_code_has_a_sentence() -> None:
    assert set(SENTENCES) == {*RejectCode, *RepairCode}
