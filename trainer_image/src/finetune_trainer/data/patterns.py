"""Patterns over keys: `*` and `?` stay within a folder, `**` crosses folders."""

import fnmatch
import re

WILDCARD = re.compile(r"[*?]")


def split_pattern(pattern: str) -> tuple[str, re.Pattern[str]]:
    """Return the folder before the first wildcard, and the expression for paths below it."""
    start = WILDCARD.search(pattern)
    depth = pattern.rfind("/", 0, start.start() if start else None) + 1
    return pattern[:depth], re.compile(pattern_to_regex(pattern[depth:]))


def pattern_to_regex(pattern: str) -> str:
    """Return a pattern over keys as a regular expression."""
    return "".join(_translated(token) for token in re.findall(r"(?:\*\*/)+|\*+|\?|[^*?]+", pattern))


def card_pattern_to_regex(pattern: str) -> str:
    """Return the same for a pattern of a dataset's card, where `[...]` is one of these characters, as in fsspec."""
    parts = re.split(r"(\[!?\]?[^]/]*\])", pattern)
    return "".join(fnmatch.translate(part)[4:-3] if at % 2 else pattern_to_regex(part) for at, part in enumerate(parts))


def _translated(token: str) -> str:
    if token.startswith("**"):
        return "(?:.*/)?" if token.endswith("/") else ".*"
    return {"*": "[^/]*", "?": "[^/]"}.get(token) or re.escape(token)
