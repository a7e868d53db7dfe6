"""The held-out figure of a result, row by row: `held_out.json`, by which results of the same rows are compared."""

from pydantic import Field

from finetune_api.comparing.comparison import Comparison, compare
from finetune_api.evaluation import EvaluationMetric
from finetune_api.handoff import HandoffBlock


class MeasuredRows(HandoffBlock):
    """The figures whose mean is `status.evaluation.after`, at most 512."""

    metric: EvaluationMetric
    rows_sha256: str = Field(alias="rowsSHA256")
    """Digest of the tokens of the rows, in the order of the measurement."""
    evaluations: int = 0
    """Number of evaluations on these rows from which the weights were chosen."""
    parts: list[tuple[float, int]]
    """The mean of each batch of rows, with its weight."""
    owners: list[tuple[int, int]] = Field(default_factory=list)
    """The weight of each row and the number of its prompt; empty if each has a prompt of its own."""


def compare_results(best: MeasuredRows, other: MeasuredRows, choices: int) -> Comparison | None:
    """Return the difference of a result from the best one of `choices`, row by row; None if the rows are not the same.

    `choices` are the evaluations of all the results.
    """
    if (best.metric, best.rows_sha256, best.owners) != (other.metric, other.rows_sha256, other.owners):
        return None
    return compare(best.metric, best.parts, other.parts, other.evaluations, best.owners, earlier=choices)
