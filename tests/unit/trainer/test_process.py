"""The process of `finetune-trainer`: what it prints when something unexpected ends a thread."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

THREAD = """
import sys, threading, warnings
from finetune_trainer import __main__ as process
from finetune_trainer.commands import check_data
def fail():
    raise ValueError("\\x1b[2J\\u202eone\\nforged line")
def start(*_):
    thread = threading.Thread(target=fail, name="progress")
    thread.start()
    thread.join()
    warnings.warn("this name goes away", FutureWarning)
    warnings.warn("this row is odd", UserWarning)
check_data.check_local_rows = start
sys.argv = ["finetune-trainer", "check-data", "rows.jsonl", "--out", "checked"]
process.main()
"""


BROKEN = """
import os, sys
from safetensors import SafetensorError
from finetune_trainer import __main__ as process
from finetune_trainer.commands import check_data
def start(*_):
    try:
        raise error
    except (RuntimeError, KeyError) as found:
        raise ValueError("the step failed") from found
check_data.check_local_rows = start
sys.argv = ["finetune-trainer", "check-data", "rows.jsonl", "--out", "checked"]
for number, error in enumerate([{errors}]):
    if not os.fork():
        sys.stderr = open(f"{number}.log", "w")
        process.main()
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
BROKEN_GPUS = {
    "RuntimeError('CUDA error: uncorrectable ECC error encountered')": 80,
    "RuntimeError('CUDA error: uncorrectable NVLink error detected during the execution')": 80,
    "RuntimeError('CUDA error: an illegal memory access was encountered')": 70,
    "RuntimeError('row 5: my uncorrectable ECC error')": 70,
    "KeyError('CUDA error: uncorrectable ECC error encountered')": 70,
}
FULL_DISKS = [
    "OSError(28, 'No space left on device')",
    "OSError(122, 'Disk quota exceeded')",
    "SafetensorError('Error while serializing: I/O error: No space left on device (os error 28)')",
    "RuntimeError('[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534')",
]
ERRORS = [*BROKEN_GPUS, *FULL_DISKS]


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """The exit code and the log of a process for each error; the processes are forked from one that has imported."""
    folder = tmp_path_factory.mktemp("broken")
    program = BROKEN.replace("{errors}", ", ".join(ERRORS))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=folder)
    codes = map(int, done.stdout.split())
    logs = [(folder / f"{number}.log").read_text() for number in range(len(ERRORS))]
    return dict(zip(ERRORS, zip(codes, logs, strict=True), strict=True))


@pytest.mark.parametrize(("error", "code"), BROKEN_GPUS.items())
def test_a_broken_gpu_has_an_exit_code_of_its_own(ends: dict[str, tuple[int, str]], error: str, code: int) -> None:
    found, log = ends[error]
    assert found == code
    assert ("a GPU of this node is broken: CUDA error: uncorrectable" in log) == (code == 80)


@pytest.mark.parametrize("error", FULL_DISKS)
def test_a_full_disk_is_named_with_what_to_change(ends: dict[str, tuple[int, str]], error: str) -> None:
    code, log = ends[error]
    assert code == 70
    assert "ERROR WorkspaceFull: no space is left on the disk (" in log
    assert "raise resources.workspace.sizeLimit" in log


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """What a process with a failing thread and two warnings writes to its standard error."""
    done = subprocess.run([sys.executable, "-c", THREAD], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()


def test_an_error_in_a_thread_is_logged_without_what_a_terminal_interprets(printed: list[str]) -> None:
    first, *rest = printed
    assert first.endswith("ERROR thread progress: internal error")
    assert rest[0] == "    Traceback (most recent call last):"
    assert rest[-3:-1] == ["    ValueError: \\u001b[2J\\u202eone", "    forged line"]


def test_warnings_are_shown_except_those_for_the_developers_of_a_library(printed: list[str]) -> None:
    assert printed[-1].endswith("UserWarning: this row is odd")
    assert not [line for line in printed if "this name goes away" in line]
