"""Samples as an Arrow table, one line a sample: token ids take four bytes and are read without a copy."""

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast, overload

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from typing_extensions import override

from finetune_api.dataset.codes import RepairCode
from finetune_trainer.tokenization.samples import (
    UNTRAINED,
    Encoded,
    EncodedLabelled,
    EncodedPair,
    EncodedPrompt,
    Sample,
)

ROW = "row"
"""Column with the number of the sample's row in its file, from 0."""
PROMPT = "prompt"
"""Column with the `prompt_key` of the sample's row, which only held-out samples have."""
IDS, NUMBER = pa.list_(pa.int32()), pa.int32()
SAMPLE_FIELDS: dict[type[Sample], dict[str, pa.DataType]] = {
    Encoded: {"input_ids": IDS, "labels": IDS, "trained": NUMBER},
    EncodedPair: {"prompt_ids": IDS, "chosen_ids": IDS, "rejected_ids": IDS},
    EncodedLabelled: {"prompt_ids": IDS, "completion_ids": IDS, "desirable": pa.bool_()},
    EncodedPrompt: {"prompt_ids": IDS, "messages": pa.binary(), "tools": pa.binary(), "reference": pa.binary()},
}
COUNT_FIELDS = {
    "truncated": pa.bool_(), "answer_cut": NUMBER, "reasoning_lost": NUMBER, "left_out": NUMBER,
    "repairs": pa.list_(pa.string()),
}  # fmt: skip
DERIVED_FIELDS = {"tokens": NUMBER, "length": NUMBER, "trained": NUMBER}
"""Properties of a sample that are columns too, so that statistics need no token ids."""
JSON_FIELDS = frozenset({"messages", "tools", "reference"})
BATCH_SAMPLES, BATCH_TOKENS = 1024, 1 << 19
TAKEN_AT_ONCE = 1 << 14
"""Samples that are brought into another order together."""

SampleT = TypeVar("SampleT", bound=Sample)


class Samples(Sequence[SampleT], Generic[SampleT]):
    """The samples of a table; each is built when it is asked for."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        kind = kind_of(table.schema)
        self._kind: Callable[..., Any] = kind
        self._names = [*SAMPLE_FIELDS[kind], *COUNT_FIELDS]

    @override
    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, at: int) -> SampleT: ...
    @overload
    def __getitem__(self, at: slice) -> "Samples[SampleT]": ...
    @override
    def __getitem__(self, at: int | slice) -> "SampleT | Samples[SampleT]":
        if isinstance(at, slice):
            places = range(*at.indices(len(self)))
            return Samples(self.table.slice(places.start, len(places))) if places.step == 1 else self.take(places)
        place = range(len(self))[at]
        return next(self._build(self.table.slice(place, 1)))

    @override
    def __iter__(self) -> Iterator[SampleT]:
        for batch in self.table.to_batches(BATCH_SAMPLES):
            yield from self._build(batch)

    def take(self, places: Sequence[int]) -> "Samples[SampleT]":
        """Return the samples at these places, in this order."""
        return Samples(take_rows(self.table, places))

    def of_rows(self, rows: Sequence[int]) -> "Samples[SampleT]":
        """Return the samples of these rows of the file."""
        return Samples(self.table.filter(pc.is_in(self.table[ROW], pa.array(rows, NUMBER))))

    def numbers(self, name: str) -> npt.NDArray[Any]:
        """Return a column of numbers or of truth values."""
        return cast("npt.NDArray[Any]", self.table[name].to_numpy())

    def ids(self, name: str, places: Sequence[int] | None = None) -> list[npt.NDArray[np.int32]]:
        """Return the token ids of one column, of all samples or of those at these places, as views of the table."""
        column = self.table[name]
        lines = column if places is None else (column[at] for at in places)
        return [line.values.to_numpy() for line in lines]

    def has(self, name: str) -> bool:
        """Return whether samples of this kind have the column."""
        return name in self.table.schema.names

    def _build(self, part: "pa.Table | pa.RecordBatch") -> Iterator[SampleT]:
        columns = [part.column(name).to_pylist() for name in self._names]
        for values in zip(*columns, strict=True):
            found = dict(zip(self._names, values, strict=True))
            found["repairs"] = tuple(map(RepairCode, found["repairs"]))
            found |= {name: orjson.loads(found[name]) for name in JSON_FIELDS & found.keys()}
            yield self._kind(**found)


class SampleBatches:
    """Collect samples and pass them on in record batches of a limited size; `close` passes the rest on."""

    def __init__(self, kind: type[Sample], sink: Callable[[pa.RecordBatch], None]) -> None:
        self.schema = schema_of(kind)
        self._sink = sink
        self._start()

    def _start(self) -> None:
        self._rows: list[int] = []
        self._tokens = 0
        self._ids = {field.name: _Ids() for field in self.schema if field.type == IDS}
        self._others: dict[str, list[Any]] = {name: [] for name in self.schema.names if name not in {ROW, *self._ids}}

    def add(self, row: int, sample: Sample) -> None:
        """Add a sample of the row with this number."""
        self._rows.append(row)
        for name, ids in self._ids.items():
            ids.append(getattr(sample, name))
        for name, values in self._others.items():
            values.append(_value(sample, name))
        self._tokens += sample.tokens
        if len(self._rows) == BATCH_SAMPLES or self._tokens >= BATCH_TOKENS:
            self.close()

    def close(self) -> None:
        """Pass on what is left."""
        if self._rows:
            columns = {ROW: self._rows, **self._others} | {name: ids.to_arrow() for name, ids in self._ids.items()}
            self._sink(pa.RecordBatch.from_pydict(columns, self.schema))
        self._start()


class _Ids:
    """A column of lists of token ids, four bytes each: Arrow itself would build an object for each id."""

    def __init__(self) -> None:
        self._ids = array("i")
        self._ends = array("i", [0])

    def append(self, ids: list[int]) -> None:
        self._ids.fromlist(ids)
        self._ends.append(len(self._ids))

    def to_arrow(self) -> pa.ListArray:
        ends, ids = (
            pa.Array.from_buffers(pa.int32(), len(numbers), [None, pa.py_buffer(numbers)])
            for numbers in (self._ends, self._ids)
        )
        return pa.ListArray.from_arrays(ends, ids, IDS)


def take_rows(table: pa.Table, places: Sequence[int]) -> pa.Table:
    """Return the rows at these places, in this order, without a copy of the others.

    Arrow's own `take` joins all batches first: it copies every token, and fails above 2³¹ of them.
    """
    wanted, batches = np.asarray(places, np.int64), table.to_batches()
    starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
    found: list[pa.RecordBatch] = []
    for at in range(0, len(wanted), TAKEN_AT_ONCE):
        block = wanted[at : at + TAKEN_AT_ONCE]
        order = np.argsort(block, kind="stable")
        numbers, firsts = np.unique(np.searchsorted(starts, block[order], "right") - 1, return_index=True)
        parts = [
            batches[number].take(pa.array(chosen - starts[number]))
            for number, chosen in zip(numbers, np.split(block[order], firsts[1:]), strict=True)
        ]
        found += pa.Table.from_batches(parts).take(pa.array(np.argsort(order))).to_batches()
    return pa.Table.from_batches(found, table.schema)


def schema_of(kind: type[Sample]) -> pa.Schema:
    """Return the columns of samples of this kind."""
    fields = {ROW: NUMBER} | SAMPLE_FIELDS[kind] | COUNT_FIELDS | DERIVED_FIELDS
    return pa.schema(list(fields.items()))


def kind_of(schema: pa.Schema) -> type[Sample]:
    """Return the class of the samples in a table with this schema."""
    return next(kind for kind, fields in SAMPLE_FIELDS.items() if fields.keys() <= set(schema.names))


def as_samples(samples: Sequence[SampleT]) -> Samples[SampleT]:
    """Return the samples as a table; at least one is needed."""
    if isinstance(samples, Samples):
        return samples
    found: list[pa.RecordBatch] = []
    batches = SampleBatches(cast("type[Sample]", type(samples[0])), found.append)
    for number, sample in enumerate(samples):
        batches.add(number, sample)
    batches.close()
    return Samples(pa.Table.from_batches(found, batches.schema))


def count_rows(samples: Sequence[Sample]) -> int:
    """Return the number of rows that the samples are made from; a long text or conversation has several."""
    return len(np.unique(samples.numbers(ROW))) if isinstance(samples, Samples) else len(samples)


def longest_length(*parts: Sequence[Sample]) -> int:
    """Return the tokens of the longest sample; of a table only the column of lengths is read."""
    found = [0]
    for samples in parts:
        if isinstance(samples, Samples):
            found.append(int(samples.numbers("length").max(initial=0)))
        else:
            found += [sample.length for sample in samples]
    return max(found)


def with_prompts(samples: Samples[SampleT], prompts: Mapping[int, int]) -> Samples[SampleT]:
    """Return the samples with the `prompt_key` of each one's row, found by the row's number."""
    keys = [prompts[row] for row in samples.numbers(ROW).tolist()]
    return Samples(samples.table.append_column(PROMPT, pa.array(keys, pa.int64())))


def prompts_of(samples: Sequence[Sample]) -> list[int]:
    """Return a number for each sample that is the same for samples of one prompt, or if it is unknown, of one row."""
    if not isinstance(samples, Samples):
        return list(range(len(samples)))
    keys = samples.numbers(PROMPT if samples.has(PROMPT) else ROW).tolist()
    numbers = dict[int, int]()
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def find_owners(samples: Sequence[Sample]) -> tuple[tuple[int, int], ...]:
    """Return the weight of each sample in a held-out loss, trained tokens or one, with the number of its prompt.

    Empty if each sample has a prompt of its own.
    """
    prompts = prompts_of(samples)
    if len(set(prompts)) == len(prompts) or not isinstance(samples, Samples):
        return ()
    weights = [1] * len(prompts)
    if samples.has("labels"):
        weights = [int(np.count_nonzero(labels[1:] != UNTRAINED)) for labels in samples.ids("labels")]
    return tuple(zip(weights, prompts, strict=True))


def digest_tokens(samples: Samples[SampleT]) -> str:
    """Return the SHA-256 of the samples' tokens and labels in their order, whatever their rows' numbers are."""
    found = hashlib.sha256()
    for field in samples.table.schema:
        if field.type == IDS:
            for ids in samples.ids(field.name):
                found.update(f"{field.name} {len(ids)} ".encode() + ids.tobytes())
    return found.hexdigest()


def _value(sample: Sample, name: str) -> Any:
    value = getattr(sample, name)
    if name in JSON_FIELDS:
        return orjson.dumps(value)
    return [code.value for code in value] if name == "repairs" else value
