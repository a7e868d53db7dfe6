"""Text for a Markdown report that a terminal shows too: nothing in it may act on either."""

import math
import re
from collections.abc import Sequence

CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
"""What acts and is not seen: escapes, directions, tags. Joiners of characters stay, for scripts need them."""
SURROGATE = re.compile("[\ud800-\udfff]")
MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$@]|:(?=//)|(?<=www)\.)", re.IGNORECASE)
LINE_START = re.compile(r"^(\d+(?=\.(?:\s|$))|(?=[-=]))")
"""Before what would begin a list or underline a heading; a number with `)` is escaped already."""
LONGEST_INLINE = 300
LONGEST_CODE = 1100
"""Longer than any URI of the API."""
LONGEST_BLOCK = 4000
MOST_LINES = 120
WIDEST_COLUMN = 60
NOTHING = "-"


def clean(value: object) -> str:
    """The text without what acts and is not seen; half of a character becomes the sign for a broken one."""
    return SURROGATE.sub("\ufffd", CONTROL.sub("", str(value)))


def inline(value: object) -> str:
    """One line in which Markdown, HTML, bare links and terminal escapes are inert."""
    flat = " ".join(clean(value).split())
    escaped = MARKDOWN.sub(r"\\\1", _cut(flat, LONGEST_INLINE))
    return LINE_START.sub(r"\1\\", escaped)


def code(value: object) -> str:
    """A code span that its content cannot leave."""
    flat = _cut(" ".join(clean(value).split()).replace("|", "¦"), LONGEST_CODE) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", flat)), default=0))
    pad = " " if "`" in flat else ""
    return f"{fence}{pad}{flat}{pad}{fence}"


def block(value: str, limit: int = LONGEST_BLOCK) -> str:
    """An indented code block: no fence that the content could close."""
    text = clean(value.expandtabs(4))
    lines = (text[:limit] if text.strip() else "(nothing)").splitlines()
    if len(text) > limit or len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], "… (cut)"]
    return "\n".join(f"    {line}" for line in lines)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def number(value: float | None, digits: int = 4) -> str:
    """A figure to so many significant digits, `-` where there is none."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return "∞" if value > 0 else "not a number"
    if 10**digits <= abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.{digits}g}" if abs(value) < 1e6 else f"{value:.3e}"


def percent(share: float) -> str:
    """A share between 0 and 1 in percent."""
    return f"{100 * share:.1f} %"


def size(count: float | None) -> str:
    """Bytes in binary units."""
    if count is None:
        return NOTHING
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def count(many: int) -> str:
    """A large number to three digits."""
    for limit, unit in ((10**9, "billion"), (10**6, "million"), (10**4, "thousand")):
        if many >= limit:
            return f"{many / (1000 if limit < 10**6 else limit):.3g} {unit}"
    return str(many)


def duration(seconds: float) -> str:
    """A time in the two units that matter."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up in a terminal; cells are escaped by the caller."""
    columns = range(len(header))
    widths = [min(WIDEST_COLUMN, max(len(line[column]) for line in [header, *rows])) for column in columns]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(header), "| " + " | ".join("-" * width for width in widths) + " |", *map(line, rows)])
