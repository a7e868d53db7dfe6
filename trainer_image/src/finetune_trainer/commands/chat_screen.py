"""Answers side by side while they are written: columns on a wide terminal, one below the other on a narrow one."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from finetune_api.text.printable import printable

WIDE = 80
"""Columns of a terminal from which two answers are next to each other."""
FRAMES_A_SECOND = 8
NOTHING = "(nothing)"
"""An empty answer, as in the report."""

Show = Callable[[str, str], None]
"""Takes a name and its text so far."""


@contextmanager
def show_answers(console: Console, names: Sequence[str]) -> Iterator[Show]:
    """Show the texts while the block writes them; in a pipe, each once at the end of the block."""
    texts = dict.fromkeys(names, "")

    if not console.is_terminal:
        yield texts.__setitem__
        done = {name: text or NOTHING for name, text in texts.items()}
        sys.stdout.write("".join(f"{name}:\n{printable(text, lines=True)}\n\n" for name, text in done.items()))
        sys.stdout.flush()
        return
    with Live(arrange(texts, console.width), console=console, refresh_per_second=FRAMES_A_SECOND) as live:

        def show(name: str, text: str) -> None:
            texts[name] = text
            live.update(arrange(texts, console.width))

        yield show
        live.update(arrange({name: text or NOTHING for name, text in texts.items()}, console.width))


def arrange(texts: Mapping[str, str], width: int) -> RenderableType:
    """Return the texts in boxes, in columns if the terminal is wide."""
    boxes = [Panel(Text(printable(text, lines=True)), title=name, title_align="left") for name, text in texts.items()]
    if width < WIDE:
        return Group(*boxes)
    grid = Table.grid(expand=True)
    for _ in boxes:
        grid.add_column(ratio=1)
    grid.add_row(*boxes)
    return grid
