"""Recommendations for the next run: fixed rules, each with the figures that it follows from."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finetune_api.comparing.comparison import Comparison, compare
from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_api.evaluation import EvaluationMetric, Verdict
from finetune_trainer.data.checks.summary import count_lost_reasoning
from finetune_trainer.data.lengths import round_up
from finetune_trainer.evaluation.ability import describe_ability
from finetune_trainer.evaluation.held_out_answers import describe_answers
from finetune_trainer.evaluation.measurements import EvalPoint, TrainPoint
from finetune_trainer.evaluation.questions import explain_missing_system
from finetune_trainer.evaluation.run_record import RunRecord
from finetune_trainer.report.text import inline

UNUSABLE = 2.0
"""The effect of what makes the result itself doubtful; shares are at most 1."""
ALL_ROWS = 0.995
HALF = 0.5
OVERFIT_RISE = 0.02
STILL_FALLING = 0.01
SPIKE = 10.0
SPIKE_WINDOW = (5, 20)
"""Fewest and most steps before a step whose median gradient norm is the usual one."""
SPIKED = 0.005
"""Share of steps: single spikes in a long training are usual."""
TRUNCATED = 0.05
LABELLED = 0.05
LOST_REASONING = 0.01
"""Less than for lengths: reasoning is lost as a whole, even if few rows have any."""
FEW_ROWS = 200
IDLE_GPU_MEMORY = 0.60
FLAT_MARGIN = 0.05
"""The loss of a pair falls by half of its margin, from 0.693."""
OUTWEIGHED = 2.0
FLAT_GROUPS = 0.5
ALMOST_ALL, MOST_SHARED = 0.9, 0.7
"""Share of the rows that get the same answer, and of those that have the same answer themselves."""
SHOWN_CHARACTERS = 80
CUT_ANSWERS = 0.2
LARGE_DIVERGENCE = 0.5
"""Nats per token from the reference: above it, a higher reward often does not mean a better answer."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to do, and why."""

    advice: str
    evidence: str
    effect: float = 0.0
    """How much it concerns, by which recommendations are ranked: the share of rows, steps, loss or memory, or
    `UNUSABLE`."""


def recommend(run: RunRecord) -> list[Recommendation]:
    """Return the recommendations that apply, the one with the largest effect first."""
    rules = EVALUATION_RULES if run.is_evaluation else RULES
    found = [one for rule in rules if (one := rule(run)) is not None]
    return sorted(found, key=lambda one: -one.effect)


def _if_above(
    limit: float, figure: Callable[[TrainPoint], float | None], advice: str, evidence: Callable[[float], str]
) -> Callable[[RunRecord], Recommendation | None]:
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


def no_improvement(run: RunRecord) -> Recommendation | None:
    """Detect a model that is worse than before the training, or not measurably better."""
    comparison = run.comparison
    if comparison is None or comparison.verdict in {Verdict.BETTER, Verdict.NOT_EVALUATED}:
        return None
    figures = f"{comparison.change_with_interval} on {run.compared_rows} held-out rows"
    if comparison.verdict is Verdict.WORSE:
        than = "the base model" if run.is_evaluation else "before the training"
        advice = f"Do not use or publish this result: it is worse on the held-out rows than {than}."
        return Recommendation(advice, figures, UNUSABLE)
    needed = comparison.advise_rows(run.compared_rows)
    is_possible = needed is not None and needed <= run.most_compared
    more = f", and hold out about {needed} rows to see a difference of this size" if is_possible else ""
    how = "" if run.is_evaluation or overfit(run) else ": train longer or with a higher learning rate"
    advice = f"Do not call this result better{how}{more}."
    return Recommendation(advice, figures, UNUSABLE)


def not_as_served(run: RunRecord) -> Recommendation | None:
    """Detect a result that was measured on the 4-bit base alone."""
    if run.served is None or not run.served.obstacle:
        return None
    return Recommendation(
        "Measure the adapter on the base that you will serve before you use it: the figures are those of the 4-bit "
        "base, and the verdict needs the 16-bit one. Use a larger GPU or tuning.method LoRA to have it here.",
        run.served.obstacle,
        UNUSABLE,
    )


def missed_expectation(run: RunRecord) -> Recommendation | None:
    """Detect answers that do not match their pattern."""
    missed = [str(at) for at, answer in enumerate(run.answers, 1) if answer.is_expected is False]
    if not missed:
        return None
    return Recommendation(
        "Read the answers above: some do not match `expected`. Add rows like them, or correct the pattern.",
        f"the tuned model's answer to prompt {', '.join(missed)} does not match",
        len(missed) / len(run.answers),
    )


def asked_without_system(run: RunRecord) -> Recommendation | None:
    """Detect questions without the system text that almost all training rows have."""
    shared = run.summary.get("sharedSystem") or {}
    missing = explain_missing_system(run.config.spec.prompts, shared)
    if not missing:
        return None
    return Recommendation(
        "Set evaluation.prompts[].system to the system text of the rows: the answers above, and a gate on them, are "
        "without it.",
        inline(missing),
        shared["share"],
    )


def forgotten(run: RunRecord) -> Recommendation | None:
    """Detect a model that answers measurably fewer questions on general ability than before the training."""
    if run.ability is None or not run.ability.has_forgotten:
        return None
    change = "tuning.method LoRA, " if run.settings.method == "Full" else ""
    return Recommendation(
        f"Check whether you need what the model has forgotten. To keep more of it, use {change}a lower "
        "hyperparameters.learningRate or fewer steps, or mix general rows into dataset.train.",
        f"{describe_ability(run.ability)}; {run.ability.lost} answers became wrong, {run.ability.gained} right",
        UNUSABLE,
    )


def fewer_correct_answers(run: RunRecord) -> Recommendation | None:
    """Detect a model that answers measurably fewer held-out rows correctly than before the training."""
    found = run.held_out.compare(run.choices) if run.held_out else None
    if run.held_out is None or found is None or found.high is None or found.high >= 0:
        return None
    advice = "Do not use this result for this task. Read the wrong answers above"
    change = "" if run.is_evaluation else "; then check the rows, and use a lower learning rate or fewer steps"
    return Recommendation(
        f"{advice}{change}.",
        describe_answers(run.held_out, run.choices),
        UNUSABLE,
    )


def one_answer(run: RunRecord) -> Recommendation | None:
    """Detect a model that gives almost all held-out rows the same answer, although their own answers differ."""
    found = run.held_out.frequent if run.held_out else None
    if run.held_out is None or found is None or found.rows < ALMOST_ALL * run.held_out.rows:
        return None
    if found.rows_that_share_theirs > MOST_SHARED * run.held_out.rows:
        return None
    change = "Do not use this adapter for this task"
    if not run.is_evaluation:
        change = "Train for more steps, or at a higher hyperparameters.learningRate"
    text = found.text if len(found.text) <= SHOWN_CHARACTERS else f"{found.text[:SHOWN_CHARACTERS]}…"
    return Recommendation(
        f"{change}: almost all held-out rows get the same answer.",
        f'{found.rows} of {run.held_out.rows} held-out rows got the answer "{inline(text)}"; the most frequent answer '
        f"in the rows is that of {found.rows_that_share_theirs}",
        UNUSABLE,
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


def truncation(run: RunRecord) -> Recommendation | None:
    """Detect that many rows are longer than the limit."""
    share = run.samples.truncated_share
    if share <= TRUNCATED:
        return None
    return Recommendation(
        _advise_length(run, ", which leaves 99 % of the rows whole."),
        f"{100 * share:.1f} % of the rows are truncated at {run.settings.max_length} tokens",
        share,
    )


def skipped_for_length(run: RunRecord) -> Recommendation | None:
    """Detect that many rows are skipped because their prompt fills the limit."""
    rows = run.dataset.rows or 0
    skipped = (run.dataset.rejected_rows_by_code or {}).get(RejectCode.PROMPT_FILLS_CONTEXT.value, 0)
    if skipped <= TRUNCATED * rows:
        return None
    return Recommendation(
        _advise_length(run, ": rows whose prompt alone fills it are skipped."),
        f"{100 * skipped / rows:.1f} % of the rows have no token of an answer within {run.settings.max_length} tokens",
        skipped / rows,
    )


def lost_reasoning(run: RunRecord) -> Recommendation | None:
    """Detect that the chat template omits the reasoning of answers."""
    lost = (run.dataset.repaired_rows_by_code or {}).get(RepairCode.REASONING_LOST.value, 0)
    accepted = run.dataset.accepted_rows or 0
    counted = count_lost_reasoning(lost, accepted)
    share = lost / max(accepted, 1)
    if counted is None or share < LOST_REASONING:
        return None
    return Recommendation(
        "Set model.chatTemplate to one that writes the reasoning, or remove it from the rows: it is not trained on.",
        counted,
        share,
    )


def _advise_length(run: RunRecord, why: str) -> str:
    """Return the advice to keep 99 % of the rows whole, as far as the model's context reaches."""
    needed = max(run.dataset.p99_length_tokens or 0, run.samples.full_length_p99)  # the first has the skipped rows too
    context = run.base.context_length
    if not context or needed <= context:
        return f"Raise hyperparameters.maxLength to {min(round_up(needed), context or round_up(needed))}{why}"
    shorten = (
        f"Shorten or split the rows: 99 % of them have up to {needed} tokens, and the model's context is {context}"
    )
    if (run.settings.max_length or 0) >= context:
        return f"{shorten}."
    return f"{shorten}. Raise hyperparameters.maxLength to {context}."


def beyond_context(run: RunRecord) -> Recommendation | None:
    """Detect rows that are longer than the base model's context."""
    context, longest = run.base.context_length, run.samples.longest
    if not context or longest <= context:
        return None
    return Recommendation(
        f"Lower hyperparameters.maxLength to {context}, unless a longer context is the aim; then try answers to texts "
        "of this length, and let the server allow it.",
        f"the longest sample has {longest} tokens, more than the model's context of {context}",
    )


def few_labels(run: RunRecord) -> Recommendation | None:
    """Detect that hardly any token is trained."""
    share = run.samples.labelled_share
    if share >= LABELLED or not share:  # prompts alone carry no label at all
        return None
    return Recommendation(
        "Check which tokens are trained (between ⟦ and ⟧ below): hardly any are.",
        f"{100 * share:.2f} % of the tokens carry a label",
        1 - share,
    )


def few_rows(run: RunRecord) -> Recommendation | None:
    """Detect a small dataset."""
    rows = run.samples.train_rows
    if rows >= FEW_ROWS:
        return None
    evidence = f"{rows} training rows, fewer than {FEW_ROWS}"
    return Recommendation("Add rows: the dataset is small.", evidence, 1 - rows / FEW_ROWS)


def few_held_out(run: RunRecord) -> Recommendation | None:
    """Detect that too few rows are held out for a verdict."""
    rows = run.samples.validation_rows
    if rows == 0:
        advice = "Hold rows out (dataset.validation or validationSplitPercent): nothing was evaluated."
        return Recommendation(advice, "0 validation rows", UNUSABLE)
    if run.comparison is None or run.comparison.has_interval:
        return None
    wanted, found, prompts = "20 rows or more", f"{rows} validation rows", run.compared_prompts
    if prompts < run.compared_rows:
        wanted, found = "rows of 20 or more different prompts", f"{found}; {prompts} different prompts were measured"
    advice = f"Hold out {wanted} (dataset.validation or validationSplitPercent): they are too few for a verdict."
    return Recommendation(advice, found, UNUSABLE)


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


RULES: Sequence[Callable[[RunRecord], Recommendation | None]] = (
    no_improvement,
    not_as_served,
    forgotten,
    fewer_correct_answers,
    one_answer,
    missed_expectation,
    asked_without_system,
    less_than_an_epoch,
    flat_groups,
    cut_answers,
    far_from_reference,
    flat_margin,
    outweighed,
    gradient_spikes,
    overfit,
    still_falling,
    truncation,
    skipped_for_length,
    lost_reasoning,
    beyond_context,
    few_labels,
    few_rows,
    few_held_out,
    idle_memory,
)
EVALUATION_RULES = (
    no_improvement,
    forgotten,
    fewer_correct_answers,
    one_answer,
    missed_expectation,
    asked_without_system,
    truncation,
    skipped_for_length,
    lost_reasoning,
    few_held_out,
)
"""The rules that need no training."""
