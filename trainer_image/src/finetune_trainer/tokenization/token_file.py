"""The tokens of a file of rows: an Arrow file that preflight writes and every training process maps into memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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
KINDS: dict[str, type[Sample]] = {
    Objective.DPO: EncodedPair,
    Objective.REWARD_MODEL: EncodedPair,
    Objective.KTO: EncodedLabelled,
    Objective.RLHF: EncodedPrompt,
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


def read_tokens(path: Path, origin: TokenOrigin) -> Samples[Sample] | None:
    """Map the file into memory and return its samples; None if they have another origin."""
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    if orjson.loads((table.schema.metadata or {}).get(ORIGIN, b"null")) != asdict(origin):
        return None
    return Samples(table)
