"""The column names of the formats, and which of them a row has."""

from collections.abc import Iterable, Mapping
from typing import Any

from finetune_api.dataset.codes import RejectCode
from finetune_api.text.printable import printable
from finetune_trainer.data.invisible import BLANK
from finetune_trainer.data.rows import BadRow
from finetune_trainer.errors import name_some

Columns = Mapping[str, Any]

CONVERSATION_COLUMNS = ("messages", "conversations", "conversation", "dialogue", "chat", "turns", "contents")
INSTRUCTION_COLUMNS = ("instruction", "query", "question", "problem", "prompt")
INPUT_COLUMNS = ("input", "context")
OUTPUT_COLUMNS = ("output", "response", "answer", "completion", "target", "generation")
REASONING_COLUMNS = ("reasoning_content", "thinking")
SYSTEM_COLUMNS = ("system", "system_prompt", "system_instruction", "systemInstruction")
CHOSEN_COLUMNS = ("chosen", "chosen_response", "chosen_messages", "preferred_output")
REJECTED_COLUMNS = ("rejected", "rejected_response", "rejected_messages", "non_preferred_output")
LABEL_COLUMNS = ("label", "kto_tag")
RANKED_COLUMNS = ("responses", "answers", "completions", "generations")
RANK_COLUMNS = ("ranks", "ranking")
SCORE_COLUMNS = ("scores", "ratings")
TEXT_COLUMNS = ("text",)
TOOL_COLUMNS = ("tools", "functions", "toolConfig")
ROLE_KEYS = ("role", "from", "speaker")
CONTENT_KEYS = ("content", "value", "text", "parts")

ALIASES = (
    CONVERSATION_COLUMNS,
    INSTRUCTION_COLUMNS,
    INPUT_COLUMNS,
    OUTPUT_COLUMNS,
    REASONING_COLUMNS,
    SYSTEM_COLUMNS,
    CHOSEN_COLUMNS,
    REJECTED_COLUMNS,
    LABEL_COLUMNS,
    RANKED_COLUMNS,
    RANK_COLUMNS,
    SCORE_COLUMNS,
    TEXT_COLUMNS,
    TOOL_COLUMNS,
    ("history",),
)
_MISNAMED = {"turns": int | float, "contents": str}
_MAY_BE_MISNAMED = frozenset(_MISNAMED)
COLUMNS_OF_TURNS = (*CONVERSATION_COLUMNS, "prompt", "input", *OUTPUT_COLUMNS, *CHOSEN_COLUMNS, *REJECTED_COLUMNS)
TURN_ALIASES = (ROLE_KEYS, CONTENT_KEYS)
TURN_KEYS = frozenset({"role", "content"})
"""Mapped names that are not of columns, but of what each turn of a conversation has."""
KNOWN_COLUMNS = frozenset(name for names in ALIASES for name in names)
CLASS_COLUMNS = (
    *("label_text", "label_name", "label", "labels", "category", "class", "sentiment", "intent", "emotion", "topic"),
    *("summary", "highlights", "generated_solution", "solution", "canonical_solution"),
)
"""Usual names of what is predicted for a text; they are read only if the user maps them."""
CHOICE_COLUMNS = ("choices", "options")
"""Usual names of the choices of a question, which nothing reads."""
MAX_COLUMNS_NAMED = 12
MAX_NAME_CHARACTERS = 40
METADATA = frozenset(
    (
        *("id", "ids", "idx", "index", "unnamed: 0", "uid", "uuid", "guid", "hash", "sha256"),
        *("source", "sources", "dataset", "subset", "split", "url", "link", "license", "licence"),
        *("created", "created_at", "updated", "updated_at", "date", "time", "timestamp", "version"),
        *("language", "lang", "model", "metadata", "meta"),
        *("temperature", "top_p", "max_tokens", "tool_choice", "parallel_tool_calls"),
    )
)
"""Columns that describe a row, or the request that it is of; so do those whose names begin with `_` or end in `_id`."""


class ReadColumns(dict[str, Any]):
    """The columns of a row; `read` has those whose values were read with `row[name]`.

    `row.get` and `in` only find out which columns a row has.
    """

    __slots__ = ("read",)

    def __init__(self, row: Mapping[str, Any]) -> None:
        super().__init__(row)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)


def drop_misnamed(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row without `turns` if that is their number, and without `contents` if that is a text."""
    if _MAY_BE_MISNAMED.isdisjoint(row):
        return row
    return {name: value for name, value in row.items() if not is_misnamed(name, value)}


def is_misnamed(name: str, value: object) -> bool:
    """Return whether a column has the name of one of turns, but something else, as many files do."""
    return name in _MAY_BE_MISNAMED and isinstance(value, _MISNAMED[name])


def follow_path(row: Columns, path: str) -> Any:
    """Return the value of a column, or at a path through objects and arrays, as `translation.en` or `answers.text.0`.

    Raises KeyError if there is none.
    """
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            raise KeyError(path)
    return value


def find_root(path: str) -> str:
    """Return the column in which a path begins."""
    return path.partition(".")[0]


def is_metadata(name: str) -> bool:
    """Return whether a column describes the row by its name, so that it hardly belongs to the training."""
    lowered = name.lower()
    return lowered in METADATA or lowered.startswith("_") or lowered.endswith("_id")


def find_column(row: Columns, names: tuple[str, ...]) -> str | None:
    """Return the first of these columns with a value; a null column only if no other has a value."""
    found = None
    for name in names:
        if row.get(name) is not None:
            return name
        if found is None and name in row:
            found = name
    return found


def has_value(row: Columns, names: tuple[str, ...]) -> bool:
    """Return whether one of these columns is present and not null."""
    for name in names:  # noqa: SIM110 - called for every row, and `any` takes twice as long
        if row.get(name) is not None:
            return True
    return False


def find_filled(row: Columns, names: tuple[str, ...]) -> str | None:
    """Return the first of these columns that is not blank."""
    for name in names:
        if not is_blank(row.get(name)):
            return name
    return None


def is_blank(value: object) -> bool:
    """Return whether a cell is null or an empty text, as the cells of a table that a row does not use."""
    return value is None or (isinstance(value, str) and not value.strip(BLANK))


def is_empty(value: object) -> bool:
    """Return whether a value is null, a blank text, or an array or object without content."""
    return is_blank(value) or value in ([], {})


class UnknownColumns(BadRow):
    """Raised for a row that lacks what is `wanted`, perhaps because the column of it has a name of the user's own."""

    def __init__(self, code: RejectCode, detail: str, wanted: tuple[str, ...] = ()) -> None:
        super().__init__(code, detail)
        self.wanted = wanted


def missing_column(names: tuple[str, ...]) -> BadRow:
    """Return the error for a row that has none of these columns."""
    detail = f"the row has none of these columns: {', '.join(names)}"
    return UnknownColumns(RejectCode.MISSING_COLUMN, detail, names[:1])


def name_columns(columns: Iterable[object]) -> str:
    """Return column names for a message: at most a dozen, long names truncated."""
    names = [shorten_name(column) for column in columns]
    return name_some(names, MAX_COLUMNS_NAMED) if names else "none"


def shorten_name(column: object) -> str:
    """Return the beginning of a column's name, as a message shows it."""
    return printable(str(column)[:MAX_NAME_CHARACTERS])
