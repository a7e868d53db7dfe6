"""The rows of a manifest's dataset, checked by `finetune-trainer check-data`, which is a program of its own.

Its data front door is the very code of preflight; it comes with the trainer's libraries, so it is called, not imported.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from kubectl_finetune.errors import PluginError, WrongUse

PROGRAM = "finetune-trainer"
INSTALL = "in a clone of the operator's repository: pip install '.[trainer]'"


def check_rows(jobs: list[dict[str, Any]], files: list[str], out: Path | None) -> int:
    """Runs the check on local files that stand for the job's `dataset.train`; returns its exit code."""
    if len(jobs) != 1:
        raise WrongUse(f"--rows are those of one job, and here are {len(jobs)}", "give the manifest of one job")
    program, spec = find_program(), jobs[0]["spec"]
    with tempfile.TemporaryDirectory(prefix="finetune-") as scratch:
        command = [program, "check-data", *files, *options(spec), "--out", str(out or scratch)]
        return subprocess.run(command, check=False).returncode  # noqa: S603 - a program of ours, and no shell


def find_program() -> str:
    """The trainer's program: beside this one, or on PATH. One without the trainer's libraries does not even start."""
    for found in (str(Path(sys.executable).with_name(PROGRAM)), shutil.which(PROGRAM)):
        if found and Path(found).exists() and _starts(found):
            return found
    raise PluginError(f"rows are checked by {PROGRAM}, which is not installed here with its libraries", INSTALL)


def _starts(program: str) -> bool:
    command = [program, "check-data", "--help"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0  # noqa: S603 - as above


def options(spec: dict[str, Any]) -> list[str]:
    """What the manifest says of its rows, as options of the program."""
    dataset = spec["dataset"]
    found = ["--objective", str(spec["objective"])]
    if dataset.get("format"):
        found += ["--format", str(dataset["format"])]
    for known, own in (dataset.get("columns") or {}).items():
        found += ["--columns", f"{known}={own}"]
    if dataset.get("maxRejectedPercent") is not None:
        found += ["--max-rejected-percent", str(dataset["maxRejectedPercent"])]
    return found
