"""The bar of a terminal: stages as in the cluster, and log lines that leave it whole."""

import io
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout

import pytest

from finetune_trainer.monitoring.bar import AboveBar, logs_above_bar
from finetune_trainer.monitoring.reporter import Reporter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def frames(self) -> list[str]:
        """What was drawn, one after the other."""
        return [frame.strip() for frame in re.split(r"[\r\n]", self.getvalue()) if frame.strip()]


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


@pytest.fixture
def reporter(terminal: Terminal) -> Iterator[Reporter]:
    one = Reporter("uid-1", out=terminal)
    yield one
    one.close()


def test_the_bar_shows_the_stage_and_how_much_of_it_is_done(terminal: Terminal, reporter: Reporter) -> None:
    reporter.set_stage("Loading")
    reporter.set_stage("Baseline")
    reporter.set_share(76, 100)
    assert terminal.frames()[-1].startswith("Baseline 76% [")
    assert reporter.snapshot().progress.display == "Baseline 76%"


def test_the_bar_shows_the_step_the_share_and_the_losses(terminal: Terminal, reporter: Reporter) -> None:
    reporter.update(progress={"stage": "Training", "step": 5, "total_steps": 10}, metrics={"train_loss": 1.25})
    frame = terminal.frames()[-1]
    assert frame.startswith("Training 50% |")
    assert "5/10 steps" in frame
    assert "train=1.25" in frame
    assert "{" not in terminal.getvalue()


def test_an_evaluation_between_steps_shows_its_own_share(terminal: Terminal, reporter: Reporter) -> None:
    reporter.update(progress={"stage": "Training", "step": 5, "total_steps": 10})
    reporter.set_stage("Evaluating")
    reporter.set_share(1, 4)
    assert terminal.frames()[-1].startswith("Evaluating 25% |")
    assert reporter.snapshot().progress.display == "50%"


def test_the_time_left_is_that_of_the_status(
    terminal: Terminal, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("finetune_trainer.monitoring.reporter.time.monotonic", lambda: clock[0])
    for step, clock[0] in ((None, 0.0), (0, 5000.0), (1, 5100.0), (2, 5115.0)):
        reporter.update(progress={"stage": "Training", "step": step, "total_steps": 102})
    assert reporter.snapshot().progress.estimated_remaining_seconds == 1500
    assert "25:00 left" in terminal.frames()[-1]


def test_a_log_line_and_a_print_of_a_library_begin_their_own_lines(terminal: Terminal) -> None:
    with redirect_stdout(terminal), redirect_stderr(terminal):
        handler = logging.StreamHandler(terminal)
        logging.getLogger().addHandler(handler)
        try:
            with logs_above_bar():
                reporter = Reporter("uid-1")
                reporter.update(progress={"stage": "Training", "step": 5, "total_steps": 10})
                logging.getLogger("test_bar").warning("a warning")
                sys.stderr.write("half ")
                sys.stderr.write("a line\n")
                reporter.close()
            assert handler.stream is terminal
        finally:
            logging.getLogger().removeHandler(handler)
    assert {"a warning", "half a line"} <= set(terminal.frames())
    assert terminal.frames()[-1].startswith("Training 50%")


def test_an_unfinished_line_is_not_lost() -> None:
    out = io.StringIO()
    above = AboveBar(out)
    above.write("no line end")
    above.end_line()
    assert out.getvalue() == "no line end\n"
