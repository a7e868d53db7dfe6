"""Text for a Markdown report that is also read in a terminal: foreign text must stay inert in both."""

import math
import re
from collections.abc import Sequence

CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
"""Invisible characters with an effect: escapes, directions, tags. Joiners stay, because scripts need them."""
SURROGATE = re.compile("[\ud800-\udfff]")
MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~&$@]|:(?=//)|(?<=www)\.)", re.IGNORECASE)
"""What acts anywhere in a line. `(`, `)` and `!` act only next to a bracket, and stay readable in a terminal."""
LINE_START = re.compile(r"^(\d+(?=[.)](?:\s|$))|(?=[-+=]))")
"""The start of a line that would begin a list or underline a heading."""
LONGEST_INLINE = 300
LONGEST_SENTENCE = 1000
"""As long as a message of the status."""
LONGEST_CODE = 1100
"""Longer than any URI of the API."""
LONGEST_BLOCK = 4000
MOST_LINES = 120
WIDEST_COLUMN = 60
NOTHING = "-"


def clean(value: object) -> str:
    """Return the text without invisible characters that have an effect; a lone surrogate becomes U+FFFD."""
    return SURROGATE.sub("\ufffd", CONTROL.sub("", str(value)))


def inline(value: object) -> str:
    """Return one line in which Markdown, HTML, bare links and terminal escapes are inert."""
    return _escape(value, LONGEST_INLINE)


def sentence(value: object) -> str:
    """Return the same of a message, whose fix is at its end."""
    return _escape(value, LONGEST_SENTENCE)


def code(value: object) -> str:
    """Return a code span that its content cannot close."""
    flat = _cut(" ".join(clean(value).split()).replace("|", "¦"), LONGEST_CODE) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", flat)), default=0))
    pad = " " if "`" in flat else ""
    return f"{fence}{pad}{flat}{pad}{fence}"


def block(value: str, limit: int = LONGEST_BLOCK) -> str:
    """Return an indented code block, which has no fence that its content could close."""
    text = clean(value.expandtabs(4))
    lines = (text[:limit] if text.strip() else "(nothing)").splitlines()
    if len(text) > limit or len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], "… (cut)"]
    return "\n".join(f"    {line}" for line in lines)


def _escape(value: object, limit: int) -> str:
    flat = " ".join(clean(value).split())
    escaped = MARKDOWN.sub(r"\\\1", _cut(flat, limit))
    return LINE_START.sub(r"\1\\", escaped)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def number(value: float | None, digits: int = 4) -> str:
    """Format a figure to so many significant digits; `-` if there is none."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return "∞" if value > 0 else "not a number"
    if 10**digits <= abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.{digits}g}" if abs(value) < 1e6 else f"{value:.3e}"


def percent(share: float | None) -> str:
    """Format a share between 0 and 1 in percent; `-` if there is none."""
    return NOTHING if share is None else f"{100 * share:.1f} %"


def size(count: float | None) -> str:
    """Format bytes in binary units."""
    if count is None:
        return NOTHING
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def count(many: int) -> str:
    """Format a large number to three digits."""
    for limit, unit in ((10**9, "billion"), (10**6, "million"), (10**4, "thousand")):
        if many >= limit:
            return f"{many / (1000 if limit < 10**6 else limit):.3g} {unit}"
    return str(many)


def duration(seconds: float) -> str:
    """Format a time in its two largest units."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns also line up in a terminal; the caller escapes the cells."""
    columns = range(len(header))
    widths = [min(WIDEST_COLUMN, max(len(line[column]) for line in [header, *rows])) for column in columns]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(header), "| " + " | ".join("-" * width for width in widths) + " |", *map(line, rows)])
