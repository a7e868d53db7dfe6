"""Write canonical rows in the formats of other tools, completely or not at all.

    export_row(row, ExportFormat.ALPACA)   # the row in the form of an Alpaca file; raises Unexpressed

A converted row is read back and must be the same row again: a row that the format cannot express, or only ambiguously,
is rejected instead of losing data silently.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

import orjson

from finetune_trainer.data.checks.structure import check_structure
from finetune_trainer.data.formats.convert import convert_row
from finetune_trainer.data.rows import (
    BadRow,
    ChatRow,
    DataFormat,
    Message,
    PreferenceRow,
    PromptRow,
    Row,
    TextRow,
    ToolCall,
    UnpairedRow,
)

Answered = ChatRow | PromptRow
PARAGRAPH = "\n\n"
SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
_KEPT = ("name", "tool_call_id", "reasoning_content")


class ExportFormat(StrEnum):
    """The target formats of a conversion."""

    OPENAI = "openai"
    SHAREGPT = "sharegpt"
    ALPACA = "alpaca"
    PREFERENCE = "preference"
    TEXT = "text"


class LossCode(StrEnum):
    """The part of a row that a format cannot express."""

    NO_SECOND_ANSWER = "NO_SECOND_ANSWER"
    TWO_ANSWERS = "TWO_ANSWERS"
    LABEL = "LABEL"
    NO_PROMPT = "NO_PROMPT"
    TOOLS = "TOOLS"
    REASONING = "REASONING"
    UNTRAINED_ANSWER = "UNTRAINED_ANSWER"
    SPEAKER_NAMES = "SPEAKER_NAMES"
    READS_DIFFERENTLY = "READS_DIFFERENTLY"


LOSSES: Mapping[LossCode, str] = {
    LossCode.NO_SECOND_ANSWER: "A preference pair needs two answers to its prompt; the row has at most one.",
    LossCode.TWO_ANSWERS: "The row has a chosen and a rejected answer; --objective Chat keeps the chosen one.",
    LossCode.LABEL: "The row has a label for its answer; --objective Chat keeps the desirable answers.",
    LossCode.NO_PROMPT: "The row is plain text without a prompt and an answer.",
    LossCode.TOOLS: "The row has tools, tool calls or tool results, which the format does not support.",
    LossCode.REASONING: "An answer has separate reasoning, which the format does not support.",
    LossCode.UNTRAINED_ANSWER: "An answer is excluded from training, which the format cannot express.",
    LossCode.SPEAKER_NAMES: "A turn names its speaker, which the format does not support.",
    LossCode.READS_DIFFERENTLY: "In this format the row would be read back as a different row.",
}


_MARKS: Mapping[str, LossCode] = {
    "tool_calls": LossCode.TOOLS,
    "tool_call_id": LossCode.TOOLS,
    "reasoning_content": LossCode.REASONING,
    "train": LossCode.UNTRAINED_ANSWER,
    "untrained": LossCode.UNTRAINED_ANSWER,
    "name": LossCode.SPEAKER_NAMES,
}
_READ_AS: Mapping[ExportFormat, DataFormat] = {
    ExportFormat.OPENAI: DataFormat.OPENAI,
    ExportFormat.SHAREGPT: DataFormat.SHAREGPT,
    ExportFormat.ALPACA: DataFormat.ALPACA,
    ExportFormat.PREFERENCE: DataFormat.PREFERENCE,
}


class Unexpressed(Exception):  # noqa: N818 - a property of the row
    """Raised if a format cannot express all of a row."""

    def __init__(self, code: LossCode) -> None:
        super().__init__(LOSSES[code])
        self.code = code


def export_row(row: Row, target: ExportFormat, *, prompts_wanted: bool = False) -> dict[str, Any]:
    """Return the row in another format; raises Unexpressed if that would lose something.

    It is read again as `check_structure` reads it, with `prompts_wanted`.
    """
    exported = _EXPORTERS[target](row)
    if target is not ExportFormat.TEXT and not _reads_as(exported, target, row, prompts_wanted):
        raise Unexpressed(LossCode.READS_DIFFERENTLY)
    return exported


def _to_openai(row: Row) -> dict[str, Any]:
    answered = _answered(row)
    exported: dict[str, Any] = {"messages": [_openai_turn(message) for message in answered.turns()]}
    return exported | {"tools": answered.tools} if answered.tools else exported


def _to_sharegpt(row: Row) -> dict[str, Any]:
    answered = _answered(row)
    exported: dict[str, Any] = {"conversations": [_sharegpt_turn(message) for message in answered.turns()]}
    return exported | {"tools": orjson.dumps(answered.tools).decode()} if answered.tools else exported


def _to_alpaca(row: Row) -> dict[str, Any]:
    answered = _answered(row)
    _refuse_marks(answered)
    turns = [message["content"] for message in answered.turns()]
    system = turns.pop(0) if answered.turns()[0]["role"] == "system" else ""
    last = [turns.pop()] if isinstance(answered, ChatRow) else []
    *earlier, instruction = turns
    exported: dict[str, Any] = {"instruction": instruction, "input": ""}
    if last:
        exported["output"] = last[0]
    if system:
        exported["system"] = system
    if earlier:
        exported["history"] = [[question, answer] for question, answer in zip(earlier[::2], earlier[1::2], strict=True)]
    return exported


def _to_preference(row: Row) -> dict[str, Any]:
    if isinstance(row, PreferenceRow):
        return row.content()
    raise Unexpressed(LossCode.NO_PROMPT if isinstance(row, TextRow) else LossCode.NO_SECOND_ANSWER)


def _to_text(row: Row) -> dict[str, Any]:
    if isinstance(row, TextRow):
        return row.content()
    answered = _answered(row)
    _refuse_marks(answered)
    return {"text": PARAGRAPH.join(message["content"] for message in answered.turns())}


def _answered(row: Row) -> Answered:
    match row:
        case ChatRow() | PromptRow():
            return row
        case PreferenceRow():
            raise Unexpressed(LossCode.TWO_ANSWERS)
        case UnpairedRow():
            raise Unexpressed(LossCode.LABEL)
        case TextRow():
            raise Unexpressed(LossCode.NO_PROMPT)


def _refuse_marks(row: Answered) -> None:
    """Reject rows with properties of turns, which only formats with an object for each turn can express."""
    if row.tools:
        raise Unexpressed(LossCode.TOOLS)
    for message in row.turns():
        if loss := next((loss for key, loss in _MARKS.items() if key in message), None):
            raise Unexpressed(loss)
        if message["role"] == "tool":
            raise Unexpressed(LossCode.TOOLS)


def _reads_as(exported: Mapping[str, Any], target: ExportFormat, row: Row, prompts_wanted: bool) -> bool:
    try:
        again = convert_row(exported, _READ_AS[target], row.source, set())
        return check_structure(again, set(), prompts_wanted=prompts_wanted).content() == row.content()
    except BadRow:
        return False


def _openai_turn(message: Message) -> dict[str, Any]:
    """Return the turn with call arguments as text, and weight 0 if it is excluded from training."""
    turn: dict[str, Any] = {"role": message["role"], "content": message["content"]}
    if "tool_calls" in message:
        turn["tool_calls"] = [_openai_call(call) for call in message["tool_calls"]]
    return turn | _properties(message)


def _sharegpt_turn(message: Message) -> dict[str, Any]:
    """Return the turn; a turn that only calls tools becomes `function_call`, with the calls as text."""
    if "tool_calls" in message and not message["content"] and not message.keys() & {"reasoning_content", "name"}:
        return {"from": "function_call", "value": _dump_calls(message["tool_calls"])} | _properties(message)
    turn: dict[str, Any] = {"from": SPEAKERS[message["role"]], "value": message["content"]}
    if "tool_calls" in message:
        turn["tool_calls"] = [_openai_call(call) for call in message["tool_calls"]]
    return turn | _properties(message)


def _properties(message: Message) -> dict[str, Any]:
    if "untrained" in message:  # OpenAI's API has a weight for whole answers only
        raise Unexpressed(LossCode.UNTRAINED_ANSWER)
    kept: dict[str, Any] = {key: value for key, value in message.items() if key in _KEPT}
    return kept | {"weight": 0} if message.get("train") is False else kept


def _openai_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call["function"]["name"], "arguments": orjson.dumps(call["function"]["arguments"]).decode()}
    identity = {"id": call["id"]} if "id" in call else {}
    return {**identity, "type": "function", "function": function}


def _dump_calls(calls: list[ToolCall]) -> str:
    written = [{**call["function"], **({"id": call["id"]} if "id" in call else {})} for call in calls]
    return orjson.dumps(written[0] if len(written) == 1 else written).decode()


_EXPORTERS: Mapping[ExportFormat, Callable[[Row], dict[str, Any]]] = {
    ExportFormat.OPENAI: _to_openai,
    ExportFormat.SHAREGPT: _to_sharegpt,
    ExportFormat.ALPACA: _to_alpaca,
    ExportFormat.PREFERENCE: _to_preference,
    ExportFormat.TEXT: _to_text,
}
