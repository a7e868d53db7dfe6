"""Foreign text is shown without an effect on a terminal or a log."""

import io
import json
import logging

import pytest

from finetune_api.text.printable import PrintableFormatter, PrintableRecord, printable

OBEYED = [
    *map(chr, [*range(0x20), *range(0x7F, 0xA0)]),
    *"\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
    "\ud800",
    "\udfff",
]


@pytest.mark.parametrize("character", OBEYED)
def test_a_character_that_a_terminal_obeys_becomes_its_escape(character: str) -> None:
    shown = printable(f"a{character}b")
    assert shown.isprintable()
    assert shown.isascii()
    assert json.loads(f'"{shown}"') == f"a{character}b"


@pytest.mark.parametrize(
    "text", ["", "plain", "Größe 日本語 ไทย", "العربية עברית", "👩‍👩‍👧 e\u0301", "C:\\new", "a\u00a0b", "\u200d\ufeff"]
)
def test_every_other_text_is_unchanged(text: str) -> None:
    assert printable(text) is text or printable(text) == text
    assert printable(text, lines=True) == text


def test_line_feeds_and_tabs_are_kept_only_where_lines_are() -> None:
    assert printable("a\n\tb\r\n") == "a\\n\\tb\\r\\n"
    assert printable("a\n\tb\r\n\x1b[2J", lines=True) == "a\n\tb\\r\n\\u001b[2J"


def written(message: str, *arguments: object, error: BaseException | None = None, stack: bool = False) -> str:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(PrintableFormatter("%(levelname)s %(message)s"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.error(message, *arguments, exc_info=error, stack_info=stack)
    return out.getvalue()


def test_a_record_is_one_line_whatever_is_in_it() -> None:
    key = "rows/a\n2026-01-01T00:00:00Z ERROR forged\x1b[2J\x9b2J\u202e.jsonl"
    (line,) = written("skipped %s", key).splitlines()
    assert line == "ERROR skipped rows/a\\n2026-01-01T00:00:00Z ERROR forged\\u001b[2J\\u009b2J\\u202e.jsonl"


def test_a_record_is_one_line_also_in_the_handler_of_a_library() -> None:
    out = io.StringIO()
    record = PrintableRecord(
        "lib", logging.ERROR, "file", 1, "unknown key %r of %s", ("a", "x\nERROR forged\x9b"), None
    )
    logging.StreamHandler(out).emit(record)
    assert out.getvalue() == "unknown key 'a' of x\\nERROR forged\\u009b\n"


def test_a_traceback_keeps_its_lines_none_of_which_can_be_taken_for_a_record() -> None:
    try:
        raise ValueError("bad\nERROR forged\x1b[2J")
    except ValueError as error:
        first, *more = written("failed", error=error, stack=True).splitlines()
    assert first == "ERROR failed"
    assert [line for line in more if not line.startswith("    ")] == []
    text = "\n".join(more)
    assert "    Traceback (most recent call last):\n" in text
    assert "    ERROR forged\\u001b[2J\n" in text
    assert "    Stack (most recent call last):\n" in text
