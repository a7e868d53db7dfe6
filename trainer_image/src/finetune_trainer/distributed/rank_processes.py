"""The training processes of one pod: started, ended and asked how they ended."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from finetune_api.handoff import TERMINAL_EXIT_CODES, ExitCode
from finetune_trainer.distributed.rank_layout import PARTED, Layout

logger = logging.getLogger(__name__)

TERMINATED = 143


class RankProcesses:
    """The children of a pod's PID 1, by rank."""

    def __init__(self, layout: Layout, workspace: Path, options: Sequence[str]) -> None:
        self._layout, self._workspace, self._options = layout, workspace, options
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._codes: dict[int, int] = {}
        self._asked: set[int] = set()
        self._killed: set[int] = set()

    def start(self) -> None:
        """Starts every process of this pod; the first of them answers on the pod's port."""
        for local_rank, rank in enumerate(self._layout.ranks):
            folder = self.folder(rank)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "report.json").write_text("")
            command = [
                sys.executable, "-m", "finetune_trainer", "rank", *self._options,
                "--workspace", str(folder), "--termination-log", str(folder / "report.json"),
            ]  # fmt: skip
            environment = self._layout.environment(local_rank, os.environ)
            self._processes[rank] = subprocess.Popen(command, env=environment)  # noqa: S603 - our own program
        logger.info("rank %s of %d started", ", ".join(map(str, self._processes)), self._layout.size)

    def folder(self, rank: int) -> Path:
        """Where that process works and leaves its report."""
        return self._workspace / f"rank-{rank}"

    def report(self, rank: int) -> str:
        """The report that the process left, or nothing."""
        try:
            return (self.folder(rank) / "report.json").read_text(encoding="utf-8")
        except OSError:
            return ""

    def is_saving(self) -> bool:
        """Whether rank 0, if it is one of these, is about to save a checkpoint."""
        return (self.folder(0) / "checkpoint").exists()

    def has_parted(self) -> bool:
        """Whether rank 0, if it is one of these, has trained and needs the other processes no more."""
        return (self.folder(0) / PARTED).exists()

    def codes(self) -> dict[int, int]:
        """The exit codes of the processes that have ended by themselves, by rank."""
        for rank, process in self._processes.items():
            if rank not in self._codes and process.poll() is not None:
                code = exit_code(process.returncode)
                is_stop = code == TERMINATED and rank in self._asked  # before it had a handler
                self._codes[rank] = ExitCode.PREEMPTED if is_stop else code
        return {rank: code for rank, code in self._codes.items() if rank not in self._killed}

    def are_running(self) -> bool:
        """Whether any process runs."""
        self.codes()
        return len(self._codes) < len(self._processes)

    def terminate(self) -> None:
        """Sends SIGTERM to those that run."""
        self.codes()
        for rank, process in self._processes.items():
            if rank not in self._codes:
                self._asked.add(rank)
                process.terminate()

    def end(self, patience: float, meanwhile: Callable[[], object] = lambda: None) -> None:
        """SIGTERM, and after `patience` seconds SIGKILL, which is no end of their own; `meanwhile` is called often."""
        self.terminate()
        deadline = time.monotonic() + patience
        while self.are_running() and time.monotonic() < deadline:
            time.sleep(0.05)
            meanwhile()
        for rank, process in self._processes.items():
            if rank not in self._codes:
                logger.warning("rank %d did not end within %.0f seconds of SIGTERM and is killed", rank, patience)
                self._killed.add(rank)
                process.kill()
                process.wait()
        self.codes()


KILLED = 137
SIGNALLED = 128

ORDER: tuple[int, ...] = (*sorted(TERMINAL_EXIT_CODES), ExitCode.STORAGE_UNAVAILABLE, KILLED)
"""Most specific first; then whatever else is not in the table, 70 among it, then 75, and 0 only where all are 0."""


def most_specific(codes: Iterable[int]) -> int:
    """The code that the pod ends with: what will not pass by itself before what may, and a cause before its echo."""
    return min(codes, key=specificity)


def specificity(code: int) -> int:
    """The code's place in the order; smaller is more specific."""
    match code:
        case _ if code in ORDER:
            return ORDER.index(code)
        case ExitCode.OK:
            return len(ORDER) + 2
        case ExitCode.PREEMPTED:
            return len(ORDER) + 1
        case _:
            return len(ORDER)


def exit_code(returncode: int) -> int:
    """What a shell would call it: a process that died of a signal has 128 and the signal's number."""
    return returncode if returncode >= 0 else SIGNALLED - returncode
