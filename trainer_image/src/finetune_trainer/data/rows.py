"""The canonical rows, the rejected ones, and the errors of a bad row or an unreadable file."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, Protocol

import orjson
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from finetune_api.dataset.codes import RejectCode, RepairCode

EXCERPT_CHARACTERS = 120

Role = Literal["system", "user", "assistant", "tool"]
Objective = Literal["Instruction", "Chat", "DPO", "KTO", "RewardModel", "RLHF", "Distillation", "DomainAdaptation"]

Labelling = Objective | Literal["Everything"]
"""The objective by whose rule tokens are labelled, or all tokens of a conversation."""


class DataFormat(StrEnum):
    """The input format of a row, named as in `dataset.format`."""

    ALPACA = "Alpaca"
    SHAREGPT = "ShareGPT"
    OPENAI = "OpenAI"
    PREFERENCE = "Preference"
    UNPAIRED = "Unpaired"
    PROMPT_COMPLETION = "PromptCompletion"
    TEXT = "Text"


FORMAT_SENTENCES: Mapping[DataFormat, str] = {
    DataFormat.ALPACA: "a question or instruction, and its answer, each in a column",
    DataFormat.SHAREGPT: "turns with from and value",
    DataFormat.OPENAI: "turns with role and content",
    DataFormat.PREFERENCE: "a better and a worse answer to a prompt",
    DataFormat.UNPAIRED: "an answer to a prompt, judged by a label",
    DataFormat.PROMPT_COMPLETION: "a prompt, and the completion that is trained",
    DataFormat.TEXT: "plain text",
}
"""What a row of each format looks like, as shown next to its name."""


class Function(TypedDict):
    """The called function; its arguments are an object, never a string."""

    name: str
    arguments: dict[str, Any]


class ToolCall(TypedDict):
    """One call of a tool by the assistant."""

    id: NotRequired[str]
    type: Literal["function"]
    function: Function


class Message(TypedDict):
    """One canonical turn; `train: false` keeps an answer from being trained, `untrained` some of its characters."""

    role: Role
    content: str
    name: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]
    tool_call_id: NotRequired[str]
    reasoning_content: NotRequired[str]
    train: NotRequired[bool]
    untrained: NotRequired[list[list[int]]]
    """Ranges `[start, end)` of `content`, in order and without overlap."""


@dataclass(frozen=True, slots=True)
class NamedPath:
    """A local file and the name that messages use, such as its S3 URI.

    `file_name` is by whose suffix the format is chosen, if that is not the name.
    """

    path: Path
    name: str
    file_name: str = ""


class Source(NamedTuple):
    """Where a row came from; lines count from 1."""

    file: str
    line: int


Tools = list[dict[str, Any]] | None


class Reference(TypedDict, total=False):
    """What of a row the rewards compare answers with, in addition to its prompt."""

    answer: str
    """The row's own answer."""
    columns: dict[str, Any]
    """Columns of the file, by their names there."""


@functools.lru_cache(8)
def _dump_file(name: str) -> bytes:
    return b',"_source":{"file":' + orjson.dumps(name) + b',"line":'


class EncodedSample(Protocol):
    """The counts of a tokenized row; `tokenization` defines the samples."""

    @property
    def tokens(self) -> int:
        """Number of tokens that the model reads."""

    @property
    def length(self) -> int:
        """Number of tokens of the longest sequence of the sample."""

    @property
    def trained(self) -> int:
        """Number of tokens with a loss."""

    @property
    def left_out(self) -> int:
        """Number of tokens cut off because of `max_length`."""

    @property
    def answer_cut(self) -> int:
        """Number of trained answers that lost tokens."""

    @property
    def reasoning_lost(self) -> int:
        """Number of trained answers whose reasoning the chat template drops."""

    @property
    def repairs(self) -> tuple[RepairCode, ...]:
        """Repairs made while tokenizing."""


class _Sourced(ABC):
    """The methods of every kind of row."""

    __slots__ = ()
    source: Source

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """Return the row without its source."""

    @abstractmethod
    def turns(self) -> list[Message]:
        """Return the turns that identify the row; none for a text without roles."""


@dataclass(slots=True, kw_only=True)
class _Row(_Sourced):
    """What happened to a row of any kind; `written` is its line of an earlier file."""

    repairs: tuple[RepairCode, ...] = ()
    unused: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """The columns with content that nothing has read, by their names in the file."""
    encodings: "tuple[EncodedSample, ...]" = ()
    written: bytes = field(default=b"", compare=False, repr=False)

    def to_line(self) -> bytes:
        """Return the line of `accepted.jsonl`."""
        source = _dump_file(self.source.file) + b"%d}}\n" % self.source.line
        return (self.written or orjson.dumps(self.content()))[:-1] + source


@dataclass(slots=True)
class ChatRow(_Row):
    """A conversation that ends with an answer."""

    messages: list[Message]
    source: Source
    format: DataFormat
    tools: Tools = None

    def content(self) -> dict[str, Any]:
        """Return the row without its source."""
        return {"messages": self.messages, "tools": self.tools} if self.tools else {"messages": self.messages}

    def turns(self) -> list[Message]:
        """Return the turns that identify the row."""
        return self.messages


@dataclass(slots=True)
class PreferenceRow(_Row):
    """Two answers to one prompt; each consists of the turns after the prompt, usually one.

    Of a ranking, `others` are answers that are worse than the chosen one, too, until the row is split into pairs.
    """

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    source: Source
    format: DataFormat
    tools: Tools = None
    others: list[list[Message]] = field(default_factory=list)

    def content(self) -> dict[str, Any]:
        """Return the row without its source."""
        row: dict[str, Any] = {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}
        return row | {"tools": self.tools} if self.tools else row

    def turns(self) -> list[Message]:
        """Return the turns that identify the row."""
        return self.prompt + self.chosen


@dataclass(slots=True)
class UnpairedRow(_Row):
    """One answer to a prompt and whether it is desirable."""

    prompt: list[Message]
    completion: list[Message]
    label: bool
    source: Source
    format: DataFormat
    tools: Tools = None

    def content(self) -> dict[str, Any]:
        """Return the row without its source."""
        row: dict[str, Any] = {"prompt": self.prompt, "completion": self.completion, "label": self.label}
        return row | {"tools": self.tools} if self.tools else row

    def turns(self) -> list[Message]:
        """Return the turns that identify the row."""
        return self.prompt + self.completion


@dataclass(slots=True)
class PromptRow(_Row):
    """A prompt for the model to answer."""

    prompt: list[Message]
    source: Source
    format: DataFormat
    tools: Tools = None
    reference: Reference | None = None

    def content(self) -> dict[str, Any]:
        """Return the row without its source."""
        row: dict[str, Any] = {"prompt": self.prompt}
        row |= {"tools": self.tools} if self.tools else {}
        return row | {"reference": self.reference} if self.reference else row

    def turns(self) -> list[Message]:
        """Return the turns that identify the row."""
        return self.prompt


@dataclass(slots=True)
class TextRow(_Row):
    """A text without roles; every token is trained on."""

    text: str
    source: Source
    format: DataFormat

    def content(self) -> dict[str, Any]:
        """Return the row without its source."""
        return {"text": self.text}

    def turns(self) -> list[Message]:
        """Return an empty list: a text has no turns."""
        return []


Row = ChatRow | PreferenceRow | UnpairedRow | PromptRow | TextRow


@dataclass(frozen=True, slots=True)
class Rejected:
    """A rejected row; `excerpt` has at most 120 characters, `tokens` is the length if that is the reason."""

    file: str
    line: int
    code: RejectCode
    detail: str
    excerpt: str
    tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the record in the form of `rejected.jsonl`."""
        return {
            "file": self.file,
            "line": self.line,
            "code": self.code.value,
            "detail": self.detail,
            "excerpt": self.excerpt,
        }


class TableRow(NamedTuple):
    """One row of a table: its number, its cells or its problem, the share of the file before it, and repairs."""

    number: int
    value: dict[str, Any] | None
    problem: "BadRow | None"
    share: float
    repairs: tuple[RepairCode, ...] = ()


class BadRow(Exception):  # noqa: N818 - a property of the row; readers catch it
    """Raised for a bad row and turned into a `Rejected`; `tokens` is the length if that is the reason."""

    def __init__(self, code: RejectCode, detail: str, tokens: int = 0) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.tokens = tokens


class BadTurn(BadRow):
    """Raised for a bad turn of a converted row; `number` counts the row's turns from 1."""

    def __init__(self, code: RejectCode, number: int, what: str) -> None:
        super().__init__(code, f"turn {number}{what}")
        self.number = number
        self.what = what


class UnreadableFile(Exception):  # noqa: N818 - a file, not one of its rows
    """Raised when a file is damaged or has an unsupported format."""


def read_canonical(row: Mapping[str, Any]) -> Row:
    """Return the row with the format of its canonical shape, not of its input."""
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
    return PromptRow(row["prompt"], source, DataFormat.PROMPT_COMPLETION, tools, row.get("reference"))
