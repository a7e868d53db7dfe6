"""Faults of YAML's syntax: their place, what is wrong, and what to write instead."""

import re
from collections.abc import Iterator

import yaml

TAB_WIDTH = 2
"""Spaces in place of a tab, when reading continues after the faults were reported."""
_INDENTED_BY_TAB = re.compile(r"^ *\t[ \t]*", re.MULTILINE)
_QUOTE = re.compile(r"""(?:^|(?<=[\s\[{,:]))(["'])""")

TAB_FIX = "indent with spaces"
INDENT_FIX = "give all fields of a block the same indentation, and a nested block two spaces more"
_FIXES: tuple[tuple[str, str], ...] = (
    ("found unexpected end of stream", "close the quote"),
    ("found unexpected document separator", "close the quote before the line with ---"),
    ("found unknown escape character", "put the text in single quotes, in which a backslash is a character"),
    ("found undefined alias", "put the value in quotes: an unquoted * names an anchor of this file"),
    ("cannot start any token", "put the value in quotes"),
    ("mapping values are not allowed", f"put a value with a colon and a space in quotes, or {INDENT_FIX}"),
    ("could not find expected ':'", "write `field: value`, with a colon and a space"),
    ("expected ',' or ']'", "close the list with ], or put a comma between its entries"),
    ("expected ',' or '}'", "close the block with }, or put a comma between its fields"),
    ("expected <block end>", INDENT_FIX),
    ("expected the node content", "write a value, and close every list and block"),
    ("expected chomping or indentation indicators", "put the value in quotes"),
    ("special characters are not allowed", "remove the character"),
)
"""What to do about each message of the parser, by a part of it."""


class YamlError(Exception):
    """A text is not YAML, or exceeds a limit; `line` and `column` count from 1, and are 0 where none is known."""

    def __init__(self, problem: str, fix: str = "", *, line: int = 0, column: int = 0) -> None:
        self.problem, self.fix, self.line, self.column = problem, fix, line, column
        column_text = f", column {column}" if column else ""
        place = f"line {line}{column_text}: " if line else ""
        super().__init__(f"{place}{problem}{f': {fix}' if fix else ''}")

    def below(self, lines: int) -> "YamlError":
        """Return the fault as one of a text that begins that many lines further down."""
        return YamlError(self.problem, self.fix, line=self.line and self.line + lines, column=self.column)


def explain_fault(error: yaml.YAMLError, text: str) -> YamlError:
    """Return the parser's error with its place and a fix."""
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)
    mark = getattr(error, "problem_mark", None)
    if "quoted scalar" in str(getattr(error, "context", "")) and "unexpected" in problem:
        mark = getattr(error, "context_mark", mark)
        return _at(mark, "the quote that opens here is not closed", _fix(problem))
    if mark is None and (position := getattr(error, "position", None)) is not None:
        before = text[:position]
        column = position - before.rfind("\n")
        return YamlError(problem, _fix(problem), line=before.count("\n") + 1, column=column)
    if "<block end>" in problem and (opened := _open_quote(text, mark)):
        fix = f"close the quote that opens in line {opened}, or {INDENT_FIX}"
        return _at(mark, problem, fix)
    return _at(mark, problem, _fix(problem))


def tab_faults(text: str) -> Iterator[YamlError]:
    """Yield a fault for each line that is indented with a tab, which YAML forbids."""
    for found in _INDENTED_BY_TAB.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        column = found[0].index("\t") + 1
        if text[found.end() : found.end() + 1] not in {"", "\n", "#"}:
            yield YamlError("a tab indents this line", TAB_FIX, line=line, column=column)


def without_tabs(text: str) -> str:
    """Return the text with spaces in place of the tabs that indent."""
    return _INDENTED_BY_TAB.sub(lambda found: found[0].replace("\t", " " * TAB_WIDTH), text)


def split_documents(text: str) -> Iterator[tuple[int, str]]:
    """Yield each document of a file with the number of lines before it; `---` at the start of a line separates them."""
    lines, first = text.splitlines(keepends=True), 0
    for number, line in enumerate([*lines, "---"]):
        if re.match(r"---(\s|$)", line) and (number > first or number == len(lines)):
            part = lines[first:number]
            if any(one.strip() and one[0] not in "#%" for one in part):
                yield first, "".join(part)
            first = number


def _at(mark: yaml.Mark | None, problem: str, fix: str) -> YamlError:
    if mark is None:
        return YamlError(problem, fix)
    return YamlError(problem, fix, line=mark.line + 1, column=mark.column + 1)


def _fix(problem: str) -> str:
    return next((fix for part, fix in _FIXES if part in problem), "")


def _open_quote(text: str, mark: yaml.Mark | None) -> int | None:
    """Return the last line above the mark that has an odd number of one kind of quote; None if there is none."""
    above = text.splitlines()[: mark.line + 1 if mark else None]
    for number, line in reversed(list(enumerate(above, 1))):
        if any(line.count(quote) % 2 for quote in {found[1] for found in _QUOTE.finditer(line)}):
            return number
    return None
