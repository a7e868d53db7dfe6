"""What to do next, by stated rules: each recommendation carries the figures that it follows from."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from finetune_api.status import DatasetStatus, Resolved
from finetune_trainer.data.lengths import round_up
from finetune_trainer.data.rows import RejectCode
from finetune_trainer.evaluation.history import History
from finetune_trainer.evaluation.measurements import EvalPoint, Measured, TrainPoint
from finetune_trainer.evaluation.run_record import Machine, RunRecord, SampleStats

OVERFIT_RISE = 0.02
STILL_FALLING = 0.01
SPIKE = 10.0
BEFORE = (5, 20)
"""Fewest and most steps before a step whose median gradient norm is the usual one."""
TRUNCATED = 0.05
LABELLED = 0.05
FEW_ROWS = 200
FEW_VALIDATION_ROWS = 50
IDLE_GPU_MEMORY = 0.60
FLAT_MARGIN = 0.05
"""The loss of a pair falls by half of its margin, from 0.693."""
OUTWEIGHED = 2.0
NORMAL_95 = 1.96


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to do, and why."""

    advice: str
    evidence: str


@dataclass(frozen=True)
class Evidence:
    """Everything that the rules look at."""

    settings: Resolved
    samples: SampleStats
    history: History
    baseline: Measured | None
    final: Measured | None
    early_stopped: bool
    machine: Machine
    dataset: DatasetStatus = field(default_factory=DatasetStatus)


def evidence_of(record: RunRecord) -> Evidence:
    """Return what the rules need of a run's record."""
    return Evidence(
        settings=record.settings,
        samples=record.samples,
        history=record.history,
        baseline=record.baseline,
        final=record.final,
        early_stopped=record.early_stopping is not None and bool(record.early_stopping.stopped),
        machine=record.machine,
        dataset=record.dataset,
    )


def recommend(evidence: Evidence) -> list[Recommendation]:
    """The recommendations that apply, gravest first."""
    of_rewards = [Recommendation(*advice) for rule in REWARD_RULES if (advice := rule(evidence.history)) is not None]
    return of_rewards + [found for rule in RULES if (found := rule(evidence)) is not None]


def no_improvement(evidence: Evidence) -> Recommendation | None:
    """The tuned model is no better than the base on the held-out rows."""
    baseline, final = evidence.baseline, evidence.final
    if baseline is None or final is None or final.loss < baseline.loss:
        return None
    return Recommendation(
        "Do not use or publish this result: the model was at least as good on the held-out rows before the training.",
        f"evaluation loss {final.loss:.4g} after training, {baseline.loss:.4g} before it",
    )


def flat_margin(evidence: Evidence) -> Recommendation | None:
    """The preferred answers have hardly gained on the others."""
    final = evidence.final
    if final is None or final.reward_margin is None or final.reward_margin >= FLAT_MARGIN:
        return None
    return Recommendation(
        "Raise the learning rate or train longer, and look whether the preferred answers are really better: the "
        "margin is flat.",
        f"mean margin {final.reward_margin:.3g} after training, below {FLAT_MARGIN:g}",
    )


def outweighed(evidence: Evidence) -> Recommendation | None:
    """Of liked and disliked answers, one kind counts for much more than the other."""
    settings, liked = evidence.settings, evidence.samples.desirable
    if liked is None or settings.desirable_weight is None or settings.undesirable_weight is None:
        return None
    disliked = evidence.samples.samples - liked
    if not liked or not disliked:
        return Recommendation(
            "Add answers of the other kind: KTO learns from the difference between liked and disliked ones.",
            f"{liked} liked and {disliked} disliked answers",
        )
    ratio = liked * settings.desirable_weight / (disliked * settings.undesirable_weight)
    if 1 / OUTWEIGHED <= ratio <= OUTWEIGHED:
        return None
    rarer, weight = ("undesirableWeight", settings.undesirable_weight * ratio)
    if ratio < 1:
        rarer, weight = ("desirableWeight", settings.desirable_weight / ratio)
    return Recommendation(
        f"Set kto.{rarer} to {weight:.2g}: one kind of answers outweighs the other.",
        f"{liked} liked answers of weight {settings.desirable_weight:g}, {disliked} disliked ones of weight "
        f"{settings.undesirable_weight:g}",
    )


def gradient_spikes(evidence: Evidence) -> Recommendation | None:
    """Some gradients are far above the usual."""
    norms = [point.grad_norm for point in evidence.history.train if point.grad_norm is not None]
    spikes = [norm for at, norm in enumerate(norms) if at >= BEFORE[0] and norm > SPIKE * _usual(norms, at)]
    skipped = sum(point.grad_norm is None for point in evidence.history.train)
    if not spikes and not skipped:
        return None
    overflow = f"; {skipped} steps without a finite gradient" if skipped else ""
    return Recommendation(
        "Lower the learning rate, or lengthen the warm-up: the gradient spikes.",
        f"{len(spikes)} of {len(norms)} steps above {SPIKE:g} times the median norm of the {BEFORE[1]} steps before, "
        f"highest norm {max(norms):.3g}{overflow}",
    )


def _usual(norms: list[float], at: int) -> float:
    return statistics.median(norms[max(0, at - BEFORE[1]) : at])


def overfit(evidence: Evidence) -> Recommendation | None:
    """The evaluation loss was lowest in the first half and has risen since."""
    points = evidence.history.training_evaluations()
    total = evidence.settings.total_steps or 0
    if len(points) < 3:
        return None
    best = min(points, key=_loss)
    rise = points[-1].loss / best.loss - 1 if best.loss > 0 else 0.0
    if best.step * 2 > total or rise <= OVERFIT_RISE:
        return None
    return Recommendation(
        "Train fewer steps, or on more rows: the model overfits.",
        f"evaluation loss was lowest at step {best.step} of {total} ({best.loss:.4g}) and rose by {100 * rise:.1f} %",
    )


def still_falling(evidence: Evidence) -> Recommendation | None:
    """Both losses were falling when the training ended."""
    points = evidence.history.training_evaluations()
    steps = evidence.history.train
    quarter = len(steps) // 4
    if evidence.early_stopped or len(points) < 2 or quarter < 1 or points[-1] is not min(points, key=_loss):
        return None
    last = statistics.fmean(point.loss for point in steps[-quarter:])
    before = statistics.fmean(point.loss for point in steps[-2 * quarter : -quarter])
    fall = 1 - points[-1].loss / points[-2].loss if points[-2].loss > 0 else 0.0
    if last >= before or fall <= STILL_FALLING:
        return None
    return Recommendation(
        "Train longer: both losses were still falling at the end.",
        f"evaluation loss fell by {100 * fall:.1f} % between the last two evaluations; "
        f"training loss {before:.4g} → {last:.4g} over the last two quarters",
    )


def truncation(evidence: Evidence) -> Recommendation | None:
    """Many rows are longer than the limit."""
    samples = evidence.samples
    if samples.truncated_share <= TRUNCATED:
        return None
    return Recommendation(
        f"Raise hyperparameters.maxLength to {_advised_length(evidence)}, which leaves 99 % of the rows whole.",
        f"{100 * samples.truncated_share:.1f} % of the rows are cut at {evidence.settings.max_length} tokens",
    )


def skipped_for_length(evidence: Evidence) -> Recommendation | None:
    """Many rows are left out, for what comes before the answer fills the limit."""
    rows = evidence.dataset.rows or 0
    skipped = (evidence.dataset.rejected_by_code or {}).get(RejectCode.PROMPT_FILLS_CONTEXT.value, 0)
    if skipped <= TRUNCATED * rows:
        return None
    return Recommendation(
        f"Raise hyperparameters.maxLength to {_advised_length(evidence)}: rows whose prompt alone fills it are "
        "skipped.",
        f"{100 * skipped / rows:.1f} % of the rows have no token of an answer within {evidence.settings.max_length} "
        "tokens",
    )


def _advised_length(evidence: Evidence) -> int:
    """Preflight's figure, which has the skipped rows in it, where there is one."""
    return round_up(max(evidence.dataset.length_p99 or 0, evidence.samples.full_length_p99))


def few_labels(evidence: Evidence) -> Recommendation | None:
    """Hardly any token is trained."""
    share = evidence.samples.labelled_share
    if share >= LABELLED or not share:  # prompts alone carry no label at all
        return None
    return Recommendation(
        "Check the masks below: hardly any token is trained.",
        f"{100 * share:.2f} % of the tokens carry a label",
    )


def few_rows(evidence: Evidence) -> Recommendation | None:
    """There is little to learn from."""
    rows = evidence.samples.train_rows
    if rows >= FEW_ROWS:
        return None
    return Recommendation("Add rows: the dataset is small.", f"{rows} training rows, fewer than {FEW_ROWS}")


def noisy_evaluation(evidence: Evidence) -> Recommendation | None:
    """The evaluation loss rests on few rows."""
    rows, final = evidence.samples.validation_rows, evidence.final
    if rows == 0:
        advice = "Hold rows out (dataset.validation or validationSplitPercent): nothing was evaluated."
        return Recommendation(advice, "0 validation rows")
    if rows >= FEW_VALIDATION_ROWS or final is None:
        return None
    margin = final.standard_error
    interval = "" if margin is None else f"; loss {final.loss:.4g} ± {NORMAL_95 * margin:.2g} (95 %)"
    return Recommendation(
        "Take the evaluation loss with care, or hold out more rows: it is noisy.",
        f"{rows} validation rows, fewer than {FEW_VALIDATION_ROWS}{interval}",
    )


def idle_memory(evidence: Evidence) -> Recommendation | None:
    """The GPU has room for larger micro-batches."""
    total, peak = evidence.machine.gpu_memory_bytes, evidence.machine.peak_memory_bytes
    if not total or peak >= IDLE_GPU_MEMORY * total:
        return None
    return Recommendation(
        "Raise perDeviceTrainBatchSize and lower gradientAccumulationSteps alike: the GPU has room, and it is faster.",
        f"peak memory {100 * peak / total:.0f} % of the GPU's",
    )


def _loss(point: EvalPoint) -> float:
    return point.loss


RULES: Sequence[Callable[[Evidence], Recommendation | None]] = (
    no_improvement,
    flat_margin,
    outweighed,
    gradient_spikes,
    overfit,
    still_falling,
    truncation,
    skipped_for_length,
    few_labels,
    few_rows,
    noisy_evaluation,
    idle_memory,
)


Advice = tuple[str, str]
"""What to do, and the figures that it follows from."""

FLAT = 0.5
CUT = 0.2
FAR = 0.5
"""Nats per token from the reference: from there on, what is earned has often little to do with a good answer."""


def no_gain(history: History) -> Advice | None:
    """The tuned policy earns no more than the base."""
    before, after = history.baseline_reward(), history.final_reward
    if before is None or after is None or after.reward > before.reward:
        return None
    return (
        "Do not use or publish this result: the model earned as much on held-out prompts before the training.",
        f"mean reward {after.reward:.4g} after training, {before.reward:.4g} before it",
    )


def flat_groups(history: History) -> Advice | None:
    """Most groups of answers teach nothing."""
    share = _last_quarter(history, lambda point: point.flat_share)
    if share is None or share <= FLAT:
        return None
    return (
        "Raise rlhf.temperature or rlhf.numGenerations, or choose a finer reward: most groups teach nothing.",
        f"in {100 * share:.0f} % of the last quarter's groups all answers earned the same",
    )


def cut_answers(history: History) -> Advice | None:
    """Many answers do not end by themselves."""
    share = _last_quarter(history, lambda point: point.clipped_share)
    if share is None or share <= CUT:
        return None
    return (
        "Raise rlhf.maxCompletionLength, or reward shorter answers: many are cut off.",
        f"{100 * share:.0f} % of the last quarter's answers reached the limit",
    )


def far_from_reference(history: History) -> Advice | None:
    """The policy has left what the reference would say."""
    divergence = _last_quarter(history, lambda point: point.kl)
    if divergence is None or divergence <= FAR:
        return None
    return (
        "Read the sampled answers, and raise rlhf.beta or train fewer steps if they only please the reward.",
        f"{divergence:.3g} nats per token from the reference in the last quarter, above {FAR:g}",
    )


def _last_quarter(history: History, figure_of: Callable[[TrainPoint], float | None]) -> float | None:
    last = history.train[-max(1, len(history.train) // 4) :]
    found = [value for value in map(figure_of, last) if value is not None]
    return statistics.fmean(found) if found else None


REWARD_RULES: Sequence[Callable[[History], Advice | None]] = (no_gain, flat_groups, cut_answers, far_from_reference)
