"""Check a row's structure: roles in order, no empty turn, tool results only after tool calls."""

import re

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_trainer.data.formats.fields import Repairs
from finetune_trainer.data.invisible import BLANK
from finetune_trainer.data.rows import (
    BadRow,
    BadTurn,
    ChatRow,
    Message,
    PreferenceRow,
    PromptRow,
    Row,
    TextRow,
    Tools,
    UnpairedRow,
)

_UNCLOSED = re.compile(r"\s*<think>(?!.*</think>)", re.DOTALL)
# Many files write calls inside the text; a tool result after such a text is valid.
TEXT_CALL = re.compile(
    r"<tool_call>|<functioncall>|<function_call>|<function=|<\|python_tag\|>|\[TOOL_CALLS\]|\A\s*\[\w[^\[\]()]*\("
)
"""A call of Hermes, Glaive, Llama or Mistral, or in Python's form, `[f(a=1)]`, as in ToolACE."""


def check_structure(row: Row, repairs: Repairs, *, prompts_wanted: bool = False) -> Row:
    """Return the row with system turns merged and unanswered turns removed; raises BadRow, BadTurn for a turn of it.

    A conversation without an answer becomes a prompt; so does one that ends with a question, if `prompts_wanted`.
    """
    match row:
        case ChatRow():
            return _check_chat(row, repairs, prompts_wanted)
        case PreferenceRow():
            _check_pair(row, repairs)
        case UnpairedRow():
            messages = row.prompt + row.completion
            merged = _merge_system(messages, repairs)
            turns = _check_answered(merged, row.tools, repairs, len(messages) - len(merged))
            row.prompt, row.completion = turns[:-1], turns[-1:]
        case PromptRow():
            merged = _merge_system(row.prompt, repairs)
            row.prompt = _check_prompt(merged, row.tools, len(row.prompt) - len(merged))
        case TextRow() if not row.text.strip(BLANK):
            raise BadRow(RejectCode.EMPTY_RESPONSE, "the text is empty")
    return row


def has_unclosed_reasoning(row: Row) -> bool:
    """Return whether an answer begins with `<think>` and has no end of it."""
    for turn in row.turns():  # noqa: SIM110 - called for every row, and `any` takes twice as long
        if turn["role"] == "assistant" and _UNCLOSED.match(turn["content"]):
            return True
    return False


def _check_chat(row: ChatRow, repairs: Repairs, prompts_wanted: bool) -> ChatRow | PromptRow:
    if _is_plain(row.messages) and row.messages[-1]["role"] == "assistant":
        return row
    messages = _merge_system(row.messages, repairs)
    removed = len(row.messages) - len(messages)
    last = messages[-1]["role"] if messages else "system"
    if last != "assistant":
        is_prompt = not any(message["role"] == "assistant" for message in messages)
        if prompts_wanted or (is_prompt and last != "system"):
            return PromptRow(_check_prompt(messages, row.tools, removed), row.source, row.format, row.tools)
    row.messages = _check_answered(messages, row.tools, repairs, removed)
    return row


def _check_answered(messages: list[Message], tools: Tools, repairs: Repairs, removed: int = 0) -> list[Message]:
    messages = _trim_after_last_answer(messages, repairs)
    _check_turns(messages, tools, removed)
    return messages


def _check_prompt(messages: list[Message], tools: Tools, removed: int) -> list[Message]:
    if not messages or messages[-1]["role"] == "system":
        raise BadRow(RejectCode.EMPTY_PROMPT, "there is no user turn")
    if messages[-1]["role"] == "assistant":
        raise BadRow(RejectCode.BAD_ALTERNATION, "the prompt ends with an answer")
    _check_turns(messages, tools, removed)
    return messages


def _check_pair(row: PreferenceRow, repairs: Repairs) -> None:
    row.prompt = _merge_system(row.prompt, repairs)
    row.chosen = _check_side(row, row.chosen, "chosen", repairs)
    row.rejected = _check_side(row, row.rejected, "rejected", repairs)
    row.others = [_check_side(row, answer, "rejected", repairs) for answer in row.others]


def _check_side(row: PreferenceRow, answer: list[Message], side: str, repairs: Repairs) -> list[Message]:
    if not any(message["role"] == "assistant" for message in answer):
        raise BadRow(RejectCode.EMPTY_RESPONSE, f"{side} has no answer")
    try:
        return _check_answered(row.prompt + answer, row.tools, repairs)[len(row.prompt) :]
    except BadRow as bad:
        raise BadRow(bad.code, f"with the {side} answer, {bad.detail}") from None


def _check_turns(messages: list[Message], tools: Tools, removed: int) -> None:
    """Check the turns; `removed` is the number of system turns before them that were merged or empty."""
    if _is_plain(messages):
        return
    try:
        _check_order(messages)
        _check_texts(messages)
        _check_tools(messages, tools)
    except BadTurn as bad:
        raise BadTurn(bad.code, bad.number + removed, bad.what) from None


def _is_plain(messages: list[Message]) -> bool:
    """Return whether plain user and assistant texts alternate; a fast path for most rows."""
    expected, other = "user", "assistant"
    for number, message in enumerate(messages):
        if message["role"] != expected and (number or message["role"] != "system"):
            return False
        if "tool_calls" in message or not message["content"].strip(BLANK):
            return False
        if message["role"] == expected:
            expected, other = other, expected
    return bool(messages)


def _merge_system(messages: list[Message], repairs: Repairs) -> list[Message]:
    count = 0
    while count < len(messages) and messages[count]["role"] == "system":
        count += 1
    for number, message in enumerate(messages[count:], count + 1):
        if message["role"] == "system":
            raise BadTurn(RejectCode.SYSTEM_NOT_FIRST, number, " is a system turn: move it to the start")
    if count == 0 or (count == 1 and messages[0]["content"].strip(BLANK)):
        return messages
    texts = [message["content"] for message in messages[:count] if message["content"].strip(BLANK)]
    if len(texts) < count:
        repairs.add(RepairCode.NONE_STRIPPED)
    if len(texts) > 1:
        repairs.add(RepairCode.SYSTEM_MERGED)
    merged = [Message(role="system", content="\n\n".join(texts))] if texts else []
    return merged + messages[count:]


def _trim_after_last_answer(messages: list[Message], repairs: Repairs) -> list[Message]:
    end = len(messages)
    while end and messages[end - 1]["role"] != "assistant":
        end -= 1
    if end == 0:
        raise BadRow(RejectCode.NO_ASSISTANT, "the conversation has no assistant turn")
    if end < len(messages):
        repairs.add(RepairCode.TRAILING_USER_TRIMMED)
        return messages[:end]
    return messages


def _check_order(messages: list[Message]) -> None:
    before = "system"
    for number, message in enumerate(messages, 1):
        role = message["role"]
        if role == "tool" and before not in ("assistant", "tool"):
            raise BadTurn(RejectCode.ORPHAN_TOOL, number, f" is a tool result after a {before} turn")
        if role == "user" and before == "user":
            raise BadTurn(RejectCode.BAD_ALTERNATION, number, " is a user turn after a user turn: join the two")
        if role == "assistant" and before not in ("user", "tool"):
            begins = "begins the conversation: remove it, or put a question before it"
            first = begins if before == "system" else "follows another one: join the two"
            raise BadTurn(RejectCode.BAD_ALTERNATION, number, f" is an assistant turn that {first}")
        before = role


def _check_texts(messages: list[Message]) -> None:
    prompted = False
    last = len(messages)
    for number, message in enumerate(messages, 1):
        role = message["role"]
        if not message["content"].strip(BLANK) and "tool_calls" not in message and role != "tool":
            if role == "user" and not prompted:
                raise BadTurn(RejectCode.EMPTY_PROMPT, number, ", the first prompt, is empty")
            if number == last and role == "assistant":
                raise BadTurn(RejectCode.EMPTY_RESPONSE, number, ", the last answer, is empty")
            raise BadTurn(RejectCode.EMPTY_TURN, number, f" ({role}) is empty")
        prompted = prompted or role == "user"


def _check_tools(messages: list[Message], tools: Tools) -> None:
    offered = {tool["function"]["name"] for tool in tools or ()}
    open_ids: set[str] = set()
    may_answer = False
    for number, message in enumerate(messages, 1):
        if message["role"] == "assistant":
            calls = message.get("tool_calls", [])
            for call in calls:
                name = call["function"]["name"]
                if offered and name not in offered:
                    raise BadTurn(RejectCode.BAD_TOOL_CALL, number, f" calls {name[:40]!r}, which is not in tools")
            open_ids = {call["id"] for call in calls if "id" in call}
            may_answer = bool(calls) or TEXT_CALL.search(message["content"]) is not None
        elif message["role"] == "tool":
            answered = message.get("tool_call_id")
            if not may_answer or (answered is not None and open_ids and answered not in open_ids):
                raise BadTurn(
                    RejectCode.ORPHAN_TOOL,
                    number,
                    " answers no tool call of the turn before it: add it to its tool_calls",
                )
