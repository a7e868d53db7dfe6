"""The verdict on a result, in words: the paired difference of the held-out rows before and after, with its interval."""

from finetune_api.comparing.comparison import Comparison
from finetune_api.comparing.groups import EVALUATED_ROWS
from finetune_api.evaluation import EvaluationMetric, EvaluationStatus, Verdict


def describe(
    comparison: Comparison | None,
    *,
    start: str,
    rows: int,
    prompts: int | None = None,
    most: int = EVALUATED_ROWS,
    obstacle: str = "",
) -> str:
    """Return the verdict in one sentence, with the interval, or why there is none and how many rows would show more.

    `prompts` is the number of different prompts of the rows, by default as many as rows; `most` rows are measured.
    """
    if comparison is None or obstacle:
        return f"not evaluated: {obstacle or 'no rows were held out'}"
    noun = "loss" if comparison.metric is EvaluationMetric.LOSS else "reward"
    figures = f"held-out {noun} {comparison.before:.3g} → {comparison.after:.3g}, {comparison.change_with_interval}"
    match comparison.verdict:
        case Verdict.BETTER:
            return f"better than the {start}: {figures}"
        case Verdict.WORSE:
            return f"worse than the {start}: {figures}"
        case Verdict.NOT_EVALUATED:
            if prompts is None or prompts >= rows:
                few, fix = f"{rows} held-out rows are", "hold out 20 or more"
            else:
                few = f"{rows} held-out rows of {prompts} different prompts or conversations are"
                fix = "hold out rows of 20 or more"
            return f"not evaluated: {few} too few for an interval ({figures}); {fix}"
    needed, hint = comparison.advise_rows(rows), ""
    if needed and needed > most:
        hint = f"; a difference of this size may not show in the {most} held-out rows that are measured at most"
    elif needed:
        of = f" of {comparison.advise_rows(prompts)} different prompts" if prompts and prompts < rows else ""
        hint = f"; about {needed} held-out rows{of} would probably show a difference of this size"
    return f"no measurable difference from the {start}: {figures}{hint}"


def to_status(comparison: Comparison | None, detail: str, rows: int, served_as: str) -> EvaluationStatus:
    """Return the status fields of the verdict."""
    if comparison is None:
        return EvaluationStatus(verdict=Verdict.NOT_EVALUATED.value, verdict_message=detail)
    is_measurable = comparison.verdict in {Verdict.BETTER, Verdict.WORSE}
    return EvaluationStatus(
        verdict=comparison.verdict.value,
        change=comparison.change if is_measurable else f"{comparison.change} (not measurable)",
        metric=comparison.metric.value,
        before=comparison.before,
        after=comparison.after,
        difference=comparison.difference,
        difference_low=comparison.low,
        difference_high=comparison.high,
        rows=rows,
        served_as=served_as,
        verdict_message=detail,
    )
