"""Generate the chart's README: a row for each value, from `values.yaml` and `values.schema.json`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HEAD = """\
# finetune-operator

Generated from `values.yaml` and `values.schema.json` by `make generate`; do not edit. [For the platform
engineer](../../docs/platform.md) describes how to install, upgrade and remove the chart. A value that is not here is
refused, except `global`, `enabled` and `tags`, which only [an umbrella
chart](../../docs/install.md#in-an-umbrella-chart) uses.

| value | type | default | meaning |
| --- | --- | --- | --- |
"""
MARK = "# -- "


@dataclass(frozen=True)
class Value:
    """A value that a user may set."""

    path: str
    default: Any
    meaning: str
    type: str


class Reader:
    """Reader of the values of a chart."""

    def __init__(self, folder: Path) -> None:
        self._text = (folder / "values.yaml").read_text(encoding="utf-8")
        self._lines = self._text.splitlines()
        self._schema = json.loads((folder / "values.schema.json").read_text(encoding="utf-8"))

    def values(self) -> list[Value]:
        """Return all values in order; raise ValueError for one without a comment or a schema."""
        root = yaml.compose(self._text, Loader=yaml.SafeLoader)
        return list(self._walk(root, yaml.safe_load(self._text), self._schema, ""))

    def _walk(self, node: Any, defaults: Any, schema: dict[str, Any], path: str) -> Iterator[Value]:
        """Yield values as deep as the schema names properties; a map with a comment of its own is one value."""
        for key, child in node.value:
            here = f"{path}.{key.value}" if path else key.value
            if key.value not in schema["properties"]:
                raise ValueError(f"{here} is not in values.schema.json")
            named = self._resolved(schema["properties"][key.value])
            comment = self._comment_above(key.start_mark.line)
            if comment:
                yield Value(here, defaults[key.value], comment, self._type(named))
            elif "properties" in named:
                yield from self._walk(child, defaults[key.value], named, here)
            else:
                raise ValueError(f"{here} has no comment that begins with `{MARK}` in values.yaml")

    def _resolved(self, node: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self._schema["definitions"][node["$ref"].rsplit("/", 1)[-1]] if "$ref" in node else node
        return found

    def _comment_above(self, number: int) -> str:
        """Return the comment that ends above that line, from its mark on; "" when it has none."""
        found: list[str] = []
        while number and (line := self._lines[number - 1].strip()).startswith("#"):
            found.insert(0, line.removeprefix(MARK).removeprefix("# "))
            if line.startswith(MARK):
                return " ".join(found)
            number -= 1
        return ""

    def _type(self, node: dict[str, Any]) -> str:
        if "enum" in node:
            return " or ".join(f"`{json.dumps(one)}`" for one in node["enum"])
        if node["type"] == "array":
            return f"list of {self._type(self._resolved(node['items']))}"
        return " or ".join([node["type"]] if isinstance(node["type"], str) else node["type"])


def readme(folder: Path) -> str:
    """Return the README of the chart in that folder."""
    return HEAD + "".join(_row(value) for value in Reader(folder).values())


def _row(value: Value) -> str:
    cells = (f"`{value.path}`", value.type, f"`{json.dumps(value.default)}`", value.meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"
