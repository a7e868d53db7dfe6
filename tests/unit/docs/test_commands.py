"""In the documentation every command is run by a test, every link has a target, and every manifest is valid."""

import re
from pathlib import Path
from typing import Any

import pytest
from documented import TABLES
from documents import ROOT, blocks, commands, documents, jobs, others

from finetune_api.spec import FineTuneJobSpec

MAKE = re.compile(r"^(?:eval \"\$\()?make (?P<words>[^)`]+)")
NEW_FILE = "trainer_image/src/finetune_trainer/training/methods/NAME.py"
MADE = sorted({found["words"] for command in commands() if (found := MAKE.match(command))})
SPAN = re.compile(r"`make ([^`]+)`")
LINK = re.compile(r"(?<!\\)\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def test_every_command_is_in_one_table_and_every_table_names_documented_commands() -> None:
    listed = [command for table in TABLES for command in table]
    found = {command: where for command, where in commands().items() if not MAKE.match(command)}
    assert {where: command for command, where in found.items() if command not in listed} == {}
    assert sorted(listed) == sorted(found)


def test_every_block_names_its_language_so_that_no_command_is_missed() -> None:
    assert [f"{block.document}:{block.line}" for block in blocks() if not block.language] == []
    assert not [block for block in blocks() if block.language in {"bash", "shell"}]


def test_every_make_command_has_its_target_and_its_variables() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE)) | {"kind-up", "kind-down", "kind-demo"}
    variables = set(re.findall(r"^([A-Z_]+) \?=", makefile, re.MULTILINE))
    spans = (words for path in documents() for words in SPAN.findall(path.read_text(encoding="utf-8")))
    for words in [*MADE, *spans]:
        for word in words.split():
            name, is_variable, _ = word.partition("=")
            assert word == "-s" or name in (variables if is_variable else targets), f"make {words}"


@pytest.mark.parametrize(("where", "job"), list(jobs()))
def test_a_job_of_the_documentation_is_valid(where: str, job: dict[str, Any]) -> None:
    assert FineTuneJobSpec.model_validate(job["spec"]), where


def test_other_objects_of_the_documentation_are_complete() -> None:
    for where, found in others():
        assert {"apiVersion", "kind"} <= set(found), where


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_has_a_target(path: Path) -> None:
    broken = []
    for link in LINK.findall(CODE.sub("", path.read_text(encoding="utf-8"))):
        name, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document: its own, and those that GitHub makes from headings."""
    text = path.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="([^"]+)"', text))


def test_every_file_that_the_recipes_name_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Recipes")[2]
    assert text
    names = set(re.findall(r"`([\w./-]+\.(?:py|j2|yaml|json))`", text)) - {NEW_FILE}
    known = {path.relative_to(ROOT).as_posix() for top in ("crds", "operator", "trainer_image", "tests", "helm")
             for path in (ROOT / top).rglob("*.*")}  # fmt: skip
    assert [name for name in names if not any(f"/{path}".endswith(f"/{name}") for path in known)] == []


def test_the_index_of_decisions_is_complete() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for path in (ROOT / "operator" / "decisions").glob("*.md"):
        title = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        assert f"| [{path.name[:4]}](../operator/decisions/{path.name}) | {title} |" in text
