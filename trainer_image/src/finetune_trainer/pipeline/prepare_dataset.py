"""Fetch, check and split the rows in preflight, and write the canonical rows that training reads."""

import json
import logging
import shutil
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.handoff import Artifact, JobConfig, ManifestFile
from finetune_api.inputs.sources import BlendSource
from finetune_api.status import DatasetStatus
from finetune_trainer.data.ability import choose_questions, write_questions
from finetune_trainer.data.checks.output import REJECTED, read_accepted
from finetune_trainer.data.checks.split import collect_prompts
from finetune_trainer.data.checks.system_texts import find_shared
from finetune_trainer.data.sources import FetchedObject, fetch_object
from finetune_trainer.pipeline.blend_rows import Blend, blend_sources, write_blend
from finetune_trainer.pipeline.check_source import CheckedSource, Earlier, SourceCheck, count_rows, merge_summaries
from finetune_trainer.storage.protocol import OnBytes, ReadableStore, describe_files, sha256_file
from finetune_trainer.tokenization.labeler import Labeler

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreparedDataset:
    """The canonical rows in `directory`, named as under `output.uri`, and what was counted."""

    directory: Path
    files: list[ManifestFile]
    status: DatasetStatus
    train_lengths: "array[int]"
    held_out_lengths: "array[int]"
    shared_system: Mapping[str, Any] | None = None
    """The system text that almost all training rows have, by its beginning, and their share."""
    unsplit: str = ""
    """Why no training row is held out although the job asks for it."""

    @property
    def train_samples(self) -> int:
        """The samples of one pass."""
        return len(self.train_lengths)

    @property
    def validation_samples(self) -> int:
        """The samples to evaluate with."""
        return len(self.held_out_lengths)

    @property
    def longest(self) -> int:
        """The tokens of the longest sample."""
        return max(max(self.train_lengths, default=0), max(self.held_out_lengths, default=0))

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
    template: str | None = None,
) -> PreparedDataset:
    """Check every source against the model's own tokenizer; raises DatasetUnusable with counts and first lines.

    `bound` is added to the summary: the models that preflight checked, with the digests of their files. `template` is
    the text of the chosen chat template, if it must be stored for the training.
    """
    for stale in workspace.glob("checked-*"):
        shutil.rmtree(stale)
    dataset = config.spec.dataset
    check = SourceCheck(config, storage, workspace, labeler, on_bytes, on_rows)
    held_out = dataset.held_out_source()
    validation = check.run("dataset.validation", held_out) if held_out else None
    prompts = collect_prompts(read_accepted(validation.accepted)) if validation else frozenset()
    blended = blend_sources(config, _check_training(check, dataset.training_sources(), prompts))
    out = workspace / "prepared"
    shutil.rmtree(out, ignore_errors=True)
    (out / "dataset").mkdir(parents=True)
    train_lengths, held_out_lengths = write_blend(out, blended)
    if validation:
        validation.accepted.replace(out / Artifact.VALIDATION_ROWS)
        validation.tokens.replace(out / Artifact.VALIDATION_TOKENS)
        held_out_lengths = validation.lengths
    elif not blended.split.validation_rows:
        (out / Artifact.VALIDATION_ROWS).unlink()
    checked = [one.checked for one in blended.sources]
    _concatenate(out / Artifact.REJECTED, [one.directory / REJECTED for one in (*checked, validation) if one])
    ability = _write_questions(config, storage, workspace, out, on_bytes)
    if template is not None:
        (out / Artifact.CHAT_TEMPLATE).write_text(template, encoding="utf-8", newline="")
    _warn_of_unused_columns(blended)
    status = _status(blended, validation)
    files = describe_files(out)
    shared = find_shared((one.checked.systems, one.train_rows) for one in blended.sources)
    _write_summary(
        out,
        blended,
        validation,
        status=status,
        files=files,
        labeler=labeler,
        bound=bound,
        ability=ability,
        shared_system=shared,
    )
    why = blended.split.warning or ""
    return PreparedDataset(out, files, status, train_lengths, held_out_lengths, shared, why)


def _check_training(
    check: SourceCheck, sources: Mapping[str, BlendSource], prompts: frozenset[int]
) -> list[CheckedSource]:
    earlier = Earlier()
    return [check.run(place, source, prompts, earlier) for place, source in sources.items()]


def _write_questions(
    config: JobConfig, storage: ReadableStore, workspace: Path, out: Path, on_bytes: OnBytes
) -> FetchedObject | None:
    """Fetch and check the questions of `evaluation.ability`, if the job has any, and write those that are asked."""
    asked = config.spec.evaluation.ability
    if asked is None:
        return None
    fetched = fetch_object(asked.uri, asked.sha256, storage, workspace / "source-ability", on_bytes)
    questions = choose_questions(fetched.named, asked.max_questions, config.spec.hyperparameters.seed)
    write_questions(out / Artifact.ABILITY_ROWS, questions)
    return fetched


def _warn_of_unused_columns(blended: Blend) -> None:
    found = [
        (one.checked.place, unused) for one in blended.sources if (unused := one.checked.summary.describe_unused())
    ]
    if found:
        named = "; ".join(f"{unused} of {place}" if blended.is_several else unused for place, unused in found)
        field = "columns of the source" if blended.is_several else "dataset.columns"
        logger.warning("columns not used: %s: name them in %s if they belong to the training", named, field)


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


def _status(blended: Blend, validation: CheckedSource | None) -> DatasetStatus:
    train = [one.checked.summary for one in blended.sources]
    status = count_rows([*train, *([validation.summary] if validation else [])])
    status.train_rows = blended.train_rows
    status.p99_length_tokens = merge_summaries(train).lengths.percentile(99)
    status.validation_rows = validation.summary.accepted if validation else blended.split.validation_rows
    if blended.is_several:
        status.sources = blended.status()
    return status


def _write_summary(
    out: Path,
    blended: Blend,
    validation: CheckedSource | None,
    *,
    status: DatasetStatus,
    files: list[ManifestFile],
    labeler: Labeler,
    bound: Mapping[str, Any],
    ability: FetchedObject | None,
    shared_system: Mapping[str, Any] | None,
) -> None:
    train = [one.checked for one in blended.sources]
    content: dict[str, Any] = {
        "status": status.to_wire(),
        "train": merge_summaries([one.summary for one in train]).to_dict(),
        "validation": validation.summary.to_dict() if validation else None,
        "sources": [file.to_dict() for one in (*train, validation) if one for file in one.files],
        **({"blend": blended.to_list()} if blended.is_several else {}),
        **bound,
        "files": [file.model_dump(by_alias=True) for file in files],
        "chatTemplateSHA256": labeler.template_sha256,
        **({"ability": ability.to_dict()} if ability else {}),
        **({"sharedSystem": shared_system} if shared_system else {}),
    }
    (out / Artifact.DATASET_SUMMARY).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
