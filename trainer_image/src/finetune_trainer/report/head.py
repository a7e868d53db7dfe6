"""The top of the page: whether the result is better than its base, and the most important figures."""

from collections.abc import Callable

from finetune_api.comparing.comparison import Comparison
from finetune_api.comparing.intervals import share_half_width
from finetune_api.evaluation import EvaluationStatus, Verdict
from finetune_trainer.evaluation.gate_rules import GateResult
from finetune_trainer.evaluation.measurements import Measured, RewardPoint
from finetune_trainer.evaluation.run_record import RunRecord
from finetune_trainer.report.held_out import find_terms
from finetune_trainer.report.page import Head, Tile
from finetune_trainer.report.text import clean, count, duration, number, percent, size

MOODS = {Verdict.BETTER: "good", Verdict.WORSE: "bad"}


def build_head(record: RunRecord) -> Head:
    """Return name, result and figures."""
    spec = record.config.spec
    verdict, mood = _judge(record)
    how = "evaluation" if record.is_evaluation else record.settings.method
    return Head(
        name=clean(record.config.name),
        kind=clean(f"FineTuneJob · {spec.objective.value} · {how}"),
        verdict=verdict,
        mood=mood,
        tiles=[*_evaluation_tiles(record), *_cost_tiles(record)],
    )


def _judge(record: RunRecord) -> tuple[str, str]:
    """Return the result in one sentence with its mood; a gate takes precedence over the verdict."""
    if record.evaluation.gate == GateResult.NOT_MET:
        return "The gate is not met: do not publish it", "bad"
    if record.evaluation.is_met is False:
        return f"{_name_missing(record.evaluation)}: see below", "bad"
    return clean(record.detail[:1].upper() + record.detail[1:]), MOODS.get(record.verdict, "plain")


def _name_missing(evaluation: EvaluationStatus) -> str:
    """Return which model a gate keeps out of the result."""
    if evaluation.merge_gate in {GateResult.NOT_MET, GateResult.NOT_RUN}:
        return "The full model is withheld"
    return "There are no GGUF files" if evaluation.gguf_gate == GateResult.NOT_RUN else "A GGUF file is withheld"


def _evaluation_tiles(record: RunRecord) -> list[Tile]:
    def was(figure: float | None, write: Callable[[float], str] = number) -> str:
        return "" if figure is None else f"{record.start} {write(figure)}"

    before, after = record.judged
    comparison, found = record.comparison, []
    if comparison and comparison.has_interval:
        found.append(Tile("Change", comparison.change, f"{comparison.interval}, held-out rows"))
    if isinstance(after, RewardPoint):
        sampled = before if isinstance(before, RewardPoint) else None
        found.append(Tile("Mean reward", number(after.reward), was(sampled.reward if sampled else None)))
    elif after:
        earlier = before if isinstance(before, Measured) else None
        found.append(Tile("Evaluation loss", number(after.loss), was(earlier.loss if earlier else None)))
        if find_terms(record.config.spec.objective).has_perplexity:
            found.append(Tile("Perplexity", number(after.perplexity), was(earlier.perplexity if earlier else None)))
        if after.reward_accuracy is not None:
            share = earlier.reward_accuracy if earlier else None
            half = 100 * share_half_width(after.reward_accuracy, record.compared_prompts or after.tokens)
            note = "; ".join(part for part in (was(share, percent), f"± {half:.0f} points") if part)
            found.append(Tile("Preferred answer wins", percent(after.reward_accuracy), note))
    if record.held_out:
        compared = record.held_out.compare(record.choices)
        found.append(
            Tile("Correct answers", percent(record.held_out.percent / 100), _describe_points(record, compared))
        )
    if known := record.ability.comparison if record.ability else None:
        found.append(Tile("General ability", percent(known.after), _describe_points(record, known)))
    if record.is_evaluation:
        return found
    stopped = record.early_stopping is not None and record.early_stopping.stopped
    note = "stopped early" if stopped else f"of {record.settings.total_steps} steps"
    best = record.best_step if record.best_step is not None else record.last_step
    found.append(Tile("Published step", str(best), note))
    return found


def _describe_points(record: RunRecord, found: Comparison | None) -> str:
    """Return the share before the training, and the interval of the difference."""
    if found is None:
        return ""
    was = f"{record.start} {percent(found.before)}"
    if found.low is None or found.high is None:
        return was
    return f"{was}; difference {100 * found.low:+.1f} to {100 * found.high:+.1f} points (95 % interval)"


def _cost_tiles(record: RunRecord) -> list[Tile]:
    samples, machine = record.samples, record.machine
    memory = f"of {size(machine.gpu_memory_bytes)}" if machine.gpu_memory_bytes else ""
    time = Tile("Time", duration(machine.seconds), "all runs together" if record.history.resumed_from else "")
    used = Tile("Peak memory", size(machine.peak_memory_bytes), memory)
    if record.is_evaluation:
        return [Tile("Held-out rows", str(record.compared_rows), ""), used, time]
    return [
        Tile("Training rows", str(samples.train_rows), f"seen {record.epochs_seen:.3g} times"),
        Tile("Trained weights", count(record.trainable_parameters), f"by {clean(record.settings.method)}"),
        Tile("Throughput", number(record.history.tokens_per_second(), 3), "tokens per second"),
        used,
        time,
    ]
