"""`progress`: a bar, the time left and the losses, while the job runs."""

import errno
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from finetune_api.status import Metrics
from finetune_client.cluster.connection import retry_unreachable
from finetune_client.cluster.job import Job
from finetune_client.figures import duration, number
from finetune_client.progress import LossHistory, describe_progress
from kubectl_finetune.display.page import Page
from kubectl_finetune.display.table import STYLES, bar, fields, sparkline

QUIET_SECONDS = 60.0
"""Time after which a line is printed although nothing has changed."""
RETRY_SECONDS = 2.0
"""Between two requests while the API server is away, so that it is asked for a minute, whatever the interval."""
Clock = Callable[[], float]


def require_reader() -> None:
    """Raise BrokenPipeError if nothing reads the output any more, which the next line would show a minute later."""
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # it is no file
        return
    if hasattr(select, "poll"):  # not on Windows
        poll = select.poll()
        poll.register(output, 0)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
            raise BrokenPipeError(errno.EPIPE, "nothing reads the output any more")


def changes(look: Callable[[], Job], interval: float, clock: Clock = time.monotonic) -> Iterator[Job]:
    """Yield the job after each change, and once a minute without one, until it has ended."""
    version, since, job = None, clock(), look()
    while True:
        found = job.raw["metadata"].get("resourceVersion")
        if found != version or clock() - since >= QUIET_SECONDS:
            version, since = found, clock()
            yield job
        if job.has_ended:
            return
        time.sleep(interval)
        require_reader()
        job = retry_unreachable(look, RETRY_SECONDS)


@contextmanager
def screen(console: Console, clock: Clock = time.monotonic) -> Iterator[Callable[[Job], None]]:
    """Redraw one picture on a terminal; otherwise print each change as a line."""
    if not console.is_terminal or console.is_dumb_terminal:  # which would show the last picture alone
        yield _Lines(console, clock).draw
        return
    losses = LossHistory()

    def draw(job: Job) -> None:
        losses.add(job)
        live.update(Page(picture(job, losses)), refresh=True)

    with Live(console=console, auto_refresh=False) as live:
        yield draw


class _Lines:
    """Lines in a pipe or a file: one for each change, and one a minute without."""

    def __init__(self, console: Console, clock: Clock) -> None:
        self._console, self._clock = console, clock
        self._last, self._printed = "", 0.0

    def draw(self, job: Job) -> None:
        """Print the job unless only its time left has changed since the last line."""
        found, now = describe_progress(job, with_time=False), self._clock()
        if found == self._last and now - self._printed < QUIET_SECONDS:
            return
        self._last, self._printed = found, now
        self._console.print(f"{datetime.now(UTC):%H:%M:%SZ} {describe_progress(job)}", soft_wrap=True)


def picture(job: Job, losses: LossHistory) -> Group:
    """Return the picture of a job for a terminal."""
    status = job.status
    progress, metrics = status.progress, status.metrics
    percent = (progress and progress.percent) or 0
    line = Text.assemble(
        (f"{job.name} ", "bold"), (job.phase, STYLES.get(job.phase, "")), "  ", bar(percent), f" {percent:3d}%"
    )
    if progress and progress.step is not None:
        line.append(f"  step {progress.step}/{progress.total_steps or '?'}")
    if progress and progress.estimated_remaining_seconds is not None and not job.has_ended:
        line.append(f"  {duration(progress.estimated_remaining_seconds)} left")
    pairs = [
        ("stage", (progress and progress.stage) or ""),
        ("train loss", f"{number(metrics.train_loss)}  {sparkline(losses.train)}" if losses.train and metrics else ""),
        ("eval loss", _evaluated(job, losses)),
        ("tokens/s", number(metrics.tokens_per_second if metrics else None)),
        ("checkpoint", f"step {status.checkpoint.step}" if status.checkpoint else ""),
        ("why", status.message or ""),
    ]
    return Group(line, fields(pairs, 2))


def _evaluated(job: Job, losses: LossHistory) -> str:
    metrics = job.status.metrics
    if metrics is None or metrics.eval_loss is None:
        return ""
    best = f"  best {number(metrics.best_eval_loss)}" if metrics.best_eval_loss is not None else ""
    return f"{number(metrics.eval_loss)}  {sparkline(losses.evaluated)}{best}{_before(metrics)}"


def loss_pairs(job: Job) -> list[tuple[str, str]]:
    """Return the names and values of the metrics."""
    metrics, resolved = job.status.metrics, job.status.resolved
    if metrics is None:
        return []
    best = number(metrics.best_eval_loss)
    if metrics.best_eval_loss is not None and metrics.best_step is not None:
        best += f" at step {metrics.best_step}"
    rate = metrics.learning_rate if metrics.learning_rate is not None else resolved and resolved.learning_rate
    return [
        ("Before the first step", number(metrics.baseline_eval_loss)),
        ("Evaluation loss", number(metrics.eval_loss)),
        ("Best", best),
        ("Training loss", number(metrics.train_loss)),
        ("Reward", number(metrics.eval_reward if metrics.eval_reward is not None else metrics.reward)),
        ("Reward before", number(metrics.baseline_eval_reward)),
        ("Reward margin", number(metrics.reward_margin)),
        ("Reward accuracy", number(metrics.reward_accuracy)),
        ("KL", number(metrics.kl)),
        ("Learning rate", number(rate or None)),
        ("Tokens/s", number(metrics.tokens_per_second)),
    ]


def _before(metrics: Metrics) -> str:
    """Return the held-out loss before the training; whether it has changed is for the verdict, with its interval."""
    return f" ({number(metrics.baseline_eval_loss)} before training)" if metrics.baseline_eval_loss else ""
