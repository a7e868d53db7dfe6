"""Rules about the training: its length, losses, gradients, sampled answers and memory."""

import statistics
from collections.abc import Callable

from finetune_api.comparing.comparison import Comparison, compare
from finetune_api.evaluation import EvaluationMetric, Verdict
from finetune_trainer.evaluation.measurements import EvalPoint, TrainPoint
from finetune_trainer.evaluation.run_record import RunRecord
from finetune_trainer.report.rules.recommendation import UNUSABLE, Recommendation, Rule

ALL_ROWS = 0.995
HALF = 0.5
OVERFIT_RISE = 0.02
STILL_FALLING = 0.01
SPIKE = 10.0
SPIKE_WINDOW = (5, 20)
"""Fewest and most steps before a step whose median gradient norm is the usual one."""
SPIKED = 0.005
"""Share of steps: single spikes in a long training are usual."""
IDLE_GPU_MEMORY = 0.60
FLAT_MARGIN = 0.05
"""The loss of a pair falls by half of its margin, from 0.693."""
OUTWEIGHED = 2.0
FLAT_GROUPS = 0.5
CUT_ANSWERS = 0.2
LARGE_DIVERGENCE = 0.5
"""Nats per token from the reference: above it, a higher reward often does not mean a better answer."""


def _if_above(
    limit: float, figure: Callable[[TrainPoint], float | None], advice: str, evidence: Callable[[float], str]
) -> Rule:
    """Return a rule for a figure whose mean over the last quarter of the steps is above the limit."""

    def rule(run: RunRecord) -> Recommendation | None:
        steps = run.history.train
        found = [value for value in map(figure, steps[-max(1, len(steps) // 4) :]) if value is not None]
        mean = statistics.fmean(found) if found else None
        said = advice.format(block="distillation" if run.config.spec.distillation else "rlhf")
        return Recommendation(said, evidence(mean), min(mean, 1.0)) if mean is not None and mean > limit else None

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
    "Raise {block}.maxCompletionLength, or aim at shorter answers: many are truncated.",
    lambda share: f"{100 * share:.0f} % of the last quarter's answers reached the limit",
)
far_from_reference = _if_above(
    LARGE_DIVERGENCE,
    lambda point: point.kl,
    "Read the sampled answers. If they have high rewards but are not good, raise rlhf.beta or train fewer steps.",
    lambda nats: f"{nats:.3g} nats per token from the reference in the last quarter, above {LARGE_DIVERGENCE:g}",
)


def less_than_an_epoch(run: RunRecord) -> Recommendation | None:
    """Detect a training that did not read every row once."""
    epochs = run.epochs_seen
    if epochs >= ALL_ROWS or not epochs or (run.early_stopping and run.early_stopping.stopped):
        return None
    return Recommendation(
        "Raise hyperparameters.maxSteps, or set numTrainEpochs 1 or more in its place: most rows were never read."
        if epochs < HALF
        else "Raise hyperparameters.maxSteps, or set numTrainEpochs 1 in its place: not every row was read.",
        f"{epochs:.2g} epochs: the training read {'' if run.reads_single_rows else 'about '}"
        f"{round(epochs * run.samples.train_rows)} of {run.samples.train_rows} rows",
        1 - epochs,
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
        1.0,
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
            UNUSABLE,
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
        1 - min(ratio, 1 / ratio),
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
    share = (len(spikes) + skipped) / max(len(run.history.train), 1)
    if share <= SPIKED:
        return None
    highest = f", highest norm {max(norms):.3g}" if norms else ""
    overflow = f"; {skipped} steps without a finite gradient" if skipped else ""
    return Recommendation(
        "Lower the learning rate or lengthen the warm-up: the gradient spikes.",
        f"{len(spikes)} of {len(norms)} steps above {SPIKE:g} times the median norm of the {most} steps before"
        f"{highest}{overflow}",
        share,
    )


def overfit(run: RunRecord) -> Recommendation | None:
    """Detect that the evaluation loss was lowest in the first half and has measurably risen since."""
    points = run.history.training_evaluations()
    total = run.settings.total_steps or 0
    if len(points) < 3:
        return None
    best = min(points, key=_loss)
    rise = points[-1].loss / best.loss - 1 if best.loss > 0 else 0.0
    change = _compare(run, best, points[-1], earlier=len(points))
    if best.step * 2 > total or rise <= OVERFIT_RISE or change is None or change.verdict is not Verdict.WORSE:
        return None
    return Recommendation(
        "Train fewer steps, or on more rows: the model overfits.",
        f"evaluation loss was lowest at step {best.step} of {total} ({best.loss:.4g}) and rose since, "
        f"{change.change_with_interval}",
        min(rise, 1.0),
    )


def still_falling(run: RunRecord) -> Recommendation | None:
    """Detect that both losses were falling when the training ended, that of the evaluations measurably."""
    points = run.history.training_evaluations()
    steps = run.history.train
    quarter = len(steps) // 4
    stopped_early = run.early_stopping is not None and bool(run.early_stopping.stopped)
    if stopped_early or len(points) < 2 or quarter < 1 or points[-1] is not min(points, key=_loss):
        return None
    last = statistics.fmean(point.loss for point in steps[-quarter:])
    before = statistics.fmean(point.loss for point in steps[-2 * quarter : -quarter])
    fall = 1 - points[-1].loss / points[-2].loss if points[-2].loss > 0 else 0.0
    change = _compare(run, points[-2], points[-1])
    if last >= before or fall <= STILL_FALLING or change is None or change.verdict is not Verdict.BETTER:
        return None
    return Recommendation(
        "Train longer: both losses were still falling at the end.",
        f"evaluation loss {change.change_with_interval} between the last two evaluations; "
        f"training loss {before:.4g} → {last:.4g} over the last two quarters",
        fall,
    )


def _compare(run: RunRecord, before: EvalPoint, after: EvalPoint, earlier: int = 1) -> Comparison | None:
    """Return the paired comparison of two evaluations, the first of which is the best of `earlier`."""
    owners = run.final.owners if run.final else ()
    batches = before.measured.batches, after.measured.batches
    return compare(EvaluationMetric.LOSS, *batches, owners=owners, earlier=earlier)


def _loss(point: EvalPoint) -> float:
    return point.loss


def idle_memory(run: RunRecord) -> Recommendation | None:
    """Detect room on the GPU for larger micro-batches."""
    total, peak = run.machine.gpu_memory_bytes, run.machine.peak_memory_bytes
    if not total or peak >= IDLE_GPU_MEMORY * total:
        return None
    return Recommendation(
        "Raise perDeviceTrainBatchSize and lower gradientAccumulationSteps by the same factor: the GPU has free "
        "memory, and training becomes faster.",
        f"peak memory {100 * peak / total:.0f} % of the GPU's",
    )  # no effect on the result
