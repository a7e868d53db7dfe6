"""Texts that would act in Markdown, on a Git host or in a terminal stay texts."""

import re

import pytest
from markdown_it import MarkdownIt
from report_record import ALL_HOSTILE, HOSTILE

from finetune_trainer.report import text

PARSER = MarkdownIt("commonmark", {"html": True}).enable("table")
ACTS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f\ud800-\udfff]"
)
HARMLESS = {"inline", "paragraph_open", "paragraph_close", "text", "code_inline", "code_block"}


def kinds(markdown: str) -> set[str]:
    """Every kind of element that a parser which allows HTML sees."""
    tokens = PARSER.parse(markdown)
    return {one.type for token in tokens for one in [token, *(token.children or [])]}


MARKS = ("-", "+", "1.", "12)", "=", "--", "![a](b)", "!", "(a)[b]")


@pytest.mark.parametrize("hostile", [*HOSTILE, ALL_HOSTILE, *(f"{mark} x" for mark in MARKS)])
def test_a_line_holds_no_element(hostile: str) -> None:
    assert kinds(text.inline(hostile)) <= {"inline", "paragraph_open", "paragraph_close", "text", "text_special"}


@pytest.mark.parametrize("hostile", [*HOSTILE, ALL_HOSTILE, "`", "``", "", " ", "\\"])
def test_a_code_span_holds_all_of_it_in_a_paragraph_and_in_a_table(hostile: str) -> None:
    assert kinds(text.code(hostile)) <= HARMLESS
    (row,) = [line for line in text.table(["a", "b"], [[text.code(hostile), "last"]]).splitlines() if "last" in line]
    cells = PARSER.parse(f"| a | b |\n| - | - |\n{row}")
    assert [token.content for token in cells if token.type == "inline"][-1] == "last"


@pytest.mark.parametrize("hostile", [*HOSTILE, ALL_HOSTILE, "a\n\n\n\n- b\n\n# c", "\n\n# c", "\t\tx\n# y"])
def test_a_block_is_one_code_block(hostile: str) -> None:
    assert kinds(f"Row 1:\n\n{text.block(hostile)}\n\nend") <= HARMLESS


@pytest.mark.parametrize("show", [text.inline, text.code, text.block])
def test_nothing_that_acts_and_is_not_seen_is_left(show: object) -> None:
    assert not ACTS.search(show(ALL_HOSTILE).replace("\n", ""))  # type: ignore[operator]


def test_versions_and_names_stay_readable() -> None:
    assert [text.inline(one) for one in ("3.11.2", "torch 2.13.0+cpu", "Test GPU 80GB", "-13 % (95 % interval)")] == [
        "3.11.2",
        "torch 2.13.0+cpu",
        "Test GPU 80GB",
        "\\-13 % (95 % interval)",
    ]


def test_bare_links_are_not_links_on_a_git_host() -> None:
    assert text.inline("https://evil.example www.evil.example") == "https\\://evil.example www\\.evil.example"


def test_scripts_that_need_joiners_keep_them() -> None:
    joined = "\u0645\u06cc\u200c\u062e \U0001f469\u200d\U0001f4bb"
    assert text.block(joined) == f"    {joined}"


def test_a_block_of_many_lines_is_cut() -> None:
    lines = text.block("x\n" * 500).splitlines()
    assert (len(lines), lines[-1]) == (121, "    … (cut)")


def test_one_long_cell_does_not_widen_every_row() -> None:
    short = text.table(["name"], [["x" * 300], ["y"]]).splitlines()[-1]
    assert len(short) == 64


def test_times_and_counts_are_short() -> None:
    assert [text.duration(seconds) for seconds in (1.25, 61, 3720)] == ["1.25 s", "1 min 01 s", "1 h 02 min"]
    assert [text.count(many) for many in (1234, 45_000, 18_087_936, 7 * 10**9)] == [
        "1234", "45 thousand", "18.1 million", "7 billion",
    ]  # fmt: skip
