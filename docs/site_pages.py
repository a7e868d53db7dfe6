"""Hook of mkdocs.yml: the site has the documents of the whole repository, at the paths that they have in it.

So a relative link leads to the same page on the site as in a checkout. Links to sources that the site does not have
become plain text.
"""

import importlib.util
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md", "crds/*.md"),
    *("operator/README.md", "operator/decisions/*.md", "trainer_image/README.md", "helm/*/README.md"),
    *("tests/README.md", "tests/cluster/cluster.md", "tests/*/RESULTS.md"),
)
ASSETS = ("docs/*.png", "docs/*.svg", "docs/pictures.json")
EXAMPLES = "crds/examples"
DIAGRAMS = "assets/mermaid.min.js"
CODE_OR_LINK = re.compile(r"(^```.*?^```$|`[^`\n]*`)|(?<!!)\[((?:`[^`\n]*`|[^\[\]`])*)\]\(([^)\s]+)\)", re.M | re.S)


def on_files(files: Files, config: Any) -> Files:
    """Take the documents of the repository in place of those of the folder docs."""
    found = [file for file in files if file.src_dir != config.docs_dir]
    for pattern in (*PAGES, *ASSETS):
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            found.append(File.generated(config, name, abs_src_path=str(path)))
    found.append(File.generated(config, f"{EXAMPLES}/README.md", content="".join(examples())))
    found.append(File.generated(config, DIAGRAMS, abs_src_path=str(script_of_diagrams())))
    return Files(found)


def script_of_diagrams() -> Path:
    """Return the script that draws Mermaid diagrams, which a package brings."""
    spec = importlib.util.find_spec("mermaidx")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("mermaidx is not installed: run make docs")
    return Path(spec.submodule_search_locations[0]) / "assets" / "mermaid.js"


def examples() -> Iterator[str]:
    """Yield the page of the examples, part by part."""
    yield "# Examples\n\nEach is complete; change the names of buckets and models.\n"
    for path in sorted((ROOT / EXAMPLES).rglob("*.yaml")):
        text = path.read_text(encoding="utf-8").strip()
        yield f"\n## {path.relative_to(ROOT / EXAMPLES).as_posix()}\n\n```yaml\n{text}\n```\n"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links to folders, examples and sources into links that the site has, or into text."""
    folder = posixpath.dirname(page.file.src_uri)

    def replaced(found: re.Match[str]) -> str:
        code, text, link = found.groups()
        if code or "://" in link or link.startswith(("#", "mailto:")):
            return found[0]
        name, mark, anchor = link.partition("#")
        target = posixpath.normpath(posixpath.join(folder, name))
        if files.get_file_from_path(target):
            return found[0]
        to = page_of(target, files)
        if not to:
            return text
        path, _, place = to.partition("#")
        relative = posixpath.relpath(path, folder or ".")
        return f"[{text}]({relative}{mark or ('#' if place else '')}{anchor or place})"

    text = CODE_OR_LINK.sub(replaced, markdown)
    if "```mermaid" in markdown:
        text += f'\n\n<script src="{posixpath.relpath(DIAGRAMS, folder or ".")}"></script>\n'
    return text


def page_of(target: str, files: Files) -> str:
    """Return the page that shows a folder or an example; "" if the site has none."""
    if target.startswith(EXAMPLES):
        example = target.removeprefix(EXAMPLES).strip("/")
        anchor = re.sub(r"[^\w\- ]", "", example.lower())
        return f"{EXAMPLES}/README.md#{anchor}" if example.endswith(".yaml") else f"{EXAMPLES}/README.md"
    readme = f"{target}/README.md"
    return readme if files.get_file_from_path(readme) else ""
