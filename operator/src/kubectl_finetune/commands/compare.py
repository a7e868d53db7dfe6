"""`compare`: several jobs side by side, the best first, and whether the held-out rows separate it from the others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from rich.text import Text

from finetune_api.comparing.comparison import ROUNDING, Comparison
from finetune_api.comparing.measured import MeasuredRows, compare_results
from finetune_api.evaluation import EvaluationMetric, Verdict
from finetune_api.handoff import Artifact
from finetune_api.objectives import Dpo, Kto, Objective
from finetune_api.spec import FineTuneJobSpec
from finetune_client.cluster.job import NEWER, Job, Object
from finetune_client.errors import FineTuneError
from finetune_client.figures import NONE, duration, number
from finetune_client.storage import Storage
from kubectl_finetune.commands.diff import flat_fields, show_value
from kubectl_finetune.display.table import columns

TRAINING = ("hyperparameters", "tuning", "dataset", "model", "objective", "mode", "dpo", "kto", "rlhf", "distillation")
"""Blocks of the spec that are shown where they differ, in this order, before `lineage` and `earlyStopping`."""
SHOWN = (*TRAINING, "lineage", "earlyStopping")
MEASURE = ("objective", "model", "dataset", "dpo", "kto", "rlhf", "distillation")
"""Blocks of the spec that decide what a held-out figure means, but for these fields of them:"""
OF_THE_TRAINING = (
    *("dataset.maxRejectedPercent", "rlhf.algorithm", "rlhf.beta", "rlhf.numGenerations", "rlhf.rollouts"),
    *("rlhf.lossType", "rlhf.scaleRewards", "rlhf.maskTruncatedCompletions", "distillation.shardTeacher"),
)
MEASURES = ("hyperparameters.maxLength",)
SEED = "hyperparameters.seed"
"""Decides, too, which rows are held out, unless the spec has rows of their own for that."""
CREDENTIALS = "credentialsSecretRef"
REFERENCES = (Objective.DPO.value, Objective.KTO.value)
"""Objectives whose loss is relative to the model that the training starts from."""
MOST_FIELDS = 6
SAME_BASE = 0.005
"""Relative difference of the losses before the training with which they are taken for those of the same model."""


@dataclass(frozen=True)
class Ranking:
    """The jobs in order, the fields that differ between them, and what the figures show."""

    jobs: Sequence[Job]
    fields: Sequence[str]
    sentences: Sequence[str]
    behind: Mapping[str, Comparison] = field(default_factory=dict)
    """The difference of each other job from the best one, row by row, if it was read."""

    def header(self) -> tuple[str, ...]:
        """Return the titles of the columns."""
        short = [_short(path) for path in self.fields]
        names = [name if short.count(name) == 1 else path for path, name in zip(self.fields, short, strict=True)]
        correct = ("CORRECT",) if self._counts_answers else ()
        behind = ("FROM THE BEST",) if self.behind else ()
        return ("NAME", *names, "PHASE", "HELD-OUT", "CHANGE", "95 % INTERVAL", "VERDICT", *behind, *correct, "TIME")

    @property
    def _counts_answers(self) -> bool:
        """Whether a job has counted correct answers to held-out rows."""
        return any(job.status.evaluation and job.status.evaluation.answers for job in self.jobs)

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
            *((self._from_the_best(job),) if self.behind else ()),
            *((_correct(job),) if self._counts_answers else ()),
            duration(job.status.active_seconds),
        )

    def _from_the_best(self, job: Job) -> str:
        return self.behind[job.name].change_with_interval if job.name in self.behind else NONE

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
                    **_behind_to_wire(self.behind.get(job.name)),
                    "activeSeconds": job.status.active_seconds,
                }
            )
        return {"jobs": jobs, "notes": list(self.sentences)}


def _behind_to_wire(found: Comparison | None) -> Object:
    if found is None:
        return {}
    return {"fromTheBest": {"difference": found.difference, "low": found.low, "high": found.high}}


def _correct(job: Job) -> str:
    """Return the share of correct answers to held-out rows after the training."""
    found = job.status.evaluation.answers if job.status.evaluation else None
    if found is None or found.after_percent is None:
        return NONE
    return f"{found.after_percent:.1f} % of {number(found.rows)}"


def read_measured(jobs: Sequence[Job], open_storage: Callable[[Job], Storage]) -> dict[str, MeasuredRows]:
    """Return the held-out figures row by row of the jobs that have published them."""
    found = dict[str, MeasuredRows]()
    for job in jobs:
        if _figure(job) is not None and job.status.artifacts and job.status.artifacts.report_uri:
            storage = open_storage(job)
            if Artifact.HELD_OUT in storage.names():
                try:
                    found[job.name] = MeasuredRows.model_validate_json(storage.read(Artifact.HELD_OUT))
                except ValidationError:
                    problem = f"{Artifact.HELD_OUT} of {job.name} has a form that this version cannot read"
                    raise FineTuneError(problem, NEWER) from None
    return found


def rank(jobs: Sequence[Job], measured: Mapping[str, MeasuredRows] | None = None) -> Ranking:
    """Order the jobs by their held-out figure; if it does not mean the same in all, by name, and say why.

    With `measured`, the figures row by row, the best job is compared with each other one on the same rows.
    """
    fields = _different_fields(jobs)
    known = [job for job in jobs if _figure(job) is not None]
    named = sorted(jobs, key=lambda job: job.name)
    sentences = [*_without_figure(named)]
    if (more := len(fields) - MOST_FIELDS) > 0:
        sentences.append(f"{more} more fields differ: kubectl finetune diff shows those of two jobs")
    if why := different_measure([job.spec for job in known]) or _different_inputs(known):
        sentences.append(f"not ranked, because the held-out figures measure different things: {why}")
        return Ranking(named, fields[:MOST_FIELDS], sentences)
    sign = -1 if _is_reward(known) else 1
    ranked = sorted(known, key=lambda job: (sign * float(_figure(job) or 0), job.name))
    others = [job for job in named if job not in ranked]
    behind = {} if measured is None else _compare_rows(ranked, measured)
    if measured is not None and len(behind) < len(ranked) - 1:
        left = [job.name for job in ranked[1:] if job.name not in behind]
        sentences.append(f"not compared row by row with {ranked[0].name}, for want of the same rows: {', '.join(left)}")
    return Ranking([*ranked, *others], fields[:MOST_FIELDS], [*sentences, *_sentences(ranked, behind)], behind)


def _compare_rows(ranked: Sequence[Job], measured: Mapping[str, MeasuredRows]) -> dict[str, Comparison]:
    """Return the difference of each job from the best one on the same rows, where these are published."""
    if not ranked or ranked[0].name not in measured:
        return {}
    choices = sum(max(measured[job.name].evaluations, 1) for job in ranked if job.name in measured)
    best = measured[ranked[0].name]
    known = {job.name: measured[job.name] for job in ranked[1:] if job.name in measured}
    found = {name: compare_results(best, rows, choices) for name, rows in known.items()}
    return {name: one for name, one in found.items() if one is not None}


def different_measure(specs: Sequence[Object]) -> str:
    """Return the field by which the held-out figures of jobs mean different things; empty if none does."""
    filled = [flat_fields(_with_defaults(spec)) for spec in specs]
    held_out = {tuple(item for item in spec.items() if item[0].startswith("dataset.validation.")) for spec in filled}
    has_own_rows = len(held_out) == 1 and held_out != {()}
    ignored = (*OF_THE_TRAINING, *(("dataset.train", "dataset.maxSamples") if has_own_rows else ()))
    single = MEASURES if has_own_rows else (*MEASURES, SEED)
    for path in dict.fromkeys(path for spec in filled for path in spec):
        is_measure = path.partition(".")[0] in MEASURE or path in single
        values = dict.fromkeys(show_value(spec.get(path)) for spec in filled)
        if len(values) > 1 and is_measure and not path.startswith(ignored) and CREDENTIALS not in path:
            reason = ", which holds out other rows" if path == SEED else ""
            return f"{path} is {' and '.join(values)}{reason}"
    return ""


def _with_defaults(spec: Object) -> Object:
    """Return the spec with the defaults of its fields, if it can be read."""
    try:
        read = FineTuneJobSpec.model_validate(spec).model_dump(mode="json", by_alias=True, exclude_none=True)
    except ValidationError:
        return spec
    for objective, block, defaults in ((Objective.DPO, "dpo", Dpo()), (Objective.KTO, "kto", Kto())):
        if read["objective"] == objective:
            read[block] = defaults.model_dump(mode="json", by_alias=True, exclude_none=True) | read.get(block, {})
    return dict(read)


def _different_inputs(jobs: Sequence[Job]) -> str:
    """Return what the operator has found to differ of the models, rows and figures before; empty if nothing does."""
    known = [job.status.lineage for job in jobs if job.status.lineage]
    digests: list[tuple[str, list[Any]]] = [
        ("the base models differ", [one.base_model_sha256 for one in known]),
        ("the teachers differ", [one.teacher_sha256 for one in known]),
        ("the reward models differ", [one.reward_job and one.reward_job.manifest_sha256 for one in known]),
        ("the numbers of held-out rows differ", [job.status.evaluation.rows for job in jobs if job.status.evaluation]),
    ]
    if not all("validation" in (job.field("dataset") or {}) for job in jobs):
        digests.append(
            ("the rows differ, and those that are held out with them", [one.dataset_sha256 for one in known])
        )
    if any(job.field("objective") in REFERENCES for job in jobs):
        references = [one.initial_adapter_sha256 or "" for one in known]
        digests.append(("they start from different adapters, which the loss is relative to", references))
    for why, values in digests:
        if len({one for one in values if one is not None}) > 1:
            return why
    before = [job.status.evaluation.before for job in jobs if job.status.evaluation]
    losses = [one for one in before if one is not None and not _is_reward(jobs)]
    if losses and max(losses) - min(losses) > SAME_BASE * max(map(abs, losses)):
        return f"the model before the training had {number(min(losses))} and {number(max(losses))}"
    return ""


def _without_figure(jobs: Sequence[Job]) -> list[str]:
    """Return a sentence on the jobs that are not measured yet, and one for each that ended without a figure."""
    missing = [job for job in jobs if _figure(job) is None]
    sentences = []
    if running := [job for job in missing if not job.has_ended]:
        sentences.append(f"{len(running)} of {len(jobs)} jobs have no held-out figure yet")
    for job in missing:
        if job.has_ended:
            told = job.status.evaluation.verdict_message if job.status.evaluation else None
            sentences.append(f"{job.name} has no held-out figure: {told or job.why or job.phase}")
    return sentences


def _sentences(ranked: Sequence[Job], behind: Mapping[str, Comparison]) -> list[str]:
    """Return whether the rows separate the best job from the others.

    All intervals are of differences from the same model before, on the same rows. The difference of two jobs is outside
    of the sum of their half intervals only if it is outside of the interval that their own paired rows would have, or
    one of both intervals misses its value. The interval of paired rows, which is narrower, needs what storage has.
    """
    if len(ranked) < 2:
        return []
    best, *others = ranked
    word = "reward" if _is_reward(ranked) else "loss"
    unknown = [job.name for job in ranked if _interval(job) is None]
    close = [job.name for job in others if not _is_separated(best, job, is_loss=word == "loss")]
    told = f"{best.name} has the best {word}, by more than the intervals of both allow for each other job"
    if len(behind) == len(others):
        alike = [name for name, one in behind.items() if one.verdict is not Verdict.WORSE]
        told = f"{best.name} has the best {word}, row by row measurably better than that of each other job"
        if alike:
            told = f"{best.name} has the best {word}, but row by row not measurably better than {', '.join(alike)}"
    elif unknown:
        told = f"{best.name} has the best {word}; without an interval of {', '.join(unknown)}, it may be chance"
    elif close:
        told = (
            f"{best.name} has the best {word}, but the intervals do not separate it from {', '.join(close)}: more "
            "held-out rows would show whether there is a difference"
        )
    luck = f"the best of {len(ranked)} was chosen by these rows: measure it on others before you rely on its figure"
    found = best.status.evaluation
    if found and found.verdict == Verdict.WORSE:
        return [told, f"{best.name} is worse than the model before the training"]
    if found and found.is_met is False:
        return [told, luck, f"{best.name} does not meet its gate: {found.gate_message}"]
    return [told, luck]


def _is_separated(best: Job, other: Job, *, is_loss: bool) -> bool:
    """Return whether the worse end of the best job's interval is better than the better end of the other one's."""
    ends, other_ends = _interval(best), _interval(other)
    gap = abs(float(_figure(other) or 0) - float(_figure(best) or 0))
    if ends is None or other_ends is None or (is_loss and gap < ROUNDING * abs(float(_figure(best) or 0))):
        return False
    return ends[1] < other_ends[0] if is_loss else other_ends[1] < ends[0]


def _interval(job: Job) -> tuple[float, float] | None:
    found = job.status.evaluation
    if found is None or found.difference_low is None or found.difference_high is None:
        return None
    return found.difference_low, found.difference_high


def _figure(job: Job) -> float | None:
    return job.status.evaluation.after if job.status.evaluation else None


def _is_reward(jobs: Sequence[Job]) -> bool:
    return any(job.status.evaluation and job.status.evaluation.metric == EvaluationMetric.REWARD for job in jobs)


def _different_fields(jobs: Sequence[Job]) -> list[str]:
    """Return the fields of the spec in which the trainings differ, those of the settings first."""
    specs = [flat_fields(job.spec) for job in jobs]
    paths = dict.fromkeys(path for spec in specs for path in spec if CREDENTIALS not in path)
    shown = [path for path in paths if path.partition(".")[0] in SHOWN]
    different = [path for path in shown if len({show_value(spec.get(path)) for spec in specs}) > 1]
    return sorted(different, key=lambda path: SHOWN.index(path.partition(".")[0]))


def _short(path: str) -> str:
    """Return the last part of a path, or its last two if that one alone could be of any block."""
    *_, above, last = ["", *path.split(".")]
    return f"{above}.{last}" if last in {"uri", "name", "beta", "temperature"} or len(last) < 3 else last


def ranking_table(ranking: Ranking) -> Text:
    """Return the ranking as a table."""
    return columns(ranking.header(), ranking.rows())
