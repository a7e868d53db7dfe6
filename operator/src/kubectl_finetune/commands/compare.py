"""`compare`: several jobs side by side, the best first, and whether the held-out rows separate it from the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.evaluation import EvaluationMetric
from finetune_client.cluster.job import Job, Object
from finetune_client.figures import NONE, duration, number
from kubectl_finetune.commands.diff import flat_fields, show_value

MEASURE = ("objective", "mode", "model", "dataset", "dpo", "kto", "rlhf", "distillation")
"""Blocks of the spec that decide what a held-out figure means."""
MEASURES = ("hyperparameters.maxLength",)
UNTOLD = ("output.", "suspend", "scheduling.")
"""Beginnings of the fields that say nothing about the training."""
MOST_FIELDS = 6
SAME_BASE = 0.005
"""Relative difference of the figures before the training with which they are taken for those of the same model."""


@dataclass(frozen=True)
class Ranking:
    """The jobs in order, the fields that differ between them, and what the figures show."""

    jobs: Sequence[Job]
    fields: Sequence[str]
    sentences: Sequence[str]

    def header(self) -> tuple[str, ...]:
        """Return the titles of the columns."""
        last = [path.rpartition(".")[2] for path in self.fields]
        names = [name if last.count(name) == 1 else path for path, name in zip(self.fields, last, strict=True)]
        return ("NAME", *names, "PHASE", "HELD-OUT", "CHANGE", "95 % INTERVAL", "VERDICT", "TIME")

    def rows(self) -> list[tuple[str, ...]]:
        """Return one row for each job."""
        return [self._row(job) for job in self.jobs]

    def _row(self, job: Job) -> tuple[str, ...]:
        found, spec = job.status.evaluation, flat_fields(job.spec)
        progress = job.status.progress
        phase = f"{job.phase} {progress.display}" if progress and progress.display and not job.has_ended else job.phase
        interval = NONE
        if found and found.difference_low is not None and found.difference_high is not None:
            interval = f"{number(found.difference_low)} to {number(found.difference_high)}"
        return (
            job.name,
            *(show_value(spec.get(path)) for path in self.fields),
            phase,
            number(found.after if found else None),
            (found and found.change) or NONE,
            interval,
            (found and found.verdict) or NONE,
            duration(job.status.active_seconds),
        )

    def to_wire(self) -> Object:
        """Return the ranking for -o json and yaml."""
        jobs = []
        for job in self.jobs:
            spec, found = flat_fields(job.spec), job.status.evaluation
            jobs.append(
                {
                    "name": job.name,
                    "phase": job.phase,
                    "fields": {path: spec.get(path) for path in self.fields},
                    "evaluation": found.model_dump(by_alias=True, exclude_none=True) if found else None,
                    "activeSeconds": job.status.active_seconds,
                }
            )
        return {"jobs": jobs, "notes": list(self.sentences)}


def rank(jobs: Sequence[Job]) -> Ranking:
    """Order the jobs by their held-out figure; if it does not mean the same in all, by name, and say why."""
    fields = _different_fields(jobs)
    measured = [job for job in jobs if _figure(job) is not None]
    named = sorted(jobs, key=lambda job: job.name)
    sentences = []
    if (more := len(fields) - MOST_FIELDS) > 0:
        sentences.append(f"{more} more fields differ: kubectl finetune diff shows those of two jobs")
    if len(measured) < len(jobs):
        sentences.append(f"{len(jobs) - len(measured)} of {len(jobs)} jobs have no held-out figure (yet)")
    if why := _why_not_comparable(measured):
        sentences.append(f"not ranked, because the held-out figures measure different things: {why}")
        return Ranking(named, fields[:MOST_FIELDS], sentences)
    sign = -1 if _is_reward(measured) else 1
    ranked = sorted(measured, key=lambda job: (sign * float(_figure(job) or 0), job.name))
    others = [job for job in named if job not in ranked]
    return Ranking([*ranked, *others], fields[:MOST_FIELDS], [*sentences, *_sentences(ranked)])


def _sentences(ranked: Sequence[Job]) -> list[str]:
    """Return whether the rows separate the best job from the others.

    All intervals are of differences from the same model before. The difference of two jobs is outside of the sum of
    their half intervals only if it is outside of the interval that their own paired rows would have, or one of both
    intervals misses its value; without the losses of single rows there is no narrower one.
    """
    if len(ranked) < 2:
        return []
    best, *others = ranked
    word = "reward" if _is_reward(ranked) else "loss"
    close = [job.name for job in others if not _is_separated(best, job)]
    luck = f"the best of {len(ranked)} was chosen by these rows: measure it on others before you rely on its figure"
    told = f"{best.name} has the best {word}, by more than the intervals of both allow for each other job"
    if close:
        told = (
            f"{best.name} has the best {word}, but the intervals do not separate it from {', '.join(close)}: more "
            "held-out rows would show whether there is a difference"
        )
    return [told, luck]


def _is_separated(best: Job, other: Job) -> bool:
    margins = [_half_interval(job) for job in (best, other)]
    gap = abs(float(_figure(other) or 0) - float(_figure(best) or 0))
    return None not in margins and gap > sum(margin for margin in margins if margin is not None)


def _half_interval(job: Job) -> float | None:
    found = job.status.evaluation
    if found is None or found.difference_low is None or found.difference_high is None:
        return None
    return (found.difference_high - found.difference_low) / 2


def _figure(job: Job) -> float | None:
    return job.status.evaluation.after if job.status.evaluation else None


def _is_reward(jobs: Sequence[Job]) -> bool:
    return any(job.status.evaluation and job.status.evaluation.metric == EvaluationMetric.REWARD for job in jobs)


def _why_not_comparable(jobs: Sequence[Job]) -> str:
    """Return what makes the figures of the jobs different things; empty if nothing does."""
    for path in dict.fromkeys(path for job in jobs for path in flat_fields(job.spec)):
        if path.partition(".")[0] in MEASURE or path in MEASURES:
            values = [show_value(flat_fields(job.spec).get(path)) for job in jobs]
            if len(set(values)) > 1:
                return f"{path} is {' and '.join(dict.fromkeys(values))}"
    if len({job.status.lineage.dataset_sha256 if job.status.lineage else None for job in jobs}) > 1:
        return "they were trained on other rows, and so were measured on others"
    if len({job.status.evaluation.rows if job.status.evaluation else None for job in jobs}) > 1:
        return "the number of held-out rows differs"
    before = [job.status.evaluation.before for job in jobs if job.status.evaluation]
    known = [one for one in before if one is not None]
    if known and max(known) - min(known) > SAME_BASE * max(map(abs, known)):
        return f"the model before the training had {number(min(known))} and {number(max(known))}"
    return ""


def _different_fields(jobs: Sequence[Job]) -> list[str]:
    """Return the fields of the spec in which the jobs differ, except for those that do not concern the training."""
    specs = [flat_fields(job.spec) for job in jobs]
    paths = dict.fromkeys(path for spec in specs for path in spec if not path.startswith(UNTOLD))
    return [path for path in paths if len({show_value(spec.get(path)) for spec in specs}) > 1]


def ranking_table(ranking: Ranking) -> Any:
    """Return the ranking as a table."""
    from kubectl_finetune.display.table import columns  # noqa: PLC0415 - rich takes long to load

    return columns(ranking.header(), ranking.rows())
