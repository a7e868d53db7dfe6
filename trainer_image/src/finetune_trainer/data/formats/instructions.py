"""Convert rows with a prompt column and an answer column: Alpaca, and prompt with completion."""

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.formats.columns import (
    INPUT_COLUMNS,
    INSTRUCTION_COLUMNS,
    OUTPUT_COLUMNS,
    REASONING_COLUMNS,
    Columns,
    find_column,
    find_filled,
    is_empty,
    missing_column,
)
from finetune_trainer.data.formats.conversations import (
    holds_turns,
    parse_turns,
    read_conversation,
    read_messages,
    read_row_tools,
    read_system,
    read_turns,
)
from finetune_trainer.data.formats.fields import Repairs, parse_nested, read_cell, read_list, read_optional_text
from finetune_trainer.data.formats.shared_prompt import join_prompt
from finetune_trainer.data.formats.tools import read_tool_call
from finetune_trainer.data.formats.turns import keep_reasoning_once
from finetune_trainer.data.invisible import BLANK
from finetune_trainer.data.readers.json_row import name_type
from finetune_trainer.data.rows import BadRow, ChatRow, DataFormat, Message, PromptRow, Source, ToolCall

Converted = ChatRow | PromptRow
_CALL_KEYS = {"name", "arguments"}
_FLAGS = frozenset({"on", "off", "true", "false", "yes", "no", "enabled", "disabled", "low", "medium", "high", "none"})
"""What a column of reasoning has if it is a setting."""
_REASONING = frozenset(REASONING_COLUMNS)


def convert_alpaca(
    row: Columns, source: Source, data_format: DataFormat, repairs: Repairs, *, prompts_wanted: bool = False
) -> Converted:
    """Return the row as a conversation, or as a prompt if it has no answer; raises BadRow.

    An answer that is no text, such as a list of correct ones, counts as none if `prompts_wanted`.
    """
    return _answer(read_prompt(row, repairs), row, source, data_format, repairs, prompts_wanted=prompts_wanted)


def convert_prompt_completion(
    row: Columns, source: Source, data_format: DataFormat, repairs: Repairs, *, prompts_wanted: bool = False
) -> Converted:
    """Return the row as `convert_alpaca` does, but only its completion is trained; raises BadRow."""
    return _answer(
        mark_untrained(read_prompt(row, repairs)), row, source, data_format, repairs, prompts_wanted=prompts_wanted
    )


def read_prompt(row: Columns, repairs: Repairs) -> list[Message]:
    """Return system text, history and question of a row; the question may itself be turns."""
    messages = read_system(row, repairs) + _read_history(row, repairs)
    instruction = find_column(row, INSTRUCTION_COLUMNS)
    filled = find_filled(row, INPUT_COLUMNS)
    extra = filled or find_column(row, INPUT_COLUMNS)
    if instruction is None and extra is None:
        raise missing_column(INSTRUCTION_COLUMNS)
    has_extra = filled is not None
    if instruction is None and extra and (turns := _read_input_turns(row, extra, repairs)) is not None:
        return messages + turns
    if instruction == "prompt" and not has_extra:
        return messages + read_messages(row["prompt"], "prompt", "user", repairs)
    if instruction == "instruction" and not has_extra:
        # If the row has both a general instruction and a question, the question is the input.
        extra = _find_question(row) or extra
    first = read_cell(row[instruction], instruction, repairs) if instruction else ""
    if instruction == "instruction" and extra == "context" and (question := _find_question(row)):
        first = "\n".join([first, read_cell(row[question], question, repairs)])
    second = read_optional_text(row, extra, repairs) if extra else ""
    text = "\n".join([part for part in (first, second) if part.strip(BLANK)])
    return [*messages, {"role": "user", "content": text}]


def _read_input_turns(row: Columns, column: str, repairs: Repairs) -> list[Message] | None:
    """Return the turns of an input, as traces of a model's calls have them; None if it is anything else."""
    value = row[column]
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        return mark_untrained(read_conversation(value, repairs))
    if isinstance(value, str | list) and value:
        turns = parse_turns(value, column) if isinstance(value, str) else value
        return mark_untrained(read_turns(turns, column, repairs)) if turns and holds_turns(turns) else None
    return None


def _find_request(row: Columns) -> Columns:
    """Return the columns that have the tools: those of an input that is the request of a model's call."""
    value = row.get("input")
    if isinstance(value, dict) and "messages" in value and find_column(row, INSTRUCTION_COLUMNS) is None:
        return value
    return row


def _find_question(row: Columns) -> str | None:
    """Return the column of the question that an instruction is about.

    A prompt that repeats the instruction is none: it is the whole text, often with the answer.
    """
    question = find_column(row, INSTRUCTION_COLUMNS[1:])
    instruction, prompt = row["instruction"], row.get("prompt")
    if question == "prompt" and isinstance(instruction, str) and isinstance(prompt, str):
        return None if instruction.strip() in prompt else question
    return question


def mark_untrained(messages: list[Message]) -> list[Message]:
    """Return the turns with every answer excluded from training: they are context."""
    return [
        Message(**message, train=False) if message["role"] == "assistant" and "train" not in message else message
        for message in messages
    ]


def _answer(
    prompt: list[Message],
    row: Columns,
    source: Source,
    data_format: DataFormat,
    repairs: Repairs,
    *,
    prompts_wanted: bool,
) -> Converted:
    tools = read_row_tools(row, repairs) or read_row_tools(_find_request(row), repairs)
    output = find_column(row, OUTPUT_COLUMNS)
    if tools and (calls := _read_calls(row, output or "answers", {tool["function"]["name"] for tool in tools})):
        return ChatRow([*prompt, Message(role="assistant", content="", tool_calls=calls)], source, data_format, tools)
    if output is None or (prompts_wanted and is_empty(row[output])):
        return PromptRow(prompt, source, data_format, tools)
    try:
        answer = read_messages(row[output], output, "assistant", repairs)
    except BadRow:
        if prompts_wanted:
            return PromptRow(prompt, source, data_format, tools)
        raise
    add_reasoning(row, answer, repairs)
    return ChatRow(join_prompt(prompt, answer), source, data_format, tools)


def _read_calls(row: Columns, column: str, offered: set[str]) -> list[ToolCall]:
    """Return the calls of an answer that is nothing else, `[{"name": "f", "arguments": {}}]`, as xLAM has them."""
    value = row.get(column)
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            value = parse_nested(value, column, RejectCode.WRONG_TYPE)
        except BadRow:
            return []
    calls = value if isinstance(value, list) else [value]
    if not all(isinstance(one, dict) and one.keys() == _CALL_KEYS and str(one["name"]) in offered for one in calls):
        return []
    return [read_tool_call(call) for call in calls if row[column]]


def add_reasoning(row: Columns, answer: list[Message], repairs: Repairs) -> None:
    """Add the reasoning of a column to the answer next to it."""
    column = None if _REASONING.isdisjoint(row) else find_filled(row, REASONING_COLUMNS)
    if column is None or not isinstance(row.get(column), str | list) or answer[-1]["role"] != "assistant":
        return
    reasoning = read_cell(row[column], column, repairs)
    if reasoning.strip().lower() in _FLAGS:
        return
    if answer[-1].setdefault("reasoning_content", reasoning).strip() != reasoning.strip():
        detail = f"the row has reasoning in {column} and another one in its answer: keep one of them"
        raise BadRow(RejectCode.WRONG_TYPE, detail)
    keep_reasoning_once(answer[-1], "the row")


def _read_history(row: Columns, repairs: Repairs) -> list[Message]:
    value = row.get("history")
    if value in (None, "", []):
        return []
    messages = []
    listed = read_list(row["history"], "history", RejectCode.WRONG_TYPE)
    if holds_turns(listed):
        return read_turns(listed, "history", repairs)
    for pair in listed:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRow(RejectCode.WRONG_TYPE, f"history contains {name_type(pair)} instead of [question, answer]")
        messages.append(Message(role="user", content=read_cell(pair[0], "history", repairs)))
        messages.append(Message(role="assistant", content=read_cell(pair[1], "history", repairs)))
    return messages
