"""Recommendations for the next run: fixed rules, each with the figures that it follows from."""

from collections.abc import Sequence

from finetune_trainer.evaluation.run_record import RunRecord
from finetune_trainer.report.rules import result, rows, training
from finetune_trainer.report.rules.recommendation import Recommendation, Rule

RULES: Sequence[Rule] = (
    result.no_improvement,
    result.not_as_served,
    result.forgotten,
    result.fewer_correct_answers,
    result.one_answer,
    result.missed_expectation,
    result.asked_without_system,
    training.less_than_an_epoch,
    training.flat_groups,
    training.cut_answers,
    training.far_from_reference,
    training.flat_margin,
    training.outweighed,
    training.gradient_spikes,
    training.overfit,
    training.still_falling,
    rows.truncation,
    rows.skipped_for_length,
    rows.lost_reasoning,
    rows.beyond_context,
    rows.few_labels,
    rows.few_rows,
    result.few_held_out,
    training.idle_memory,
)
EVALUATION_RULES: Sequence[Rule] = (
    result.no_improvement,
    result.forgotten,
    result.fewer_correct_answers,
    result.one_answer,
    result.missed_expectation,
    result.asked_without_system,
    rows.truncation,
    rows.skipped_for_length,
    rows.lost_reasoning,
    result.few_held_out,
)
"""The rules that need no training."""


def recommend(run: RunRecord) -> list[Recommendation]:
    """Return the recommendations that apply, the one with the largest effect first."""
    rules = EVALUATION_RULES if run.is_evaluation else RULES
    found = [one for rule in rules if (one := rule(run)) is not None]
    return sorted(found, key=lambda one: -one.effect)
