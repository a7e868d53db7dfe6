"""Reads a canonical row back from the object that `accepted.jsonl` holds of it."""

from collections.abc import Mapping
from typing import Any

from finetune_trainer.data.rows import (
    ChatRow,
    DataFormat,
    PreferenceRow,
    PromptRow,
    Row,
    Source,
    TextRow,
    UnpairedRow,
)


def read_canonical(row: Mapping[str, Any]) -> Row:
    """Return the row; its format is the one that the canonical shape is, not the one that it came in."""
    source = Source(row["_source"]["file"], row["_source"]["line"])
    tools = row.get("tools")
    if "messages" in row:
        return ChatRow(row["messages"], source, DataFormat.OPENAI, tools)
    if "text" in row:
        return TextRow(row["text"], source, DataFormat.TEXT)
    if "chosen" in row:
        return PreferenceRow(row["prompt"], row["chosen"], row["rejected"], source, DataFormat.PREFERENCE, tools)
    if "label" in row:
        return UnpairedRow(row["prompt"], row["completion"], row["label"], source, DataFormat.UNPAIRED, tools)
    return PromptRow(row["prompt"], source, DataFormat.PROMPT_COMPLETION, tools)
