"""The training's curves: as a picture, and as a table that a terminal can show."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from finetune_api.objectives import Objective
from finetune_trainer.report.held_out import Unit, terms_of
from finetune_trainer.report.record import EvalPoint, History, RewardPoint, TrainPoint
from finetune_trainer.report.text import NOTHING, number, percent, table

TABLE_ROWS = 12

FigureOf = Callable[[TrainPoint], float | None]


def draw_curves(
    history: History, best_step: int | None, path: Path, objective: Objective = Objective.INSTRUCTION
) -> None:
    """Writes a PNG over the steps: loss, learning rate, gradient norm and throughput, and what the objective adds."""
    terms = terms_of(objective)
    panels: list[tuple[str, FigureOf]] = [
        ("learning rate", lambda point: point.learning_rate),
        ("gradient norm, before clipping", lambda point: point.grad_norm),
        ("tokens per second", lambda point: point.tokens_per_second),
    ]
    if terms.unit is Unit.PROMPTS:
        panels = [
            ("divergence from the reference, nats per token", lambda point: point.kl),
            ("tokens per answer", lambda point: point.completion_length),
            ("share of groups whose answers all earn the same", lambda point: point.flat_share),
            *panels,
        ]
    elif terms.unit is not Unit.TOKENS:
        panels = [
            ("margin: chosen or liked less the others, training", lambda point: point.reward_margin),
            ("accuracy, training", lambda point: point.reward_accuracy),
            *panels,
        ]
    panels = [panel for panel in panels if any(panel[1](point) is not None for point in history.train)]
    figure = Figure(figsize=(11, 3.5 * math.ceil((len(panels) + 1) / 2)), layout="constrained")
    FigureCanvasAgg(figure)
    first, *others = figure.subplots(math.ceil((len(panels) + 1) / 2), 2, squeeze=False).flat
    if terms.unit is Unit.PROMPTS:
        _draw_rewards(first, history, best_step)
    else:
        _draw_losses(first, history, best_step, terms.loss)
    for axes, (title, figure_of) in zip(others, panels, strict=False):
        _draw(axes, title, history.train, figure_of)
    for axes in others[len(panels) :]:
        axes.set_axis_off()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw_losses(axes: Axes, history: History, best_step: int | None, title: str) -> None:
    axes.plot([p.step for p in history.train], [p.loss for p in history.train], label="training", linewidth=1)
    if history.evaluations:
        evaluations = history.evaluations
        axes.plot([p.step for p in evaluations], [p.loss for p in evaluations], label="evaluation", marker="o")
    _finish(axes, title, best_step)


def _draw_rewards(axes: Axes, history: History, best_step: int | None) -> None:
    axes.plot(
        [p.step for p in history.train], [_or_nan(p.reward) for p in history.train], label="training", linewidth=1
    )
    if history.rewards:
        points = history.rewards
        axes.plot([p.step for p in points], [p.reward for p in points], label="held-out prompts", marker="o")
    _finish(axes, "mean reward of the sampled answers", best_step)


def _finish(axes: Axes, title: str, best_step: int | None) -> None:
    if best_step is not None:
        axes.axvline(best_step, linestyle=":", color="grey", label=f"best, step {best_step}")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _draw(axes: Axes, title: str, points: Sequence[TrainPoint], figure_of: FigureOf) -> None:
    axes.plot([point.step for point in points], [_or_nan(figure_of(point)) for point in points], linewidth=1)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def curve_table(history: History, objective: Objective = Objective.INSTRUCTION) -> str:
    """At most twelve rows over the training; a row's training figures are means since the row before."""
    unit = terms_of(objective).unit
    if unit is Unit.PROMPTS:
        return _reward_table(history)
    evaluations = {point.step: point for point in history.evaluations}
    header = ["step", "training loss", "evaluation loss", "learning rate", "gradient norm"]
    if unit is not Unit.TOKENS:
        header += ["evaluation margin"] + (["evaluation accuracy"] if unit is Unit.PAIRS else [])
    rows = []
    if 0 in evaluations:
        rows.append(["0", NOTHING, number(evaluations[0].loss), NOTHING, NOTHING, *_figures(evaluations[0], unit)])
    for step, since in _stretches(history, sorted(evaluations)):
        point, last = evaluations.get(step), since[-1]
        cells = [number(_mean(since, lambda one: one.loss)), number(point.loss if point else None)]
        cells += [number(last.learning_rate, 3), number(last.grad_norm, 3)]
        rows.append([str(step), *cells, *_figures(point, unit)])
    return table(header, rows)


def _figures(point: EvalPoint | None, unit: Unit) -> list[str]:
    """The cells that an objective which compares answers adds."""
    if unit is Unit.TOKENS:
        return []
    margin = number(point.measured.reward_margin if point else None)
    if unit is not Unit.PAIRS:
        return [margin]
    accuracy = point.measured.reward_accuracy if point else None
    return [margin, NOTHING if accuracy is None else percent(accuracy)]


def _reward_table(history: History) -> str:
    rewards: Mapping[int, RewardPoint] = {point.step: point for point in history.rewards}
    rows = []
    if 0 in rewards:
        rows.append(["0", NOTHING, number(rewards[0].reward), *[NOTHING] * 5])
    for step, since in _stretches(history, sorted(rewards)):
        held_out = rewards.get(step)
        flat = _mean(since, lambda one: one.flat_share)
        cells = [number(_mean(since, lambda one: one.reward)), number(held_out.reward if held_out else None)]
        cells += [
            number(_mean(since, lambda one: one.kl), 3),
            number(_mean(since, lambda one: one.completion_length), 3),
        ]
        cells += [NOTHING if flat is None else percent(flat), number(since[-1].learning_rate, 3)]
        rows.append([str(step), *cells, number(since[-1].grad_norm, 3)])
    header = ["step", "training reward", "held-out reward", "KL", "tokens per answer", "flat groups"]
    return table([*header, "learning rate", "gradient norm"], rows)


def _mean(points: Sequence[TrainPoint], figure_of: FigureOf) -> float | None:
    found = [value for value in map(figure_of, points) if value is not None]
    return sum(found) / len(found) if found else None


def _stretches(history: History, evaluated: Sequence[int]) -> list[tuple[int, list[TrainPoint]]]:
    """The steps that are shown, each with the points since the one before."""
    found, previous = [], 0
    for step in _shown_steps(history, evaluated):
        found.append((step, [point for point in history.train if previous < point.step <= step]))
        previous = step
    return found


def _shown_steps(history: History, evaluated: Sequence[int]) -> list[int]:
    """The evaluated steps, or all, thinned evenly with the last one kept."""
    recorded = {point.step for point in history.train}
    steps = [step for step in evaluated if step in recorded]
    last = history.train[-1].step if history.train else 0
    if len(steps) < 2:
        steps = sorted(recorded)
    if last and last not in steps:
        steps.append(last)
    if len(steps) <= TABLE_ROWS:
        return steps
    return sorted({steps[round(index * (len(steps) - 1) / (TABLE_ROWS - 1))] for index in range(TABLE_ROWS)})
