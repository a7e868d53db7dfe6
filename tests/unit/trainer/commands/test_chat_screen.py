"""Answers on a terminal and in a pipe."""

import io

import pytest
from rich.console import Console

from finetune_trainer.commands.chat_screen import arrange, show_answers


def drawn(width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(arrange({"base": "one", "tuned": "two"}, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_wide_terminal_has_the_answers_next_to_each_other() -> None:
    assert any("one" in line and "two" in line for line in drawn(100))


def test_a_narrow_terminal_has_them_one_below_the_other() -> None:
    lines = drawn(40)
    assert not any("one" in line and "two" in line for line in lines)
    assert [line for line in lines if "one" in line or "two" in line]


def test_a_pipe_gets_each_answer_once_with_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    with show_answers(Console(force_terminal=False), ["base", "tuned"]) as show:
        for name, text in (("base", "o"), ("base", "one\nmore"), ("tuned", "two")):
            show(name, text)
    assert capsys.readouterr().out == "base:\none\nmore\n\ntuned:\ntwo\n\n"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_an_empty_answer_is_shown_as_such(is_terminal: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with show_answers(Console(force_terminal=is_terminal, width=100), ["base", "tuned"]) as show:
        show("base", "")
        show("tuned", "two")
    out = capsys.readouterr().out
    assert "(nothing)" in out
    assert "two" in out


@pytest.mark.parametrize("is_terminal", [False, True])
def test_an_answer_cannot_write_to_the_terminal(is_terminal: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with show_answers(Console(force_terminal=is_terminal, width=100), ["base"]) as show:
        show("base", "a\x1b[2Jb\nc\r\u202e")
    out = capsys.readouterr().out
    assert "a\\u001b[2Jb" in out
    assert "c\\r\\u202e" in out
    assert "\x1b[2J" not in out
