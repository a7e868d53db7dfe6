"""stand-in"""

from __future__ import annotations

from layout import Layout


def build_all(layout: Layout) -> dict[str, str]:
    return {}


def environment(layout: Layout) -> dict[str, str]:
    return {}
