"""A job's progress as HTML: a bar, figures, and curves that are read without colours too.

It has no script and no style sheet, so that a notebook shows it without its trust. Text and axes have the colour of the
page, and both curves contrast with white and with black: a dark theme needs nothing of its own.
"""

import math
from collections.abc import Sequence
from html import escape

from finetune_api.text.printable import printable
from finetune_client.figures import duration, number
from finetune_client.progress import JobProgress, LossHistory

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 96, 16, 36
TRAIN, EVALUATED = "#0b7a8a", "#c2570c"
"""Colours with a contrast of at least 3 to 1 on white, and on the black of notebooks."""
LONGEST = 500
"""Points that a curve has at most; of more, some are left out."""
Curve = Sequence[tuple[int, float]]


def draw_picture(progress: JobProgress, losses: LossHistory) -> str:
    """Return the picture of a job as HTML."""
    train = _thin(list(zip(losses.train_steps, losses.train, strict=True)))
    evaluated = _thin(list(zip(losses.evaluated_steps, losses.evaluated, strict=True)))
    curves = [
        (name, colour, dash, points)
        for name, colour, dash, points in (
            ("training", TRAIN, "", train),
            ("held out", EVALUATED, "6 3", evaluated),
        )
        if points
    ]
    parts = [_head(progress), _figures(progress), _draw_curves(curves, progress.total_steps), _table(train, evaluated)]
    return f'<div style="max-width:{WIDTH}px;font-family:sans-serif;font-size:14px">{"".join(parts)}</div>'


def _head(progress: JobProgress) -> str:
    name = _text(f"{progress.namespace}/{progress.name}")
    stage = (
        f": {_text(progress.stage)}" if progress.stage not in {"", progress.phase} and not progress.has_ended else ""
    )
    steps = f" step {progress.step} of {progress.total_steps or '?'}" if progress.step is not None else ""
    left = f", {duration(progress.remaining_seconds)} left" if progress.remaining_seconds is not None else ""
    # The text of the bar is for readers without it; next to it, the same is there to be seen.
    bar = (
        f'<progress max="100" value="{progress.percent}" aria-label="Progress of {name}" '
        f'style="width:60%;vertical-align:middle">{progress.percent} %</progress>'
    )
    message = f'<div role="status">{_text(progress.message)}</div>' if progress.message else ""
    return (
        f"<div><strong>{name}</strong> {_text(progress.phase)}{stage}</div>"
        f"<div>{bar} {progress.percent} %{steps}{left}</div>{message}"
    )


def _figures(progress: JobProgress) -> str:
    pairs = [
        ("training loss", progress.train_loss),
        ("held-out loss", progress.eval_loss),
        ("best", progress.best_eval_loss),
        ("before training", progress.baseline_eval_loss),
        ("reward", progress.reward),
        ("tokens/s", progress.tokens_per_second),
    ]
    words = [f"{name} <strong>{number(value)}</strong>" for name, value in pairs if value is not None]
    return f'<div style="margin-top:4px">{" · ".join(words)}</div>' if words else ""


def _draw_curves(curves: Sequence[tuple[str, str, str, Curve]], total_steps: int | None) -> str:
    values = [value for *_, points in curves for _, value in points if math.isfinite(value)]
    steps = [step for *_, points in curves for step, _ in points]
    if len(values) < 2 or max(steps) == 0:
        return ""
    low, high = min(values), max(values)
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    last = max(total_steps or 0, *steps)
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(step: int, value: float) -> tuple[float, float]:
        return LEFT + inner_width * step / last, TOP + inner_height * (high - value) / (high - low)

    parts = [_axes(low, high, last)]
    labels: list[float] = []
    for name, colour, dash, points in curves:
        shown = [at(step, value) for step, value in points if math.isfinite(value)]
        if not shown:
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in shown)
        pattern = f' stroke-dasharray="{dash}"' if dash else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{pattern}/>')
        if dash:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in shown]
        x, y = shown[-1]
        y = next((y + move for move in (0, 16, -16) if all(abs(y + move - other) >= 14 for other in labels)), y)
        labels.append(y)
        parts.append(f'<text x="{x + 6:.1f}" y="{y + 4:.1f}" font-weight="bold">{name}</text>')
    words = "; ".join(
        f"{name} loss from {number(first)} at step {start} to {number(value)} at step {end}"
        for name, *_, ((start, first), *_, (end, value)) in ((*one[:3], [one[3][0], *one[3]]) for one in curves)
    )
    return (
        f'<svg role="img" aria-label="Loss by step: {_text(words)}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'style="width:100%;height:auto" font-size="12" fill="currentColor">{"".join(parts)}</svg>'
    )


def _axes(low: float, high: float, last: int) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    return (
        f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="currentColor" stroke-opacity="0.6"/>'
        f'<text x="{LEFT - 6}" y="{TOP + 8}" text-anchor="end">{number(high)}</text>'
        f'<text x="{LEFT - 6}" y="{bottom}" text-anchor="end">{number(low)}</text>'
        f'<text x="{LEFT}" y="{bottom + 16}" text-anchor="middle">0</text>'
        f'<text x="{right}" y="{bottom + 16}" text-anchor="middle">{last}</text>'
        f'<text x="{(LEFT + right) / 2}" y="{bottom + 30}" text-anchor="middle">step</text>'
        f'<text x="{LEFT - 6}" y="{(TOP + bottom) / 2}" text-anchor="end">loss</text>'
    )


def _table(train: Curve, evaluated: Curve) -> str:
    """Return the figures of the curves as a table that opens on request."""
    by_step: dict[int, list[str]] = {}
    for column, points in enumerate((train, evaluated)):
        for step, value in points:
            by_step.setdefault(step, ["", ""])[column] = number(value)
    if not by_step:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{step}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for step, cells in sorted(by_step.items())
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("step", "training loss", "held-out loss"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<details><summary>Figures</summary>{table}</details>"


def _thin(points: Curve) -> Curve:
    """Return at most LONGEST points, the last one included."""
    if len(points) <= LONGEST:
        return points
    every = math.ceil(len(points) / (LONGEST - 1))
    return [*points[:-1:every], points[-1]]


def _text(text: str) -> str:
    return escape(printable(text))
