"""report.html by a parser: nothing comes from what people, files or models wrote, and nothing is loaded."""

from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_record import HOSTILE, make_run

from finetune_trainer.evaluation.run_record import Answer
from finetune_trainer.report.document import write_report
from finetune_trainer.report.page import Head, Tile, render_page

ATTRIBUTES = {
    "alt", "aria-label", "charset", "class", "content", "href", "http-equiv", "id", "lang", "media", "name", "role",
    "scope", "src", "srcset", "tabindex",
}  # fmt: skip


class Seen(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self._open.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str, attribute: str) -> list[str]:
        return [value for element, name, value in self.attributes if (element, name) == (tag, attribute)]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    write_report(make_run(folder), folder)
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def seen(page: str) -> Seen:
    return Seen(page)


def test_hostile_texts_bring_no_element_and_no_attribute(page: str, seen: Seen, tmp_path: Path) -> None:
    """The page of the same run with harmless answers, file names and rows has the same elements."""
    run = make_run(tmp_path)
    files = [one | {"file": "rows"} for one in run.summary["train"]["files"]]
    summary = {"train": run.summary["train"] | {"files": files}}
    answers = [Answer("a", "a", "a") for _ in run.answers]
    previews = [[("a", trained) for _, trained in pieces] for pieces in run.previews]
    write_report(replace(run, summary=summary, answers=answers, previews=previews), tmp_path)
    harmless = Seen((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert seen.elements == harmless.elements
    assert {name for _, name, _ in seen.attributes} <= ATTRIBUTES
    assert "alert(1)" in seen.text


def test_only_pictures_within_the_page_and_links_within_the_page(seen: Seen) -> None:
    loaded = [*seen.of("img", "src"), *seen.of("source", "srcset")]
    assert loaded
    assert all(value.startswith("data:image/svg+xml;base64,") for value in loaded)
    assert all(value.startswith("#part-") for value in seen.of("a", "href"))
    assert not {"script", "iframe", "object", "embed", "link", "form", "svg", "base"} & seen.elements.keys()


def test_the_policy_forbids_everything_but_its_own_style_and_embedded_pictures(seen: Seen) -> None:
    (policy,) = [value for value in seen.of("meta", "content") if "default-src" in value]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert not seen.of("p", "style")


def test_the_page_is_accessible_to_screen_readers(page: str, seen: Seen) -> None:
    assert seen.of("html", "lang") == ["en"]
    assert seen.elements["h1"] == 1
    assert all(seen.of("img", "alt"))
    assert len(seen.of("img", "alt")) == seen.elements["img"]
    assert seen.of("th", "scope") == ["col"] * seen.elements["th"]
    anchors = [value.removeprefix("#") for value in seen.of("a", "href")]
    assert anchors == seen.of("h2", "id")


def test_only_what_is_trained_is_marked(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    previews = [[("asked ⟦not trained⟧", False), ("said ⟦trained", True)]]
    write_report(replace(run, previews=previews), tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "asked [not trained]<mark>⟦said [trained⟧</mark>" in page
    assert page.count("<mark>") == 1


def test_a_hostile_name_is_text_in_the_head() -> None:
    head = Head(HOSTILE[0], HOSTILE[1], HOSTILE[9], "plain", [Tile(HOSTILE[0], HOSTILE[1], HOSTILE[9])])
    seen = Seen(render_page("# title\n\n## Section\n", head, {}))
    assert not {"script", "img", "svg", "iframe"} & seen.elements.keys()
    assert seen.elements["h2"] == 1


def test_pictures_and_links_in_the_markdown_that_are_not_known_are_left_out() -> None:
    head = Head("name", "kind", "verdict", "plain", [])
    markdown = "# title\n\n![x](https://evil.example/p.png) [y](https://evil.example) <b>z</b> <https://evil.example>\n"
    seen = Seen(render_page(markdown, head, {}))
    assert not {"a", "img", "b"} & seen.elements.keys()
