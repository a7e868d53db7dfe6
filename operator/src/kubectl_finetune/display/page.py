"""A page on a terminal: our own styles, and texts that come from elsewhere."""

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment

from finetune_api.text.printable import printable

UNLIMITED = 1 << 20


class Page:
    """Parts one below the other, in which no text has an effect on the terminal."""

    def __init__(self, *parts: RenderableType) -> None:
        self._parts = Group(*parts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the parts with every text escaped; styles and cursor movements are not text."""
        if options.no_wrap:  # a tree would cut its lines at the width
            options = options.update_width(UNLIMITED)
        for segment in console.render(self._parts, options):
            yield segment if segment.control else Segment(printable(segment.text, lines=True), segment.style)
