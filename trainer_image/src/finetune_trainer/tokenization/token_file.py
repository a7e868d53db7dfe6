"""The tokens of a file of rows: an Arrow file that preflight writes and every training process maps into memory."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
import orjson
import pyarrow as pa

from finetune_api.objectives import Objective
from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.tokenization.sample_table import ROW, SampleBatches, Samples, schema_of
from finetune_trainer.tokenization.samples import Encoded, EncodedLabelled, EncodedPair, EncodedPrompt, Sample

VERSION = 2
"""To raise when the code makes other tokens of the same row: a file of another version is not used."""
ORIGIN = b"finetune.dev/tokens"
"""Key in the file's metadata."""
ROWS_AT_ONCE = 1024
"""Rows of a blend that are collected before they are written."""
KINDS: dict[str, type[Sample]] = {
    Objective.DPO: EncodedPair,
    Objective.REWARD_MODEL: EncodedPair,
    Objective.KTO: EncodedLabelled,
    Objective.RLHF: EncodedPrompt,
    Objective.DISTILLATION: EncodedPrompt,
}


@dataclass(frozen=True, slots=True)
class TokenOrigin:
    """The tokenizer and settings that a row's tokens depend on."""

    tokenizer_sha256: str
    template_sha256: str
    objective: str
    max_length: int
    version: int = VERSION

    @classmethod
    def of(cls, labeler: Labeler, objective: str, max_length: int) -> Self:
        """Return the origin of tokens that this labeler makes."""
        return cls(labeler.tokenizer_sha256, labeler.template_sha256, objective, max_length)

    @property
    def kind(self) -> type[Sample]:
        """The class of the objective's samples."""
        return KINDS.get(self.objective, Encoded)


class TokenWriter:
    """Append the samples of rows, one row after the other."""

    def __init__(self, batches: SampleBatches) -> None:
        self._batches = batches
        self._rows = 0

    def write(self, samples: Sequence[Sample]) -> None:
        """Append the samples of the next row."""
        for sample in samples:
            self._batches.add(self._rows, sample)
        self._rows += 1


@contextmanager
def write_tokens(path: Path, origin: TokenOrigin) -> Iterator[TokenWriter]:
    """Yield the writer of a file, which is complete when the block ends."""
    schema = schema_of(origin.kind).with_metadata({ORIGIN: orjson.dumps(asdict(origin))})
    with pa.ipc.new_file(str(path), schema) as file:
        batches = SampleBatches(origin.kind, file.write_batch)
        yield TokenWriter(batches)
        batches.close()


def split_tokens(source: Path, is_held_out: Sequence[int], train: Path, validation: Path) -> None:
    """Write the samples of each side to its file; `is_held_out` has a value for each row of `source`."""
    held_out = np.asarray(is_held_out, dtype=bool)
    with pa.memory_map(str(source)) as file:
        batches = pa.ipc.open_file(file)
        for path, chosen in ((train, ~held_out), (validation, held_out)):
            if chosen.any():
                _copy_rows(batches, chosen, path)


def _copy_rows(batches: pa.RecordBatchFileReader, chosen: "np.typing.NDArray[np.bool_]", path: Path) -> None:
    numbers = np.cumsum(chosen, dtype=np.int32) - 1
    place = batches.schema.get_field_index(ROW)
    with pa.ipc.new_file(str(path), batches.schema) as out:
        for number in range(batches.num_record_batches):
            batch = batches.get_batch(number)
            kept = batch.filter(pa.array(chosen[batch.column(ROW).to_numpy()]))
            rows = pa.array(numbers[kept.column(ROW).to_numpy()])
            out.write_batch(kept.set_column(place, batches.schema.field(ROW), rows))


def blend_tokens(sources: Sequence[Path], order: Iterable[tuple[int, int]], path: Path) -> None:
    """Write the samples of rows of several files to one; `order` names each row by its file and its number there.

    The rows of each file must come in the order of the file, and may be repeated.
    """
    with ExitStack() as stack:
        files = [pa.ipc.open_file(stack.enter_context(pa.memory_map(str(source)))) for source in sources]
        out = stack.enter_context(pa.ipc.new_file(str(path), files[0].schema))
        cursors = [_RowCursor(file) for file in files]
        lines = enumerate(order)
        while chunk := list(islice(lines, ROWS_AT_ONCE)):
            parts = [(number, part) for number, (at, row) in chunk for part in cursors[at].find(row)]
            if parts:
                numbers = np.repeat([number for number, _ in parts], [part.num_rows for _, part in parts])
                table = pa.Table.from_batches([part for _, part in parts]).combine_chunks()
                place, field = table.schema.get_field_index(ROW), table.schema.field(ROW)
                out.write_table(table.set_column(place, field, pa.array(numbers, field.type)))


class _RowCursor:
    """The samples of a file, by row in ascending order."""

    def __init__(self, file: pa.RecordBatchFileReader) -> None:
        self._groups = _group_by_row(file)
        self._row = -1
        self._parts: list[pa.RecordBatch] = []

    def find(self, row: int) -> list[pa.RecordBatch]:
        """Return the samples of the row; none if it has no samples."""
        while self._row < row:
            self._row, self._parts = next(self._groups, (sys.maxsize, []))
        return self._parts if self._row == row else []


def _group_by_row(file: pa.RecordBatchFileReader) -> Iterator[tuple[int, list[pa.RecordBatch]]]:
    """Yield each row that has samples, with them; a batch may end within a row."""
    current, parts = -1, list[pa.RecordBatch]()
    for number in range(file.num_record_batches):
        batch = file.get_batch(number)
        rows = batch.column(ROW).to_numpy()
        starts = np.flatnonzero(np.diff(rows, prepend=-1)).tolist()
        for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
            if rows[start] != current:
                if parts:
                    yield current, parts
                current, parts = int(rows[start]), []
            parts.append(batch.slice(start, end - start))
    if parts:
        yield current, parts


def read_tokens(path: Path, origin: TokenOrigin) -> Samples[Sample] | None:
    """Map the file into memory and return its samples; None if they have another origin."""
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    if orjson.loads((table.schema.metadata or {}).get(ORIGIN, b"null")) != asdict(origin):
        return None
    return Samples(table)
