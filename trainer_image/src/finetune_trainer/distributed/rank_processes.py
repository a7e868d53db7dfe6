"""The training processes of one pod: start them, stop them, and choose the exit code of the pod."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from finetune_api.handoff import TERMINAL_EXIT_CODES, ExitCode
from finetune_trainer.distributed.rank_layout import LEFT_GROUP, MEASURING, Layout

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05
SIGNALLED = 128
KILLED = SIGNALLED + 9
TERMINATED = SIGNALLED + 15
DUMP_STACKS = signal.SIGUSR1
"""Signal on which a training process writes its stacks."""
SPECIFICITY: tuple[int, ...] = (
    *sorted(TERMINAL_EXIT_CODES),
    *(ExitCode.GPU_FAULT, ExitCode.REWARD_UNAVAILABLE, ExitCode.STORAGE_UNAVAILABLE),
    KILLED,
)
"""Most specific first; then every other code, 70 among them, then 75, and 0 last."""


class RankProcesses:
    """The children of a pod's PID 1, by rank."""

    def __init__(self, layout: Layout, workspace: Path, options: Sequence[str]) -> None:
        self._layout, self._workspace, self._options = layout, workspace, options
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._codes: dict[int, int] = {}
        self._terminated: set[int] = set()
        self._killed: set[int] = set()
        self._dumped: set[int] = set()

    def start(self, micro_batch: int | None = None) -> None:
        """Start every process of this pod, also after `stop`; the first one serves the pod's port.

        `micro_batch` is the number of rows of a micro-batch, if it is not that of the configuration.
        """
        for known in (self._processes, self._codes, self._terminated, self._killed, self._dumped):
            known.clear()
        options = [*self._options, *(["--micro-batch", str(micro_batch)] if micro_batch else [])]
        for local_rank, rank in enumerate(self._layout.ranks):
            folder = self.folder(rank)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "report.json").write_text("")
            command = [
                sys.executable, "-m", "finetune_trainer", "rank", *options,
                "--workspace", str(folder), "--termination-log", str(folder / "report.json"),
            ]  # fmt: skip
            environment = self._layout.environment(local_rank, os.environ) | {"PYTHONSAFEPATH": "1"}
            self._processes[rank] = subprocess.Popen(command, env=environment)  # noqa: S603 - our own program
        logger.info("started rank %s of %d", ", ".join(map(str, self._processes)), self._layout.size)

    def folder(self, rank: int) -> Path:
        """Return the rank's workspace, which also holds its report."""
        return self._workspace / f"rank-{rank}"

    def report(self, rank: int) -> str:
        """Return the report that the rank wrote, or an empty string."""
        try:
            return (self.folder(rank) / "report.json").read_text(encoding="utf-8")
        except OSError:
            return ""

    def first_to_report(self, ranks: Iterable[int]) -> int:
        """Return which of these ranks wrote its report first, because later ones of the same code may be echoes."""

        def order(rank: int) -> tuple[bool, int, int]:
            try:
                found = (self.folder(rank) / "report.json").stat()
            except OSError:
                return True, 0, rank
            return not found.st_size, found.st_mtime_ns, rank

        return min(ranks, key=order)

    def is_saving(self) -> bool:
        """Return whether rank 0 runs in this pod and is saving a checkpoint."""
        return (self.folder(0) / "checkpoint").exists()

    def has_left_group(self) -> bool:
        """Return whether rank 0 runs in this pod and no longer needs the other processes."""
        return (self.folder(0) / LEFT_GROUP).exists()

    def is_measuring(self) -> bool:
        """Return whether rank 0 runs in this pod, and all processes measure together."""
        return (self.folder(0) / MEASURING).exists()

    def codes(self) -> dict[int, int]:
        """Return the exit codes of the processes that ended without SIGKILL from here, by rank."""
        for rank, process in self._processes.items():
            if rank not in self._codes and process.poll() is not None:
                code = to_exit_code(process.returncode)
                if code == SIGNALLED + DUMP_STACKS and rank in self._dumped:  # before its handler was installed
                    self._killed.add(rank)
                is_stop = code == TERMINATED and rank in self._terminated  # before its handler was installed
                self._codes[rank] = ExitCode.PREEMPTED if is_stop else code
        return {rank: code for rank, code in self._codes.items() if rank not in self._killed}

    def are_running(self) -> bool:
        """Return whether any process runs."""
        self.codes()
        return len(self._codes) < len(self._processes)

    def dump_stacks(self) -> None:
        """Let the running processes write the stacks of their threads to the pod's log."""
        self.codes()
        for rank, process in self._processes.items():
            if rank not in self._codes:
                logger.warning("the stacks of rank %d follow", rank)
                self._dumped.add(rank)
                process.send_signal(DUMP_STACKS)

    def terminate(self) -> None:
        """Send SIGTERM to the running processes."""
        self.codes()
        for rank, process in self._processes.items():
            if rank not in self._codes:
                self._terminated.add(rank)
                process.terminate()

    def stop(self, drain_timeout: float, on_poll: Callable[[], object] = lambda: None) -> None:
        """Send SIGTERM, and SIGKILL after `drain_timeout` seconds; call `on_poll` while waiting."""
        self.terminate()
        deadline = time.monotonic() + drain_timeout
        while self.are_running() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            on_poll()
        for rank, process in self._processes.items():
            if rank not in self._codes:
                logger.warning("rank %d did not end within %.0f seconds of SIGTERM: killing it", rank, drain_timeout)
                self._killed.add(rank)
                process.kill()
                process.wait()
        self.codes()


def most_specific(codes: Iterable[int]) -> int:
    """Return the exit code of the pod: a permanent failure before a transient one, a cause before its echo."""
    return min(codes, key=specificity)


def specificity(code: int) -> int:
    """Return the code's place in the order; smaller is more specific."""
    match code:
        case _ if code in SPECIFICITY:
            return SPECIFICITY.index(code)
        case ExitCode.OK:
            return len(SPECIFICITY) + 2
        case ExitCode.PREEMPTED:
            return len(SPECIFICITY) + 1
        case _:
            return len(SPECIFICITY)


def to_exit_code(returncode: int) -> int:
    """Return the exit code as a shell reports it: 128 plus the signal's number for a process that a signal ended."""
    return returncode if returncode >= 0 else SIGNALLED - returncode
