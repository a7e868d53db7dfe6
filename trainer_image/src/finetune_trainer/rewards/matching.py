"""The part of an answer that counts, and its comparison with a reference: pure functions of texts."""

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction

import regex

from finetune_api.rewards import AnswerReward, Extract, Match
from finetune_trainer.data.checks.row_keys import compose
from finetune_trainer.errors import InvalidConfig
from finetune_trainer.evaluation.expectations import PATTERN_SECONDS, compile_pattern
from finetune_trainer.rewards import similarity
from finetune_trainer.rewards.json_answers import compile_schema, is_equal_json, is_json, is_valid_json
from finetune_trainer.rewards.similarity import measure_similarity

REASONING_END = "</think>"
LONGEST_NUMBER = 64
"""Characters of a number; a longer one is none."""
LARGEST_EXPONENT = 308
"""As of a float; an exact fraction takes as many digits as its exponent."""

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_NUMBER = re.compile(rf"[-+]?(?P<digits>{_DIGITS})(?P<exponent>[eE][-+]?[0-9]{{1,4}})?")
# A sign after a word, a digit or a bracket subtracts; a number that begins inside a word is part of its name.
_RUN = re.compile(
    r"(?P<sign>(?<![0-9A-Za-z_)\]])[-+\u2212])?[$€£¥]?(?P<sign2>(?<=[$€£¥])[-+\u2212])?"
    r"(?P<run>(?:(?<![0-9A-Za-z_.])\.|(?<![0-9A-Za-z_])(?<![0-9]\.))"
    r"[0-9](?:[0-9,.]{0,64}[0-9])?(?:[eE][-+]?[0-9]{1,4}(?![0-9A-Za-z]))?)"
)
_CURRENCY = re.compile(r"\\?[$€£¥]")
_LETTER = re.compile(r"[\s(\[*]*([A-Za-z])[\s)\].:*]*")
_NAMED_LETTER = re.compile(
    r"(?i:answer|choice|option)(?i:\s+is)?\s*:?[\s*(\[$]{0,4}(?:\\boxed\{)?([A-Z])(?![A-Za-z0-9'\u2019])"
)
_FIRST_LETTER = re.compile(r"[\s(\[*]{0,4}([A-Z])[).\]:*](?![A-Za-z0-9])")


class Matcher:
    """Compares answers with references; raises InvalidConfig for an unusable schema, and for a pattern that is invalid
    or has not one group."""

    def __init__(self, settings: AnswerReward, name: str) -> None:
        self._settings = settings
        self._pattern = compile_group(settings.pattern, f"{name}.pattern") if settings.pattern else None
        if settings.json_schema is not None and (fault := _find_fault_of_schema(settings.json_schema)):
            raise InvalidConfig(f"{name}.jsonSchema {fault}")

    def score(self, answer: str, references: Sequence[str]) -> float:
        """Return 1 if the answer is one of the references, or valid by one that is a schema or by the job's schema,
        else 0; with match Similar, its similarity to the most similar reference.

        Raises TimeoutError if the pattern takes too long.
        """
        found = self.extract(answer)
        own, how = self._settings.json_schema, self._settings.similarity
        correct = references if own is None else [own]
        if found is None:
            return 0.0
        if how is not None:
            return max((measure_similarity(found, self._read(reference), how) for reference in correct), default=0.0)
        return float(any(self._is_same(found, self._read(reference)) for reference in correct))

    def extract(self, answer: str) -> str | None:
        """Return the part of an answer that is compared, a pattern's of the reasoning before it too; raises
        TimeoutError."""
        if self._pattern is not None:
            return last_group(self._pattern, answer)
        return _EXTRACTORS[self._settings.extract](after_reasoning(answer))

    def find_fault(self, reference: str) -> str | None:
        """Return why no answer can be compared with this reference, as a predicate; None if one can, or if the job's
        schema takes its place."""
        if self._settings.match is Match.JSON_SCHEMA:
            return _find_fault_of_schema(reference) if self._settings.json_schema is None else None
        try:
            read = self._read(reference)
        except TimeoutError:
            return f"takes the pattern longer than {PATTERN_SECONDS} s"
        if self._settings.similarity is not None:
            return similarity.find_fault(read, self._settings.similarity)
        return None if self._is_readable(read) else _FAULTS[self._settings.match]

    def _read(self, reference: str) -> str:
        """Return what counts of a reference: the same part as of an answer; else the result of a worked solution; else
        all of it. Of a schema that is all."""
        if self._settings.match is Match.JSON_SCHEMA:
            return reference
        found = self.extract(reference)
        if self._settings.match not in {Match.EXACT, Match.SIMILAR}:
            found = next(filter(self._is_readable, (found, after_hashes(reference), last_boxed(reference))), None)
        return reference if found is None else found

    def _is_readable(self, part: str | None) -> bool:
        if part is None:
            return False
        match self._settings.match:
            case Match.EXACT | Match.SIMILAR:
                return bool(part.strip())
            case Match.NUMERIC:
                return parse_number(part) is not None
            case Match.MULTIPLE_CHOICE:
                return parse_choice(part) is not None
            case Match.JSON | Match.JSON_SCHEMA:
                return is_json(part)

    def _is_same(self, answer: str, reference: str) -> bool:
        match self._settings.match:
            case Match.EXACT | Match.SIMILAR:
                return is_same_text(answer, reference, ignore_case=self._settings.ignore_case)
            case Match.NUMERIC:
                absolute, relative = self._settings.absolute_tolerance, self._settings.relative_tolerance
                return is_same_number(answer, reference, absolute or 0.0, relative or 0.0)
            case Match.MULTIPLE_CHOICE:
                chosen = parse_choice(answer)
                return chosen is not None and chosen == parse_choice(reference)
            case Match.JSON:
                return is_equal_json(answer, reference)
            case Match.JSON_SCHEMA:
                return is_valid_json(answer, reference)


def _find_fault_of_schema(text: str) -> str | None:
    try:
        compile_schema(text)
    except ValueError as error:
        return str(error)
    return None


def is_same_text(answer: str, reference: str, *, ignore_case: bool) -> bool:
    """Return whether the texts are equal in Unicode's composed form, without the spaces around them."""
    left, right = (compose(text.strip()) for text in (answer, reference))
    return left.casefold() == right.casefold() if ignore_case else left == right


def is_same_number(answer: str, reference: str, absolute: float, relative: float) -> bool:
    """Return whether both are numbers, whose difference is within the larger tolerance; computed without rounding."""
    left, right = parse_number(answer), parse_number(reference)
    if left is None or right is None:
        return False
    return abs(left - right) <= max(_exactly(absolute), _exactly(relative) * abs(right))


def parse_number(text: str) -> Fraction | None:
    """Return the number that a text consists of; None for any other text, and for NaN and infinity.

    Digits are 0 to 9, the decimal point is a point, a comma separates thousands. A currency sign before it and a
    percent sign or a full stop after it are ignored.
    """
    plain = _CURRENCY.sub("", text.strip()[: LONGEST_NUMBER + 1]).replace("\u2212", "-").strip()
    plain = plain.removesuffix(".").removesuffix("%").removesuffix("\\").strip()
    found = _NUMBER.fullmatch(plain) if len(text.strip()) <= LONGEST_NUMBER else None
    if found is None or abs(int((found["exponent"] or "e0")[1:])) > LARGEST_EXPONENT:
        return None
    return Fraction(Decimal(plain.replace(",", "")))


def after_reasoning(text: str) -> str:
    """Return what follows the reasoning; all of a text without any. Some templates write its marks in every answer."""
    return text.rpartition(REASONING_END)[2]


def last_number(text: str) -> str | None:
    """Return the last number in a text, with its sign; None if there is none, or what looks like it is none."""
    found = None
    for found in _RUN.finditer(text):  # noqa: B007 - the last one is wanted
        pass
    if found is None:
        return None
    sign = found["sign"] or found["sign2"] or ""
    number = sign.replace("\u2212", "-") + found["run"]
    return number if parse_number(number) is not None else None


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{…}`, whose braces must be closed; None if there is none."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for at in range(begin, len(text)):
        if text[at] == "}":
            if depth == 0:
                return text[begin:at]
            depth -= 1
        elif text[at] == "{":
            depth += 1
    return None


def after_hashes(text: str) -> str | None:
    """Return what follows the last `####` in its line, as in GSM8K; None if there is none."""
    _, found, rest = text.rpartition("####")
    return rest.partition("\n")[0].strip() if found else None


def parse_choice(text: str) -> str | None:
    """Return the letter of the choice that a text names, in upper case; None if it names none.

    The whole text may be the letter, the letter may follow `answer`, `choice` or `option` (the last one counts), or
    begin the text in brackets or before a bracket, a point or a colon. A letter elsewhere, such as an article, is none.
    """
    if whole := _LETTER.fullmatch(text[:LONGEST_NUMBER]) if len(text) <= LONGEST_NUMBER else None:
        return whole[1].upper()
    if named := _NAMED_LETTER.findall(text):
        return str(named[-1])
    boxed = last_boxed(text)
    if boxed is not None and (whole := _LETTER.fullmatch(boxed)):
        return whole[1].upper()
    first = _FIRST_LETTER.match(text)
    return first[1] if first else None


def compile_group(pattern: str, name: str) -> "regex.Pattern[str]":
    """Compile a pattern with one group; raises InvalidConfig."""
    compiled = compile_pattern(pattern, name)
    if compiled.groups != 1:
        message = (
            f"{name} has {compiled.groups} groups: put the part to compare in one group, and write others as (?:…)"
        )
        raise InvalidConfig(message)
    return compiled


def last_group(pattern: "regex.Pattern[str]", text: str) -> str | None:
    """Return the group of the pattern's last match; None if there is none. Raises TimeoutError."""
    found = None
    for found in pattern.finditer(text, timeout=PATTERN_SECONDS):  # noqa: B007 - the last one is wanted
        pass
    group = found[1] if found else None
    return None if group is None else str(group)


def _exactly(tolerance: float) -> Fraction:
    """Return the tolerance as it is written: 0.1 is a tenth, not the nearest binary fraction."""
    return Fraction(Decimal(repr(tolerance)))


_FAULTS: Mapping[Match, str] = {
    Match.EXACT: "is empty",
    Match.NUMERIC: "is not a number, and has none after #### or in \\boxed{}",
    Match.MULTIPLE_CHOICE: "is not the letter of a choice",
    Match.JSON: "is not JSON",
}
_EXTRACTORS: Mapping[Extract, Callable[[str], str | None]] = {
    Extract.WHOLE: lambda answer: answer,
    Extract.LAST_NUMBER: last_number,
    Extract.BOXED: last_boxed,
    Extract.HASHES: after_hashes,
}
