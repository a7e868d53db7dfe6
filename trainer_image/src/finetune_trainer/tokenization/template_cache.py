"""Find the answers of plain conversations fast: once for each order of roles, then by filling in the texts.

The answers are searched in a conversation whose every text is a sentinel. A row with the same roles is rendered once,
compared with the outline filled with its texts, and takes its spans from there. A row that differs, for example because
the template strips reasoning, is searched on its own.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from finetune_trainer.data.rows import Message, Role
from finetune_trainer.tokenization.template import ChatTemplate, TemplateFailure
from finetune_trainer.tokenization.turn_spans import Rendering, TurnFinder

# Rows that all have different roles must not fill the memory.
MAX_OUTLINES = 4096
_SENTINEL = re.compile("\ue000([0-9]+)\ue002")


def sentinel(number: int) -> str:
    """Return the sentinel that replaces the text of this turn."""
    return f"\ue000{number}\ue002"


@dataclass(frozen=True, slots=True)
class Outline:
    """One sample with its texts cut out: literals between the texts, and the spans in terms of literals.

    A boundary is (index of a literal, offset in it); `length` counts the turns that the sample renders.
    """

    literals: tuple[str, ...]
    order: tuple[int, ...]
    boundaries: tuple[tuple[tuple[int, int], tuple[int, int]], ...]
    turns: tuple[int, ...]
    length: int

    def fill(self, text: str, messages: Sequence[Message]) -> Rendering | None:
        """Return the spans in `text`, or None when it is not this outline with the messages' texts."""
        starts = [0]
        at = len(self.literals[0])
        if not text.startswith(self.literals[0]):
            return None
        for literal, turn in zip(self.literals[1:], self.order, strict=True):
            content = messages[turn]["content"]
            for said in (content, content.strip(), content.lstrip(), content.rstrip()):  # as templates write it
                if text.startswith(said, at) and text.startswith(literal, at + len(said)):
                    at += len(said)
                    break
            else:
                return None
            starts.append(at)
            at += len(literal)
        if at != len(text):
            return None
        spans = tuple((starts[a] + b, starts[c] + d) for (a, b), (c, d) in self.boundaries)
        return Rendering(text, spans, self.turns)


class TemplateCache:
    """Finds answers by outlines where it can; None means that the row must be searched on its own."""

    def __init__(self, template: ChatTemplate, finder: TurnFinder) -> None:
        self._template = template
        self._finder = finder
        self._known: dict[tuple[tuple[Role, ...], tuple[int, ...]], tuple[Outline, ...] | None] = {}

    def find(self, messages: Sequence[Message], turns: Sequence[int]) -> list[Rendering] | None:
        """Return the row's renderings, or None."""
        outlines = self._outlines(messages, turns)
        if outlines is None:
            return None
        samples = []
        for outline in outlines:
            sample = outline.fill(self._template.render(messages[: outline.length]), messages)
            if sample is None:
                return None
            samples.append(sample)
        return samples

    def render_ahead(self, rows: Iterable[tuple[Sequence[Message], Sequence[int]]]) -> None:
        """Render what `find` will need of these rows, unless it is several samples of one row."""
        found = [(messages, self._outlines(messages, turns)) for messages, turns in rows]
        self._template.render_ahead(
            [messages[: outlines[0].length] for messages, outlines in found if outlines and len(outlines) == 1]
        )

    def _outlines(self, messages: Sequence[Message], turns: Sequence[int]) -> tuple[Outline, ...] | None:
        roles = tuple(message["role"] for message in messages)
        key = (roles, tuple(turns))
        if key not in self._known:
            if len(self._known) >= MAX_OUTLINES:
                self._known.clear()
            self._known[key] = self._build(roles, turns)
        return self._known[key]

    def _build(self, roles: tuple[Role, ...], turns: Sequence[int]) -> tuple[Outline, ...] | None:
        messages = [Message(role=role, content=sentinel(number)) for number, role in enumerate(roles)]
        try:
            samples = self._finder.find(messages, None, turns)
        except TemplateFailure:
            return None
        outlines = tuple(_cut(sample) for sample in samples)
        return outlines if all(_is_sound(sample) for sample in samples) else None


def _is_sound(sample: Rendering) -> bool:
    """Every turn is rendered once, in order; each span holds the text of its own turn and of no other."""
    rendered = [int(match.group(1)) for match in _SENTINEL.finditer(sample.text)]
    return rendered == list(range(sample.turns[-1] + 1)) and all(
        _SENTINEL.findall(sample.text, *span) == [str(turn)]
        for span, turn in zip(sample.spans, sample.turns, strict=True)
    )


def _cut(sample: Rendering) -> Outline:
    literals: list[str] = []
    order: list[int] = []
    ends = [0]
    for match in _SENTINEL.finditer(sample.text):
        literals.append(sample.text[ends[-1] : match.start()])
        order.append(int(match.group(1)))
        ends.append(match.end())
    literals.append(sample.text[ends[-1] :])
    boundaries = tuple((_locate(start, ends), _locate(end, ends)) for start, end in sample.spans)
    return Outline(tuple(literals), tuple(order), boundaries, sample.turns, sample.turns[-1] + 1)


def _locate(position: int, ends: Sequence[int]) -> tuple[int, int]:
    literal = max(index for index, end in enumerate(ends) if end <= position)
    return literal, position - ends[literal]
