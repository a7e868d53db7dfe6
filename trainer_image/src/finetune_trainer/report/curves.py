"""The training's curves: as a picture, and as a table that a terminal can show."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from finetune_trainer.report.record import History, TrainPoint
from finetune_trainer.report.text import NOTHING, number, table

TABLE_ROWS = 12


def draw_curves(history: History, best_step: int | None, path: Path) -> None:
    """Writes a PNG of loss, learning rate, gradient norm and throughput over the steps."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, 2)
    steps = [point.step for point in history.train]
    _draw_losses(grid[0, 0], history, best_step)
    _draw(grid[0, 1], "learning rate", steps, [point.learning_rate for point in history.train])
    norms = [point.grad_norm if point.grad_norm is not None else float("nan") for point in history.train]
    _draw(grid[1, 0], "gradient norm, before clipping", steps, norms)
    _draw(grid[1, 1], "tokens per second", steps, [point.tokens_per_second for point in history.train])
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw_losses(axes: Axes, history: History, best_step: int | None) -> None:
    axes.plot([p.step for p in history.train], [p.loss for p in history.train], label="training", linewidth=1)
    if history.evaluations:
        evaluations = history.evaluations
        axes.plot([p.step for p in evaluations], [p.loss for p in evaluations], label="evaluation", marker="o")
    if best_step is not None:
        axes.axvline(best_step, linestyle=":", color="grey", label=f"best, step {best_step}")
    axes.set_title("loss, nats per trained token", fontsize=10)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _draw(axes: Axes, title: str, steps: list[int], values: list[float]) -> None:
    axes.plot(steps, values, linewidth=1)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)


def curve_table(history: History) -> str:
    """At most twelve rows over the training; a row's training loss is the mean since the row before."""
    evaluations = {point.step: point.loss for point in history.evaluations}
    rows = []
    if 0 in evaluations:
        rows.append(["0", NOTHING, number(evaluations[0]), NOTHING, NOTHING])
    previous = 0
    for step in _shown_steps(history):
        since = [point for point in history.train if previous < point.step <= step]
        rows.append(_table_row(since, evaluations.get(step)))
        previous = step
    return table(["step", "training loss", "evaluation loss", "learning rate", "gradient norm"], rows)


def _table_row(since: list[TrainPoint], evaluation: float | None) -> list[str]:
    loss = sum(point.loss for point in since) / len(since)
    last = since[-1]
    return [str(last.step), number(loss), number(evaluation), number(last.learning_rate, 3), number(last.grad_norm, 3)]


def _shown_steps(history: History) -> list[int]:
    """The evaluated steps, or all, thinned evenly with the last one kept."""
    recorded = {point.step for point in history.train}
    steps = [point.step for point in history.evaluations_of_training() if point.step in recorded]
    last = history.train[-1].step if history.train else 0
    if len(steps) < 2:
        steps = sorted(recorded)
    if last and last not in steps:
        steps.append(last)
    if len(steps) <= TABLE_ROWS:
        return steps
    return sorted({steps[round(index * (len(steps) - 1) / (TABLE_ROWS - 1))] for index in range(TABLE_ROWS)})
