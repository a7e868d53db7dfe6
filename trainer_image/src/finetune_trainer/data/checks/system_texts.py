"""Find the system text that almost all training rows have."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from finetune_api.text.printable import printable
from finetune_trainer.data.rows import ChatRow, Row, TextRow

ALMOST_ALL = 0.9
MOST_TEXTS = 32
"""Different texts that are counted: one that almost all rows have is among the first."""
SHOWN = 60


@dataclass(slots=True)
class SystemTexts:
    """Counts the system texts of rows, each by its hash and its beginning."""

    rows: int = 0
    texts: Counter[tuple[int, str]] = field(default_factory=Counter)

    def add(self, row: Row) -> None:
        """Count one row."""
        self.rows += 1
        if isinstance(row, TextRow):
            return
        turns = row.messages if isinstance(row, ChatRow) else row.prompt
        if turns and turns[0]["role"] == "system":
            text = turns[0]["content"]
            key = (hash(text), text[: SHOWN + 1])
            if key in self.texts or len(self.texts) < MOST_TEXTS:
                self.texts[key] += 1


def find_shared(counted: Iterable[tuple[SystemTexts, int]]) -> dict[str, Any] | None:
    """Return the share of the training rows that have the most frequent text, and how it begins, if almost all have it.

    Each source comes with the number of its rows that are trained in one pass over the blend, repeated ones included.
    """
    rows, texts = 0, defaultdict[tuple[int, str], float](float)
    for one, trained in counted:
        rows += trained
        for key, count in one.texts.items():
            texts[key] += count * trained / one.rows
    (_, text), most = max(texts.items(), key=lambda found: found[1], default=((0, ""), 0.0))
    if not most or most < ALMOST_ALL * rows:
        return None
    flat = " ".join(text.split())
    begins = flat if len(text) <= SHOWN else f"{flat[: SHOWN - 1]}…"
    return {"share": round(most / rows, 4), "begins": printable(begins)}
