"""The names of columns in the formats of rows: the keys of `dataset.columns`."""

from difflib import get_close_matches

MAIN_NAMES = (
    *("messages", "instruction", "prompt", "input", "output", "completion", "reasoning_content", "system"),
    *("chosen", "rejected", "label", "responses", "ranks", "scores", "text", "tools", "history", "role", "content"),
)
"""One or two names of each column, and the two within each turn."""
COLUMN_NAMES = frozenset(
    (
        *MAIN_NAMES,
        *("conversations", "conversation", "dialogue", "chat", "turns", "contents"),
        *("query", "question", "problem", "context", "system_prompt"),
        *("system_instruction", "systemInstruction", "toolConfig"),
        *("response", "answer", "target", "generation", "thinking"),
        *("chosen_response", "chosen_messages", "preferred_output"),
        *("rejected_response", "rejected_messages", "non_preferred_output"),
        *("kto_tag", "answers", "completions", "generations", "ranking", "ratings", "functions"),
    )
)


def find_unknown(names: frozenset[str]) -> list[str]:
    """Return the names that are in no format, in order."""
    return sorted(names - COLUMN_NAMES)


def fix_column(name: str) -> str:
    """Return what to write in place of a name that is in no format."""
    near = get_close_matches(name, sorted(COLUMN_NAMES), n=1, cutoff=0.7)
    return f"did you mean {near[0]}?" if near else f"the known names are {', '.join(MAIN_NAMES)}"
