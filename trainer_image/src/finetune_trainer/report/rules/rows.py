"""Rules about the rows: their number, their lengths, and what of them is trained."""

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_trainer.data.checks.summary import count_lost_reasoning
from finetune_trainer.data.lengths import round_up
from finetune_trainer.evaluation.run_record import RunRecord
from finetune_trainer.report.rules.recommendation import Recommendation

TRUNCATED = 0.05
LABELLED = 0.05
LOST_REASONING = 0.01
"""Less than for lengths: reasoning is lost as a whole, even if few rows have any."""
FEW_ROWS = 200


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
    """Detect that many rows are skipped because they, or their prompts alone, are longer than the limit."""
    rows, codes = run.dataset.rows or 0, run.dataset.rejected_rows_by_code or {}
    if (skipped := codes.get(RejectCode.OVER_MAX_LENGTH.value, 0)) > TRUNCATED * rows:
        return Recommendation(
            _advise_length(run, ", which keeps 99 % of the rows."),
            f"{100 * skipped / rows:.1f} % of the rows are skipped, because they have more than "
            f"{run.settings.max_length} tokens",
            skipped / rows,
        )
    skipped = codes.get(RejectCode.PROMPT_FILLS_CONTEXT.value, 0)
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
