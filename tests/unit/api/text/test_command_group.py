"""Usage errors of the programs repeat what was given, without what a terminal interprets."""

from typing import Any

import pytest
from typer.testing import CliRunner

from finetune_trainer.cli import app as trainer
from kubectl_finetune.cli import app as plugin

HOSTILE = "\x1b[2J\u202e\x9b31m"


@pytest.mark.parametrize(
    ("app", "words"),
    [
        (plugin, [HOSTILE]),
        (plugin, ["list", HOSTILE]),
        (plugin, ["list", f"--{HOSTILE}"]),
        (plugin, ["list", "-o", HOSTILE]),
        (trainer, ["chat", f"--{HOSTILE}"]),
        (trainer, ["verify", "x", "--endpoint", HOSTILE]),
        (trainer, ["check-data", "x", "--out", "y", "--format", HOSTILE]),
    ],
)
def test_an_argument_in_a_usage_error_cannot_write_to_the_terminal(app: Any, words: list[str]) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "[2J" in done.output
    assert not set("\x1b\u202e\x9b") & set(done.output)
