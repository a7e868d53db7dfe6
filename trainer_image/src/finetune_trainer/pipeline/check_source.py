"""Fetch and check one source of rows in preflight: its accepted rows, their tokens, and what was counted."""

import shutil
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeVar, cast

from finetune_api.dataset.codes import RepairCode
from finetune_api.handoff import ExitCode, JobConfig
from finetune_api.inputs.sources import BlendSource, LongRows, Sample
from finetune_api.status import DatasetStatus
from finetune_trainer.data.blend import choose_rows
from finetune_trainer.data.checks.output import ACCEPTED, CheckOutput
from finetune_trainer.data.checks.pipeline import check_rows
from finetune_trainer.data.checks.row_keys import SeenRows, row_key
from finetune_trainer.data.checks.summary import Summary, explain_unusable, name_unknown_columns
from finetune_trainer.data.checks.system_texts import SystemTexts
from finetune_trainer.data.formats.column_map import advise_field
from finetune_trainer.data.rows import Labelling, Rejected, UnreadableFile
from finetune_trainer.data.sources import FetchedObject, fetch_source
from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.rewards.references import References
from finetune_trainer.storage.protocol import OnBytes, ReadableStore
from finetune_trainer.tokenization import samples
from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.tokenization.token_file import TokenOrigin, write_tokens

FIRST_CAUSES = FIRST_LINES = 5
TOKENS = "tokens.arrow"
COLUMNS = "dataset.columns"

Code = TypeVar("Code", bound=StrEnum)


@dataclass(slots=True)
class CheckedSource:
    """One source after the check: its accepted rows and their tokens are in `directory`; `samples` has the number of
    samples of each row and `trained` its trained tokens, `lengths` the tokens of each sample."""

    place: str
    """Path in the spec, such as `dataset.train.sources[0]`."""
    source: BlendSource
    files: list[FetchedObject]
    directory: Path
    summary: Summary = field(default_factory=Summary)
    systems: SystemTexts = field(default_factory=SystemTexts)
    samples: "array[int]" = field(default_factory=lambda: array("I"))
    trained: "array[int]" = field(default_factory=lambda: array("I"))
    lengths: "array[int]" = field(default_factory=lambda: array("I"))
    first_rejects: dict[tuple[str, str], list[Rejected]] = field(default_factory=dict)
    """The first rejected rows of the first causes, by file and by code with detail."""

    @property
    def accepted(self) -> Path:
        """The file of the accepted rows."""
        return self.directory / ACCEPTED

    @property
    def tokens(self) -> Path:
        """The file of the samples of the accepted rows."""
        return self.directory / TOKENS


@dataclass(frozen=True, slots=True)
class Earlier:
    """What earlier sources of the blend have brought; `rows` has no row that their `maxSamples` leaves out."""

    rows: SeenRows = field(default_factory=SeenRows)
    places: dict[str, str] = field(default_factory=dict)
    """The source that reads each file, by the file's URI."""

    def refuse_shared(self, place: str, files: list[FetchedObject]) -> None:
        """Refuse a file that two sources read: all rows of the second would repeat those of the first."""
        for file in files:
            first = self.places.setdefault(file.uri, place)
            if first != place:
                raise TrainerError(
                    ExitCode.DATASET_UNUSABLE,
                    f"spec.{place}.uri and spec.{first}.uri both read {file.uri}: name other files in one of them, or "
                    "remove it",
                )


@dataclass(frozen=True, slots=True)
class SourceCheck:
    """The check of a job's sources."""

    config: JobConfig
    storage: ReadableStore
    workspace: Path
    labeler: Labeler
    on_bytes: OnBytes
    on_rows: Callable[[], None]

    def run(
        self,
        place: str,
        source: BlendSource,
        prompts: frozenset[int] = frozenset(),
        earlier: Earlier | None = None,
    ) -> CheckedSource:
        """Fetch and check the source at this place of the spec; raises DatasetUnusable with counts and first lines.

        `prompts` must not be trained on, and the rows of `earlier` sources not be repeated.
        """
        if unknown := name_unknown_columns(frozenset(source.columns or ()), _columns_field(place)):
            raise InvalidConfig(unknown)
        below = place.removeprefix("dataset.")
        name = below.replace(".sources", "").replace("[", "-").rstrip("]")
        folder = self.workspace / f"source-{name}"
        fetched = fetch_source(source, self.storage, folder, below, self.on_bytes)
        earlier = earlier or Earlier()
        earlier.refuse_shared(place, fetched.files)
        checked = CheckedSource(place, source, fetched.files, self.workspace / f"checked-{name}")
        checked.summary.ignored_files = fetched.ignored
        try:
            if source.max_samples is None:
                self._check(checked, prompts, earlier.rows)
            else:
                self._check_limited(checked, prompts, earlier.rows)
        except UnreadableFile as error:
            message = f"{_label(checked)} cannot be read as rows: {error}"
            raise TrainerError(ExitCode.DATASET_UNUSABLE, message) from None
        shutil.rmtree(folder)  # the disk has the accepted rows now
        _refuse_unusable(checked, self.config.spec.dataset.max_rejected_percent)
        return checked

    def _check_limited(self, checked: CheckedSource, prompts: frozenset[int], earlier: SeenRows) -> None:
        """Check a source that the blend does not use as a whole; later sources may have the rows that it leaves out."""
        keys = array("q")
        self._check(checked, prompts, SeenRows(earlier), keys)
        for row in choose_rows(len(keys), checked.source, self.config.spec.hyperparameters.seed):
            earlier.add(keys[row])

    def _check(
        self, checked: CheckedSource, prompts: frozenset[int], seen: SeenRows, keys: "array[int] | None" = None
    ) -> None:
        """Write the rows and their tokens; `keys` receives the `row_key` of each accepted row."""
        spec, source = self.config.spec, checked.source
        rows = check_rows(
            [file.named for file in checked.files],
            summary=checked.summary,
            format=(source.format or spec.dataset.format).value,
            columns=source.columns,
            objective=spec.objective.value,
            labelled_as=cast("Labelling", spec.labelled_as),
            max_samples=source.max_samples if source.sample is Sample.FIRST else None,
            labeler=self.labeler,
            max_length=spec.hyperparameters.max_length,
            skips_long=spec.dataset.long_rows is LongRows.SKIP,
            validation_prompts=prompts,
            system_message=spec.dataset.system_message,
            references=References.of(spec.rewards),
            on_progress=lambda _rows, _bytes: self.on_rows(),
            advise=lambda columns: (_columns_field(checked.place), advise_field(columns)[1]),
            seen=seen,
        )
        origin = TokenOrigin.of(self.labeler, spec.labelled_as, spec.hyperparameters.max_length)
        with CheckOutput(checked.directory, checked.summary) as out, write_tokens(checked.tokens, origin) as tokens:
            for row in rows:
                out.write(row)
                if not isinstance(row, Rejected):
                    tokens.write(cast("tuple[samples.Sample, ...]", row.encodings))
                    checked.systems.add(row)
                    checked.samples.append(len(row.encodings))
                    checked.trained.append(sum(sample.trained for sample in row.encodings))
                    checked.lengths.extend(sample.length for sample in row.encodings)
                    if keys is not None:
                        keys.append(row_key(row))
                else:
                    _keep_first(checked.first_rejects, row)


def _columns_field(place: str) -> str:
    """Return the field that names the columns of the source at this place; a single source has no field of its own."""
    return f"{place}.columns" if place.endswith("]") else COLUMNS


def _label(checked: CheckedSource) -> str:
    """Return the source as messages name it: its URI, after its place if it is one of several."""
    uri = checked.source.uri
    return f"spec.{checked.place}: {uri}" if checked.place.endswith("]") else uri


def _refuse_unusable(checked: CheckedSource, max_percent: int) -> None:
    summary = checked.summary
    why = explain_unusable(summary, max_percent)
    if why is None:
        return
    why = why.replace(COLUMNS, _columns_field(checked.place))
    codes = ", ".join(f"{code} {count}" for code, count in summary.rejected_by_code.most_common())
    lines = "; ".join(
        f"{f'{file} ' if len(checked.files) > 1 else ''}{_name_lines(rows)}: {rows[0].code}: {rows[0].detail}"
        for (file, _), rows in checked.first_rejects.items()
        if rows[0].detail not in why
    )
    found = (f" ({codes})" if codes else "") + (f". First: {lines}" if lines else "")
    raise TrainerError(ExitCode.DATASET_UNUSABLE, f"{_label(checked)}: {why}{found}", count_rows([summary]))


def _keep_first(found: dict[tuple[str, str], list[Rejected]], row: Rejected) -> None:
    cause = (row.file, f"{row.code}: {row.detail}")
    if cause in found or len(found) < FIRST_CAUSES:
        rows = found.setdefault(cause, [])
        if len(rows) < FIRST_LINES:
            rows.append(row)


def _name_lines(rows: list[Rejected]) -> str:
    return f"line{'s' if len(rows) > 1 else ''} {', '.join(str(row.line) for row in rows)}"


def count_rows(summaries: list[Summary]) -> DatasetStatus:
    """Return the counts of the sources together."""
    total = merge_summaries(summaries)
    return DatasetStatus(
        rows=total.rows,
        accepted_rows=total.accepted,
        repaired_rows=total.repaired,
        rejected_rows=total.rejected,
        rejected_rows_by_code=by_name(total.rejected_by_code),
        repaired_rows_by_code=by_name(total.repaired_by_code),
        rows_by_format=by_name(total.formats),
        truncated_rows=total.repaired_by_code[RepairCode.TRUNCATED],
    )


def merge_summaries(summaries: list[Summary]) -> Summary:
    """Return one summary with the counts of all."""
    if len(summaries) == 1:
        return summaries[0]
    total = Summary()
    for one in summaries:
        total.add(one)
    return total


def by_name(counts: Counter[Code]) -> dict[str, int]:
    """Return counts by the name of their code, the most frequent first."""
    return {code.value: count for code, count in counts.most_common()}
