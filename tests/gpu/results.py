"""Figures of the GPU suite, and the page that shows them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Fact = tuple[str, str]
Verdict = Literal["met", "MISSED", "not judged", "not measured"]


@dataclass(frozen=True)
class Figure:
    """One line of the results; `is_met` is None for a figure that nothing is required of, or that was not measured."""

    name: str
    measured: str
    required: str = "-"
    is_met: bool | None = None

    @property
    def verdict(self) -> Verdict:
        """The result in words."""
        if self.measured.startswith("not measured"):
            return "not measured"
        if self.is_met is None:
            return "not judged"
        return "met" if self.is_met else "MISSED"


@dataclass(frozen=True)
class Section:
    """A group of figures and the seconds that it took."""

    title: str
    figures: Sequence[Figure] = field(default_factory=tuple)
    seconds: float = 0.0


def try_figure(name: str, required: str, run: Callable[[], tuple[str, bool | None]]) -> Figure:
    """Return the figure of one measurement; an error is a missed one, and the suite continues."""
    try:
        measured, is_met = run()
    except Exception as error:  # noqa: BLE001 - whatever a library raises is the result
        return Figure(name, f"{type(error).__name__}: {error}"[:300], required, False)
    return Figure(name, measured, required, is_met)


def is_missed(sections: Sequence[Section]) -> bool:
    """Return whether a requirement is missed."""
    return any(figure.verdict == "MISSED" for section in sections for figure in section.figures)


def render(facts: Sequence[Fact], sections: Sequence[Section], earlier: Mapping[str, str] | None = None) -> str:
    """Return the page: the card and the versions, then one table a section; `earlier` has texts of others by title."""
    texts = dict(earlier or {}) | {one.title: _render_section(one) for one in sections}
    return "\n".join([_render_facts(facts), *texts.values()])


def read_sections(page: Path, facts: Sequence[Fact]) -> dict[str, str]:
    """Return the sections of a page by title; none if it has other facts, such as another card."""
    head, *sections = page.read_text(encoding="utf-8").split("\n## ") if page.exists() else [""]
    if head != _render_facts(facts):
        return {}
    return {one.partition("\n")[0]: f"## {one.rstrip()}\n" for one in sections}


def _render_facts(facts: Sequence[Fact]) -> str:
    lines = ["# Results of the GPU suite", "", "Written by `make gpu`.", "", "| | |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {name} | {_cell(value)} |" for name, value in facts)]) + "\n"


def _render_section(section: Section) -> str:
    lines = [f"## {section.title}", "", f"{section.seconds:.0f} s.", ""]
    lines += ["| | measured | required | |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {one.name} | {_cell(one.measured)} | {_cell(one.required)} | {one.verdict} |" for one in section.figures
    ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
