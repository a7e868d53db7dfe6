"""Numbers and durations as people read them."""

NONE = "-"
LARGEST = 1e15
"""From here on a number has an exponent."""
MINUTE, HOUR, DAY = 60, 3600, 86400


def duration(seconds: float | None) -> str:
    """Return at most two units: `42s`, `3m12s`, `5h04m`, `2d3h`."""
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


def number(value: float | None) -> str:
    """Return five significant digits, as in the status; a large number has no exponent."""
    if value is None:
        return NONE
    if isinstance(value, int):
        return f"{value:,}"
    text = f"{value:.5g}"
    return f"{float(text):,.0f}" if "e+" in text and abs(value) < LARGEST else text
