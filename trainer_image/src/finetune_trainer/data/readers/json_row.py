"""Parse the bytes of one row as a JSON object, with an exact error."""

import json
import math
import re
from collections.abc import Iterable
from typing import Any, NoReturn, TypeVar, cast

import orjson

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.rows import BadRow

_Value = TypeVar("_Value")

MAX_DETAIL_CHARACTERS = 200
_LONG_NUMBER = b"0" * 19
_DIGITS_AS_ZERO = bytes.maketrans(b"123456789", b"000000000")
_ENDS_IN_CR = re.compile(r"\}[ \t]*\r(?!\n)\s*\{")
_JSON_NAMES = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
}


def parse_object(raw: bytes) -> dict[str, Any]:
    """Parse one JSON object; raises BadRow with BAD_JSON, BAD_UTF8, LONE_SURROGATE, DUP_KEY or NOT_OBJECT."""
    value = _load(raw)
    if not isinstance(value, dict):
        raise BadRow(RejectCode.NOT_OBJECT, f"expected a JSON object, found {name_type(value)}")
    return _keep_exact(raw, value)


def parse_value(raw: bytes) -> object:
    """Parse any JSON value; raises BadRow as `parse_object` does."""
    return _keep_exact(raw, _load(raw))


def load_exactly(text: bytes | str) -> object:
    """Parse JSON as orjson does, but do not round integers above 64 bits; raises orjson.JSONDecodeError."""
    value = orjson.loads(text)
    raw = text.encode() if isinstance(text, str) else text
    try:
        return _load_exactly(raw) if _has_long_number(raw) else value
    except RecursionError:  # deeper than anything that is written again
        return value


def _has_long_number(raw: bytes) -> bool:
    """Return whether the text may have an integer above 64 bits, which has at least 19 digits."""
    return raw.translate(_DIGITS_AS_ZERO).find(_LONG_NUMBER) >= 0


def _load_exactly(raw: bytes) -> object:
    return json.loads(raw, parse_constant=lambda _: None)


def _load(raw: bytes) -> object:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        value = _read_with_nan(raw)
        if value is None:
            _explain(raw, error)
        return value


def _read_with_nan(raw: bytes) -> object:
    """Return a row in which Python or pandas wrote NaN or Infinity, with null in their place; None for any other."""
    if b"NaN" not in raw and b"Infinity" not in raw:
        return None
    try:
        return orjson.loads(orjson.dumps(json.loads(raw, parse_constant=lambda _: None, parse_int=_round_long)))
    except (
        ValueError,
        RecursionError,
        TypeError,
    ):  # not JSON otherwise either, or a number or text that orjson refuses
        return None


def _round_long(digits: str) -> float:
    if len(digits) < len(_LONG_NUMBER):
        return int(digits)
    rounded = float(digits)
    if math.isinf(rounded):
        raise ValueError
    return rounded


def name_type(value: object) -> str:
    """Return the JSON name of a value's type."""
    if value is None:
        return "null"
    return _JSON_NAMES.get(type(value), type(value).__name__)


def first_repeated(names: Iterable[str]) -> str | None:
    """Return the first name that repeats an earlier one, or None."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _explain(raw: bytes, error: orjson.JSONDecodeError) -> NoReturn:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as broken:
        raise BadRow(RejectCode.BAD_UTF8, f"byte {broken.start + 1} of the row is not UTF-8") from None
    if "surrogate" in str(error) and _has_lone_surrogate(text):
        raise BadRow(RejectCode.LONE_SURROGATE, "a \\u escape is half of a surrogate pair") from None
    reason = "the row is empty" if not text.strip() else str(error)
    if _ENDS_IN_CR.search(text):
        reason = "lines end in CR: convert them to LF"
    raise BadRow(RejectCode.BAD_JSON, reason[:MAX_DETAIL_CHARACTERS]) from None


def _has_lone_surrogate(text: str) -> bool:
    try:
        json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    except (ValueError, RecursionError):
        pass
    return False


def _keep_exact(raw: bytes, value: _Value) -> _Value:
    """Return the value with all digits of its numbers; raises BadRow with DUP_KEY, or BAD_JSON for deep nesting."""
    try:
        written = orjson.dumps(value)
    except TypeError:  # it reads deeper values than it writes
        raise BadRow(RejectCode.BAD_JSON, "the row is nested too deep") from None
    if written == raw:
        return value
    _refuse_duplicate_keys(raw, written)
    return cast("_Value", _load_exactly(raw)) if _has_long_number(raw) else value


def _refuse_duplicate_keys(raw: bytes, written: bytes) -> None:
    # orjson silently keeps the last of two equal keys. Serialized again, such an object has fewer quotes: a check at a
    # tenth of the cost of parsing with a hook. An escaped quote (\u0022) also differs, so json then decides.
    if raw.count(b'"') == written.count(b'"') and raw.find(b"\\u0022") < 0:
        return
    try:
        json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        return


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs) and (twice := first_repeated(key for key, _ in pairs)) is not None:
        raise BadRow(RejectCode.DUP_KEY, f"the object contains the key {twice[:40]!r} twice")
    return unique
