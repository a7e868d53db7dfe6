"""Blend the checked sources of training rows into one file, hold rows out, and count what each source brings."""

import logging
from array import array
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any

from finetune_api.handoff import Artifact, JobConfig
from finetune_api.inputs.sources import StoppingStrategy
from finetune_api.objectives import SUPERVISED
from finetune_api.status import SourceStatus
from finetune_trainer.data.blend import Part, blend, choose_rows, take_turns
from finetune_trainer.data.checks.output import read_accepted
from finetune_trainer.data.checks.row_keys import prompt_key
from finetune_trainer.data.checks.split import PromptSplit, Split
from finetune_trainer.pipeline.check_source import CheckedSource, by_name
from finetune_trainer.publishing.lineage import combined_sha256
from finetune_trainer.tokenization.token_file import blend_tokens, split_tokens

logger = logging.getLogger(__name__)

GIVEN = {"config", "split", "weight", "max_samples", "sample"}
"""Fields of a source that its entry in the summary repeats."""
COUNTS = ("rows", "acceptedRows", "rejectedRows", "rejectedRowsByCode", "lengths")
"""Counts of a source's check that its entry in the summary repeats."""


@dataclass(frozen=True, slots=True)
class UsedRows:
    """One source in the blend: how often each of its accepted rows is trained on in one pass, and which are held
    out."""

    checked: CheckedSource
    times: "array[int]"
    held_out: bytearray

    @property
    def train_rows(self) -> int:
        """Rows to train on in one pass."""
        return sum(self.times)

    @property
    def trained_tokens(self) -> int:
        """Tokens with a loss in one pass."""
        return sum(map(int.__mul__, self.times, self.checked.trained))

    @property
    def uses_every_row_once(self) -> bool:
        """Whether each row is trained on once or held out."""
        return all(times + held == 1 for times, held in zip(self.times, self.held_out, strict=True))

    def lines(self) -> Generator[tuple[int, bool, bytes, "array[int]"]]:
        """Yield number, side, line and sample lengths of each row, in file order, as often as it is used."""
        at = 0
        with self.checked.accepted.open("rb") as file:
            for number, (line, samples) in enumerate(zip(file, self.checked.samples, strict=True)):
                lengths = self.checked.lengths[at : at + samples]
                at += samples
                is_held_out = bool(self.held_out[number])
                for _ in range(1 if is_held_out else self.times[number]):
                    yield number, is_held_out, line, lengths


@dataclass(frozen=True)
class Blend:
    """All sources of training rows in the blend."""

    sources: list[UsedRows]
    split: Split
    is_several: bool
    """Whether the job lists its sources."""

    @cached_property
    def train_rows(self) -> int:
        """Rows to train on in one pass."""
        return sum(one.train_rows for one in self.sources)

    def status(self) -> list[SourceStatus]:
        """Return the counts of each source for the status."""
        return [
            SourceStatus(
                uri=one.checked.source.uri,
                config=one.checked.source.config,
                split=one.checked.source.split,
                sha256=_digest(one.checked),
                rows=one.checked.summary.rows,
                accepted_rows=one.checked.summary.accepted,
                rejected_rows=one.checked.summary.rejected,
                rejected_rows_by_code=by_name(one.checked.summary.rejected_by_code),
                train_rows=one.train_rows,
                trained_tokens=one.trained_tokens,
                p99_length_tokens=one.checked.summary.lengths.percentile(99),
            )
            for one in self.sources
        ]

    def to_list(self) -> list[dict[str, Any]]:
        """Return each source for the summary and the lineage, with its digest and its shares of the training."""
        rows, tokens = self.train_rows, sum(one.trained_tokens for one in self.sources)
        return [self._describe(one, rows, tokens) for one in self.sources]

    def _describe(self, used: UsedRows, rows: int, tokens: int) -> dict[str, Any]:
        source, counts = used.checked.source, used.checked.summary.to_dict()
        given = source.model_dump(mode="json", by_alias=True, exclude_none=True, include=GIVEN)
        return {
            "uri": source.uri,
            "sha256": _digest(used.checked),
            **given,
            "trainRows": used.train_rows,
            "trainedTokens": used.trained_tokens,
            "shareOfRows": round(used.train_rows / rows, 6) if rows else 0,
            "shareOfTrainedTokens": round(used.trained_tokens / tokens, 6) if tokens else 0,
            **{name: counts[name] for name in COUNTS if name in counts},
            "files": [file.uri for file in used.checked.files],
        }


def _digest(checked: CheckedSource) -> str:
    """Return the digest of the source's object, or one over names and digests of its objects."""
    files = checked.files
    return files[0].sha256 if len(files) == 1 else combined_sha256({one.uri: one.sha256 for one in files})


def blend_sources(config: JobConfig, checked: Sequence[CheckedSource]) -> Blend:
    """Choose the rows of each source by its weight and limit, then hold rows out, and choose again among the rest,
    so that the training has the proportions too."""
    spec = config.spec
    strategy = spec.dataset.train.stopping_strategy or StoppingStrategy.FIRST_EXHAUSTED
    parts = [
        Part(
            one.place,
            one.source.weight,
            # A weight is a share of what the loss is a mean over: trained tokens, or rows.
            one.trained if spec.objective in SUPERVISED else array("B", b"\1" * len(one.samples)),
            choose_rows(len(one.samples), one.source, spec.hyperparameters.seed),
        )
        for one in checked
    ]
    times = blend(parts, strategy)
    split, held_out = _hold_out(config, checked, times)
    if split.validation_rows:
        rest = [
            replace(part, rows=array("I", (row for row in part.rows if used[row] and not held[row])))
            for part, used, held in zip(parts, times, held_out, strict=True)
        ]
        times = blend(rest, strategy)
    return Blend(
        [UsedRows(*one) for one in zip(checked, times, held_out, strict=True)], split, bool(spec.dataset.train.sources)
    )


def _hold_out(
    config: JobConfig, checked: Sequence[CheckedSource], times: "Sequence[array[int]]"
) -> tuple[Split, list[bytearray]]:
    """Choose the prompts to hold out among the rows in use, and mark their rows."""
    percent = config.spec.dataset.validation_split_percent or 0
    chooser = PromptSplit(percent, config.spec.hyperparameters.seed)
    prompts = [array("Q", map(prompt_key, read_accepted(one.accepted))) if percent else array("Q") for one in checked]
    for keys, used in zip(prompts, times, strict=True):
        for key in compress(keys, used):
            chooser.add_prompt(key)
    split = chooser.close()
    if split.warning:
        logger.warning("%s: %s", config.spec.dataset.train.title, split.warning)
    marks = [bytearray(len(used)) for used in times]
    if split.validation_rows:
        for held_out, keys, used in zip(marks, prompts, times, strict=True):
            for row in compress(range(len(keys)), used):
                held_out[row] = split.holds_out(keys[row])
    return split, marks


def write_blend(out: Path, blended: Blend) -> "tuple[array[int], array[int]]":
    """Write rows and tokens of both sides; the sources take turns.

    Return the lengths of the samples to train on, and of those that are held out.
    """
    lengths, held_out_lengths = array("I"), array("I")
    train_order, held_out_order = _Order(), _Order()
    counts = [one.train_rows + sum(one.held_out) for one in blended.sources]
    with (
        ExitStack() as stack,
        (out / Artifact.TRAIN_ROWS).open("wb") as train_file,
        (out / Artifact.VALIDATION_ROWS).open("wb") as validation_file,
    ):
        streams = [stack.enter_context(closing(one.lines())) for one in blended.sources]
        for at in take_turns(counts):
            number, is_held_out, line, found = next(streams[at])
            (validation_file if is_held_out else train_file).write(line)
            (held_out_order if is_held_out else train_order).add(at, number)
            (held_out_lengths if is_held_out else lengths).extend(found)
    _write_tokens(out, blended, train_order, held_out_order)
    return lengths, held_out_lengths


class _Order:
    """Rows in the order of a file, five bytes each: which source each is of, and its number there."""

    def __init__(self) -> None:
        self._sources, self._rows = array("B"), array("I")

    def add(self, source: int, row: int) -> None:
        self._sources.append(source)
        self._rows.append(row)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._sources, self._rows, strict=True)


def _write_tokens(out: Path, blended: Blend, train: _Order, held_out: _Order) -> None:
    files = [one.checked.tokens for one in blended.sources]
    if len(files) == 1 and blended.sources[0].uses_every_row_once:
        split_tokens(
            files[0], blended.sources[0].held_out, out / Artifact.TRAIN_TOKENS, out / Artifact.VALIDATION_TOKENS
        )
        return
    sides: Mapping[Artifact, _Order] = {Artifact.TRAIN_TOKENS: train, Artifact.VALIDATION_TOKENS: held_out}
    for name, order in sides.items():
        if len(order):
            blend_tokens(files, order, out / name)
