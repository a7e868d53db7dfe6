"""A preflight without progress ends itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_api.handoff import ExitCode

pytestmark = pytest.mark.process

PROGRAM = """
import sys, time
from pathlib import Path

import pytest
from finetune_trainer.entrypoints.stall import end_when_stalled
from finetune_trainer.entrypoints.termination import RunState
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.sigterm import StopFlag

reporter = Reporter("uid")
reporter.set_stage("Validating")
state = RunState(StopFlag(), reporter=reporter, termination_log=Path(sys.argv[1]))
end_when_stalled(state, reporter, float(sys.argv[2]))
for _ in range(int(sys.argv[3])):
    time.sleep(0.1)
    reporter.beat()
if len(sys.argv) > 4:
    time.sleep(600)
"""


def run(path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    path.touch()
    command = [sys.executable, "-c", PROGRAM, str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_without_a_heartbeat_it_ends_with_a_report_and_the_stack_of_what_hangs(tmp_path: Path) -> None:
    done = run(tmp_path / "log", "1", "3", "hang")
    assert done.returncode == ExitCode.INTERNAL_ERROR
    report = json.loads((tmp_path / "log").read_text())
    assert report["message"].startswith("no row and no block of a file was finished for 1 s in stage Validating")
    assert "<string>" in done.stderr


def test_work_that_takes_longer_than_the_timeout_in_all_is_no_stall(tmp_path: Path) -> None:
    assert run(tmp_path / "log", "3", "40").returncode == 0  # no beat is three seconds late on a busy machine
