from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.data.checks.structure import check_structure
from finetune_trainer.data.formats.convert import convert_row
from finetune_trainer.data.formats.detect import detect_format
from finetune_trainer.data.formats.export import LOSSES, ExportFormat, LossCode, Unexpressed, export_row
from finetune_trainer.data.rows import (
    BadRow,
    ChatRow,
    DataFormat,
    Message,
    PreferenceRow,
    PromptRow,
    Row,
    Source,
    TextRow,
    UnpairedRow,
)

SOURCE = Source("rows.jsonl", 1)
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
OPENAI, SHAREGPT, ALPACA, PREFERENCE, TEXT = ExportFormat


def read(row: dict[str, Any]) -> Row:
    """Read a row as the front door does, from its bytes on."""
    again = orjson.loads(orjson.dumps(row))
    return check_structure(convert_row(again, detect_format(again), SOURCE, set()), set(), prompts_wanted=True)


def user(text: str = "what?", **more: Any) -> Message:
    return Message(role="user", content=text, **more)


def answer(text: str = "that", **more: Any) -> Message:
    return Message(role="assistant", content=text, **more)


def chat(*messages: Message, tools: Any = None) -> ChatRow:
    return ChatRow(list(messages), SOURCE, DataFormat.OPENAI, tools)


PAIR = PreferenceRow([user()], [answer("good")], [answer("bad")], SOURCE, DataFormat.PREFERENCE)
LABELLED = UnpairedRow([user()], [answer()], True, SOURCE, DataFormat.UNPAIRED)
PROMPT = PromptRow([user()], SOURCE, DataFormat.PROMPT_COMPLETION)
PLAIN = TextRow("a text", SOURCE, DataFormat.TEXT)

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip)
odd_texts = texts | st.sampled_from(
    ["[]", "[1]", '[{"role": "user", "content": "x"}]', "Human: a\n\nAssistant: b", "{}", "null", "a\n\nb", " x "]
)
names = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2),
    max_leaves=4,
)


@st.composite
def exchanges(draw: st.DrawFn) -> list[Message]:
    """One question with its answer, after calls of tools or not."""
    said: list[Message] = [user(draw(odd_texts))]
    if draw(st.booleans()):
        said[0]["name"] = draw(names)
    if draw(st.integers(0, 3)) == 0:
        function = {"name": "add", "arguments": draw(st.dictionaries(names, values, max_size=2))}
        call: Any = {"type": "function", "function": function}
        if draw(st.booleans()):
            call["id"] = "call_1"
        said.append(answer(draw(st.just("") | odd_texts), tool_calls=[call] * draw(st.integers(1, 2))))
        result = Message(role="tool", content=draw(st.just("") | odd_texts))
        if "id" in call and draw(st.booleans()):
            result["tool_call_id"] = "call_1"
        said.append(result)
    said.append(answer(draw(odd_texts)))
    for turn in said:
        if turn["role"] == "assistant" and draw(st.integers(0, 4)) == 0:
            turn["train"] = False
        if turn["role"] == "assistant" and draw(st.integers(0, 4)) == 0:
            turn["reasoning_content"] = draw(texts)
    return said


@st.composite
def chats(draw: st.DrawFn) -> ChatRow:
    messages: list[Message] = [Message(role="system", content=draw(odd_texts))] if draw(st.booleans()) else []
    for exchange in draw(st.lists(exchanges(), min_size=1, max_size=3)):
        messages += exchange
    uses_tools = any("tool_calls" in message for message in messages)
    return chat(*messages, tools=TOOLS if uses_tools and draw(st.booleans()) else None)


plain_chats = st.builds(
    lambda system, pairs: chat(
        *([Message(role="system", content=system)] if system else []),
        *(turn for question, said in pairs for turn in (user(question), answer(said))),
    ),
    st.none() | texts,
    st.lists(st.tuples(texts, texts), min_size=1, max_size=4),
)


@given(chats())
@settings(max_examples=100, deadline=None)
def test_a_conversation_goes_through_sharegpt_and_openai_without_a_loss(row: ChatRow) -> None:
    through_sharegpt = read(export_row(row, SHAREGPT))
    assert through_sharegpt.content() == row.content()
    assert read(export_row(through_sharegpt, OPENAI)).content() == row.content()


@given(plain_chats)
@settings(max_examples=80, deadline=None)
def test_alpaca_holds_system_text_history_and_answer_and_gives_them_back(row: ChatRow) -> None:
    as_alpaca = export_row(row, ALPACA)
    optional = {"system"} if row.messages[0]["role"] == "system" else set()
    optional |= {"history"} if len(row.messages) - len(optional) > 2 else set()
    assert as_alpaca.keys() == {"instruction", "input", "output"} | optional
    again = read(as_alpaca)
    assert again.content() == row.content()
    assert export_row(read(export_row(again, OPENAI)), ALPACA) == as_alpaca


@given(chats(), st.sampled_from(ExportFormat))
@settings(max_examples=100, deadline=None)
def test_no_row_loses_anything_without_being_refused_for_it(row: ChatRow, target: ExportFormat) -> None:
    try:
        exported = export_row(row, target)
    except Unexpressed:
        assert target in (ALPACA, TEXT, PREFERENCE)
        return
    if target is TEXT:
        at = 0
        for message in row.messages:
            at = exported["text"].index(message["content"], at) + len(message["content"])
        assert not any(message.keys() - {"role", "content"} for message in row.messages)
    else:
        assert read(exported).content() == row.content()


@given(plain_chats, texts, texts)
@settings(max_examples=80, deadline=None)
def test_a_preference_pair_comes_back_as_it_was(row: ChatRow, better: str, worse: str) -> None:
    pair = PreferenceRow(
        row.messages[:-1], [answer(better)], [answer(worse + "!" + better)], SOURCE, DataFormat.PREFERENCE
    )
    try:
        known = check_structure(pair, set())
    except BadRow:
        return
    assert read(export_row(known, PREFERENCE)).content() == known.content()


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_a_conversation_as_text_is_its_turns_in_order_with_a_blank_line_between(pairs: list[tuple[str, str]]) -> None:
    row = chat(*(turn for question, said in pairs for turn in (user(question), answer(said))))
    assert export_row(row, TEXT) == {"text": "\n\n".join(text for pair in pairs for text in pair)}


@pytest.mark.parametrize("target", [OPENAI, SHAREGPT, ALPACA])
def test_a_prompt_without_an_answer_stays_one(target: ExportFormat) -> None:
    assert read(export_row(PROMPT, target)).content() == PROMPT.content()


CALL: Any = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CALLING = chat(user(), answer("", tool_calls=[CALL]), Message(role="tool", content="1"), answer())
REFUSED = [
    (PAIR, OPENAI, LossCode.TWO_ANSWERS),
    (PAIR, SHAREGPT, LossCode.TWO_ANSWERS),
    (PAIR, ALPACA, LossCode.TWO_ANSWERS),
    (PAIR, TEXT, LossCode.TWO_ANSWERS),
    (LABELLED, OPENAI, LossCode.LABEL),
    (LABELLED, TEXT, LossCode.LABEL),
    (LABELLED, PREFERENCE, LossCode.NO_SECOND_ANSWER),
    (PROMPT, PREFERENCE, LossCode.NO_SECOND_ANSWER),
    (chat(user(), answer()), PREFERENCE, LossCode.NO_SECOND_ANSWER),
    (PLAIN, OPENAI, LossCode.NO_PROMPT),
    (PLAIN, ALPACA, LossCode.NO_PROMPT),
    (PLAIN, PREFERENCE, LossCode.NO_PROMPT),
    (CALLING, ALPACA, LossCode.TOOLS),
    (CALLING, TEXT, LossCode.TOOLS),
    (chat(user(), answer(), tools=TOOLS), ALPACA, LossCode.TOOLS),
    (chat(user(), answer(reasoning_content="hm")), ALPACA, LossCode.REASONING),
    (chat(user(), answer(train=False), user(), answer()), TEXT, LossCode.UNTRAINED_ANSWER),
    (chat(user(), answer("ab", untrained=[[0, 1]])), OPENAI, LossCode.UNTRAINED_ANSWER),
    (chat(user(), answer("ab", untrained=[[0, 1]])), ALPACA, LossCode.UNTRAINED_ANSWER),
    (chat(user(name="ann"), answer()), ALPACA, LossCode.SPEAKER_NAMES),
    (chat(user(), answer('[{"role": "user", "content": "x"}]')), ALPACA, LossCode.READS_DIFFERENTLY),
]


@pytest.mark.parametrize(("row", "target", "code"), REFUSED)
def test_what_a_format_cannot_hold_is_refused_with_its_code(row: Row, target: ExportFormat, code: LossCode) -> None:
    with pytest.raises(Unexpressed) as refused:
        export_row(row, target)
    assert refused.value.code is code


def test_every_loss_has_a_sentence_and_a_test() -> None:
    assert set(LOSSES) == set(LossCode) == {code for _, _, code in REFUSED}


def test_openai_rows_have_arguments_as_text_and_weights_as_its_uploads_do() -> None:
    row = chat(user(), answer(train=False), user(), answer("", tool_calls=[{**CALL, "id": "c1"}]))
    turns = export_row(row, OPENAI)["messages"]
    assert turns[1] == {"role": "assistant", "content": "that", "weight": 0}
    assert turns[3]["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
    ]


def test_sharegpt_rows_have_the_names_that_its_readers_use() -> None:
    row = chat(Message(role="system", content="be brief"), *CALLING.messages, tools=TOOLS)
    exported = export_row(row, SHAREGPT)
    assert [turn["from"] for turn in exported["conversations"]] == [
        "system",
        "human",
        "function_call",
        "observation",
        "gpt",
    ]
    assert orjson.loads(exported["conversations"][2]["value"]) == {"name": "add", "arguments": {"a": 1}}
    assert orjson.loads(exported["tools"]) == TOOLS


def test_texts_are_written_as_they_are() -> None:
    assert export_row(PLAIN, TEXT) == {"text": "a text"}
