"""Rules about the result: whether it is better, how it answers, and whether held-out rows show it."""

from finetune_api.evaluation import Verdict
from finetune_trainer.evaluation.ability import describe_ability
from finetune_trainer.evaluation.held_out_answers import describe_answers
from finetune_trainer.evaluation.questions import explain_missing_system
from finetune_trainer.evaluation.run_record import RunRecord
from finetune_trainer.report.rules.recommendation import UNUSABLE, Recommendation
from finetune_trainer.report.rules.training import overfit
from finetune_trainer.report.text import inline

ALMOST_ALL, MOST_SHARED = 0.9, 0.7
"""Share of the rows that get the same answer, and of those that have the same answer themselves."""
SHOWN_CHARACTERS = 80


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
