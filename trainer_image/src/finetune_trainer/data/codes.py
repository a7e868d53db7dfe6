"""The codes of rejected and repaired rows, each with the sentence that reports and docs/datasets.md use."""

from collections.abc import Mapping
from enum import StrEnum


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
