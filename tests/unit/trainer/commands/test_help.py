"""`--help` and the README list every exit code."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from finetune_api.handoff import ExitCode
from finetune_trainer.cli import app

README = Path(__file__).parents[4] / "trainer_image" / "README.md"
FOR_PEOPLE = ("run", "check-data", "verify", "chat", "merge", "estimate")
OF_PODS = ("preflight", "train", "finish", "release")


@pytest.mark.parametrize("code", ExitCode, ids=lambda code: code.name)
def test_help_names_every_exit_code_with_its_meaning(code: ExitCode) -> None:
    shown = CliRunner().invoke(app, ["--help"]).output
    text = re.sub(r"\s+", " ", shown)
    assert f"{code.value} {code.meaning}" in text
    assert "1 verify found a fault, 2 invalid usage" in text.replace("`", "")


@pytest.mark.parametrize("code", [code for code in ExitCode if code is not ExitCode.OK], ids=lambda code: code.name)
def test_the_readme_has_a_row_for_every_exit_code(code: ExitCode) -> None:
    assert re.search(rf"^\| {code.value} \| {code.reason}\b", README.read_text(encoding="utf-8"), re.MULTILINE)


def test_merge_names_the_rows_that_it_compares_on_in_their_order() -> None:
    shown = CliRunner().invoke(app, ["merge", "--help"], terminal_width=200, env={"TERM": "dumb"}).output
    text = re.sub(r"[\s│]+", " ", shown)
    assert "the held-out rows of the adapter's own result, else its training rows, else built-in texts." in text


def test_commands_for_people_come_before_those_that_pods_start() -> None:
    text = CliRunner().invoke(app, ["--help"]).stdout
    places = [text.index(f"\n  {name} ") for name in (*FOR_PEOPLE, *OF_PODS)]
    assert places == sorted(places)
