"""Convert preference rows: a prompt with a chosen and a rejected answer, or two whole conversations."""

from finetune_trainer.data.formats.columns import (
    CHOSEN_COLUMNS,
    CONVERSATION_COLUMNS,
    INPUT_COLUMNS,
    INSTRUCTION_COLUMNS,
    OUTPUT_COLUMNS,
    REJECTED_COLUMNS,
    Columns,
    find_column,
    has_value,
    missing_column,
)
from finetune_trainer.data.formats.conversations import (
    read_conversation,
    read_messages,
    read_row_tools,
    read_system,
    read_turns,
)
from finetune_trainer.data.formats.detect import is_ranked_output
from finetune_trainer.data.formats.fields import Repairs
from finetune_trainer.data.formats.instructions import read_prompt
from finetune_trainer.data.formats.judged_pairs import find_judged_pair, order_pair
from finetune_trainer.data.formats.ranked import is_ranked, read_ranked
from finetune_trainer.data.formats.shared_prompt import drop_answer, split_pair
from finetune_trainer.data.rows import DataFormat, Message, PreferenceRow, Source


def convert_preference(row: Columns, source: Source, data_format: DataFormat, repairs: Repairs) -> PreferenceRow:
    """Return the row with the prompt that both answers share; raises BadRow."""
    request = row.get("input")
    asked: Columns = row["input"] if isinstance(request, dict) and "messages" in request else row
    if is_ranked(row) and not has_value(row, REJECTED_COLUMNS):
        chosen, (rejected, *others) = read_ranked(row, repairs)
        prompt = _read_prompt(asked, repairs)
    else:
        chosen, rejected, is_conversation = _read_answers(row, repairs)
        prompt, others = read_system(row, repairs) if is_conversation else _read_prompt(asked, repairs), []
        if has_value(row, CONVERSATION_COLUMNS) and row.get("prompt") is None:
            prompt = drop_answer(prompt, chosen)
    prompt, chosen, rejected = split_pair(prompt, chosen, rejected)
    tools = read_row_tools(asked, repairs)
    return PreferenceRow(prompt, chosen, rejected, source, data_format, tools, others=others)


def _read_prompt(row: Columns, repairs: Repairs) -> list[Message]:
    if row.get("prompt") is None and has_value(row, CONVERSATION_COLUMNS):
        return read_conversation(row, repairs)
    if has_value(row, (*INSTRUCTION_COLUMNS, *INPUT_COLUMNS)):
        return read_prompt(row, repairs)
    return read_system(row, repairs)


def _read_answers(row: Columns, repairs: Repairs) -> tuple[list[Message], list[Message], bool]:
    """Return both answers, and whether the chosen one is the row's conversation itself."""
    if is_ranked_output(row) and not has_value(row, REJECTED_COLUMNS):
        better, other = row["output"]
        return [Message(role="assistant", content=better)], [Message(role="assistant", content=other)], False
    rejected = find_column(row, REJECTED_COLUMNS)
    if rejected is None and (pair := find_judged_pair(row)):
        better, other = order_pair(row, pair)
        sides = [read_messages(row[name], name, "assistant", repairs) for name in (better, other)]
        return sides[0], sides[1], False
    if rejected is None:
        raise missing_column(REJECTED_COLUMNS)
    worse = read_messages(row[rejected], rejected, "assistant", repairs)
    if not has_value(row, (*CHOSEN_COLUMNS, *OUTPUT_COLUMNS)) and has_value(row, CONVERSATION_COLUMNS):
        conversation = find_column(row, CONVERSATION_COLUMNS) or ""
        return read_turns(row[conversation], conversation, repairs), worse, True
    chosen = find_column(row, (*CHOSEN_COLUMNS, *OUTPUT_COLUMNS))
    if chosen is None:
        raise missing_column(CHOSEN_COLUMNS)
    return read_messages(row[chosen], chosen, "assistant", repairs), worse, False
