"""A picture in a notebook that is replaced in place; without a notebook, lines."""

import sys
from typing import Any


class HtmlPicture:
    """What a notebook displays: HTML, and one line where no HTML is shown."""

    def __init__(self, html: str, line: str) -> None:
        self._html, self._line = html, line

    def _repr_html_(self) -> str:
        return self._html

    def __repr__(self) -> str:
        """Return the line."""
        return self._line


class NotebookPicture:
    """A picture below a notebook's cell."""

    def __init__(self) -> None:
        self._handle: Any = None

    def draw(self, html: str, line: str) -> None:
        """Show the picture, in place of the last one."""
        from IPython.display import display  # noqa: PLC0415 - only a notebook has it

        picture = HtmlPicture(html, line)
        if self._handle is None:
            self._handle = display(picture, display_id=True)
        else:
            self._handle.update(picture)


class LinePicture:
    """One line for each change, for a terminal or a file."""

    def __init__(self) -> None:
        self._last = ""

    def draw(self, _: str, line: str) -> None:
        """Print the line if it differs from the last one."""
        if line != self._last:
            self._last = line
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


def is_notebook() -> bool:
    """Return whether the process is a notebook's kernel; IPython in a terminal is none."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


def open_picture() -> NotebookPicture | LinePicture:
    """Return where progress is drawn here."""
    return NotebookPicture() if is_notebook() else LinePicture()
