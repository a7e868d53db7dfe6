"""Numbers, times and foreign texts as people read them on a terminal."""

import unicodedata
from collections.abc import Sequence
from datetime import datetime

BLOCKS = "▁▂▃▄▅▆▇█"
NONE = "-"
MINUTE, HOUR, DAY = 60, 3600, 86400


def clean(text: str) -> str:
    """A text of others in one line, without the control characters that would steer a terminal."""
    return "".join(" " if one in "\n\t" else one for one in text if one in "\n\t" or unicodedata.category(one) != "Cc")


def duration(seconds: float | None) -> str:
    """Two units at most: `42s`, `3m12s`, `5h04m`, `2d3h`."""
    if seconds is None:
        return NONE
    whole = max(0, round(seconds))
    if whole < MINUTE:
        return f"{whole}s"
    if whole < HOUR:
        return f"{whole // MINUTE}m{whole % MINUTE:02d}s"
    if whole < DAY:
        return f"{whole // HOUR}h{whole % HOUR // MINUTE:02d}m"
    return f"{whole // DAY}d{whole % DAY // HOUR}h"


def between(start: datetime | None, end: datetime | None) -> str:
    """The time from one moment to another."""
    return duration((end - start).total_seconds()) if start and end else NONE


def moment(time: datetime | None) -> str:
    """A time in UTC, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ") if time else NONE


def number(value: float | None) -> str:
    """Five significant digits, as the status has them."""
    if value is None:
        return NONE
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"


def size(count: int | None) -> str:
    """Bytes in binary units."""
    if count is None:
        return NONE
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """The last values as bars between their lowest and their highest."""
    shown = values[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale)] for value in shown)


def bar(percent: int, width: int = 30) -> str:
    """A bar that is that full."""
    full = round(width * min(max(percent, 0), 100) / 100)
    return "█" * full + "░" * (width - full)
