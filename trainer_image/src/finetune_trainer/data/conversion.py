"""Writes converted.jsonl, and unconverted.jsonl with the rows that the asked format cannot hold."""

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from finetune_trainer.data.export import LOSSES, ExportFormat, LossCode, Unexpressed, export_row
from finetune_trainer.data.rows import EXCERPT_CHARACTERS, Row

CONVERTED = "converted.jsonl"
UNCONVERTED = "unconverted.jsonl"


class Conversion:
    """Converts rows as they come, and counts those that were left out by what they would have lost."""

    def __init__(self, directory: Path, target: ExportFormat) -> None:
        self.target = target
        self.converted = 0
        self.unconverted_by_code: Counter[LossCode] = Counter()
        self._directory = directory
        self._files = ExitStack()

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._converted = self._files.enter_context((self._directory / CONVERTED).open("wb"))
        self._unconverted = self._files.enter_context((self._directory / UNCONVERTED).open("wb"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def write(self, row: Row) -> None:
        """Convert one accepted row; the converted file has no `_source`, its order is that of the input."""
        try:
            line = _dump(export_row(row, self.target))
        except Unexpressed as loss:
            self.unconverted_by_code[loss.code] += 1
            self._unconverted.write(_dump(_describe(row, loss.code)))
        else:
            self.converted += 1
            self._converted.write(line)

    @property
    def unconverted(self) -> int:
        """Accepted rows that the format cannot hold."""
        return self.unconverted_by_code.total()

    def to_dict(self) -> dict[str, Any]:
        """Return the counters as `summary.json` holds them."""
        return {
            "format": self.target.value,
            "converted": self.converted,
            "unconverted": self.unconverted,
            "unconvertedByCode": {code.value: count for code, count in self.unconverted_by_code.most_common()},
        }


def _describe(row: Row, code: LossCode) -> dict[str, Any]:
    excerpt = orjson.dumps(row.content()).decode()[:EXCERPT_CHARACTERS]
    place = {"file": row.source.file, "line": row.source.line}
    return {**place, "code": code.value, "detail": LOSSES[code], "excerpt": excerpt}


def _dump(row: dict[str, Any]) -> bytes:
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
