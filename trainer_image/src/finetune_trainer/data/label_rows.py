"""Gives accepted rows their token ids and labels, batch by batch, in memory that no row can fill."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import orjson

from finetune_trainer.data.rows import EXCERPT_CHARACTERS, BadRow, Objective, RejectCode, Rejected, Row, TextRow

if TYPE_CHECKING:
    from finetune_trainer.labels import Labeler

BATCH_ROWS = 256
# A tokenizer takes hundreds of bytes for each of its tokens while it works.
MAX_TOKENISED_BYTES = 2 << 20


def label_rows(
    rows: Iterator[Row | Rejected], labeler: "Labeler", objective: Objective, max_length: int
) -> Iterator[Row | Rejected]:
    """Yield the rows in order, each with its samples, or rejected where it gives none."""
    for batch in _batches(rows):
        accepted = [row for row in batch if not isinstance(row, Rejected)]
        results = iter(labeler.encode_batch(accepted, objective, max_length))
        for row in batch:
            if isinstance(row, Rejected):
                yield row
                continue
            result = next(results)
            if isinstance(result, BadRow):
                yield _reject(row, result)
                continue
            row.encodings = tuple(result)
            row.repairs = tuple(sorted({*row.repairs, *(code for encoded in result for code in encoded.repairs)}))
            yield row


def _batches(rows: Iterator[Row | Rejected]) -> Iterator[list[Row | Rejected]]:
    batch: list[Row | Rejected] = []
    total = 0
    for row in rows:
        size = 0 if isinstance(row, Rejected) else len(row.written or orjson.dumps(row.content()))
        if len(batch) == BATCH_ROWS or total + size > MAX_TOKENISED_BYTES:
            yield batch
            batch, total = [], 0
        if not isinstance(row, Rejected) and size > MAX_TOKENISED_BYTES:
            batch.append(_reject(row, _too_long(size)))
        else:
            batch.append(row)
            total += size
    yield batch


def _too_long(size: int) -> BadRow:
    most = MAX_TOKENISED_BYTES >> 20
    detail = f"the row has {size / (1 << 20):.1f} MiB of text, more than the {most} MiB that are tokenised: split it up"
    return BadRow(RejectCode.TOO_LONG, detail)


def _reject(row: Row, bad: BadRow) -> Rejected:
    text = row.text if isinstance(row, TextRow) else " ".join(message["content"] for message in row.turns())
    return Rejected(row.source.file, row.source.line, bad.code, bad.detail, text[:EXCERPT_CHARACTERS], bad.tokens)
