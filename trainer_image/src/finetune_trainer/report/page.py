"""report.html: the Markdown report as one self-contained page, without scripts, network or links to anywhere."""

import base64
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

from finetune_trainer.report import text
from finetune_trainer.report.pictures import darkened

TEMPLATES = Path(__file__).parent / "templates"
PREVIEWS = {f"What the model is {what} on" for what in ("trained", "measured")}
TRAINED = re.compile("⟦([^⟦⟧]*)⟧")
COMMANDS = "How to"
FIGURE = re.compile(r"(-|∞|-?[\d.]+(e[-+]?\d+)?( %)?)(, best)?")


Pictures = Mapping[str, Sequence[tuple[str, str]]]
"""The panels of each picture that the Markdown names: title and SVG in light colours."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure at the top of the page."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Head:
    """The top of the page."""

    name: str
    kind: str
    verdict: str
    mood: str
    """`good`, `bad` or `plain`: sets the colour of the verdict."""
    tiles: Sequence[Tile]


def render_page(markdown: str, head: Head, pictures: Pictures) -> str:
    """Return the page. The given pictures replace their file names; other pictures and all links stay text."""
    parser = MarkdownIt("commonmark", {"html": False}, renderer_cls=_Renderer).enable("table")
    parser.disable(["autolink", "html_block", "html_inline", "lheading", "link", "reference"])
    tokens = parser.parse(markdown)[3:]  # the head shows the title
    sections = _prepare(tokens)
    body = parser.renderer.render(tokens, parser.options, {"pictures": pictures})
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    return (
        open_templates(is_html=True)
        .get_template("report.html.j2")
        .render(
            head=head,
            sections=sections,
            body=body,
            style=style,
            style_digest=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        )
    )


@functools.cache
def open_templates(*, is_html: bool) -> jinja2.Environment:
    """Return the templates of the report, each compiled once; those of HTML escape every value."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        autoescape=is_html,  # noqa: S701
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "inline": text.inline,
        "sentence": text.sentence,
        "code": text.code,
        "block": text.block,
        "number": text.number,
        "percent": text.percent,
        "size": text.size,
        "duration": text.duration,
    }
    return environment


def _prepare(tokens: Sequence[Token]) -> Sequence[tuple[str, str]]:
    """Set anchors of headings, marks of tables and styles of texts; return the sections by anchor."""
    sections: list[tuple[str, str]] = []
    for token, following in pairwise(tokens):
        if token.type == "heading_open" and token.tag == "h2":
            sections.append((f"part-{len(sections) + 1}", following.content))
            token.attrSet("id", sections[-1][0])
        elif token.type == "th_open":
            token.attrSet("scope", "col")
    _mark_texts(tokens)
    _mark_figures(tokens)
    return sections


def _mark_texts(tokens: Sequence[Token]) -> None:
    """Keep the lines of commands, wrap what people or models wrote, and mark the trained part of previews."""
    title, section = "", ""
    for at, token in enumerate(tokens):
        if token.type == "heading_open":
            title = tokens[at + 1].content
            section = title if token.tag == "h2" else section
        elif token.type == "code_block":
            token.meta |= {"marks": title in PREVIEWS, "prose": not section.startswith(COMMANDS)}


def _mark_figures(tokens: Sequence[Token]) -> None:
    """Right-align the columns of figures."""
    columns: dict[int, list[tuple[Token, str]]] = {}
    column = 0
    for token, following in pairwise(tokens):
        if token.type == "table_open":
            columns = {}
        elif token.type == "tr_open":
            column = 0
        elif token.type in ("td_open", "th_open"):
            columns.setdefault(column, []).append((token, following.content))
            column += 1
        elif token.type == "table_close":
            for cells in columns.values():
                if all(FIGURE.fullmatch(text) for _, text in cells[1:]) and any(text != "-" for _, text in cells[1:]):
                    for cell, _ in cells:
                        cell.attrSet("class", "figure")


class _Renderer(RendererHTML):
    """Render boxes in which wide tables and lines scroll, and the given pictures."""

    def table_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return '<div class="wide" role="region" aria-label="Table" tabindex="0"><table>\n'

    def table_close(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return "</table></div>\n"

    def code_block(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        text = escapeHtml(tokens[idx].content.rstrip("\n"))
        if tokens[idx].meta.get("marks"):
            text = TRAINED.sub(r"<mark>⟦\1⟧</mark>", text)
        look = ' class="prose"' if tokens[idx].meta.get("prose") else ""
        return f'<pre{look} tabindex="0"><code>{text}</code></pre>\n'

    def paragraph_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return "" if tokens[idx].hidden else "<div>" if _is_picture(tokens[idx + 1]) else "<p>"

    def paragraph_close(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return "" if tokens[idx].hidden else "</div>\n" if _is_picture(tokens[idx - 1]) else "</p>\n"

    def image(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        panels = env["pictures"].get(tokens[idx].attrs["src"], [])
        return f'<div class="pictures">{"".join(_picture(title, svg) for title, svg in panels)}</div>'


def _is_picture(token: Token) -> bool:
    return [child.type for child in token.children or []] == ["image"]


def _picture(title: str, svg: str) -> str:
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{_data_uri(darkened(svg))}">'
    return f'<picture>{dark}<img src="{_data_uri(svg)}" alt="{escapeHtml(title)}"></picture>'


def _data_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
