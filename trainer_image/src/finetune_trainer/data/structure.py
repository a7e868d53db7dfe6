"""Checks a conversation's structure: roles in order, no empty turn, tools called before they answer."""

from typing import Any

from finetune_trainer.data.fields import Repairs
from finetune_trainer.data.rows import BadRow, Message, RejectCode, RepairCode

# Hermes-style files spell their calls inside the text, so that a result after such a text is not an orphan.
TEXT_CALL_MARK = "<tool_call>"


def check_structure(messages: list[Message], tools: list[dict[str, Any]] | None, repairs: Repairs) -> list[Message]:
    """Return the messages with system turns merged and unanswered turns removed; raises BadRow."""
    messages = _merge_system(messages, repairs)
    messages = _trim_after_last_answer(messages, repairs)
    _check_order(messages)
    _check_texts(messages)
    if tools is not None or any("tool_calls" in message or message["role"] == "tool" for message in messages):
        _check_tools(messages, tools)
    return messages


def _merge_system(messages: list[Message], repairs: Repairs) -> list[Message]:
    count = 0
    while count < len(messages) and messages[count]["role"] == "system":
        count += 1
    for number, message in enumerate(messages[count:], count + 1):
        if message["role"] == "system":
            raise BadRow(RejectCode.SYSTEM_NOT_FIRST, f"turn {number} is a system turn")
    if count == 0:
        return messages
    texts = [message["content"] for message in messages[:count] if message["content"].strip()]
    if len(texts) < count:
        repairs.add(RepairCode.NONE_STRIPPED)
    if len(texts) > 1:
        repairs.add(RepairCode.SYSTEM_MERGED)
    elif len(texts) == count:
        return messages
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
            raise BadRow(RejectCode.ORPHAN_TOOL, f"turn {number} is a tool result after a {before} turn")
        if role == "user" and before not in ("system", "assistant"):
            raise BadRow(RejectCode.BAD_ALTERNATION, f"turn {number} is a user turn after a {before} turn")
        if role == "assistant" and before not in ("user", "tool"):
            first = "begins the conversation" if before == "system" else "follows another one"
            raise BadRow(RejectCode.BAD_ALTERNATION, f"turn {number} is an assistant turn that {first}")
        before = role


def _check_texts(messages: list[Message]) -> None:
    prompted = False
    last = len(messages)
    for number, message in enumerate(messages, 1):
        role = message["role"]
        if not (message["content"] and message["content"].strip()) and "tool_calls" not in message and role != "tool":
            if role == "user" and not prompted:
                raise BadRow(RejectCode.EMPTY_PROMPT, f"turn {number}, the first prompt, is empty")
            if number == last:
                raise BadRow(RejectCode.EMPTY_RESPONSE, f"turn {number}, the last answer, is empty")
            raise BadRow(RejectCode.EMPTY_TURN, f"turn {number} ({role}) is empty")
        prompted = prompted or role == "user"


def _check_tools(messages: list[Message], tools: list[dict[str, Any]] | None) -> None:
    offered = {tool["function"]["name"] for tool in tools or ()}
    open_ids: set[str] = set()
    may_answer = False
    for number, message in enumerate(messages, 1):
        if message["role"] == "assistant":
            calls = message.get("tool_calls", [])
            for call in calls:
                name = call["function"]["name"]
                if offered and name not in offered:
                    raise BadRow(RejectCode.BAD_TOOL_CALL, f"turn {number} calls {name[:40]!r}, which is not in tools")
            open_ids = {call["id"] for call in calls if "id" in call}
            may_answer = bool(calls) or TEXT_CALL_MARK in message["content"]
        elif message["role"] == "tool":
            answered = message.get("tool_call_id")
            if not may_answer or (answered is not None and open_ids and answered not in open_ids):
                raise BadRow(RejectCode.ORPHAN_TOOL, f"turn {number} answers no tool call of the turn before it")
