"""Preference pairs in the shapes that people have them in, and what is no pair."""

import json
import time
from typing import Any

import pytest

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_trainer.data.formats.shared_prompt import join_prompt
from finetune_trainer.data.rows import DataFormat, Message, PreferenceRow, Rejected

Q = {"role": "user", "content": "q"}
GOOD = {"role": "assistant", "content": "good"}
BAD = {"role": "assistant", "content": "bad"}
SYSTEM = {"role": "system", "content": "s"}
FIRST = [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "a0"}]


def sharegpt(who: str, said: str) -> dict[str, str]:
    return {"from": who, "value": said}


ONE_TURN: dict[str, dict[str, Any]] = {
    "explicit prompt, texts": {"prompt": "q", "chosen": "good", "rejected": "bad"},
    "explicit prompt, turns": {"prompt": [Q], "chosen": [GOOD], "rejected": [BAD]},
    "explicit prompt, single turns": {"prompt": "q", "chosen": GOOD, "rejected": BAD},
    "implicit prompt": {"chosen": [Q, GOOD], "rejected": [Q, BAD]},
    "prompt repeated in both": {"prompt": [Q], "chosen": [Q, GOOD], "rejected": [Q, BAD]},
    "UltraFeedback": {
        "prompt": "q",
        "prompt_id": "7",
        "messages": [Q, GOOD],
        "chosen": [Q, GOOD],
        "rejected": [Q, BAD],
        "score_chosen": 8.0,
        "score_rejected": 2.5,
    },
    "OpenAI": {
        "input": {"messages": [Q], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [GOOD],
        "non_preferred_output": [BAD],
    },
    "LLaMA-Factory, ShareGPT": {
        "conversations": [sharegpt("human", "q")],
        "chosen": sharegpt("gpt", "good"),
        "rejected": sharegpt("gpt", "bad"),
    },
    "LLaMA-Factory, Alpaca": {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},
    "LLaMA-Factory, ranked output": {"instruction": "q", "input": "", "output": ["good", "bad"]},
    "Anthropic HH": {
        "chosen": "\n\nHuman: q\n\nAssistant: good",
        "rejected": "\n\nHuman: q\n\nAssistant: bad",
    },
    "HH with the prompt apart": {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " good", "rejected": " bad"},
    "prompt and chat, answers alone": {"prompt": "q", "messages": [Q, GOOD], "chosen": "good", "rejected": "bad"},
    "chat with a rejected answer": {"messages": [Q, GOOD], "rejected_response": "bad"},
    "chat with a rejected chat": {"messages": [Q, GOOD], "rejected_messages": [Q, BAD]},
    "answer with a rejected answer": {"question": "q", "response": "good", "rejected": "bad"},
    "other names": {"question": "q", "chosen_response": "good", "rejected_response": "bad"},
    "turns in strings": {"chosen": json.dumps([Q, GOOD]), "rejected": str([Q, BAD])},
}


def read(check: Any, row: dict[str, Any], **options: Any) -> PreferenceRow:
    (kept,), _ = check(row, objective=None, **options)
    assert isinstance(kept, PreferenceRow), kept
    return kept


@pytest.mark.parametrize("shape", ONE_TURN)
def test_every_shape_of_a_pair_becomes_one(check: Any, shape: str) -> None:
    row = read(check, ONE_TURN[shape])
    assert row.content() == {"prompt": [Q], "chosen": [GOOD], "rejected": [BAD]}
    assert row.format is DataFormat.PREFERENCE


@pytest.mark.parametrize("shape", ONE_TURN)
def test_the_empty_columns_of_a_table_make_no_difference(check: Any, shape: str) -> None:
    columns = ["prompt", "messages", "conversations", "instruction", "chosen", "rejected", "output", "input", "system"]
    assert read(check, dict.fromkeys(columns) | ONE_TURN[shape]).content() == read(check, ONE_TURN[shape]).content()


def test_pairs_of_all_shapes_are_duplicates_of_each_other(check: Any) -> None:
    rows, summary = check(*ONE_TURN.values(), objective="DPO")
    assert isinstance(rows[0], PreferenceRow)
    assert summary.rejected_by_code == {RejectCode.DUPLICATE: len(ONE_TURN) - 1}


def test_the_turns_of_a_pair_may_have_names_of_their_own(check: Any) -> None:
    chosen, rejected = (
        [{"who": one["role"], "said": one["content"]} for one in turns] for turns in ([Q, GOOD], [Q, BAD])
    )
    row = read(check, {"chosen": chosen, "rejected": json.dumps(rejected)}, columns={"role": "who", "content": "said"})
    assert row.content() == {"prompt": [Q], "chosen": [GOOD], "rejected": [BAD]}


def test_a_pair_from_csv_is_a_pair_like_any_other(check: Any) -> None:
    (row,), _ = check(b"prompt,chosen,rejected\nq,good,bad\n", name="pairs.csv", objective="DPO")
    assert row.content() == {"prompt": [Q], "chosen": [GOOD], "rejected": [BAD]}


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": [SYSTEM, *FIRST, Q, GOOD], "rejected": [SYSTEM, *FIRST, Q, BAD]},
        {"prompt": [SYSTEM, *FIRST, Q], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "q0", "chosen": [SYSTEM, *FIRST, Q, GOOD], "rejected": [SYSTEM, *FIRST, Q, BAD]},
        {"system": "s", "prompt": "q0", "chosen": [*FIRST, Q, GOOD], "rejected": [*FIRST, Q, BAD]},
        {"system": "s", "history": [["q0", "a0"]], "instruction": "q", "chosen": "good", "rejected": "bad"},
        {"system": "s", "messages": [*FIRST, Q, GOOD], "rejected_response": "bad"},
        {"system": "s", "messages": [*FIRST, Q, GOOD], "rejected_messages": [*FIRST, Q, BAD]},
        {"system": "s", "conversations": [*FIRST, Q], "chosen": GOOD, "rejected": BAD},
        {"messages": [SYSTEM, *FIRST, Q], "chosen": "good", "rejected": "bad"},
    ],
)
def test_the_prompt_is_all_that_both_conversations_share(check: Any, row: dict[str, Any]) -> None:
    assert read(check, row).content() == {"prompt": [SYSTEM, *FIRST, Q], "chosen": [GOOD], "rejected": [BAD]}


LATER = {"role": "user", "content": "q1"}
CONTINUED = [*FIRST, FIRST[0]]


@pytest.mark.parametrize(
    ("prompt", "said", "shared"),
    [
        ([*FIRST, Q], [Q], [*FIRST, Q]),
        ([*FIRST, Q], [*FIRST, Q], [*FIRST, Q]),
        ([SYSTEM, *FIRST, Q], [{"role": "user", "content": "q "}], [SYSTEM, *FIRST, {"role": "user", "content": "q "}]),
        ([*FIRST, Q], [SYSTEM, Q], [SYSTEM, *FIRST, Q]),
        ([*FIRST, Q], [Q, GOOD, LATER], [*FIRST, Q, GOOD, LATER]),
        (FIRST, [FIRST[0], GOOD, LATER], [*FIRST, FIRST[0], GOOD, LATER]),
        (FIRST[:1], CONTINUED, CONTINUED),
        (FIRST[:1], CONTINUED[1:], CONTINUED),
        ([Q], [*FIRST, Q], [*FIRST, Q]),
        ([Q], [*FIRST, Q, GOOD, LATER], [*FIRST, Q, GOOD, LATER]),
        (CONTINUED, [*FIRST[1:], LATER], [*CONTINUED, *FIRST[1:], LATER]),
    ],
)
def test_a_prompt_loses_no_turn_to_conversations_that_repeat_its_end(
    check: Any, prompt: list[Any], said: list[Any], shared: list[Any]
) -> None:
    row = read(check, {"prompt": prompt, "chosen": [*said, GOOD], "rejected": [*said, BAD]})
    assert row.content() == {"prompt": shared, "chosen": [GOOD], "rejected": [BAD]}


def test_a_completion_that_repeats_the_question_keeps_the_turns_before_it(check: Any) -> None:
    (kept,), _ = check({"prompt": [*FIRST, Q], "completion": [Q, GOOD]})
    assert kept.messages == [FIRST[0], FIRST[1] | {"train": False}, Q, GOOD]


def test_a_prompt_of_many_equal_turns_is_compared_in_linear_time() -> None:
    turns = [Message(role="user", content="q0"), Message(role="assistant", content="a0")] * 50_000
    ends = [Message(role="user", content="q")], [Message(role="user", content="q1")]
    started = time.process_time()
    joined = join_prompt(turns + ends[0], turns + ends[1])
    assert joined == turns + ends[0] + turns + ends[1]
    assert time.process_time() - started < 5


@pytest.mark.parametrize("tail", [[], [Q]])
def test_where_one_conversation_begins_the_other_the_last_answer_of_the_shorter_is_compared(
    check: Any, tail: list[dict[str, Any]]
) -> None:
    row = read(check, {"chosen": [*FIRST, Q, GOOD], "rejected": [*FIRST, *tail]})
    assert row.content() == {"prompt": FIRST[:1], "chosen": [*FIRST[1:], Q, GOOD], "rejected": FIRST[1:]}


def test_hh_transcripts_of_several_turns_part_at_the_last_answer(check: Any) -> None:
    start = "\n\nHuman: q0\n\nAssistant: a0\n\nHuman: a list:\n\n1. one\n\nAssistant:"
    row = read(check, {"chosen": f"{start} good", "rejected": f"{start} bad"})
    assert row.prompt == [*FIRST, {"role": "user", "content": "a list:\n\n1. one"}]
    assert (row.chosen, row.rejected) == ([GOOD], [BAD])


@pytest.mark.parametrize("gap", ["\n", "\n\n ", " \n\n\t"])
def test_a_transcript_with_many_blank_lines_is_read_in_linear_time(check: Any, gap: str) -> None:
    text = f"a{gap * 100_000}z"
    started = time.process_time()
    row = read(
        check,
        {"chosen": f"\n\nHuman: q\n\nAssistant: {text}", "rejected": "Human: q\n\n\n \n\nAssistant: bad\n\nHuman"},
    )
    assert time.process_time() - started < 5
    assert (row.prompt, row.chosen[0]["content"], row.rejected[0]["content"]) == ([Q], text, "bad\n\nHuman")


def test_tools_of_the_request_are_the_pairs_tools(check: Any) -> None:
    tool = {"type": "function", "function": {"name": "add"}}
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "add"}}]}
    row = read(
        check,
        {"input": {"messages": [Q], "tools": [tool]}, "preferred_output": [call], "non_preferred_output": [BAD]},
    )
    assert row.tools == [tool]
    assert row.chosen[0]["tool_calls"][0]["function"] == {"name": "add", "arguments": {}}


def test_trailing_turns_without_an_answer_are_trimmed(check: Any) -> None:
    row = read(check, {"prompt": "q", "chosen": [GOOD, Q], "rejected": [BAD]})
    assert row.chosen == [GOOD]
    assert row.repairs == (RepairCode.TRAILING_USER_TRIMMED,)


REFUSED: dict[RejectCode, list[dict[str, Any]]] = {
    RejectCode.SAME_PAIR: [
        {"prompt": "q", "chosen": "a", "rejected": " a\n"},
        {"chosen": [Q, GOOD], "rejected": [Q, GOOD]},
        {"instruction": "q", "output": ["a", "a"]},
    ],
    RejectCode.NO_SHARED_PROMPT: [
        {"prompt": None, "chosen": "a", "rejected": "b"},
        {"chosen": "the sky is blue", "rejected": "the sky is green"},
        {"chosen": [Q, GOOD], "rejected": [{"role": "user", "content": "another"}, BAD]},
        {"chosen": [SYSTEM, Q, GOOD], "rejected": [SYSTEM, {"role": "user", "content": "another"}, BAD]},
        {"chosen": [*FIRST, Q, GOOD], "rejected": [*FIRST, {"role": "user", "content": "another"}, BAD]},
        {"chosen": [GOOD], "rejected": [BAD]},
        {"messages": [GOOD], "rejected": "b"},
        {"system": "s", "chosen": "a", "rejected": "b"},
    ],
    RejectCode.MISSING_COLUMN: [
        {"prompt": "q", "chosen": "a"},
        {"prompt": "q", "rejected": "a"},
        {"prompt": "q", "chosen": [{"role": "assistant"}], "rejected": "b"},
    ],
    RejectCode.NULL_FIELD: [
        {"prompt": "q", "chosen": None, "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": None},
    ],
    RejectCode.WRONG_TYPE: [
        {"prompt": "q", "chosen": ["a", "b"], "rejected": "c"},
        {"prompt": "q", "chosen": [[GOOD]], "rejected": "c"},
    ],
    RejectCode.EMPTY_PROMPT: [{"prompt": " ", "chosen": "a", "rejected": "b"}],
    RejectCode.EMPTY_RESPONSE: [
        {"prompt": "q", "chosen": "", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": " "},
        {"prompt": "q", "chosen": "a", "rejected": []},
    ],
    RejectCode.BAD_ALTERNATION: [{"prompt": [Q, GOOD], "chosen": [GOOD], "rejected": [BAD]}],
    RejectCode.UNKNOWN_ROLE: [{"prompt": "q", "chosen": {"role": "oracle", "content": "a"}, "rejected": "b"}],
    RejectCode.UNSUPPORTED_MODALITY: [{"prompt": "q", "images": ["x"], "chosen": "a", "rejected": "b"}],
}


@pytest.mark.parametrize(("code", "row"), [(code, row) for code, rows in REFUSED.items() for row in rows])
def test_a_row_that_is_not_a_pair_is_refused_with_its_code(check: Any, code: RejectCode, row: dict[str, Any]) -> None:
    (refused,), _ = check(row, objective="DPO")
    assert isinstance(refused, Rejected)
    assert refused.code is code, refused.detail
    assert refused.detail


def test_the_side_that_is_wrong_is_named(check: Any) -> None:
    (refused,), _ = check({"prompt": "q", "chosen": "a", "rejected": " "}, objective="DPO")
    assert "rejected" in refused.detail


CONVERSATIONS: dict[str, Any] = {
    "with its own answer": {"messages": [Q, {"role": "assistant", "content": "other"}]},
    "with the chosen answer": {"messages": [Q, GOOD]},
    "of input and output": {"conversation": [{"input": "q", "output": "other"}]},
    "without an answer": {"conversation": [{"input": "q", "output": None}]},
}


@pytest.mark.parametrize("shape", CONVERSATIONS)
def test_a_conversation_next_to_two_whole_ones_is_their_prompt_without_its_answer(check: Any, shape: str) -> None:
    row = read(check, CONVERSATIONS[shape] | {"chosen": [Q, GOOD], "rejected": [Q, BAD]})
    assert row.content() == {"prompt": [Q], "chosen": [GOOD], "rejected": [BAD]}


def test_of_several_turns_only_the_last_answer_is_left_out(check: Any) -> None:
    start = [Q, {"role": "assistant", "content": "a1"}, {"role": "user", "content": "q2"}]
    for own in ([*start, GOOD], [{"role": "system", "content": "s"}, *start, BAD]):
        row = read(check, {"messages": own, "chosen": [*start, GOOD], "rejected": [*start, BAD]})
        assert row.prompt[-3:] == start
        assert (len(row.prompt), row.chosen) == (len(own) - 1, [GOOD])


def test_earlier_turns_before_two_conversations_keep_their_answer(check: Any) -> None:
    earlier = [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "a0"}]
    row = read(check, {"messages": earlier, "chosen": [Q, GOOD], "rejected": [Q, BAD]})
    assert row.prompt == [*earlier, Q]
