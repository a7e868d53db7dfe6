"""Read single values in the forms that files use: null for absent, a number for text, a list in a string."""

import ast
import io
import json
import re
import tokenize
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import orjson

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_trainer.data.formats.columns import name_columns
from finetune_trainer.data.readers.json_row import load_exactly, name_type
from finetune_trainer.data.rows import BadRow

MAX_LITERAL_CHARACTERS = 1 << 16
"""Python's parser takes about 500 bytes of memory for each character of a literal."""
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
MEDIA_KEYS = ("image", "document", "video", "audio", "inlineData", "inline_data", "fileData", "file_data")
"""Keys of the parts of Bedrock and Gemini, which have no type."""

# These keys include 1 and 0, which equal the booleans in Python.
LABELS: Mapping[object, bool] = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}

Repairs = set[RepairCode]
# Items without a comma between them. Python joins two texts without one, and a text may contain the same characters.
_WITHOUT_COMMAS = re.compile(r"[}\]]\s+[{\[]|\barray\(")
_TEXTS_WITHOUT_COMMAS = re.compile(r"['\"]\s+['\"]")
_ONE_TEXT = "join them into one text, or keep one of them"


def read_text(value: object, where: str, repairs: Repairs) -> str:
    """Return a value as text: scalars are converted, text parts joined; raises BadRow for anything else."""
    if isinstance(value, str):
        return value
    if value is None:
        raise BadRow(RejectCode.NULL_FIELD, f"{where} is null: give it a text, or remove the row")
    if isinstance(value, bool | int | float):
        repairs.add(RepairCode.COERCED_SCALAR)
        return dump_json(value, where)
    if isinstance(value, list):
        return "".join(_read_part(part, where) for part in value)
    raise BadRow(RejectCode.WRONG_TYPE, f"{where} is {name_type(value)} instead of text")


def read_cell(value: object, where: str, repairs: Repairs) -> str:
    """Return a column's value as text, like `read_text`, but do not join several texts."""
    if isinstance(value, list) and len(value) > 1 and all(isinstance(part, str) for part in value):
        raise BadRow(RejectCode.WRONG_TYPE, f"{where} contains {len(value)} texts instead of one: {_ONE_TEXT}")
    return read_text(value, where, repairs)


def read_label(value: object, where: str) -> bool:
    """Return a label given as a boolean, as 0 or 1, or as text; raises BadRow with BAD_LABEL."""
    key = value.strip().lower() if isinstance(value, str) else value
    known = LABELS.get(key) if isinstance(key, str | bool | int | float) else None
    if known is None:
        shown = str(value)[:40]
        hint = "if the column does not judge the answer, set format, for example Alpaca or OpenAI"
        raise BadRow(RejectCode.BAD_LABEL, f"{where} is {shown!r} instead of true or false; {hint}")
    return known


def read_optional_text(row: Mapping[str, Any], name: str, repairs: Repairs) -> str:
    """Return an optional field as text; null counts as absent."""
    if name not in row:
        return ""
    if row[name] is None:
        repairs.add(RepairCode.NONE_STRIPPED)
        return ""
    return read_cell(row[name], name, repairs)


def read_list(value: object, where: str, code: RejectCode) -> list[Any]:
    """Return a list, which may be a string with JSON or a Python literal."""
    if isinstance(value, str):
        value = parse_nested(value, where, code)
    if value is None:
        raise BadRow(RejectCode.NULL_FIELD, f"{where} is null")
    if not isinstance(value, list):
        raise BadRow(code, f"{where} is {name_type(value)} instead of an array")
    return value


def _read_part(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise BadRow(RejectCode.WRONG_TYPE, f"{where} has a part that is {name_type(part)}")
    kind = part.get("type", next((key for key in MEDIA_KEYS if key in part), "text"))
    key = TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if key is None:
        raise BadRow(
            RejectCode.UNSUPPORTED_MODALITY, f"{where} has a part of type {str(kind)[:40]!r}; only text is trained"
        )
    if not isinstance(part.get(key), str):
        raise BadRow(RejectCode.WRONG_TYPE, f"{where} has a text part without text, but {name_columns(part)}")
    return str(part[key])


def dump_json(value: object, where: str) -> str:
    """Return a value as JSON with all digits; raises BadRow for bytes, which JSON does not have."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        pass
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except TypeError:
        raise BadRow(RejectCode.WRONG_TYPE, f"{where} has a value that JSON does not have") from None


class NumpyText(BadRow):
    """Raised for an array that NumPy wrote as text, of which the items are not certain."""


def parse_nested(text: str, where: str, code: RejectCode) -> object:
    """Parse a string as JSON or as a Python literal; raises BadRow with this code, NumpyText for NumPy's form."""
    try:
        return load_exactly(text)
    except orjson.JSONDecodeError:
        pass
    if len(text) > MAX_LITERAL_CHARACTERS:
        limit = f"{MAX_LITERAL_CHARACTERS >> 10} KiB"
        raise BadRow(code, f"{where} is a string that is not JSON; a Python literal may have at most {limit}")
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        if _WITHOUT_COMMAS.search(text):
            raise _explain_numpy(where, code) from None
        raise BadRow(code, f"{where} is a string that is neither JSON nor a Python literal") from None
    if isinstance(value, list) and _TEXTS_WITHOUT_COMMAS.search(text) and _joins_texts(text):
        raise _explain_numpy(where, code)
    try:
        json.dumps(value)
    except (ValueError, TypeError, RecursionError):
        raise BadRow(code, f"{where} is a string with a Python value that JSON does not have") from None
    return value


def _joins_texts(text: str) -> bool:
    """Return whether two texts of a Python literal have nothing but space between them."""
    kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(text.strip()).readline)]
    kinds = [kind for kind in kinds if kind != tokenize.NL]
    return any(one == other == tokenize.STRING for one, other in pairwise(kinds))


def _explain_numpy(where: str, code: RejectCode) -> NumpyText:
    fix = "write the column as JSON, with json.dumps"
    return NumpyText(code, f"{where} is a NumPy array as text, which has no commas: {fix}")
