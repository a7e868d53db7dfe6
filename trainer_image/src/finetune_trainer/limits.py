"""Limits that a child process sets for itself before it reads what a stranger wrote."""

import resource
from pathlib import Path


def limit_process(memory: int, seconds: int | None = None) -> None:
    """Limit private memory (bytes, beyond what is taken already) and CPU time (s); write no core.

    Mapped files do not count. Without /proc, as on macOS, memory is not limited.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        taken = next(int(line.split()[1]) for line in lines if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (taken * 1024 + memory,) * 2)
    if seconds is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
