"""docs/survival.md names tests; each of them exists."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[2]
FOLDERS = {"u": "unit", "i": "integration", "h": "hostile", "e": "e2e"}


def named() -> list[tuple[str, str]]:
    text = (TESTS.parent / "docs" / "survival.md").read_text(encoding="utf-8")
    found = re.findall(r"`([uihe])/([\w/]+\.py)::(\w+)`", text)
    return [(f"{FOLDERS[folder]}/{path}", name) for folder, path, name in found]


def defined(path: Path) -> set[str]:
    """Return what a file defines or assigns at its top level."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def test_every_test_that_the_table_names_exists() -> None:
    missing = [
        f"{path}::{name}" for path, name in named() if not (TESTS / path).exists() or name not in defined(TESTS / path)
    ]
    assert missing == []


def test_every_row_names_a_test_and_no_row_comes_twice() -> None:
    rows = [
        line for line in (TESTS.parent / "docs" / "survival.md").read_text(encoding="utf-8").splitlines()
        if re.match(r"\| \d+ \|", line)
    ]  # fmt: skip
    numbers = [int(line.split("|")[1]) for line in rows]
    assert numbers == sorted(set(numbers))
    assert all("::test_" in line for line in rows)
