"""The codes of rejected and repaired rows, each with the sentence that reports and docs/datasets.md use."""

from collections.abc import Mapping
from enum import StrEnum


class RejectCode(StrEnum):
    """Why a row was rejected."""

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
    NO_REFERENCE = "NO_REFERENCE"
    LONE_SURROGATE = "LONE_SURROGATE"
    CONTROL_TOKEN_IN_TEXT = "CONTROL_TOKEN_IN_TEXT"  # noqa: S105 - a code, not a password
    TOO_LONG = "TOO_LONG"
    PROMPT_FILLS_CONTEXT = "PROMPT_FILLS_CONTEXT"
    OVER_MAX_LENGTH = "OVER_MAX_LENGTH"
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
    RANKING_SPLIT = "RANKING_SPLIT"
    LATER_TURNS_UNUSED = "LATER_TURNS_UNUSED"
    ANSWER_UNUSED = "ANSWER_UNUSED"
    REASONING_LOST = "REASONING_LOST"
    REASONING_UNCLOSED = "REASONING_UNCLOSED"


SENTENCES: Mapping[RejectCode | RepairCode, str] = {
    RejectCode.BAD_JSON: "The line is not valid JSON, or not a valid record of a CSV file.",
    RejectCode.BAD_UTF8: "The line holds bytes that are not UTF-8.",
    RejectCode.DUP_KEY: "A JSON object or the CSV header contains the same key twice.",
    RejectCode.NOT_OBJECT: "The row is not a JSON object.",
    RejectCode.UNKNOWN_FORMAT: "The row's columns match no known format.",
    RejectCode.MISSING_COLUMN: "A required column is missing, or the number of cells differs from the CSV header.",
    RejectCode.NULL_FIELD: "A required field is null.",
    RejectCode.WRONG_TYPE: "A field has the wrong type for its format.",
    RejectCode.EMPTY_PROMPT: "The prompt is empty.",
    RejectCode.EMPTY_RESPONSE: "The answer or the text to train on is empty.",
    RejectCode.EMPTY_TURN: "A turn inside the conversation is empty.",
    RejectCode.UNKNOWN_ROLE: "A turn's role is not system, user, assistant, tool or one of their aliases.",
    RejectCode.SYSTEM_NOT_FIRST: "A system turn is not at the start of the conversation.",
    RejectCode.BAD_ALTERNATION: "The turns do not alternate between prompt and answer, starting with a prompt.",
    RejectCode.NO_ASSISTANT: "The conversation has no answer to train on.",
    RejectCode.ORPHAN_TOOL: "A tool result does not match a tool call.",
    RejectCode.BAD_TOOL_CALL: "A tool call names an unlisted tool, or its arguments are missing or not a JSON object.",
    RejectCode.BAD_TOOLS: "The list of tools is not a list of function definitions.",
    RejectCode.UNSUPPORTED_MODALITY: "The row contains images, audio or other content that is not text.",
    RejectCode.NO_TRAINABLE_TURN: "Every answer to train on is excluded by a mark such as train: false or weight: 0.",
    RejectCode.SAME_PAIR: "The chosen and the rejected answer are the same.",
    RejectCode.NO_SHARED_PROMPT: "The chosen and the rejected conversation do not share a prompt.",
    RejectCode.BAD_LABEL: "The label is not a boolean, or it is false and the objective would train on the answer.",
    RejectCode.NOT_FOR_OBJECTIVE: "The row is well formed, but the objective cannot train on it.",
    RejectCode.NO_REFERENCE: "The row has no reference, or none that an answer can be compared with.",
    RejectCode.LONE_SURROGATE: "A string contains half of a surrogate pair, which is not a character.",
    RejectCode.CONTROL_TOKEN_IN_TEXT: "A turn's text contains one of the tokenizer's special tokens.",
    RejectCode.TOO_LONG: "The row exceeds the limit for text or turns.",
    RejectCode.PROMPT_FILLS_CONTEXT: "The prompt alone fills maxLength, so no token of the answer is left to train on.",
    RejectCode.OVER_MAX_LENGTH: "The row has more tokens than maxLength, and longRows is Skip.",
    RejectCode.DUPLICATE: "The row repeats an earlier row.",
    RejectCode.TEMPLATE_ERROR: "The model's chat template rejects the row or omits parts of it.",
    RejectCode.EVAL_LEAK: "The row's prompt is also in the validation file.",
    RepairCode.TRAILING_USER_TRIMMED: "Turns after the last answer were removed.",
    RepairCode.COERCED_SCALAR: "A number or boolean in a text field was converted to text.",
    RepairCode.NONE_STRIPPED: "A null or empty optional field was removed.",
    RepairCode.TRUNCATED: "The row has more tokens than maxLength and was truncated.",
    RepairCode.ANSWER_CUT: "An answer exceeds maxLength: its end and its stop token are not trained on.",
    RepairCode.PROMPT_CUT: "The beginning of the prompt was removed to make room for the answer.",
    RepairCode.DOCUMENT_SPLIT: "The text exceeds maxLength and was split into several samples; nothing is lost.",
    RepairCode.SYSTEM_MERGED: "System turns were merged, or moved into the first prompt for lack of a system role.",
    RepairCode.CHOSEN_SIDE_USED: "Only the chosen answer of a preference pair is trained on.",
    RepairCode.PAIR_SPLIT: "A preference pair was split into a desirable and an undesirable row.",
    RepairCode.RANKING_SPLIT: "Ranked answers were split: the best with each worse one, or each with its own label.",
    RepairCode.LATER_TURNS_UNUSED: "Only the first answers in which a pair differs are compared, not the turns after.",
    RepairCode.ANSWER_UNUSED: "The row's answers were dropped because the objective uses only the prompt.",
    RepairCode.REASONING_LOST: "The chat template omits an answer's reasoning, which is not trained on.",
    RepairCode.REASONING_UNCLOSED: "An answer begins its reasoning and does not end it, so it was probably truncated.",
}

# These rows are well formed: they are rejected because of other rows, or because the job asks for it.
WELL_FORMED_REJECTS = frozenset({RejectCode.DUPLICATE, RejectCode.EVAL_LEAK, RejectCode.OVER_MAX_LENGTH})
