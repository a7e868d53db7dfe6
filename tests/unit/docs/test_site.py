"""The site's navigation; the site itself is built in `make nightly`."""

import ast
import re

from documents import ROOT


def documents() -> set[str]:
    """The documents that docs/site_pages.py takes; its generator is not installed here."""
    source = ast.parse((ROOT / "docs" / "site_pages.py").read_text("utf-8"))
    (value,) = (
        one.value for one in source.body if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == "PAGES"
    )
    patterns = eval(compile(ast.Expression(value), "site_pages.py", "eval"))
    return {path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern)}


def test_every_page_of_the_navigation_is_a_document_of_the_site() -> None:
    _, _, navigation = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")
    pages = set(re.findall(r"(\S+\.md)$", navigation, re.M))
    assert len(pages) > 30
    assert pages - documents() == {"crds/examples/README.md"}, "that one is generated"
