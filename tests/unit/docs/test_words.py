"""No text that a user or a contributor reads has a word that CONTRIBUTING.md replaces."""

import re
from pathlib import Path

import pytest
from documents import ROOT
from plain_words import find_words, in_text

SOURCES = ("crds/src", "operator/src", "trainer_image/src")
AREAS = {
    "the API": ("crds/src/**/*.py", "crds/*.yaml", "crds/*.md", "crds/examples/**/*.yaml"),
    "the operator": ("operator/src/finetune_operator/**/*.py",),
    "the client": ("operator/src/finetune_client/**/*.py",),
    "the plugin": ("operator/src/kubectl_finetune/**/*.py",),
    "the trainer": ("trainer_image/src/**/*.py",),
    "the report's templates": ("trainer_image/src/**/*.j2",),
    "the chart": ("helm/finetune-operator/**/*.*",),
    "the health check for Argo CD": ("helm/argocd/**/*.*",),
    "the guides": ("docs/*.md", "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"),
    "the operator's documents": ("operator/*.md", "operator/decisions/*.md", "operator/Dockerfile"),
    "the trainer's documents": ("trainer_image/README.md", "trainer_image/Dockerfile"),
    "the tests' documents": ("tests/*.md", "tests/*/*.md", "tests/unit/docs/*.py", "tests/fixtures/doc*.py"),
    "the tools": ("Makefile", "pyproject.toml", "kind-config.yaml", ".pre-commit-config.yaml", ".github/workflows/*"),
}
GLOSSARY = "CONTRIBUTING.md"
THIS = ("test_words.py",)


def texts(area: str) -> list[Path]:
    """Return the files of an area."""
    found = [path for pattern in AREAS[area] for path in sorted(ROOT.glob(pattern)) if path.is_file()]
    return [path for path in found if path.name not in THIS and "__pycache__" not in path.parts]


def words(path: Path) -> list[str]:
    """Return the place and the word of each finding; the glossary's own table is left out."""
    found = find_words(path)
    if path == ROOT / GLOSSARY:
        lines = path.read_text(encoding="utf-8").split("\n")
        first = lines.index("| not | but |") + 1
        last = lines.index("", first)
        found = [one for one in found if not first <= one.line <= last]
    return [f"{path.relative_to(ROOT)}:{one.line}: {one.word}: {one.text[:100]}" for one in found]


@pytest.mark.parametrize("area", AREAS)
def test_a_text_has_no_word_that_the_glossary_replaces(area: str) -> None:
    paths = texts(area)
    assert paths, "an area without files"
    assert [line for path in paths for line in words(path)] == []


def test_every_source_is_in_an_area() -> None:
    listed = {path for area in AREAS for path in texts(area)}
    sources = {path for folder in SOURCES for kind in ("py", "j2") for path in (ROOT / folder).rglob(f"*.{kind}")}
    assert sources - listed == set()


def glossary() -> list[str]:
    """Return the words of the glossary's left column."""
    table = (ROOT / GLOSSARY).read_text(encoding="utf-8").partition("| not | but |\n| --- | --- |\n")[2]
    rows = [line.split("|")[1] for line in table.partition("\n\n")[0].split("\n")]
    return [word.strip() for row in rows for word in row.replace(";", ",").split(",")]


def test_no_name_of_a_test_has_a_word_that_the_glossary_replaces() -> None:
    paths = sorted((ROOT / "tests").rglob("*.py"))
    names = {name for path in paths for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))}
    assert names
    assert sorted(name for name in names if in_text(name.replace("_", " "))) == []


@pytest.mark.parametrize("word", glossary())
def test_every_word_of_the_glossary_is_found(word: str) -> None:
    assert in_text(f"The operator {word} here.")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", '"""Return what the pod told."""\n'),
        ("a.py", 'raise ValueError(f"{1} told us")\n'),
        ("a.py", "x = 1  # the pod told us\n"),
        ("a.md", "The pod told us.\n"),
        ("a.md", "```yaml\n# the pod told us\na: 1\n```\n"),
        ("a.yaml", "description: the pod told us\n"),
        ("a.yaml", "description: the pod goes\n  on\n"),
        ("a.json", '{"title": "what the pod told"}\n'),
        ("a.j2", "The pod told {{ x }}\n"),
        ("NOTES.txt", "The pod told us\n"),
        ("Makefile", "all: ## what the pod told\n"),
    ],
)
def test_a_word_is_found_in_each_kind_of_file(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert len(find_words(tmp_path / name)) == 1


def test_code_and_names_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("The field `told`.\n\n```sh\ntold\n```\n")
    (tmp_path / "a.py").write_text("told = 1\n")
    assert not find_words(tmp_path / "a.md")
    assert not find_words(tmp_path / "a.py")
