"""Count accepted, repaired and rejected rows, and explain an unusable dataset."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from finetune_api.dataset.codes import WELL_FORMED_REJECTS, RejectCode, RepairCode
from finetune_api.dataset.columns import find_unknown, fix_column
from finetune_trainer.data.formats.column_map import ColumnMap
from finetune_trainer.data.formats.columns import name_columns, shorten_name
from finetune_trainer.data.lengths import Lengths
from finetune_trainer.data.rows import DataFormat, Rejected, Row

ACCEPTED = "accepted"
UNUSED_SHOWN = 10
UNUSED_COUNTED = 200
LEAST_UNUSED_SHARE = 0.01


@dataclass(slots=True)
class Summary:
    """Counters of rows; `rows` = `accepted` + `rejected`, and `accepted` includes the `repaired` rows.

    The token counts stay 0 without a tokenizer, and `to_dict` leaves them out; `ignored_files` have no rows. `unfit`
    counts rows that the objective cannot use, by detail; `files` counts the rows of each file, by reject code or as
    ACCEPTED; `unused` counts accepted rows with content in a column that nothing reads, by the first 200 names.
    """

    accepted: int = 0
    repaired: int = 0
    rejected_by_code: Counter[RejectCode] = field(default_factory=Counter)
    repaired_by_code: Counter[RepairCode] = field(default_factory=Counter)
    formats: Counter[DataFormat] = field(default_factory=Counter)
    samples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    answers_cut: int = 0
    reasoning_lost: int = 0
    lengths: Lengths = field(default_factory=Lengths)
    unfit: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    columns: ColumnMap = field(default_factory=lambda: ColumnMap({}))
    ignored_files: list[str] = field(default_factory=list)
    files: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.accepted + self.rejected

    @property
    def rejected(self) -> int:
        """The number of rejected rows."""
        return self.rejected_by_code.total()

    @property
    def malformed(self) -> int:
        """The number of rejected rows without duplicates and evaluation leaks, which are well formed."""
        return sum(count for code, count in self.rejected_by_code.items() if code not in WELL_FORMED_REJECTS)

    @property
    def malformed_percent(self) -> float:
        """Malformed rows in percent of all rows, to compare with `dataset.maxRejectedPercent`."""
        return 100 * self.malformed / self.rows if self.rows else 0.0

    def count(self, row: Row | Rejected) -> None:
        """Count one row."""
        if isinstance(row, Rejected):
            self.files[row.file][row.code] += 1
            self.rejected_by_code[row.code] += 1
            if row.tokens:
                self.lengths.add(row.tokens)
            if row.code is RejectCode.NOT_FOR_OBJECTIVE:
                self.unfit[row.detail] += 1
            return
        self.accepted += 1
        self.files[row.source.file][ACCEPTED] += 1
        self.formats[row.format] += 1
        if row.unused:
            self._count_unused(row.unused)
        if row.repairs:
            self.repaired += 1
            self.repaired_by_code.update(row.repairs)
        if row.encodings:
            self.lengths.add(max(encoded.length + encoded.left_out for encoded in row.encodings))
        for encoded in row.encodings:
            self.samples += 1
            self.tokens += encoded.tokens
            self.trained_tokens += encoded.trained
            self.answers_cut += encoded.answer_cut
            self.reasoning_lost += encoded.reasoning_lost

    def _count_unused(self, columns: Iterable[str]) -> None:
        for name in dict.fromkeys(map(shorten_name, columns)):
            if name in self.unused or len(self.unused) < UNUSED_COUNTED:
                self.unused[name] += 1

    @property
    def unused_columns(self) -> list[tuple[str, int]]:
        """The most frequent of the columns that nothing reads, with the number of their accepted rows."""
        return [
            (name, count)
            for name, count in self.unused.most_common(UNUSED_SHOWN)
            if count >= LEAST_UNUSED_SHARE * self.accepted
        ]

    def describe_unused(self) -> str:
        """Return the columns that nothing reads, each with its share of the accepted rows; empty if there are none."""
        return ", ".join(f"{name} ({100 * count / self.accepted:.0f} %)" for name, count in self.unused_columns)

    def add(self, other: "Summary") -> None:
        """Add the counts of another source."""
        for name in ("accepted", "repaired", "samples", "tokens", "trained_tokens", "answers_cut", "reasoning_lost"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.rejected_by_code.update(other.rejected_by_code)
        self.repaired_by_code.update(other.repaired_by_code)
        self.formats.update(other.formats)
        self.unfit.update(other.unfit)
        self.unused.update(other.unused)
        self.lengths.rows.update(other.lengths.rows)
        self.files.update(other.files)
        self.ignored_files.extend(other.ignored_files)

    def to_dict(self) -> dict[str, Any]:
        """Return the counters in the form of `summary.json`, the most frequent code first; those of the tokenizer are
        absent if no row was tokenized."""
        counted: dict[str, Any] = {
            "samples": self.samples,
            "tokens": self.tokens,
            "trainedTokens": self.trained_tokens,
            "answersCut": self.answers_cut,
            "reasoningLost": self.reasoning_lost,
            "lengths": self.lengths.to_dict(),
        }
        return {
            "rows": self.rows,
            "acceptedRows": self.accepted,
            "repairedRows": self.repaired,
            "rejectedRows": self.rejected,
            "malformedRows": self.malformed,
            "rejectedRowsByCode": {code.value: count for code, count in self.rejected_by_code.most_common()},
            "repairedRowsByCode": {code.value: count for code, count in self.repaired_by_code.most_common()},
            "rowsByFormat": {name.value: count for name, count in self.formats.most_common()},
            **(counted if self.lengths.rows else {}),
            "unusedColumns": dict(self.unused_columns),
            "files": [_describe(name, counts) for name, counts in self.files.items()],
            "ignoredFiles": self.ignored_files,
        }

    def start_file(self, name: str) -> None:
        """Add a file to the summary, even if it contains no row."""
        self.files.setdefault(name, Counter())


def _describe(name: str, counts: Counter[str]) -> dict[str, Any]:
    rejected = {str(code): count for code, count in counts.most_common() if code != ACCEPTED}
    return {"file": name, "rows": counts.total(), "acceptedRows": counts[ACCEPTED], "rejectedRowsByCode": rejected}


def explain_unusable(summary: Summary, max_rejected_percent: int) -> str | None:
    """Return why these rows cannot be trained on, or None; 100 percent allows any number of rejects."""
    columns = summary.columns
    if not summary.rows:
        return "there are no rows"
    if columns.missing and columns.seen:
        named = ", ".join(f"{known} as {own!r}" for known, own in columns.columns.items() if own in columns.missing)
        return f"dataset.columns names {named}, which no row has; columns found: {name_columns(columns.seen)}"
    if not summary.accepted:
        return _explain_none(summary)
    if summary.malformed_percent <= max_rejected_percent:
        return None
    unfit = summary.rejected_by_code[RejectCode.NOT_FOR_OBJECTIVE]
    detail = f"{unfit} of them do not fit the objective, " if unfit else ""
    return (
        f"{summary.malformed} of {summary.rows} rows are malformed ({summary.malformed_percent:.1f} %, {detail}"
        f"dataset.maxRejectedPercent is {max_rejected_percent})"
    )


def _explain_none(summary: Summary) -> str:
    """Return why no row is accepted."""
    rows, codes = summary.rows, summary.rejected_by_code
    if codes[RejectCode.NOT_FOR_OBJECTIVE] == rows:
        return f"none of the {rows} rows fits the objective: {_most_frequent(summary)}"
    if codes[RejectCode.OVER_MAX_LENGTH] == rows:
        return f"each of the {rows} rows has more tokens than hyperparameters.maxLength: raise it"
    return f"none of the {rows} rows can be used"


def count_lost_reasoning(lost: int, accepted: int) -> str | None:
    """Return in how many of the accepted rows the chat template omits reasoning, or None if in no row."""
    if not lost:
        return None
    share = 100 * lost / accepted
    return f"the chat template omits the reasoning of answers in {lost} of {accepted} rows ({share:.1f} %)"


def explain_lost_reasoning(lost: int, accepted: int) -> str | None:
    """Return the same with what to change, or None."""
    counted = count_lost_reasoning(lost, accepted)
    fix = "set spec.model.chatTemplate to one that writes it, or remove it from the rows"
    return f"{counted}, which is not trained on: {fix}" if counted else None


def name_unknown_columns(names: frozenset[str], field: str = "dataset.columns") -> str | None:
    """Return an error for column names that no format has, or None."""
    if unknown := find_unknown(names):
        fixes = dict.fromkeys(map(fix_column, unknown))
        return f"spec.{field} maps {', '.join(unknown)}, which is in no format: {'; '.join(fixes)}"
    return None


def _most_frequent(summary: Summary) -> str:
    (detail, count), *others = summary.unfit.most_common()
    return f"{detail} ({count} rows)" if others else detail
