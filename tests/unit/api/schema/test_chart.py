"""The chart's README is made of its values: nothing without a comment, nothing that the schema does not know."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.schema.chart import readme


def chart(folder: Path, values: str, **properties: Any) -> Path:
    (folder / "values.yaml").write_text(values, encoding="utf-8")
    definitions = {"digest": {"type": "string"}}
    schema = {"type": "object", "properties": properties, "definitions": definitions}
    (folder / "values.schema.json").write_text(json.dumps(schema), encoding="utf-8")
    return folder


def rows(folder: Path) -> list[str]:
    return readme(folder).split("| --- |\n")[-1].splitlines()


def test_a_value_has_its_type_its_default_and_its_whole_comment(tmp_path: Path) -> None:
    values = "image:\n  # -- One line,\n  # and `a|b`.\n  digest: x\n# -- Level.\nlevel: A\n# -- Names.\nnames: []\n"
    image = {"type": "object", "properties": {"digest": {"$ref": "#/definitions/digest"}}}
    names = {"type": "array", "items": {"type": "string"}}
    assert rows(chart(tmp_path, values, image=image, level={"enum": ["A", "B"]}, names=names)) == [
        '| `image.digest` | string | `"x"` | One line, and `a\\|b`. |',
        '| `level` | `"A"` or `"B"` | `"A"` | Level. |',
        "| `names` | list of string | `[]` | Names. |",
    ]


def test_a_map_with_a_comment_is_one_value(tmp_path: Path) -> None:
    values = "# -- Amounts.\nresources:\n  limits: {memory: 1Gi}\n"
    resources = {"type": "object", "properties": {"limits": {"type": "object"}}}
    assert rows(chart(tmp_path, values, resources=resources)) == [
        '| `resources` | object | `{"limits": {"memory": "1Gi"}}` | Amounts. |'
    ]


@pytest.mark.parametrize("comment", ["", "# plain\n", "# -- Of another.\n\n"])
def test_a_value_without_a_comment_is_an_error_that_names_it(tmp_path: Path, comment: str) -> None:
    with pytest.raises(ValueError, match=r"^level has no comment"):
        readme(chart(tmp_path, f"{comment}level: A\n", level={"type": "string"}))


def test_a_value_that_the_schema_does_not_know_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^image\.level is not in"):
        readme(chart(tmp_path, "image:\n  # -- Level.\n  level: A\n", image={"type": "object", "properties": {}}))
