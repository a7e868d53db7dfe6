"""End a preflight that makes no progress: only a trainer's heartbeat is polled, and this pod would wait without end."""

import faulthandler
import os
import threading
import time

from finetune_api.handoff import ExitCode
from finetune_trainer.entrypoints.termination import RunState
from finetune_trainer.errors import TrainerError
from finetune_trainer.monitoring.reporter import Reporter


def end_when_stalled(state: RunState, reporter: Reporter, seconds: float) -> None:
    """Start a thread that ends the process after that time without a heartbeat, with a report and every stack."""
    threading.Thread(target=_watch, args=(state, reporter, seconds), daemon=True).start()


def _watch(state: RunState, reporter: Reporter, seconds: float) -> None:
    heartbeat, since = -1, time.monotonic()
    while time.monotonic() - since < seconds:
        time.sleep(seconds / 20)
        if (now := reporter.snapshot().heartbeat) != heartbeat:
            heartbeat, since = now, time.monotonic()
    faulthandler.dump_traceback()
    stage = reporter.snapshot().progress.stage
    problem = f"no row and no block of a file was finished for {seconds:g} s in stage {stage}"
    os._exit(
        state.fail(
            TrainerError(ExitCode.INTERNAL_ERROR, f"{problem}: raise stallTimeoutSeconds if one can take that long")
        )
    )
