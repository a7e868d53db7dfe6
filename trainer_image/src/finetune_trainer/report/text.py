"""Text for a Markdown report that a terminal shows too: nothing in it may act on either."""

import math
import re
from collections.abc import Sequence

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~&])")
LONGEST_INLINE = 300
NOTHING = "-"


def inline(value: object) -> str:
    """One line in which Markdown, HTML and terminal escapes are inert."""
    flat = " ".join(CONTROL.sub("", str(value)).split())
    cut = flat if len(flat) <= LONGEST_INLINE else flat[: LONGEST_INLINE - 1] + "…"
    return MARKDOWN.sub(r"\\\1", cut)


def code(value: object) -> str:
    """A code span that its content cannot leave."""
    flat = " ".join(CONTROL.sub("", str(value)).split()).replace("|", "¦")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", flat)), default=0))
    pad = " " if "`" in flat else ""
    return f"{fence}{pad}{flat}{pad}{fence}"


def block(value: str, limit: int = 4000) -> str:
    """An indented code block: no fence that the content could close."""
    clean = CONTROL.sub("", value.expandtabs(4))
    cut = clean if len(clean) <= limit else clean[:limit] + "\n… (cut)"
    return "\n".join(f"    {line}" for line in (cut.splitlines() or ["(nothing)"]))


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


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up in a terminal; cells are escaped by the caller."""
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(header), "| " + " | ".join("-" * width for width in widths) + " |", *map(line, rows)])
