"""The rows that preflight wrote, verified, as training samples; torch is not needed here."""

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from finetune_api.handoff import Artifact, ExitCode, JobConfig
from finetune_trainer.data.checks.output import read_accepted
from finetune_trainer.data.lengths import Lengths
from finetune_trainer.data.rows import BadRow, Row
from finetune_trainer.errors import ObjectMissing, TrainerError
from finetune_trainer.evaluation.run_record import SampleStats
from finetune_trainer.storage.protocol import OnBytes, ReadableStore, join_uri, sha256_file
from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.tokenization.previews import Piece, abridge
from finetune_trainer.tokenization.samples import EncodedLabelled, Sample

EVALUATED_ROWS = 512
PREVIEWED_ROWS = 3
ENCODED_AT_ONCE = 256

OnRows = Callable[[], None]


@dataclass(frozen=True)
class Rows:
    """The canonical rows of both sides, and what preflight wrote about them."""

    train: list[Row]
    validation: list[Row]
    summary: dict[str, Any]

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each file that is trained on or evaluated with, by its key under `output.uri`."""
        used = {Artifact.TRAIN_ROWS, Artifact.VALIDATION_ROWS}
        return {str(file["path"]): str(file["sha256"]) for file in self.summary["files"] if file["path"] in used}

    @property
    def train_sha256(self) -> str:
        """SHA-256 of the file of training rows."""
        return str(next(file["sha256"] for file in self.summary["files"] if file["path"] == Artifact.TRAIN_ROWS))


def fetch_rows(config: JobConfig, storage: ReadableStore, directory: Path, on_bytes: OnBytes) -> Rows:
    """Download both files and check them against preflight's summary."""
    uri = join_uri(config.output_key(), Artifact.DATASET_SUMMARY)
    data = storage.read(uri)
    if data is None:
        raise TrainerError(ExitCode.DATASET_UNUSABLE, f"{uri} is missing: preflight did not finish, or it was removed")
    summary = json.loads(data)
    digests = {file["path"]: file["sha256"] for file in summary["files"]}

    def fetch(artifact: Artifact) -> list[Row]:
        if artifact not in digests:
            return []
        path = directory / artifact
        _download(join_uri(config.output_key(), artifact), path, storage, on_bytes)
        if sha256_file(path) != digests[artifact]:
            message = f"{artifact} was changed after preflight: its SHA-256 differs"
            raise TrainerError(ExitCode.DATASET_UNUSABLE, message)
        return list(read_accepted(path))

    train = fetch(Artifact.TRAIN_ROWS)
    validation = fetch(Artifact.VALIDATION_ROWS)
    if not train:
        raise TrainerError(ExitCode.DATASET_UNUSABLE, f"{Artifact.TRAIN_ROWS} contains no row")
    return Rows(train, validation, summary)


def _download(uri: str, path: Path, storage: ReadableStore, on_bytes: OnBytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        storage.download(uri, path, on_bytes)
    except ObjectMissing as missing:
        raise TrainerError(ExitCode.DATASET_UNUSABLE, f"{uri} was removed after preflight") from missing


def select_evaluation_rows(rows: list[Row], seed: int) -> list[Row]:
    """Return the validation rows for evaluations: all, or a seeded sample of 512, in file order."""
    if len(rows) <= EVALUATED_ROWS:
        return rows
    chosen = sorted(random.Random(seed).sample(range(len(rows)), EVALUATED_ROWS))  # noqa: S311 - no secret
    return [rows[index] for index in chosen]


def encode_rows(
    rows: Iterable[Row], labeler: Labeler, objective: str, max_length: int, on_rows: OnRows
) -> list[Sample]:
    """Every sample of the rows; a row that the tokenizer refuses, which preflight has counted already, gives none."""
    samples: list[Sample] = []
    remaining = iter(rows)
    while batch := list(islice(remaining, ENCODED_AT_ONCE)):
        on_rows()
        for encoded in labeler.encode_batch(batch, objective, max_length):  # type: ignore[arg-type]
            samples += [] if isinstance(encoded, BadRow) else encoded
    return samples


def compute_sample_stats(rows: Rows, samples: Sequence[Sample]) -> SampleStats:
    """Return the statistics of the samples."""
    lengths, full_lengths = Lengths(), Lengths()
    for sample in samples:
        lengths.add(sample.length)
        full_lengths.add(sample.length + sample.left_out)
    judged = [sample for sample in samples if isinstance(sample, EncodedLabelled)]
    return SampleStats(
        train_rows=len(rows.train),
        validation_rows=len(rows.validation),
        samples=len(samples),
        truncated_share=sum(sample.truncated for sample in samples) / len(samples),
        labelled_share=sum(sample.trained for sample in samples) / sum(sample.tokens for sample in samples),
        median_length=lengths.percentile(50),
        longest=lengths.longest,
        full_length_p99=full_lengths.percentile(99),
        desirable=sum(sample.desirable for sample in judged) if judged else None,
        histogram=full_lengths.histogram(),
    )


def preview_rows(rows: Sequence[Row], labeler: Labeler, objective: str, max_length: int | None) -> list[list[Piece]]:
    """Return the first rows as the model reads them, in spans, each with whether it is trained."""
    shown = []
    for row in rows[:PREVIEWED_ROWS]:
        try:
            shown.append(abridge(labeler.preview(row, objective, max_length)))  # type: ignore[arg-type]
        except BadRow:
            continue
    return shown
