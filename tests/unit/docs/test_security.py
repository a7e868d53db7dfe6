"""SECURITY.md names tests; each of them exists, and every guarantee has one."""

import ast
import re
from pathlib import Path

from finetune_operator.settings import Settings

TESTS = Path(__file__).parents[2]
TEXT = (TESTS.parent / "SECURITY.md").read_text(encoding="utf-8")
FOLDERS = {"u": "unit", "i": "integration", "h": "hostile", "e": "e2e"}


def defined(path: Path) -> set[str]:
    """Return the functions at the top level of a file."""
    nodes = ast.parse(path.read_text(encoding="utf-8")).body if path.exists() else []
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_test_that_a_guarantee_names_exists() -> None:
    found = re.findall(r"`([uihe])/([\w/]+\.py)::(\w+)`", TEXT)
    assert len(found) > 40
    missing = [f"{path}::{name}" for folder, path, name in found if name not in defined(TESTS / FOLDERS[folder] / path)]
    assert missing == []


def test_every_guarantee_names_a_test() -> None:
    table = TEXT.split("| guarantee | tests |\n| --- | --- |\n", 1)[1].split("\n\n", 1)[0]
    assert [line for line in table.splitlines() if "::test_" not in line] == []


def test_every_allow_list_is_listed_with_its_default() -> None:
    lists = {f"FINETUNE_{name.upper()}" for name in Settings.model_fields if name.startswith("allowed_")}
    expanded = TEXT.replace("`…_", "`FINETUNE_ALLOWED_")
    assert [name for name in sorted(lists) if f"`{name}`" not in expanded] == []
