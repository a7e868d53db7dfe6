"""The site of `make docs`: built strictly, with a search index, and without anything from elsewhere."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from documents import ROOT

pytestmark = pytest.mark.nightly

MKDOCS = ROOT / ".venv" / "docs" / "bin" / "mkdocs"
LOADED = re.compile(
    r"<(?:script|img|source|iframe|video|audio|embed)[^>]*\ssrc=[\"']?([^\"' >]+)"
    r"|<link[^>]*rel=[\"']?(?:stylesheet|preload|preconnect|icon)[^>]*href=[\"']?([^\"' >]+)"
)
IN_STYLES = re.compile(r"url\([\"']?(https?:[^)\"']+)|@import\s+[\"'](https?:[^\"']+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not MKDOCS.exists():
        pytest.fail("no generator: run `make docs`")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [MKDOCS, "build", "--site-dir", folder], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_document_is_a_page(site: Path) -> None:
    for path in ROOT.glob("docs/*.md"):
        assert (site / "docs" / f"{path.stem}.html").exists(), path
    for name in ("index.html", "operator/index.html", "crds/examples/index.html", "tests/gpu/RESULTS.html"):
        assert (site / name).exists(), name


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = [one or other for one, other in LOADED.findall(page.read_text("utf-8"))]
        assert loaded
        assert [one for one in loaded if re.match(r"(https?:)?//", one)] == [], page
    for style in site.rglob("*.css"):
        assert IN_STYLES.findall(style.read_text("utf-8")) == [], style


def test_the_search_index_has_every_page(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text("utf-8"))
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert {"docs/faq.html", "docs/glossary.html", "docs/compatibility.html", "operator/index.html"} <= found


def test_a_warning_of_github_is_a_box(site: Path) -> None:
    page = (site / "docs" / "many-nodes.html").read_text("utf-8")
    assert re.search(r'class="admonition warning"', page)
    assert "[!WARNING]" not in page


def test_a_link_to_an_example_leads_to_its_place_on_the_page_of_examples(site: Path) -> None:
    assert 'href="../crds/examples/index.html#sft-then-dpoyaml"' in (site / "docs" / "objectives.html").read_text(
        "utf-8"
    )
