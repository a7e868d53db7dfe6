"""The training's curves as a table that a terminal can show."""

from collections.abc import Callable, Mapping, Sequence

from finetune_api.objectives import Objective
from finetune_trainer.evaluation.history import History
from finetune_trainer.evaluation.measurements import EvalPoint, RewardPoint, TrainPoint
from finetune_trainer.report.held_out import Unit, find_terms
from finetune_trainer.report.text import NOTHING, number, percent, table

TABLE_ROWS = 20

FigureOf = Callable[[TrainPoint], float | None]


def curve_table(history: History, objective: Objective = Objective.INSTRUCTION, best_step: int | None = None) -> str:
    """Return first, last, best and evaluated steps, thinned evenly; a row's losses are means since the row before."""
    unit = find_terms(objective).unit
    if unit is Unit.PROMPTS:
        return _reward_table(history, best_step)
    evaluations = {point.step: point for point in history.evaluations}
    header = ["step", "training loss", "evaluation loss", "learning rate", "gradient norm"]
    if unit is not Unit.TOKENS:
        header += ["evaluation margin"] + (["evaluation accuracy"] if unit is Unit.PAIRS else [])
    rows = []
    if 0 in evaluations:
        rows.append(["0", NOTHING, number(evaluations[0].loss), NOTHING, NOTHING, *_figures(evaluations[0], unit)])
    for step, since in _stretches(history, sorted(evaluations), best_step):
        point, last = evaluations.get(step), since[-1]
        cells = [number(_mean(since, lambda one: one.loss)), number(point.loss if point else None)]
        cells += [number(last.learning_rate, 3), number(last.grad_norm, 3)]
        rows.append([_named(step, best_step), *cells, *_figures(point, unit)])
    return table(header, rows)


def _figures(point: EvalPoint | None, unit: Unit) -> list[str]:
    """Return the cells that an objective which compares answers adds."""
    if unit is Unit.TOKENS:
        return []
    margin = number(point.measured.reward_margin if point else None)
    if unit is not Unit.PAIRS:
        return [margin]
    return [margin, percent(point.measured.reward_accuracy if point else None)]


def _reward_table(history: History, best_step: int | None) -> str:
    rewards: Mapping[int, RewardPoint] = {point.step: point for point in history.rewards}
    rows = []
    if 0 in rewards:
        rows.append(["0", NOTHING, number(rewards[0].reward), *[NOTHING] * 5])
    for step, since in _stretches(history, sorted(rewards), best_step):
        held_out, last = rewards.get(step), since[-1]
        cells = [
            _named(step, best_step),
            number(_mean(since, lambda one: one.reward)),
            number(held_out.reward if held_out else None),
            number(_mean(since, lambda one: one.kl), 3),
            number(_mean(since, lambda one: one.completion_length), 3),
            percent(_mean(since, lambda one: one.flat_share)),
            number(last.learning_rate, 3),
            number(last.grad_norm, 3),
        ]
        rows.append(cells)
    header = ["step", "training reward", "held-out reward", "KL", "tokens per answer", "flat groups"]
    return table([*header, "learning rate", "gradient norm"], rows)


def _mean(points: Sequence[TrainPoint], figure_of: FigureOf) -> float | None:
    found = [value for value in map(figure_of, points) if value is not None]
    return sum(found) / len(found) if found else None


def _named(step: int, best_step: int | None) -> str:
    return f"{step}, best" if step == best_step else str(step)


def _stretches(history: History, evaluated: Sequence[int], best_step: int | None) -> list[tuple[int, list[TrainPoint]]]:
    """Return the steps to show, each with the points since the one before."""
    found, previous = [], 0
    for step in _shown_steps(history, evaluated, best_step):
        found.append((step, [point for point in history.train if previous < point.step <= step]))
        previous = step
    return found


def _shown_steps(history: History, evaluated: Sequence[int], best_step: int | None) -> list[int]:
    """Return the evaluated steps, or all, thinned evenly; the first, the best and the last one are kept."""
    recorded = {point.step for point in history.train}
    steps = [step for step in evaluated if step in recorded]
    last = history.train[-1].step if history.train else 0
    if len(steps) < 2:
        steps = sorted(recorded)
    if last and last not in steps:
        steps.append(last)
    if len(steps) <= TABLE_ROWS:
        return steps
    kept = {best_step} & set(steps) if best_step is not None else set()
    most = TABLE_ROWS - len(kept)
    return sorted({steps[round(index * (len(steps) - 1) / (most - 1))] for index in range(most)} | kept)
