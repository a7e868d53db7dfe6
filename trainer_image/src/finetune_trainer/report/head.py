"""The top of the page: whether the result is better than its base, and the most important figures."""

from finetune_trainer.evaluation.gate_rules import GateResult
from finetune_trainer.evaluation.run_record import RunRecord
from finetune_trainer.report.held_out import Unit, find_terms
from finetune_trainer.report.page import Head, Tile
from finetune_trainer.report.text import clean, count, duration, number, percent, size


def build_head(record: RunRecord) -> Head:
    """Return name, result and figures."""
    spec = record.config.spec
    verdict, mood = _judge(record)
    return Head(
        name=clean(record.config.name),
        kind=clean(f"FineTuneJob · {spec.objective.value} · {record.settings.method}"),
        verdict=verdict,
        mood=mood,
        tiles=[*_evaluation_tiles(record), *_cost_tiles(record)],
    )


def _judge(record: RunRecord) -> tuple[str, str]:
    """Return the result in one sentence with its mood; a gate takes precedence over the losses."""
    if record.evaluation.gate == GateResult.NOT_MET:
        return "The gate is not met: do not publish it", "bad"
    if record.evaluation.is_met is False:
        return "The full model is withheld: see below", "bad"
    return _judge_figures(record)


def _judge_figures(record: RunRecord) -> tuple[str, str]:
    before, after = _find_losses(record)
    if after is None:
        return "Not evaluated: no rows were held out", "plain"
    if before is None:
        return f"Evaluated, but not compared with the {record.start}", "plain"
    if _is_reward(record):
        before, after = -before, -after
    if after >= before:
        return f"No better than the {record.start} on held-out rows: do not publish it", "bad"
    if _is_reward(record):
        return f"Higher reward than the {record.start} on held-out prompts", "good"
    return f"Better than the {record.start} on held-out rows: loss {percent(1 - after / before)} lower", "good"


def _is_reward(record: RunRecord) -> bool:
    return find_terms(record.config.spec.objective).unit is Unit.PROMPTS


def _find_losses(record: RunRecord) -> tuple[float | None, float | None]:
    """Return the loss or the reward, before and after."""
    if _is_reward(record):
        first, last = record.history.baseline_reward(), record.history.final_reward
        return first.reward if first else None, last.reward if last else None
    return record.baseline.loss if record.baseline else None, record.final.loss if record.final else None


def _evaluation_tiles(record: RunRecord) -> list[Tile]:
    before, after = _find_losses(record)
    unit, final, baseline = find_terms(record.config.spec.objective).unit, record.final, record.baseline
    was = f"{record.start} {number(before)}" if before is not None else ""
    found = []
    if after is not None:
        found.append(Tile("Mean reward" if _is_reward(record) else "Evaluation loss", number(after), was))
    if final and unit is Unit.TOKENS:
        was = f"{record.start} {number(baseline.perplexity)}" if baseline else ""
        found.append(Tile("Perplexity", number(final.perplexity), was))
    if final and final.reward_accuracy is not None:
        earlier = baseline.reward_accuracy if baseline else None
        was = f"{record.start} {percent(earlier)}" if earlier is not None else ""
        found.append(Tile("Preferred answer wins", percent(final.reward_accuracy), was))
    stopped = record.early_stopping is not None and record.early_stopping.stopped
    note = "stopped early" if stopped else f"of {record.settings.total_steps} steps"
    best = record.best_step if record.best_step is not None else record.last_step
    found.append(Tile("Published step", str(best), note))
    return found


def _cost_tiles(record: RunRecord) -> list[Tile]:
    samples, machine = record.samples, record.machine
    memory = f"of {size(machine.gpu_memory_bytes)}" if machine.gpu_memory_bytes else ""
    return [
        Tile("Training rows", str(samples.train_rows), f"{samples.validation_rows} held out"),
        Tile("Trained weights", count(record.trainable_parameters), f"by {clean(record.settings.method)}"),
        Tile("Throughput", number(record.history.tokens_per_second(), 3), "tokens per second"),
        Tile("Peak memory", size(machine.peak_memory_bytes), memory),
        Tile("Time", duration(machine.seconds), "all runs together" if record.history.resumed_from else ""),
    ]
