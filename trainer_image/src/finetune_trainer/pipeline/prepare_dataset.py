"""Fetch, check and split the rows in preflight, and write the canonical rows that training reads."""

import json
import logging
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import orjson

from finetune_api.dataset.codes import RepairCode
from finetune_api.handoff import Artifact, ExitCode, JobConfig, ManifestFile
from finetune_api.spec import DataSource
from finetune_api.status import DatasetStatus
from finetune_trainer.data.ability import choose_questions, write_questions
from finetune_trainer.data.checks.output import ACCEPTED, REJECTED, CheckOutput, read_accepted
from finetune_trainer.data.checks.pipeline import check_rows
from finetune_trainer.data.checks.split import PromptSplit, Split, collect_prompts
from finetune_trainer.data.checks.summary import Summary, explain_unusable, name_unknown_columns
from finetune_trainer.data.rows import NamedPath, Rejected, UnreadableFile
from finetune_trainer.data.sources import FetchedObject, fetch_object, fetch_source
from finetune_trainer.errors import TrainerError
from finetune_trainer.rewards.references import References
from finetune_trainer.storage.protocol import OnBytes, ReadableStore, describe_files, sha256_file
from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.tokenization.samples import Sample
from finetune_trainer.tokenization.token_file import TokenOrigin, split_tokens, write_tokens

logger = logging.getLogger(__name__)

FIRST_CAUSES = FIRST_LINES = 5
TOKENS = "tokens.arrow"


@dataclass(slots=True)
class CheckedFile:
    """One source after the check: its accepted rows and their tokens are in `directory`; `samples` has the number of
    samples of each row, `lengths` the tokens of each sample."""

    source: DataSource
    files: list[FetchedObject]
    directory: Path
    summary: Summary = field(default_factory=Summary)
    samples: "array[int]" = field(default_factory=lambda: array("I"))
    lengths: "array[int]" = field(default_factory=lambda: array("I"))
    first_rejects: dict[tuple[str, str], list[Rejected]] = field(default_factory=dict)
    """The first rejected rows of the first causes, by file and by code with detail."""

    @property
    def tokens(self) -> Path:
        """The file of the samples of the accepted rows."""
        return self.directory / TOKENS


@dataclass(frozen=True, slots=True)
class PreparedDataset:
    """The canonical rows in `directory`, named as under `output.uri`, and what was counted."""

    directory: Path
    files: list[ManifestFile]
    status: DatasetStatus
    train_lengths: "array[int]"
    validation_samples: int

    @property
    def train_samples(self) -> int:
        """The samples of one pass."""
        return len(self.train_lengths)

    @property
    def summary_sha256(self) -> str:
        """SHA-256 of the summary, which has the digests of all files."""
        return sha256_file(self.directory / Artifact.DATASET_SUMMARY)

    def digest(self, name: Artifact) -> str:
        """SHA-256 of one of the files."""
        return next(file.sha256 for file in self.files if file.path == name)


def prepare_dataset(
    config: JobConfig,
    storage: ReadableStore,
    workspace: Path,
    labeler: Labeler,
    *,
    bound: Mapping[str, Any],
    on_bytes: OnBytes,
    on_rows: Callable[[], None],
) -> PreparedDataset:
    """Check every source against the model's own tokenizer; raises DatasetUnusable with counts and first lines.

    `bound` is added to the summary: the models that preflight checked, with the digests of their files.
    """
    dataset = config.spec.dataset
    if unknown := name_unknown_columns(frozenset(dataset.columns or ())):
        raise TrainerError(ExitCode.INVALID_CONFIG, unknown)
    check = _Check(config, storage, workspace, labeler, on_bytes, on_rows)
    validation = check.run("validation", dataset.validation) if dataset.validation else None
    prompts = collect_prompts(read_accepted(validation.directory / ACCEPTED)) if validation else frozenset()
    train = check.run("train", dataset.train, prompts, dataset.max_samples)
    split = _split(config, train)
    out = workspace / "prepared"
    shutil.rmtree(out, ignore_errors=True)
    (out / "dataset").mkdir(parents=True)
    train_lengths, held_out_samples = _write_rows(out, train, validation, split)
    _concatenate(out / Artifact.REJECTED, [one.directory / REJECTED for one in (train, validation) if one])
    ability = _write_questions(config, storage, workspace, out, on_bytes)
    status = _status(train, validation, split)
    files = describe_files(out)
    _write_summary(
        out,
        train,
        validation,
        status=status,
        files=files,
        labeler=labeler,
        bound=bound,
        ability=ability,
    )
    return PreparedDataset(out, files, status, train_lengths, held_out_samples)


@dataclass(frozen=True, slots=True)
class _Check:
    config: JobConfig
    storage: ReadableStore
    workspace: Path
    labeler: Labeler
    on_bytes: OnBytes
    on_rows: Callable[[], None]

    def run(
        self, name: str, source: DataSource, prompts: frozenset[int] = frozenset(), max_samples: int | None = None
    ) -> CheckedFile:
        files = fetch_source(source, self.storage, self.workspace / f"source-{name}", name, self.on_bytes)
        checked = CheckedFile(source, files, self.workspace / f"checked-{name}")
        try:
            self._check(checked, prompts, max_samples)
        except UnreadableFile as error:
            raise TrainerError(ExitCode.DATASET_UNUSABLE, f"{source.uri} cannot be read as rows: {error}") from None
        _refuse_unusable(checked, self.config.spec.dataset.max_rejected_percent)
        return checked

    def _check(self, checked: CheckedFile, prompts: frozenset[int], max_samples: int | None) -> None:
        rows = check_rows(
            [NamedPath(file.path, file.uri) for file in checked.files],
            summary=checked.summary,
            format=self.config.spec.dataset.format.value,
            columns=self.config.spec.dataset.columns,
            objective=self.config.spec.objective.value,
            max_samples=max_samples,
            labeler=self.labeler,
            max_length=self.config.spec.hyperparameters.max_length,
            validation_prompts=prompts,
            references=References.of(self.config.spec.rlhf),
            on_progress=lambda _rows, _bytes: self.on_rows(),
        )
        spec = self.config.spec
        origin = TokenOrigin.of(self.labeler, spec.objective.value, spec.hyperparameters.max_length)
        with CheckOutput(checked.directory, checked.summary) as out, write_tokens(checked.tokens, origin) as tokens:
            for row in rows:
                out.write(row)
                if not isinstance(row, Rejected):
                    tokens.write(cast("tuple[Sample, ...]", row.encodings))
                    checked.samples.append(len(row.encodings))
                    checked.lengths.extend(sample.length for sample in row.encodings)
                else:
                    _keep_first(checked.first_rejects, row)


def _refuse_unusable(checked: CheckedFile, max_percent: int) -> None:
    summary = checked.summary
    why = explain_unusable(summary, max_percent)
    if why is None:
        return
    codes = ", ".join(f"{code} {count}" for code, count in summary.rejected_by_code.most_common())
    lines = "; ".join(
        f"{f'{file} ' if len(checked.files) > 1 else ''}{_name_lines(rows)}: {rows[0].code}: {rows[0].detail}"
        for (file, _), rows in checked.first_rejects.items()
        if rows[0].detail not in why
    )
    found = (f" ({codes})" if codes else "") + (f". First: {lines}" if lines else "")
    raise TrainerError(ExitCode.DATASET_UNUSABLE, f"{checked.source.uri}: {why}{found}", _counts([summary]))


def _keep_first(found: dict[tuple[str, str], list[Rejected]], row: Rejected) -> None:
    cause = (row.file, f"{row.code}: {row.detail}")
    if cause in found or len(found) < FIRST_CAUSES:
        rows = found.setdefault(cause, [])
        if len(rows) < FIRST_LINES:
            rows.append(row)


def _name_lines(rows: list[Rejected]) -> str:
    return f"line{'s' if len(rows) > 1 else ''} {', '.join(str(row.line) for row in rows)}"


def _split(config: JobConfig, train: CheckedFile) -> Split:
    dataset = config.spec.dataset
    chooser = PromptSplit(dataset.validation_split_percent or 0, config.spec.hyperparameters.seed)
    for row in read_accepted(train.directory / ACCEPTED):
        chooser.add(row)
    split = chooser.close()
    if split.warning:
        logger.warning("%s: %s", train.source.uri, split.warning)
    return split


def _write_rows(
    out: Path, train: CheckedFile, validation: CheckedFile | None, split: Split
) -> "tuple[array[int], int]":
    """Return the lengths of the samples to train on, and the number of samples for evaluation."""
    lengths, held_out_samples, at, sides = array("I"), 0, 0, bytearray()
    held_out = out / Artifact.VALIDATION_ROWS
    with (out / Artifact.TRAIN_ROWS).open("wb") as train_file, held_out.open("wb") as validation_file:
        rows = read_accepted(train.directory / ACCEPTED)
        for row, count in zip(rows, train.samples, strict=True):
            is_held_out = split.is_validation(row)
            sides.append(is_held_out)
            if is_held_out:
                held_out_samples += count
            else:
                lengths.extend(train.lengths[at : at + count])
            at += count
            line = orjson.dumps(row.to_dict(), option=orjson.OPT_APPEND_NEWLINE)
            (validation_file if is_held_out else train_file).write(line)
    split_tokens(train.tokens, sides, out / Artifact.TRAIN_TOKENS, out / Artifact.VALIDATION_TOKENS)
    if validation:
        (validation.directory / ACCEPTED).replace(held_out)
        validation.tokens.replace(out / Artifact.VALIDATION_TOKENS)
        return lengths, sum(validation.samples)
    if not split.validation_rows:
        held_out.unlink()
    return lengths, held_out_samples


def _write_questions(
    config: JobConfig, storage: ReadableStore, workspace: Path, out: Path, on_bytes: OnBytes
) -> FetchedObject | None:
    """Fetch and check the questions of `evaluation.ability`, if the job has any, and write those that are asked."""
    asked = config.spec.evaluation.ability
    if asked is None:
        return None
    fetched = fetch_object(asked.uri, asked.sha256, storage, workspace / "source-ability", on_bytes)
    questions = choose_questions(
        NamedPath(fetched.path, fetched.uri), asked.max_questions, config.spec.hyperparameters.seed
    )
    write_questions(out / Artifact.ABILITY_ROWS, questions)
    return fetched


def _concatenate(target: Path, parts: list[Path]) -> None:
    with target.open("wb") as file:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file)


def collect_rejected(workspace: Path) -> Path | None:
    """Return a file of all rows rejected so far, for a dataset that is refused; None if there are none."""
    parts = sorted(workspace.glob(f"checked-*/{REJECTED}"))
    target = workspace / Artifact.REJECTED
    _concatenate(target, parts)
    return target if target.stat().st_size else None


def _status(train: CheckedFile, validation: CheckedFile | None, split: Split) -> DatasetStatus:
    status = _counts([one.summary for one in (train, validation) if one])
    status.train_rows = split.train_rows
    status.p99_length_tokens = train.summary.lengths.percentile(99)
    status.validation_rows = validation.summary.accepted if validation else split.validation_rows
    return status


def _counts(summaries: list[Summary]) -> DatasetStatus:
    rejected: Counter[str] = Counter()
    repaired: Counter[str] = Counter()
    formats: Counter[str] = Counter()
    for summary in summaries:
        rejected.update({code.value: count for code, count in summary.rejected_by_code.items()})
        repaired.update({code.value: count for code, count in summary.repaired_by_code.items()})
        formats.update({name.value: count for name, count in summary.formats.items()})
    return DatasetStatus(
        rows=sum(summary.rows for summary in summaries),
        accepted_rows=sum(summary.accepted for summary in summaries),
        repaired_rows=sum(summary.repaired for summary in summaries),
        rejected_rows=sum(summary.rejected for summary in summaries),
        rejected_rows_by_code=dict(rejected.most_common()),
        repaired_rows_by_code=dict(repaired.most_common()),
        rows_by_format=dict(formats.most_common()),
        truncated_rows=repaired[RepairCode.TRUNCATED.value],
    )


def _write_summary(
    out: Path,
    train: CheckedFile,
    validation: CheckedFile | None,
    *,
    status: DatasetStatus,
    files: list[ManifestFile],
    labeler: Labeler,
    bound: Mapping[str, Any],
    ability: FetchedObject | None,
) -> None:
    content: dict[str, Any] = {
        "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
        "train": train.summary.to_dict(),
        "validation": validation.summary.to_dict() if validation else None,
        "sources": [file.to_dict() for one in (train, validation) if one for file in one.files],
        **bound,
        "files": [file.model_dump(by_alias=True) for file in files],
        "chatTemplateSHA256": labeler.template_sha256,
        **({"ability": ability.to_dict()} if ability else {}),
    }
    (out / Artifact.DATASET_SUMMARY).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
