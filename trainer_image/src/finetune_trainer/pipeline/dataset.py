"""The rows that preflight wrote, verified, as training samples; torch is not needed here."""

import hashlib
import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from finetune_api.handoff import Artifact, ExitCode, JobConfig
from finetune_trainer.data.checks.output import read_accepted
from finetune_trainer.data.checks.row_keys import prompt_key
from finetune_trainer.data.lengths import Lengths
from finetune_trainer.data.rows import BadRow, Row
from finetune_trainer.errors import ObjectMissing, TrainerError
from finetune_trainer.evaluation.run_record import SampleStats
from finetune_trainer.storage.protocol import OnBytes, ReadableStore, join_uri, sha256_file
from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.tokenization.previews import Piece, abridge
from finetune_trainer.tokenization.sample_table import SampleBatches, Samples, as_samples, with_prompts
from finetune_trainer.tokenization.samples import Sample
from finetune_trainer.tokenization.token_file import TokenOrigin, read_tokens

logger = logging.getLogger(__name__)

PREVIEWED_ROWS = 3
ENCODED_AT_ONCE = 256

CHECKED_MODELS = {"initialAdapter": "initial adapter", "rewardModel": "reward model", "teacher": "teacher"}
"""The entries of preflight's summary for the models that a training uses with its base."""

OnRows = Callable[[], None]


@dataclass(frozen=True)
class RowFile:
    """A file of canonical rows; they are read when they are iterated."""

    path: Path
    count: int
    tokens: Path | None = None
    """The file of their tokens, if preflight has written one."""

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Row]:
        return read_accepted(self.path)


@dataclass(frozen=True)
class Rows:
    """The canonical rows of both sides, and what preflight wrote about them."""

    train: RowFile
    validation: RowFile | None
    summary: dict[str, Any]
    ability: Path | None = None
    """The questions of `evaluation.ability`."""
    summary_sha256: str = ""
    template: Path | None = None
    """The text of the ConfigMap's chat template, if the job names one."""

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each file that is trained on or evaluated with, by its key under `output.uri`."""
        used = {Artifact.TRAIN_ROWS, Artifact.VALIDATION_ROWS}
        return {str(file["path"]): str(file["sha256"]) for file in self.summary["files"] if file["path"] in used}

    @property
    def input_digests(self) -> dict[str, str]:
        """SHA-256 of each other input that preflight has checked, by its name in messages."""
        found = {name: self.summary[key] for key, name in CHECKED_MODELS.items() if key in self.summary}
        digests = {name: _digest_json(_contents(checked)) for name, checked in found.items()}
        if template := self.summary.get("chatTemplateSHA256"):
            digests["chat template"] = str(template)
        for file in self.summary["files"]:
            if file["path"] == Artifact.ABILITY_ROWS:
                digests["file of ability questions"] = str(file["sha256"])
        return digests

    @property
    def train_sha256(self) -> str:
        """SHA-256 of the file of training rows."""
        return str(next(file["sha256"] for file in self.summary["files"] if file["path"] == Artifact.TRAIN_ROWS))


def fetch_rows(config: JobConfig, storage: ReadableStore, directory: Path, on_bytes: OnBytes) -> Rows:
    """Download the files of both sides and check them against preflight's summary."""
    uri = join_uri(config.output_key(), Artifact.DATASET_SUMMARY)
    data = storage.read(uri)
    if data is None:
        raise TrainerError(ExitCode.DATASET_UNUSABLE, f"{uri} is missing: preflight did not finish, or it was removed")
    found = hashlib.sha256(data).hexdigest()
    if config.preflight_sha256 and found != config.preflight_sha256:
        problem = f"{uri} was changed after preflight: its SHA-256 is {found}, and preflight wrote"
        raise TrainerError(
            ExitCode.DATASET_UNUSABLE,
            f"{problem} {config.preflight_sha256}: find out who writes to {config.output_key()}, then create the job "
            "again under another name",
        )
    summary = json.loads(data)
    digests = {file["path"]: file["sha256"] for file in summary["files"]}

    def fetch(artifact: Artifact) -> Path | None:
        if artifact not in digests:
            return None
        path = directory / artifact
        _download(join_uri(config.output_key(), artifact), path, storage, on_bytes)
        if (actual := sha256_file(path)) != digests[artifact]:
            message = f"{artifact} was changed after preflight: its SHA-256 is {actual}, and preflight wrote"
            raise TrainerError(ExitCode.DATASET_UNUSABLE, f"{message} {digests[artifact]}")
        return path

    def fetch_side(rows: Artifact, tokens: Artifact) -> RowFile | None:
        path = fetch(rows)
        return RowFile(path, _count_lines(path), fetch(tokens)) if path else None

    train = fetch_side(Artifact.TRAIN_ROWS, Artifact.TRAIN_TOKENS)
    validation = fetch_side(Artifact.VALIDATION_ROWS, Artifact.VALIDATION_TOKENS)
    if not train:
        raise TrainerError(ExitCode.DATASET_UNUSABLE, f"{Artifact.TRAIN_ROWS} contains no row")
    return Rows(train, validation, summary, fetch(Artifact.ABILITY_ROWS), found, fetch(Artifact.CHAT_TEMPLATE))


def _contents(checked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the digests in an entry of the summary without the place of its files, which may be a newer commit."""
    return {key: value for key, value in checked.items() if key not in {"uri", "revision"}}


def _digest_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _download(uri: str, path: Path, storage: ReadableStore, on_bytes: OnBytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        storage.download(uri, path, on_bytes)
    except ObjectMissing as missing:
        raise TrainerError(ExitCode.DATASET_UNUSABLE, f"{uri} was removed after preflight") from missing


def choose_evaluation_rows(count: int, seed: int, most: int) -> Sequence[int]:
    """Return which of `count` validation rows are evaluated: all, or a seeded choice of `most`, in file order."""
    if count <= most:
        return range(count)
    return sorted(random.Random(seed).sample(range(count), most))  # noqa: S311 - no secret


def load_samples(
    rows: RowFile, labeler: Labeler, origin: TokenOrigin, on_rows: OnRows, chosen: Sequence[int] | None = None
) -> Sequence[Sample]:
    """Return the samples of all or of the chosen rows: mapped from the file of tokens, or encoded if there is none or
    the tokenizer is another one now."""
    if rows.tokens:
        samples = read_tokens(rows.tokens, origin)
        if samples is not None:
            return samples if chosen is None or len(chosen) == len(rows) else samples.of_rows(chosen)
        logger.warning("the tokenizer or its template changed after preflight: the rows are tokenised again")
    wanted = None if chosen is None else frozenset(chosen)
    read = (row for number, row in enumerate(rows) if wanted is None or number in wanted)
    return encode_rows(read, labeler, origin, on_rows, chosen)


def load_held_out(
    rows: RowFile, labeler: Labeler, origin: TokenOrigin, on_rows: OnRows, chosen: Sequence[int]
) -> Sequence[Sample]:
    """Return the samples of the chosen validation rows with their prompts, by which they are grouped."""
    wanted = frozenset(chosen)
    prompts = {number: prompt_key(row) for number, row in enumerate(rows) if number in wanted}
    return with_prompts(as_samples(load_samples(rows, labeler, origin, on_rows, chosen)), prompts)


def encode_rows(
    rows: Iterable[Row],
    labeler: Labeler,
    origin: TokenOrigin,
    on_rows: OnRows,
    numbers: Iterable[int] | None = None,
) -> Sequence[Sample]:
    """Return every sample of the rows; one that the tokenizer refuses, which preflight has counted, has none.

    `numbers` are those of the rows in their file; without them they count from 0.
    """
    found: list[pa.RecordBatch] = []
    batches = SampleBatches(origin.kind, found.append)
    remaining = enumerate(rows) if numbers is None else zip(numbers, rows, strict=True)
    while batch := list(islice(remaining, ENCODED_AT_ONCE)):
        on_rows()
        results = labeler.encode_batch([row for _, row in batch], origin.objective, origin.max_length)  # type: ignore[arg-type]
        for (number, _), encoded in zip(batch, results, strict=True):
            for sample in [] if isinstance(encoded, BadRow) else encoded:
                batches.add(number, sample)
    batches.close()
    return Samples(pa.Table.from_batches(found, batches.schema))


def compute_sample_stats(rows: Rows, samples: Sequence[Sample]) -> SampleStats:
    """Return the statistics of the samples."""
    table = as_samples(samples)
    held, left_out = table.numbers("length"), table.numbers("left_out")
    lengths, full_lengths = _count(held), _count(held + left_out)
    return SampleStats(
        train_rows=len(rows.train),
        validation_rows=len(rows.validation or ()),
        samples=len(table),
        truncated_share=float(table.numbers("truncated").mean()),
        labelled_share=int(table.numbers("trained").sum()) / int(table.numbers("tokens").sum()),
        median_length=lengths.percentile(50),
        longest=lengths.longest,
        full_length_p99=full_lengths.percentile(99),
        desirable=int(table.numbers("desirable").sum()) if table.has("desirable") else None,
        histogram=full_lengths.histogram(),
    )


def _count(lengths: npt.NDArray[Any]) -> Lengths:
    different, rows = np.unique(lengths, return_counts=True)
    return Lengths(Counter(dict(zip(different.tolist(), rows.tolist(), strict=True))))


def preview_rows(rows: Iterable[Row], labeler: Labeler, objective: str, max_length: int | None) -> list[list[Piece]]:
    """Return the first rows as the model reads them, in spans, each with whether it is trained."""
    shown = []
    for row in islice(rows, PREVIEWED_ROWS):
        try:
            shown.append(abridge(labeler.preview(row, objective, max_length)))  # type: ignore[arg-type]
        except BadRow:
            continue
    return shown
