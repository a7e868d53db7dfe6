"""Convert one row of a known format to a canonical row, and record the repairs."""

from collections.abc import Callable, Mapping

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.formats.columns import (
    CONVERSATION_COLUMNS,
    INSTRUCTION_COLUMNS,
    LABEL_COLUMNS,
    OUTPUT_COLUMNS,
    TEXT_COLUMNS,
    Columns,
    UnknownColumns,
    find_column,
    find_filled,
    has_value,
    missing_column,
)
from finetune_trainer.data.formats.conversations import (
    ends_with_speaker,
    holds_turns,
    read_conversation,
    read_messages,
    read_row_tools,
)
from finetune_trainer.data.formats.fields import Repairs, read_cell, read_label
from finetune_trainer.data.formats.instructions import add_reasoning, convert_alpaca, convert_prompt_completion
from finetune_trainer.data.formats.pairs import convert_preference
from finetune_trainer.data.formats.shared_prompt import join_prompt
from finetune_trainer.data.rows import (
    BadRow,
    ChatRow,
    DataFormat,
    Message,
    PreferenceRow,
    Row,
    Source,
    TextRow,
    UnpairedRow,
)

MEDIA_COLUMNS = frozenset(("image", "images", "audio", "audios", "video", "videos"))


def convert_row(
    row: Columns, data_format: DataFormat, source: Source, repairs: Repairs, *, prompts_wanted: bool = False
) -> Row:
    """Return the row in canonical shape, before the structure checks; raises BadRow.

    If `prompts_wanted`, an answer that cannot be read costs the row nothing but the answer.
    """
    if not MEDIA_COLUMNS.isdisjoint(row):
        for name in sorted(MEDIA_COLUMNS.intersection(row)):
            if row[name]:
                raise BadRow(RejectCode.UNSUPPORTED_MODALITY, f"the row has the column {name!r}; only text is trained")
    if prompts_wanted and (convert := _OF_PROMPTS.get(data_format)):
        converted: Row = convert(row, source, data_format, repairs, prompts_wanted=True)
    else:
        converted = _CONVERTERS[data_format](row, source, data_format, repairs)
    if ends_with_speaker(row.get("prompt")) and find_column(row, INSTRUCTION_COLUMNS) == "prompt":
        _strip_answers(converted)
    return converted


def _strip_answers(row: Row) -> None:
    """Remove the space that separates an answer from the name of its speaker, with which the prompt ends."""
    match row:
        case ChatRow():
            answers = [row.messages]
        case PreferenceRow():
            answers = [row.chosen[:1], row.rejected[:1], *(other[:1] for other in row.others)]
        case UnpairedRow():
            answers = [row.prompt]  # the answer is still among them
        case _:
            return
    for turns in answers:
        if turns and turns[-1]["role"] == "assistant" and "untrained" not in turns[-1]:
            turns[-1]["content"] = turns[-1]["content"].strip()


def _convert_conversation(row: Columns, source: Source, data_format: DataFormat, repairs: Repairs) -> ChatRow:
    messages = read_conversation(row, repairs)
    if messages and messages[-1]["role"] in ("user", "tool"):
        answer = _read_answer_column(row, repairs)
        if answer:
            add_reasoning(row, answer, repairs)
        messages = join_prompt(messages, answer)
    return ChatRow(messages, source, data_format, read_row_tools(row, repairs))


def _read_answer_column(row: Columns, repairs: Repairs) -> list[Message]:
    """Return the answer of turns that end without one, from its column; none if that has several texts or data."""
    column = find_filled(row, OUTPUT_COLUMNS) or ""
    value = row.get(column)
    is_answer = isinstance(value, str | int | float) or holds_turns(value if isinstance(value, list) else [value])
    return read_messages(row[column], column, "assistant", repairs) if is_answer else []


def _convert_unpaired(row: Columns, source: Source, data_format: DataFormat, repairs: Repairs) -> UnpairedRow:
    column = find_column(row, LABEL_COLUMNS)
    if column is None:
        raise missing_column(LABEL_COLUMNS)
    label = read_label(row[column], column)
    convert = _convert_conversation if has_value(row, CONVERSATION_COLUMNS) else convert_alpaca
    judged = convert(row, source, data_format, repairs)
    if not isinstance(judged, ChatRow):
        raise UnknownColumns(RejectCode.NO_ASSISTANT, f"the row has {column} but no answer", ("answer",))
    return UnpairedRow(judged.messages, [], label, source, data_format, judged.tools)


def _convert_text(row: Columns, source: Source, data_format: DataFormat, repairs: Repairs) -> TextRow:
    column = find_column(row, TEXT_COLUMNS)
    if column is None:
        raise missing_column(TEXT_COLUMNS)
    return TextRow(read_cell(row[column], column, repairs), source, data_format)


_CONVERTERS: Mapping[DataFormat, Callable[[Columns, Source, DataFormat, Repairs], Row]] = {
    DataFormat.OPENAI: _convert_conversation,
    DataFormat.SHAREGPT: _convert_conversation,
    DataFormat.ALPACA: convert_alpaca,
    DataFormat.PROMPT_COMPLETION: convert_prompt_completion,
    DataFormat.PREFERENCE: convert_preference,
    DataFormat.UNPAIRED: _convert_unpaired,
    DataFormat.TEXT: _convert_text,
}
_OF_PROMPTS = {DataFormat.ALPACA: convert_alpaca, DataFormat.PROMPT_COMPLETION: convert_prompt_completion}
