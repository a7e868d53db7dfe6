"""The group of a command-line program whose usage errors repeat arguments without effect on a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typer.core import TyperGroup

from finetune_api.text.printable import printable


class PrintableGroup(TyperGroup):
    """A Typer group; only the programs import it, because the operator does not have Typer."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Parse the options of the group."""
        with _printable_errors():
            return super().make_context(*args, **options)

    def invoke(self, *args: Any, **options: Any) -> Any:
        """Parse the options of a command, and run it."""
        with _printable_errors():
            return super().invoke(*args, **options)


@contextmanager
def _printable_errors() -> Iterator[None]:
    """Escape the message of a usage error; other exceptions are printed elsewhere."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message") and isinstance(message := getattr(error, "message", None), str):
            error.message = printable(message)  # type: ignore[attr-defined]  # Typer has its own copy of Click
        raise
