"""report.html as Chromium shows it: on a phone and on a desk, by day and by night, with hostile texts in it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from browser import chromium
from playwright.sync_api import Browser, Page
from report_record import make_run

from finetune_trainer.report.document import write_report

pytestmark = pytest.mark.nightly

LEAST_CONTRAST = 4.5
"""What WCAG asks of text of ordinary size."""
SIZES = {"phone": (360, 740), "desk": (1280, 800)}

OVERFLOWING = """() => [...document.body.querySelectorAll('*')].filter(element => {
  const box = element.getBoundingClientRect();
  const scrolled = element.parentElement.closest('.wide, pre');
  return !scrolled && box.width > 0 && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map(element => element.outerHTML.slice(0, 120))"""

OVERLAPPING = """() => [...document.querySelectorAll('.tile, nav a, th, td, pre.prose')].filter(
  element => element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).display !== 'inline'
).map(element => element.outerHTML.slice(0, 120))"""

UNLOADED = """() => [...document.images].filter(image => !image.complete || image.naturalWidth < 100)
  .map(image => image.alt)"""

FAINT = """least => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(value => value / 255)
    .map(value => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = element => {
    for (let one = element; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return matchMedia('(prefers-color-scheme: dark)').matches ? [0, 0, 0] : [255, 255, 255];
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.getClientRects().length) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < least) found.push(`${ratio.toFixed(2)} ${element.outerHTML.slice(0, 100)}`);
  }
  return found;
}"""


@dataclass
class Shown:
    """The open page and what went wrong on it."""

    page: Page
    name: str
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(make_run(folder), folder)
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module", params=[(size, scheme) for size in SIZES for scheme in ("light", "dark")])
def shown(request: pytest.FixtureRequest, browser: Browser, report: Path) -> Iterator[Shown]:
    size, scheme = request.param
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    shown = Shown(context.new_page(), f"{size}-{scheme}")
    page, complaints = shown.page, shown.complaints
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
    page.on("request", lambda asked: asked.url.startswith("data:") or complaints.append(asked.url))
    page.goto(report.as_uri())
    page.wait_for_load_state("networkidle")
    complaints.remove(report.as_uri())
    yield shown
    context.close()


def test_the_page_is_as_wide_as_the_window(shown: Shown) -> None:
    assert shown.page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert shown.page.evaluate(OVERFLOWING) == []
    assert shown.page.evaluate(OVERLAPPING) == []


def test_every_picture_is_shown(shown: Shown) -> None:
    assert shown.page.evaluate("document.images.length") == 5
    assert shown.page.evaluate(UNLOADED) == []


def test_dark_pictures_are_on_a_dark_page(shown: Shown) -> None:
    sources = set(shown.page.evaluate("[...document.images].map(image => image.currentSrc)"))
    light = set(shown.page.evaluate("[...document.images].map(image => image.src)"))
    assert sources.isdisjoint(light) is shown.name.endswith("dark")


def test_nothing_is_loaded_run_or_complained_of(shown: Shown) -> None:
    assert shown.complaints == []


def test_every_text_contrasts_with_its_background(shown: Shown) -> None:
    assert shown.page.evaluate(FAINT, LEAST_CONTRAST) == []


def test_hostile_texts_made_no_element(shown: Shown) -> None:
    elements: set[Any] = set(shown.page.evaluate("[...document.querySelectorAll('*')].map(one => one.localName)"))
    assert not elements & {"script", "iframe", "svg", "object", "embed", "form", "b", "i", "u", "title-x"}
    assert shown.page.evaluate("[...document.images].every(image => image.src.startsWith('data:'))")
    assert shown.page.evaluate("[...document.links].every(link => link.hash && link.pathname === location.pathname)")
    assert shown.page.locator("main style, main title, main h1").count() == 0


def test_every_section_can_be_reached_by_keyboard_and_by_its_link(shown: Shown) -> None:
    links = shown.page.locator("nav a")
    assert links.count() >= 10
    last = links.last
    last.press("Enter")
    assert shown.page.evaluate("document.querySelector(location.hash).innerText") == last.inner_text()
    scrolled = shown.page.locator(".wide, pre")
    assert scrolled.count() == shown.page.locator('.wide[tabindex="0"], pre[tabindex="0"]').count()


def test_screenshots_are_taken(shown: Shown, tmp_path: Path) -> None:
    """Kept by pytest under its temporary folder, for people to look at."""
    shown.page.evaluate("scrollTo(0, 0)")
    picture = shown.page.screenshot(path=tmp_path / f"{shown.name}.png", full_page=True)
    assert len(picture) > 50_000


def test_on_paper_nothing_is_cut_off(browser: Browser, report: Path) -> None:
    page = browser.new_page(viewport={"width": 720, "height": 1000})
    page.emulate_media(media="print")
    page.goto(report.as_uri())
    assert not page.locator("nav").is_visible()
    assert page.evaluate("[...document.querySelectorAll('pre')].every(one => one.scrollHeight <= one.clientHeight + 2)")
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert len(page.pdf(format="A4")) > 20_000
    page.close()
