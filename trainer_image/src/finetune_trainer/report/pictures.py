"""The report's pictures: the training's curves and the lengths of its rows, as PNG files, and as SVG for the page."""

import io
import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from finetune_api.objectives import Objective
from finetune_trainer.evaluation.history import History
from finetune_trainer.evaluation.measurements import TrainPoint
from finetune_trainer.report.held_out import Unit, find_terms

FigureOf = Callable[[TrainPoint], float | None]

MOST_POINTS = 500
"""Most steps that a line shows one by one; in longer runs a point is a mean, with a band for the range."""
MOST_RESUMES = 20
MOST_INTERVALS = 25
"""Most intervals that are drawn; with more evaluations only every n-th is drawn."""

INK, FAINT, FRAME, LINE, HELD_OUT, BEST, PAPER = (
    "#1b2733", "#5b6875", "#d5dbe1", "#1f6feb", "#c2510c", "#2e7d4f", "#fefefe",
)  # fmt: skip
DARK: Mapping[str, str] = {
    INK: "#e6edf3", FAINT: "#9aa7b4", FRAME: "#39434e", LINE: "#6cb0ff", HELD_OUT: "#ffa05c", BEST: "#6fd08c",
    PAPER: "#141b23",
}  # fmt: skip
"""The same colours on a dark page."""
PANEL = (4.5, 2.75)
"""Width and height of a panel with its texts, in inches."""
PATH = re.compile(r' d="[^"]*"')
DECIMALS = re.compile(r"(\.\d)\d+")
"""Coordinates are cut to a tenth of a point, which is finer than any screen."""
LEFT, RIGHT, BOTTOM, TOP, ACROSS, ALONG = 0.82, 0.18, 0.52, 0.34, 1.0, 0.86
"""Room for the texts around the panels and between them, in inches."""
STYLE = {
    "axes.edgecolor": FRAME, "axes.facecolor": PAPER, "axes.grid": True, "axes.labelcolor": FAINT,
    "axes.spines.right": False, "axes.spines.top": False, "axes.titlecolor": INK, "axes.titlelocation": "left",
    "axes.titlesize": 10.5, "axes.titleweight": "bold", "figure.facecolor": PAPER, "font.size": 9.5,
    "grid.color": FRAME, "grid.linewidth": 0.6, "legend.edgecolor": PAPER, "legend.facecolor": PAPER,
    "legend.labelcolor": INK, "lines.linewidth": 1.4, "svg.fonttype": "path", "svg.hashsalt": "finetune",
    "xtick.color": FRAME, "xtick.labelcolor": FAINT, "ytick.color": FRAME, "ytick.labelcolor": FAINT,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes with its title and unit."""

    title: str
    unit: str
    figure_of: FigureOf
    held_out: Sequence[tuple[int, float, float | None]] | None = None
    """Step, figure and half the width of the 95 % interval of each evaluation."""


LEARNING_RATE = Panel("Learning rate", "no unit", lambda point: point.learning_rate)
GRADIENT = Panel("Gradient norm, before clipping", "Euclidean norm", lambda point: point.grad_norm)
THROUGHPUT = Panel("Throughput", "tokens per second", lambda point: point.tokens_per_second)
OF_ANSWERS = (
    Panel("Divergence from the reference", "nats per token", lambda point: point.kl),
    Panel("Length of answers", "tokens", lambda point: point.completion_length),
    Panel("Groups whose answers all have the same reward", "share", lambda point: point.flat_share),
)
OF_PAIRS = (
    Panel("Margin, training", "chosen minus rejected", lambda point: point.reward_margin),
    Panel("Accuracy, training", "share of pairs", lambda point: point.reward_accuracy),
)


def draw_curves(
    history: History, best_step: int | None, path: Path, objective: Objective = Objective.INSTRUCTION
) -> None:
    """Write a PNG over the steps: loss, learning rate, gradient norm, throughput, and the objective's own figures."""
    panels = choose_panels(history, objective)
    with mpl.rc_context(STYLE):
        figure, grid = _grid(math.ceil(len(panels) / 2), 2)
        for at, panel in enumerate(panels):
            _draw(grid[at], panel, history, best_step)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        _save_png(figure, path)


def curves_svg(history: History, best_step: int | None, objective: Objective) -> list[tuple[str, str]]:
    """Return the same panels, each as title and SVG in the colours of a light page."""
    found = []
    with mpl.rc_context(STYLE):
        for panel in choose_panels(history, objective):
            figure, (axes,) = _grid(1, 1)
            _draw(axes, panel, history, best_step)
            found.append((f"{panel.title} ({panel.unit}) over the optimiser steps", _svg(figure)))
    return found


def draw_lengths(histogram: Sequence[tuple[int, int]], max_length: int | None, path: Path) -> None:
    """Write a PNG of the number of rows by length, before truncation."""
    with mpl.rc_context(STYLE):
        figure, (axes,) = _grid(1, 1)
        _draw_lengths(axes, histogram, max_length)
        _save_png(figure, path)


def lengths_svg(histogram: Sequence[tuple[int, int]], max_length: int | None) -> list[tuple[str, str]]:
    """Return the same as title and SVG in the colours of a light page."""
    with mpl.rc_context(STYLE):
        figure, (axes,) = _grid(1, 1)
        _draw_lengths(axes, histogram, max_length)
        return [("Number of training rows by their length in tokens", _svg(figure))]


def darkened(svg: str) -> str:
    """Return the picture in the colours of a dark page."""
    for light, dark in DARK.items():
        svg = svg.replace(light, dark)
    return svg


def bucket_size(history: History) -> int:
    """Return the number of steps whose mean is one point of a line."""
    return max(1, math.ceil(len(history.train) / MOST_POINTS))


def choose_panels(history: History, objective: Objective) -> list[Panel]:
    """Return the objective's panels that have data; the first one is the measure of success."""
    terms = find_terms(objective)
    others: tuple[Panel, ...] = (LEARNING_RATE, GRADIENT, THROUGHPUT)
    if terms.unit is Unit.PROMPTS:
        held_out = [(one.step, one.reward, one.half_width) for one in history.rewards]
        first = Panel("Mean reward", "reward of an answer", lambda point: point.reward, held_out)
        others = (*OF_ANSWERS, *others)
    else:
        unit = terms.loss.removeprefix("loss").strip(" ,")
        held_out = [(one.step, one.loss, one.measured.half_width) for one in history.evaluations]
        first = Panel("Loss", unit, lambda point: point.loss, held_out)
        others = others if terms.unit is Unit.TOKENS else (*OF_PAIRS, *others)
    shown = [panel for panel in others if any(panel.figure_of(point) is not None for point in history.train)]
    return [first, *shown]


def _grid(rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    """Return axes side by side, with fixed room for their texts: measuring them would take most of the time."""
    width, height = PANEL[0] * columns, PANEL[1] * rows
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(
        left=LEFT / width, right=1 - RIGHT / width, bottom=BOTTOM / height,
        top=1 - TOP / height, wspace=ACROSS / (PANEL[0] - ACROSS),
        hspace=ALONG / (PANEL[1] - ALONG),
    )  # fmt: skip
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _draw(axes: Axes, panel: Panel, history: History, best_step: int | None) -> None:
    """Draw the line of a figure, with a gap at steps without one, for example if the gradient was not finite."""
    buckets = list(_buckets(history, panel.figure_of))
    steps, means = [bucket[0] for bucket in buckets], [bucket[1] for bucket in buckets]
    if bucket_size(history) > 1:
        lows, highs = [bucket[2] for bucket in buckets], [bucket[3] for bucket in buckets]
        axes.fill_between(steps, lows, highs, color=LINE, alpha=0.3, linewidth=0.6)
    axes.plot(steps, means, color=LINE, label="training", marker="o" if len(means) == 1 else "")
    if panel.held_out is not None:
        _draw_held_out(axes, panel.held_out)
        if best_step is not None:
            axes.axvline(best_step, linestyle=":", color=BEST, linewidth=1.8, label=f"best, step {best_step}")
        axes.legend(fontsize=8.5)
    for step in history.resumed_from[:MOST_RESUMES]:
        axes.axvline(step, linestyle=(0, (1, 4)), color=FAINT, linewidth=1)
    _finish(axes, panel.title, "optimiser step", panel.unit)


def _draw_held_out(axes: Axes, points: Sequence[tuple[int, float, float | None]]) -> None:
    """Draw the evaluations, each with its 95 % interval if one was measured."""
    shown = [point for point in points if math.isfinite(point[1])]
    if not shown:
        return
    steps, values, halves = zip(*shown, strict=True)
    spread = [half or 0.0 for half in halves]
    axes.errorbar(
        steps, values, yerr=spread if any(spread) else None, label="held out", color=HELD_OUT, marker="o",
        markersize=3.5 if len(shown) < 2 * MOST_INTERVALS else 0, elinewidth=0.8,
        errorevery=max(1, len(shown) // MOST_INTERVALS),
    )  # fmt: skip


def _finish(axes: Axes, title: str, across: str, up: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.yaxis.set_major_formatter(_tick)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _buckets(history: History, figure_of: FigureOf) -> Iterator[tuple[float, float, float, float]]:
    """Yield middle step, mean, lowest and highest value of each stretch of steps."""
    size = bucket_size(history)
    for start in range(0, len(history.train), size):
        stretch = history.train[start : start + size]
        found = [value for value in map(figure_of, stretch) if value is not None and math.isfinite(value)]
        middle = (stretch[0].step + stretch[-1].step) / 2
        if found:
            yield middle, statistics.fmean(found), min(found), max(found)
        else:
            yield middle, math.nan, math.nan, math.nan


def _tick(value: float, _place: float) -> str:
    """Format a value in at most seven characters, which is the room there is."""
    if value and abs(value) < 1e-3:
        digits, _, exponent = f"{value:.3e}".partition("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:.6g}"


def _draw_lengths(axes: Axes, histogram: Sequence[tuple[int, int]], max_length: int | None) -> None:
    ends = [end for end, _ in histogram]
    axes.bar(range(len(ends)), [count for _, count in histogram], width=0.86, color=LINE)
    if max_length is not None and max_length <= ends[-1]:
        axes.axvline(_find_position(max_length, ends), linestyle=":", color=HELD_OUT, linewidth=2, label="maxLength")
        axes.legend(fontsize=8.5)
    _finish(axes, "Length of the training rows", "tokens, up to", "rows")
    axes.grid(visible=False, axis="x")
    shown = range(0, len(ends), 1 if len(ends) < 6 else 3)
    axes.set_xticks(list(shown), [str(ends[at]) for at in shown])


def _find_position(length: int, ends: Sequence[int]) -> float:
    """Return the position of a length among bars whose classes end there."""
    at = next(index for index, end in enumerate(ends) if length <= end)
    begins = ends[at - 1] if at else 0
    return at - 0.5 + (length - begins) / (ends[at] - begins)


def _save_png(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return PATH.sub(lambda path: DECIMALS.sub(r"\1", path[0]), file.getvalue())
