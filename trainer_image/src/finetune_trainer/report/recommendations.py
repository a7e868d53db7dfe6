"""Recommendations for the next run: fixed rules, each with the figures that it follows from."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finetune_trainer.data.codes import RejectCode
from finetune_trainer.data.lengths import round_up
from finetune_trainer.evaluation.measurements import EvalPoint, TrainPoint
from finetune_trainer.evaluation.run_record import RunRecord
from finetune_trainer.report.held_out import NORMAL_95

OVERFIT_RISE = 0.02
STILL_FALLING = 0.01
SPIKE = 10.0
SPIKE_WINDOW = (5, 20)
"""Fewest and most steps before a step whose median gradient norm is the usual one."""
TRUNCATED = 0.05
LABELLED = 0.05
FEW_ROWS = 200
FEW_VALIDATION_ROWS = 50
IDLE_GPU_MEMORY = 0.60
FLAT_MARGIN = 0.05
"""The loss of a pair falls by half of its margin, from 0.693."""
OUTWEIGHED = 2.0
FLAT_GROUPS = 0.5
CUT_ANSWERS = 0.2
LARGE_DIVERGENCE = 0.5
"""Nats per token from the reference: above it, a higher reward often does not mean a better answer."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to do, and why."""

    advice: str
    evidence: str


def recommend(run: RunRecord) -> list[Recommendation]:
    """Return the recommendations that apply, the most serious first."""
    return [found for rule in RULES if (found := rule(run)) is not None]


def no_reward_gain(run: RunRecord) -> Recommendation | None:
    """Detect a policy without a higher reward than the base."""
    before, after = run.history.baseline_reward(), run.history.final_reward
    if before is None or after is None or after.reward > before.reward:
        return None
    return Recommendation(
        "Do not use or publish this result: its reward on held-out prompts was at least as high before training.",
        f"mean reward {after.reward:.4g} after training, {before.reward:.4g} before it",
    )


def _if_above(
    limit: float, figure: Callable[[TrainPoint], float | None], advice: str, evidence: Callable[[float], str]
) -> Callable[[RunRecord], Recommendation | None]:
    """Return a rule for a figure whose mean over the last quarter of the steps is above the limit."""

    def rule(run: RunRecord) -> Recommendation | None:
        steps = run.history.train
        found = [value for value in map(figure, steps[-max(1, len(steps) // 4) :]) if value is not None]
        mean = statistics.fmean(found) if found else None
        return Recommendation(advice, evidence(mean)) if mean is not None and mean > limit else None

    return rule


flat_groups = _if_above(
    FLAT_GROUPS,
    lambda point: point.flat_share,
    "Raise rlhf.temperature or rlhf.numGenerations, or choose a finer reward: most groups have equal rewards.",
    lambda share: f"in {100 * share:.0f} % of the last quarter's groups all answers had the same reward",
)
cut_answers = _if_above(
    CUT_ANSWERS,
    lambda point: point.clipped_share,
    "Raise rlhf.maxCompletionLength, or reward shorter answers: many are truncated.",
    lambda share: f"{100 * share:.0f} % of the last quarter's answers reached the limit",
)
far_from_reference = _if_above(
    LARGE_DIVERGENCE,
    lambda point: point.kl,
    "Read the sampled answers. If they have high rewards but are not good, raise rlhf.beta or train fewer steps.",
    lambda nats: f"{nats:.3g} nats per token from the reference in the last quarter, above {LARGE_DIVERGENCE:g}",
)


def no_improvement(run: RunRecord) -> Recommendation | None:
    """Detect a model that is no better than the base on the held-out rows."""
    baseline, final = run.baseline, run.final
    if baseline is None or final is None or final.loss < baseline.loss:
        return None
    return Recommendation(
        "Do not use or publish this result: the model was at least as good on the held-out rows before training.",
        f"evaluation loss {final.loss:.4g} after training, {baseline.loss:.4g} before it",
    )


def flat_margin(run: RunRecord) -> Recommendation | None:
    """Detect that the margin of the preferred answers has hardly grown."""
    final = run.final
    if final is None or final.reward_margin is None or final.reward_margin >= FLAT_MARGIN:
        return None
    return Recommendation(
        "Raise the learning rate or train longer, and check that the preferred answers are really better: the "
        "margin is flat.",
        f"mean margin {final.reward_margin:.3g} after training, below {FLAT_MARGIN:g}",
    )


def outweighed(run: RunRecord) -> Recommendation | None:
    """Detect that desirable or undesirable answers have much more weight than the others."""
    settings, desirable = run.settings, run.samples.desirable
    if desirable is None or settings.desirable_weight is None or settings.undesirable_weight is None:
        return None
    undesirable = run.samples.samples - desirable
    if not desirable or not undesirable:
        return Recommendation(
            "Add answers of the other kind: KTO learns from the difference between desirable and undesirable ones.",
            f"{desirable} desirable and {undesirable} undesirable answers",
        )
    ratio = desirable * settings.desirable_weight / (undesirable * settings.undesirable_weight)
    if 1 / OUTWEIGHED <= ratio <= OUTWEIGHED:
        return None
    rarer, weight = "undesirableWeight", settings.undesirable_weight * ratio
    if ratio < 1:
        rarer, weight = "desirableWeight", settings.desirable_weight / ratio
    return Recommendation(
        f"Set kto.{rarer} to {weight:.2g}: one kind of answers outweighs the other.",
        f"{desirable} desirable answers of weight {settings.desirable_weight:g}, {undesirable} undesirable ones of "
        f"weight {settings.undesirable_weight:g}",
    )


def gradient_spikes(run: RunRecord) -> Recommendation | None:
    """Detect gradients far above the usual."""
    fewest, most = SPIKE_WINDOW
    norms = [point.grad_norm for point in run.history.train if point.grad_norm is not None]
    spikes = [
        norm
        for at, norm in enumerate(norms)
        if at >= fewest and norm > SPIKE * statistics.median(norms[max(0, at - most) : at])
    ]
    skipped = len(run.history.train) - len(norms)
    if not spikes and not skipped:
        return None
    highest = f", highest norm {max(norms):.3g}" if norms else ""
    overflow = f"; {skipped} steps without a finite gradient" if skipped else ""
    return Recommendation(
        "Lower the learning rate or lengthen the warm-up: the gradient spikes.",
        f"{len(spikes)} of {len(norms)} steps above {SPIKE:g} times the median norm of the {most} steps before"
        f"{highest}{overflow}",
    )


def overfit(run: RunRecord) -> Recommendation | None:
    """Detect that the evaluation loss was lowest in the first half and has risen since."""
    points = run.history.training_evaluations()
    total = run.settings.total_steps or 0
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


def still_falling(run: RunRecord) -> Recommendation | None:
    """Detect that both losses were falling when the training ended."""
    points = run.history.training_evaluations()
    steps = run.history.train
    quarter = len(steps) // 4
    stopped_early = run.early_stopping is not None and bool(run.early_stopping.stopped)
    if stopped_early or len(points) < 2 or quarter < 1 or points[-1] is not min(points, key=_loss):
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


def _loss(point: EvalPoint) -> float:
    return point.loss


def truncation(run: RunRecord) -> Recommendation | None:
    """Detect that many rows are longer than the limit."""
    share = run.samples.truncated_share
    if share <= TRUNCATED:
        return None
    return Recommendation(
        f"Raise hyperparameters.maxLength to {_advise_length(run)}, which leaves 99 % of the rows whole.",
        f"{100 * share:.1f} % of the rows are truncated at {run.settings.max_length} tokens",
    )


def skipped_for_length(run: RunRecord) -> Recommendation | None:
    """Detect that many rows are skipped because their prompt fills the limit."""
    rows = run.dataset.rows or 0
    skipped = (run.dataset.rejected_by_code or {}).get(RejectCode.PROMPT_FILLS_CONTEXT.value, 0)
    if skipped <= TRUNCATED * rows:
        return None
    return Recommendation(
        f"Raise hyperparameters.maxLength to {_advise_length(run)}: rows whose prompt alone fills it are skipped.",
        f"{100 * skipped / rows:.1f} % of the rows have no token of an answer within {run.settings.max_length} tokens",
    )


def _advise_length(run: RunRecord) -> int:
    """Return the length that keeps 99 % of the rows whole; only preflight's figure includes the skipped rows."""
    return round_up(max(run.dataset.length_p99 or 0, run.samples.full_length_p99))


def few_labels(run: RunRecord) -> Recommendation | None:
    """Detect that hardly any token is trained."""
    share = run.samples.labelled_share
    if share >= LABELLED or not share:  # prompts alone carry no label at all
        return None
    return Recommendation(
        "Check which tokens are trained (between ⟦ and ⟧ below): hardly any are.",
        f"{100 * share:.2f} % of the tokens carry a label",
    )


def few_rows(run: RunRecord) -> Recommendation | None:
    """Detect a small dataset."""
    rows = run.samples.train_rows
    if rows >= FEW_ROWS:
        return None
    return Recommendation("Add rows: the dataset is small.", f"{rows} training rows, fewer than {FEW_ROWS}")


def noisy_evaluation(run: RunRecord) -> Recommendation | None:
    """Detect an evaluation loss that is a mean over few rows."""
    rows, final = run.samples.validation_rows, run.final
    if rows == 0:
        advice = "Hold rows out (dataset.validation or validationSplitPercent): nothing was evaluated."
        return Recommendation(advice, "0 validation rows")
    if rows >= FEW_VALIDATION_ROWS or final is None:
        return None
    margin = final.standard_error
    interval = "" if margin is None else f"; loss {final.loss:.4g} ± {NORMAL_95 * margin:.2g} (95 %)"
    return Recommendation(
        "Treat the evaluation loss as an estimate, or hold out more rows: it is noisy.",
        f"{rows} validation rows, fewer than {FEW_VALIDATION_ROWS}{interval}",
    )


def idle_memory(run: RunRecord) -> Recommendation | None:
    """Detect room on the GPU for larger micro-batches."""
    total, peak = run.machine.gpu_memory_bytes, run.machine.peak_memory_bytes
    if not total or peak >= IDLE_GPU_MEMORY * total:
        return None
    return Recommendation(
        "Raise perDeviceTrainBatchSize and lower gradientAccumulationSteps by the same factor: the GPU has free "
        "memory, and training becomes faster.",
        f"peak memory {100 * peak / total:.0f} % of the GPU's",
    )


RULES: Sequence[Callable[[RunRecord], Recommendation | None]] = (
    no_reward_gain,
    flat_groups,
    cut_answers,
    far_from_reference,
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
