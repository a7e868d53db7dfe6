"""What flows through the data front door: the canonical rows, and the codes of what was refused or repaired."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, Protocol, TypedDict

import orjson

EXCERPT_CHARACTERS = 120

Role = Literal["system", "user", "assistant", "tool"]
Objective = Literal["Instruction", "Chat", "DPO", "KTO", "RewardModel", "RLHF", "DomainAdaptation"]


class RejectCode(StrEnum):
    """Why a row was refused."""

    BAD_JSON = "BAD_JSON"
    BAD_UTF8 = "BAD_UTF8"
    DUP_KEY = "DUP_KEY"
    NOT_OBJECT = "NOT_OBJECT"
    UNKNOWN_FORMAT = "UNKNOWN_FORMAT"
    MISSING_COLUMN = "MISSING_COLUMN"
    NULL_FIELD = "NULL_FIELD"
    WRONG_TYPE = "WRONG_TYPE"
    EMPTY_PROMPT = "EMPTY_PROMPT"
    EMPTY_RESPONSE = "EMPTY_RESPONSE"
    EMPTY_TURN = "EMPTY_TURN"
    UNKNOWN_ROLE = "UNKNOWN_ROLE"
    SYSTEM_NOT_FIRST = "SYSTEM_NOT_FIRST"
    BAD_ALTERNATION = "BAD_ALTERNATION"
    NO_ASSISTANT = "NO_ASSISTANT"
    ORPHAN_TOOL = "ORPHAN_TOOL"
    BAD_TOOL_CALL = "BAD_TOOL_CALL"
    BAD_TOOLS = "BAD_TOOLS"
    UNSUPPORTED_MODALITY = "UNSUPPORTED_MODALITY"
    NO_TRAINABLE_TURN = "NO_TRAINABLE_TURN"
    SAME_PAIR = "SAME_PAIR"
    NO_SHARED_PROMPT = "NO_SHARED_PROMPT"
    BAD_LABEL = "BAD_LABEL"
    NOT_FOR_OBJECTIVE = "NOT_FOR_OBJECTIVE"
    LONE_SURROGATE = "LONE_SURROGATE"
    CONTROL_TOKEN_IN_TEXT = "CONTROL_TOKEN_IN_TEXT"  # noqa: S105 - a code, not a password
    TOO_LONG = "TOO_LONG"
    PROMPT_FILLS_CONTEXT = "PROMPT_FILLS_CONTEXT"
    DUPLICATE = "DUPLICATE"
    TEMPLATE_ERROR = "TEMPLATE_ERROR"
    EVAL_LEAK = "EVAL_LEAK"


class RepairCode(StrEnum):
    """What was changed in a row that was kept."""

    TRAILING_USER_TRIMMED = "TRAILING_USER_TRIMMED"
    COERCED_SCALAR = "COERCED_SCALAR"
    NONE_STRIPPED = "NONE_STRIPPED"
    TRUNCATED = "TRUNCATED"
    ANSWER_CUT = "ANSWER_CUT"
    PROMPT_CUT = "PROMPT_CUT"
    DOCUMENT_SPLIT = "DOCUMENT_SPLIT"
    SYSTEM_MERGED = "SYSTEM_MERGED"
    CHOSEN_SIDE_USED = "CHOSEN_SIDE_USED"
    PAIR_SPLIT = "PAIR_SPLIT"
    ANSWER_UNUSED = "ANSWER_UNUSED"
    REASONING_LOST = "REASONING_LOST"


SENTENCES: Mapping[RejectCode | RepairCode, str] = {
    RejectCode.BAD_JSON: "The line is not valid JSON, or not a valid record of a CSV file.",
    RejectCode.BAD_UTF8: "The line holds bytes that are not UTF-8.",
    RejectCode.DUP_KEY: "A JSON object, or the CSV header, names the same key twice.",
    RejectCode.NOT_OBJECT: "The row is not a JSON object.",
    RejectCode.UNKNOWN_FORMAT: "The row's columns belong to no known format.",
    RejectCode.MISSING_COLUMN: "A column that the format needs is missing, or the cells do not match the CSV header.",
    RejectCode.NULL_FIELD: "A field that the format needs is null.",
    RejectCode.WRONG_TYPE: "A field has a type that its format does not allow.",
    RejectCode.EMPTY_PROMPT: "The prompt is empty.",
    RejectCode.EMPTY_RESPONSE: "The answer, or the text to train on, is empty.",
    RejectCode.EMPTY_TURN: "A turn inside the conversation is empty.",
    RejectCode.UNKNOWN_ROLE: "A turn's role is none of system, user, assistant, tool or their aliases.",
    RejectCode.SYSTEM_NOT_FIRST: "A system turn stands after the conversation has begun.",
    RejectCode.BAD_ALTERNATION: "The turns do not alternate between prompt and answer, beginning with a prompt.",
    RejectCode.NO_ASSISTANT: "The conversation has no answer to learn from.",
    RejectCode.ORPHAN_TOOL: "A tool result answers no tool call.",
    RejectCode.BAD_TOOL_CALL: "A tool call names no offered tool, or its arguments are not a JSON object.",
    RejectCode.BAD_TOOLS: "The list of tools is not a list of function definitions.",
    RejectCode.UNSUPPORTED_MODALITY: "The row holds images, audio or other content that is not text.",
    RejectCode.NO_TRAINABLE_TURN: "Every answer that the objective would train is marked as not to be trained.",
    RejectCode.SAME_PAIR: "The chosen and the rejected answer are the same.",
    RejectCode.NO_SHARED_PROMPT: "The chosen and the rejected conversation do not answer one prompt.",
    RejectCode.BAD_LABEL: "The label is neither true nor false, or marks the answer as one not to learn.",
    RejectCode.NOT_FOR_OBJECTIVE: "The row is well formed, but it is not what the objective learns from.",
    RejectCode.LONE_SURROGATE: "A string holds half of a surrogate pair, which is not a character.",
    RejectCode.CONTROL_TOKEN_IN_TEXT: "A turn's text spells one of the tokenizer's control tokens.",
    RejectCode.TOO_LONG: "The row is longer, or has more turns, than can be taken in.",
    RejectCode.PROMPT_FILLS_CONTEXT: "The prompt alone fills maxLength: no token of the answer is left to train.",
    RejectCode.DUPLICATE: "The same row came before.",
    RejectCode.TEMPLATE_ERROR: "The model's chat template refuses the row or leaves parts of it out.",
    RejectCode.EVAL_LEAK: "The row's prompt is also in the validation file.",
    RepairCode.TRAILING_USER_TRIMMED: "Turns after the last answer were removed.",
    RepairCode.COERCED_SCALAR: "A number or boolean stood where text belongs and was written as text.",
    RepairCode.NONE_STRIPPED: "A null or empty optional field was removed.",
    RepairCode.TRUNCATED: "The row has more tokens than maxLength and was cut.",
    RepairCode.ANSWER_CUT: "An answer reaches beyond maxLength: its end, with what stops the model, is not trained.",
    RepairCode.PROMPT_CUT: "The beginning of the prompt was left out, to make room for the answer.",
    RepairCode.DOCUMENT_SPLIT: "The text has more tokens than maxLength and became several samples; nothing is lost.",
    RepairCode.SYSTEM_MERGED: "System turns became one, or went into the first prompt for want of a system role.",
    RepairCode.CHOSEN_SIDE_USED: "Of a preference pair only the chosen answer is trained.",
    RepairCode.PAIR_SPLIT: "A preference pair became two rows: the chosen answer desirable, the rejected one not.",
    RepairCode.ANSWER_UNUSED: "The row's answers were left out: the objective takes the prompt alone.",
    RepairCode.REASONING_LOST: "The chat template does not show the reasoning of an answer, which is not trained.",
}

# These rows are well formed: they are left out for what else is in the files, not for what is in them.
WELL_FORMED_REJECTS = frozenset({RejectCode.DUPLICATE, RejectCode.EVAL_LEAK})


class DataFormat(StrEnum):
    """The shape in which a row came; the names are those of `dataset.format`."""

    ALPACA = "Alpaca"
    SHAREGPT = "ShareGPT"
    OPENAI = "OpenAI"
    PREFERENCE = "Preference"
    UNPAIRED = "Unpaired"
    PROMPT_COMPLETION = "PromptCompletion"
    TEXT = "Text"


class Function(TypedDict):
    """The called function and its arguments as an object, never as a string."""

    name: str
    arguments: dict[str, Any]


class ToolCall(TypedDict):
    """One call of a tool by the assistant."""

    id: NotRequired[str]
    type: Literal["function"]
    function: Function


class Message(TypedDict):
    """One canonical turn; `train: false` keeps an answer from being trained."""

    role: Role
    content: str
    name: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]
    tool_call_id: NotRequired[str]
    reasoning_content: NotRequired[str]
    train: NotRequired[bool]


@dataclass(frozen=True, slots=True)
class NamedPath:
    """A local file and the name that users know it by, such as its S3 URI."""

    path: Path
    name: str


class Source(NamedTuple):
    """Where a row came from; lines count from 1."""

    file: str
    line: int


Tools = list[dict[str, Any]] | None


@functools.lru_cache(8)
def _dump_file(name: str) -> bytes:
    return b',"_source":{"file":' + orjson.dumps(name) + b',"line":'


class EncodedSample(Protocol):
    """What the counts need of a tokenized row; the samples themselves are defined in `tokenization`."""

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
    """What every kind of row can tell of itself."""

    __slots__ = ()
    source: Source
    written: bytes

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """Return what the row says, without where it came from."""

    @abstractmethod
    def turns(self) -> list[Message]:
        """Return the turns by which a reader knows the row; none for a text without roles."""

    def to_dict(self) -> dict[str, Any]:
        """Return the row as `accepted.jsonl` holds it."""
        row = self.content()
        row["_source"] = {"file": self.source.file, "line": self.source.line}
        return row

    def to_line(self) -> bytes:
        """Return the line of `accepted.jsonl`."""
        source = _dump_file(self.source.file) + b"%d}}\n" % self.source.line
        return (self.written or orjson.dumps(self.content()))[:-1] + source


@dataclass(slots=True)
class ChatRow(_Sourced):
    """A conversation that ends with an answer."""

    messages: list[Message]
    source: Source
    format: DataFormat
    tools: Tools = None
    repairs: tuple[RepairCode, ...] = ()
    encodings: "tuple[EncodedSample, ...]" = ()
    written: bytes = field(default=b"", compare=False, repr=False)

    def content(self) -> dict[str, Any]:
        """Return what the row says, without where it came from."""
        return {"messages": self.messages, "tools": self.tools} if self.tools else {"messages": self.messages}

    def turns(self) -> list[Message]:
        """Return the turns by which a reader knows the row."""
        return self.messages


@dataclass(slots=True)
class PreferenceRow(_Sourced):
    """Two answers to one prompt; each is what follows the prompt, nearly always a single turn."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    source: Source
    format: DataFormat
    tools: Tools = None
    repairs: tuple[RepairCode, ...] = ()
    encodings: "tuple[EncodedSample, ...]" = ()
    written: bytes = field(default=b"", compare=False, repr=False)

    def content(self) -> dict[str, Any]:
        """Return what the row says, without where it came from."""
        row: dict[str, Any] = {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}
        return row | {"tools": self.tools} if self.tools else row

    def turns(self) -> list[Message]:
        """Return the turns by which a reader knows the row."""
        return self.prompt + self.chosen


@dataclass(slots=True)
class UnpairedRow(_Sourced):
    """One answer to a prompt, and whether it is a desirable one."""

    prompt: list[Message]
    completion: list[Message]
    label: bool
    source: Source
    format: DataFormat
    tools: Tools = None
    repairs: tuple[RepairCode, ...] = ()
    encodings: "tuple[EncodedSample, ...]" = ()
    written: bytes = field(default=b"", compare=False, repr=False)

    def content(self) -> dict[str, Any]:
        """Return what the row says, without where it came from."""
        row: dict[str, Any] = {"prompt": self.prompt, "completion": self.completion, "label": self.label}
        return row | {"tools": self.tools} if self.tools else row

    def turns(self) -> list[Message]:
        """Return the turns by which a reader knows the row."""
        return self.prompt + self.completion


@dataclass(slots=True)
class PromptRow(_Sourced):
    """A prompt that the model is to answer."""

    prompt: list[Message]
    source: Source
    format: DataFormat
    tools: Tools = None
    repairs: tuple[RepairCode, ...] = ()
    encodings: "tuple[EncodedSample, ...]" = ()
    written: bytes = field(default=b"", compare=False, repr=False)

    def content(self) -> dict[str, Any]:
        """Return what the row says, without where it came from."""
        return {"prompt": self.prompt, "tools": self.tools} if self.tools else {"prompt": self.prompt}

    def turns(self) -> list[Message]:
        """Return the turns by which a reader knows the row."""
        return self.prompt


@dataclass(slots=True)
class TextRow(_Sourced):
    """A text without roles, all of which is trained."""

    text: str
    source: Source
    format: DataFormat
    repairs: tuple[RepairCode, ...] = ()
    encodings: "tuple[EncodedSample, ...]" = ()
    written: bytes = field(default=b"", compare=False, repr=False)

    def content(self) -> dict[str, Any]:
        """Return what the row says, without where it came from."""
        return {"text": self.text}

    def turns(self) -> list[Message]:
        """Return nothing: a text has no turns."""
        return []


Row = ChatRow | PreferenceRow | UnpairedRow | PromptRow | TextRow


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that was left out, and why; `excerpt` has at most 120 characters, `tokens` is its length if that is why."""

    file: str
    line: int
    code: RejectCode
    detail: str
    excerpt: str
    tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the record as `rejected.jsonl` holds it."""
        return {
            "file": self.file,
            "line": self.line,
            "code": self.code.value,
            "detail": self.detail,
            "excerpt": self.excerpt,
        }


class BadRow(Exception):  # noqa: N818 - it says what the row is, and never leaves the front door
    """Raised where a row is found bad; the reader turns it into a `Rejected`. `tokens` is its length if that is why."""

    def __init__(self, code: RejectCode, detail: str, tokens: int = 0) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.tokens = tokens


class UnreadableFile(Exception):  # noqa: N818 - a file, not one of its rows
    """Raised when a file cannot be read as rows at all: damaged, or of a format that is not supported."""


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
