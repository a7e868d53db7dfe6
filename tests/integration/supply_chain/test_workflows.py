"""The workflows are what GitHub understands, with every action pinned by its commit."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))


@pytest.mark.nightly
def test_actionlint_finds_nothing(program: Callable[[str], str]) -> None:
    command = [program("actionlint"), "-no-color", *map(str, WORKFLOWS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_action_is_pinned_by_its_commit() -> None:
    used = [line for path in WORKFLOWS for line in path.read_text().splitlines() if "uses:" in line]
    assert used
    assert [line for line in used if not re.search(r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d", line)] == []
