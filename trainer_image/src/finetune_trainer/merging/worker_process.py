"""Run a program of the merge in a process of its own: one that crashes, or is out of memory, does not end the job."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic import BaseModel

from finetune_trainer.sigterm import StopFlag

POLL_SECONDS = 0.1
LOG_BYTES = 4000


@dataclass(frozen=True)
class Watch:
    """How a running process is watched: where its files are, what is called when it makes progress, what stops it."""

    workspace: Path
    on_work: Callable[[], None]
    stop: StopFlag


@dataclass(frozen=True)
class Ended:
    """A process that ended: exit code, negative for a signal, and the end of what it wrote to standard error."""

    code: int
    log: str

    @property
    def cause(self) -> str:
        """The last line of its log, else how it ended."""
        return (self.log.splitlines() or [_describe_exit(self.code)])[-1][:400]


def run_module(
    module: str, plan: BaseModel, reply: Path, watch: Watch, written: Sequence[Path] = (), *, path: Path | None = None
) -> Ended:
    """Run `python -m MODULE PLAN REPLY`, with a folder of further packages as `path`."""
    name = module.rpartition(".")[2]
    plan_file = watch.workspace / f"{name}.json"
    plan_file.write_text(plan.model_dump_json(), encoding="utf-8")
    reply.unlink(missing_ok=True)
    command = [sys.executable, "-m", module, str(plan_file), str(reply)]
    return run_process(command, {"PYTHONSAFEPATH": "1"}, watch, written, path=path)


def run_process(
    command: Sequence[str],
    environment: dict[str, str],
    watch: Watch,
    written: Sequence[Path],
    *,
    path: Path | None,
) -> Ended:
    """Run a command; it makes progress by lines on standard output, or when one of the files `written` grows.

    Raises:
        Stopped: the process is killed.
    """
    folders = [str(path) if path else "", os.environ.get("PYTHONPATH", "")]
    variables = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(filter(None, folders))}
    variables |= environment
    progress = threading.Event()
    with (watch.workspace / "process.log").open("w+b") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=variables) as process:  # noqa: S603 - our own programs
            listener = threading.Thread(target=_listen, args=(process.stdout, progress), daemon=True)
            listener.start()
            try:
                _wait_for(process, progress, watch, written)
            finally:
                process.kill()
                listener.join()
        size = errors.seek(0, os.SEEK_END)
        errors.seek(max(0, size - LOG_BYTES))
        return Ended(process.returncode, errors.read().decode("utf-8", "replace").strip())


def _wait_for(
    process: subprocess.Popen[bytes], progress: threading.Event, watch: Watch, written: Sequence[Path]
) -> None:
    size = 0
    while process.poll() is None:
        watch.stop.raise_if_set()
        now = sum(path.stat().st_size for path in written if path.is_file())
        if progress.is_set() or now != size:
            progress.clear()
            size = now
            watch.on_work()
        time.sleep(POLL_SECONDS)


def _listen(lines: IO[bytes] | None, progress: threading.Event) -> None:
    for _ in lines or ():
        progress.set()


def _describe_exit(code: int) -> str:
    if code < 0:
        return f"killed by signal {signal.Signals(-code).name}"
    return f"exit code {code}" if code else "no reply"
