"""Show foreign text in logs and on terminals, where its characters must have no effect."""

import logging
from types import TracebackType

_OBEYED = (
    *(range(0x20), range(0x7F, 0xA0)),  # control characters, C0 and C1
    *((0x061C,), (0x200E, 0x200F), range(0x202A, 0x202F), range(0x2066, 0x206A)),  # bidirectional marks
    (0x2028, 0x2029),  # line and paragraph separators
    range(0xD800, 0xE000),  # halves of surrogate pairs, which no encoding can write
)
_ONE_LINE = {code: f"\\u{code:04x}" for codes in _OBEYED for code in codes} | {9: "\\t", 10: "\\n", 13: "\\r"}
_LINES = {code: escape for code, escape in _ONE_LINE.items() if code not in {9, 10}}
_ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def printable(text: str, *, lines: bool = False) -> str:
    r"""Replace each character that a terminal interprets by its escape, for example `\u001b`.

    The result is one line, unless `lines` keeps line feeds and tabs. The escapes are those of JSON.
    """
    return text.translate(_LINES if lines else _ONE_LINE)


class PrintableRecord(logging.LogRecord):
    """A record whose message is one line also in handlers that libraries make; for `logging.setLogRecordFactory`."""

    def getMessage(self) -> str:  # noqa: N802 - as the base class
        """Return the message."""
        return printable(super().getMessage())


class PrintableFormatter(logging.Formatter):
    """Formats each record as one line, and a traceback as indented lines, so that no text can forge a record."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - as the base class
        """Return the line of the record."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: _ExceptionInfo) -> str:  # noqa: N802
        """Return the traceback."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        """Return the stack."""
        return _indented(super().formatStack(stack_info))


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in printable(text, lines=True).split("\n"))
