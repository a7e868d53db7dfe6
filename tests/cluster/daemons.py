"""Start processes that outlive this one, recognise them later, and end those alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from layout import ClusterError, Layout


@dataclass(frozen=True)
class Daemon:
    """A long-running process of the cluster."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)


def log_of(layout: Layout, name: str) -> Path:
    """The log file of a daemon or a command."""
    return layout.logs / f"{name}.log"


def is_running(layout: Layout, name: str) -> bool:
    """Whether the recorded process lives and still is what was started."""
    record = _read_record(layout, name)
    return record is not None and _command_line(record.pid) == record.argv


def ensure(layout: Layout, daemon: Daemon) -> bool:
    """Start the daemon unless it runs with these arguments; True if it was started now."""
    record = _read_record(layout, daemon.name)
    if record and record.argv == list(daemon.argv) and _command_line(record.pid) == record.argv:
        return False
    stop(layout, daemon.name)
    layout.logs.mkdir(parents=True, exist_ok=True)
    with log_of(layout, daemon.name).open("ab") as log:
        process = subprocess.Popen(
            list(daemon.argv),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **daemon.env},
            cwd=layout.root,
            start_new_session=True,
        )
    path = _record_path(layout, daemon.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"pid": process.pid, "argv": list(daemon.argv)}))
    # A process has no command line for a moment while the kernel reads its program.
    while process.poll() is None and _command_line(process.pid) != list(daemon.argv):
        time.sleep(0.01)
    return True


def stop(layout: Layout, name: str, seconds: float = 15) -> bool:
    """End the daemon if it is ours; True if it was running."""
    record = _read_record(layout, name)
    was_running = record is not None and _command_line(record.pid) == record.argv
    if record and was_running:
        end_process(record.pid, seconds)
    _record_path(layout, name).unlink(missing_ok=True)
    return was_running


def end_process(pid: int, seconds: float = 15) -> None:
    """SIGTERM, patience, SIGKILL."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not _is_alive(pid):
                return
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)


def started_at(layout: Layout, name: str) -> float:
    """When the daemon was started, in seconds since the epoch."""
    path = _record_path(layout, name)
    return path.stat().st_mtime if path.exists() else 0


def recorded(layout: Layout) -> list[str]:
    """The names of all daemons this folder has started."""
    return sorted(path.stem for path in (layout.root / "pids").glob("*.json"))


def wait_until(
    question: Callable[[], bool], seconds: float, waiting_for: str, layout: Layout, daemon: str | None = None
) -> None:
    """Ask until the answer is yes; say what was awaited, and whose log tells why, if it never is."""
    deadline = time.monotonic() + seconds
    log = log_of(layout, daemon) if daemon else None
    while not question():
        if daemon and not is_running(layout, daemon):
            raise ClusterError(f"{daemon} ended while waiting for {waiting_for}", log)
        if time.monotonic() > deadline:
            raise ClusterError(f"{waiting_for}: not within {seconds:.0f} s", log)
        time.sleep(0.2)


def run_logged(layout: Layout, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
    """Run a command to its end, its output in a log; a failure names that log."""
    layout.logs.mkdir(parents=True, exist_ok=True)
    with log_of(layout, name).open("ab") as log:
        log.write(f"$ {' '.join(argv)}\n".encode())
        log.flush()
        result = subprocess.run(
            argv,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
        )
    if result.returncode:
        raise ClusterError(f"{name} failed with exit code {result.returncode}", log_of(layout, name))


@dataclass(frozen=True)
class _Record:
    pid: int
    argv: list[str]


def _record_path(layout: Layout, name: str) -> Path:
    return layout.root / "pids" / f"{name}.json"


def _read_record(layout: Layout, name: str) -> _Record | None:
    try:
        record = json.loads(_record_path(layout, name).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return _Record(record["pid"], record["argv"])


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _is_alive(pid: int) -> bool:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return bool(_command_line(pid))
