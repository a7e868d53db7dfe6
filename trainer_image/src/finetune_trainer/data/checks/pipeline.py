"""Check rows: read, rename, detect, convert, check, fit, compare with earlier rows, tokenize.

    summary = Summary()
    for row in check_rows(paths, summary=summary, objective="Chat", labeler=labeler, max_length=2048):
        ...  # a Row or Rejected, in source order; summary has counted it

Every input row is returned exactly once, except that KTO splits a preference pair into its two answers, and a ranking
is split into pairs. Without an
objective rows keep their kind. Without a labeler the checks that need the model's tokenizer are skipped.
UnreadableFile is raised for a file that contains no rows at all. `Summary.to_dict()` has the keys rows,
acceptedRows, repairedRows, rejectedRows, malformedRows, rejectedRowsByCode, repairedRowsByCode, rowsByFormat, samples,
tokens, trainedTokens, answersCut, reasoningLost, lengths, unusedColumns, files, ignoredFiles.
"""

import logging
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_api.objectives import SAMPLED
from finetune_trainer.data.checks.objectives import ANSWERED, COLUMNS, find_answer, fit_objective
from finetune_trainer.data.checks.row_keys import SeenRows, prompt_key, row_key
from finetune_trainer.data.checks.structure import check_structure, has_unclosed_reasoning
from finetune_trainer.data.checks.summary import Summary
from finetune_trainer.data.formats.advice import may_have_part
from finetune_trainer.data.formats.column_map import Advise, ColumnMap, advise_field, refuse_columns_of_rows
from finetune_trainer.data.formats.columns import (
    CONVERSATION_COLUMNS,
    METADATA,
    ReadColumns,
    UnknownColumns,
    drop_misnamed,
    find_root,
)
from finetune_trainer.data.formats.conversations import find_number, find_unread_keys
from finetune_trainer.data.formats.convert import convert_row
from finetune_trainer.data.formats.detect import detect_format
from finetune_trainer.data.readers.rows_of_file import Record, RowFile
from finetune_trainer.data.rows import (
    EXCERPT_CHARACTERS,
    BadRow,
    BadTurn,
    ChatRow,
    DataFormat,
    EncodedSample,
    Labelling,
    NamedPath,
    Objective,
    PromptRow,
    Rejected,
    Row,
    Source,
    TextRow,
)

logger = logging.getLogger(__name__)

AUTO = "Auto"
PROGRESS_ROWS = 500
WARNINGS_PER_CODE = 5
BATCH_ROWS = 256
# A tokenizer needs hundreds of bytes of memory for each token.
MAX_TOKENISED_BYTES = 2 << 20

_TURNS = frozenset(CONVERSATION_COLUMNS)
_OF_ONE_ANSWER = ANSWERED | SAMPLED
_OF_ANSWERS = frozenset({DataFormat.ALPACA, DataFormat.PROMPT_COMPLETION})
_OF_TURNS = frozenset({DataFormat.OPENAI, DataFormat.SHAREGPT, DataFormat.UNPAIRED})

Progress = Callable[[int, int], None]


class RowEncoder(Protocol):
    """Encode rows as samples; implemented by `tokenization.labeler.Labeler`."""

    def encode_batch(
        self, rows: Sequence[Row], objective: Labelling, max_length: int
    ) -> Sequence[Sequence[EncodedSample] | BadRow]:
        """Return the samples or the reject of each row, in the order of the rows."""


class ReferenceKeeper(Protocol):
    """Keep what rewards read of a row; implemented by `rewards.references.References`."""

    def keep(self, row: PromptRow, answer: str | None, columns: Mapping[str, Any]) -> PromptRow:
        """Return the prompt with the reference from the row's answer and the columns of the file; raises BadRow."""


def check_rows(
    paths: Sequence[NamedPath],
    *,
    summary: Summary,
    format: str = AUTO,  # noqa: A002 - the name in the API
    columns: Mapping[str, str] | None = None,
    objective: Objective | None = "Chat",
    labelled_as: Labelling | None = None,
    max_samples: int | None = None,
    labeler: RowEncoder | None = None,
    max_length: int = 2048,
    skips_long: bool = False,
    validation_prompts: Container[int] = frozenset(),
    system_message: str | None = None,
    references: ReferenceKeeper | None = None,
    on_progress: Progress | None = None,
    advise: Advise = advise_field,
    seen: SeenRows | None = None,
) -> Iterator[Row | Rejected]:
    """Yield every row of the files as a Row or a Rejected, in order, until `max_samples` rows are accepted.

    `labelled_as` replaces the objective's rule of which tokens have a loss; `skips_long` rejects rows with more tokens
    than `max_length` instead of truncating them; `columns` maps known names to the user's;
    `validation_prompts` contains `prompt_key`s that must not be trained on; rows without a system message get
    `system_message`;
    `references` keeps what the rewards of objective RLHF compare answers with; `on_progress` receives the rows and file
    bytes read so far; `advise` returns what names a column; `seen` has the `row_key`s of other sources, which must not
    be repeated, and receives those of these rows.
    """
    asked = None if format == AUTO else DataFormat(format)
    summary.columns = ColumnMap(columns or {}, advise)
    known = seen or SeenRows()
    checker = _RowChecker(asked, summary.columns, objective, validation_prompts, system_message, references, known)
    rows = checker.check(_read_all(paths, on_progress))
    if labeler is not None and objective is not None:
        rows = label_rows(rows, labeler, labelled_as or objective, max_length, skips_long=skips_long)
    for path in paths:
        summary.start_file(path.name)
    warned: Counter[RejectCode] = Counter()
    first: dict[str, int] = {}
    for row in rows:
        summary.count(row)
        if isinstance(row, Rejected):
            warned[row.code] += 1
            if warned[row.code] <= WARNINGS_PER_CODE:
                _warn(row, first)
        yield row
        if max_samples is not None and summary.accepted >= max_samples:
            return


@dataclass(slots=True)
class _RowChecker:
    """Checks a row against the requested format, columns and objective, and against earlier rows."""

    format: DataFormat | None
    columns: ColumnMap
    objective: Objective | None
    validation_prompts: Container[int]
    system_message: str | None = None
    references: ReferenceKeeper | None = None
    seen: SeenRows = field(default_factory=SeenRows)

    def check(self, records: Iterable[tuple[str, Record]]) -> Iterator[Row | Rejected]:
        for file, record in records:
            try:
                rows = self._read(file, record)
            except BadRow as bad:
                yield Rejected(file, record.line, bad.code, bad.detail, record.excerpt)
                continue
            for row in rows:
                try:
                    self._reject_repeated(row)
                except BadRow as bad:
                    yield Rejected(file, record.line, bad.code, bad.detail, record.excerpt)
                else:
                    yield row

    def _read(self, file: str, record: Record) -> tuple[Row, ...]:
        if record.value is None:
            raise record.problem or BadRow(RejectCode.BAD_JSON, "the row has no value")
        repairs: set[RepairCode] = set(record.repairs)
        named = self.columns.rename(record.value)
        columns = drop_misnamed(named)
        if type(next(iter(columns.values()), None)) is dict:
            refuse_columns_of_rows(columns)
        prompts_wanted = self.objective in SAMPLED
        # A column alone next to those that describe the row is read, or the row is rejected.
        converted = ReadColumns(columns) if len(columns.keys() - METADATA) > 1 else None
        try:
            data_format = self.format or detect_format(columns)
            row = convert_row(
                columns if converted is None else converted,
                data_format,
                Source(file, record.line),
                repairs,
                prompts_wanted=prompts_wanted,
            )
        except UnknownColumns as bad:
            raise self.columns.explain(bad, named, bad.wanted or COLUMNS[self.objective or "Chat"]) from None
        try:
            row = check_structure(row, repairs, prompts_wanted=prompts_wanted)
        except BadTurn as bad:
            if data_format in _OF_TURNS:
                raise BadRow(bad.code, f"turn {find_number(columns, bad.number)}{bad.what}") from None
            raise
        is_answered = data_format in _OF_ANSWERS or (converted is not None and "answer" in converted.read)
        if is_answered and self.objective in _OF_ONE_ANSWER and may_have_part(columns):
            self.columns.refuse_part(columns, trains_answer=not prompts_wanted)
        if not prompts_wanted and has_unclosed_reasoning(row):
            repairs.add(RepairCode.REASONING_UNCLOSED)
        if repairs:
            row.repairs = tuple(sorted(repairs))
        if self.system_message:
            _add_system_message(row, self.system_message)
        fitted = self._fit(row, columns)
        unused = self.columns.find_unused(record.value, converted.read) if converted is not None else ()
        if not _TURNS.isdisjoint(columns):
            unused += find_unread_keys(columns)
        if self.references is not None:
            answer = find_answer(row)
            fitted = tuple(
                self.references.keep(one, answer, record.value) if isinstance(one, PromptRow) else one for one in fitted
            )
        for one in fitted if unused else ():
            one.unused = _leave_out_references(unused, one)
        return fitted

    def _fit(self, row: Row, columns: Mapping[str, Any]) -> tuple[Row, ...]:
        try:
            return fit_objective(row, self.objective)
        except BadRow as bad:
            if self.objective and isinstance(row, PromptRow):  # the answer is probably in a column that no format knows
                raise self.columns.explain(bad, columns, COLUMNS[self.objective]) from None
            if isinstance(row, TextRow) and self.objective in ANSWERED:
                raise self.columns.explain_text(bad, columns) from None
            raise

    def _reject_repeated(self, row: Row) -> None:
        if not self.seen.add(row_key(row)):
            raise BadRow(RejectCode.DUPLICATE, "the row repeats an earlier row")
        if self.validation_prompts and prompt_key(row) in self.validation_prompts:
            raise BadRow(RejectCode.EVAL_LEAK, "the prompt is also in the validation file")


def _add_system_message(row: Row, text: str) -> None:
    """Put the message before the turns of a row that has none; a plain text has no turns."""
    if isinstance(row, TextRow):
        return
    turns = row.messages if isinstance(row, ChatRow) else row.prompt
    if not turns or turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": text})


def _leave_out_references(unused: tuple[str, ...], row: Row) -> tuple[str, ...]:
    if not isinstance(row, PromptRow) or not row.reference:
        return unused
    read = {find_root(name) for name in row.reference.get("columns", {})} | row.reference.get("columns", {}).keys()
    return tuple(name for name in unused if name not in read)


def _read_all(paths: Sequence[NamedPath], on_progress: Progress | None) -> Iterator[tuple[str, Record]]:
    rows = finished = 0
    for path in paths:
        file = RowFile(path)
        for record in file.records():
            yield path.name, record
            rows += 1
            if on_progress is not None and rows % PROGRESS_ROWS == 0:
                on_progress(rows, finished + file.bytes_read)
        finished += file.bytes_read
    if on_progress is not None:
        on_progress(rows, finished)


def _warn(row: Rejected, first: dict[str, int]) -> None:
    """Log a rejected row; `first` has the line of each detail of this file that was logged already."""
    key = f"{row.file}:{row.code}:{row.detail}"
    detail = f"as line {first[key]}" if key in first else row.detail
    first.setdefault(key, row.line)
    logger.warning("%s:%d: %s: %s (the row is skipped)", row.file, row.line, row.code, detail)


def label_rows(
    rows: Iterator[Row | Rejected],
    labeler: RowEncoder,
    objective: Labelling,
    max_length: int,
    *,
    skips_long: bool = False,
) -> Iterator[Row | Rejected]:
    """Yield the rows in order, each with its samples, or rejected if it has none, or if it is too long and
    `skips_long`."""
    for batch in _batches(rows):
        accepted = [row for row in batch if not isinstance(row, Rejected)]
        results = iter(labeler.encode_batch(accepted, objective, max_length))
        for row in batch:
            if isinstance(row, Rejected):
                yield row
                continue
            result = next(results)
            if skips_long and (tokens := _tokens_if_long(result, max_length)):
                result = BadRow(RejectCode.OVER_MAX_LENGTH, f"{tokens} tokens, and maxLength is {max_length}", tokens)
            if isinstance(result, BadRow):
                yield _reject(row, result)
                continue
            row.encodings = tuple(result)
            row.repairs = tuple(sorted({*row.repairs, *(code for encoded in result for code in encoded.repairs)}))
            yield row


def _tokens_if_long(result: Sequence[EncodedSample] | BadRow, max_length: int) -> int:
    """Return the tokens of a row that does not fit `max_length`; 0 if it fits, or is refused for another reason."""
    if isinstance(result, BadRow):
        return result.tokens if result.code is RejectCode.PROMPT_FILLS_CONTEXT else 0
    longest = max(sample.length + sample.left_out for sample in result)
    return longest if longest > max_length else 0


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
    detail = f"the row has {size / (1 << 20):.1f} MiB of text; the limit for tokenization is {most} MiB: split it up"
    return BadRow(RejectCode.TOO_LONG, detail)


def _reject(row: Row, bad: BadRow) -> Rejected:
    text = row.text if isinstance(row, TextRow) else " ".join(message["content"] for message in row.turns())
    return Rejected(row.source.file, row.source.line, bad.code, bad.detail, text[:EXCERPT_CHARACTERS], bad.tokens)
