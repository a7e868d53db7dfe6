"""A YAML file as kubectl reads it, with the line of every field and the keys that stand twice.

kubectl's reader is neither YAML 1.1 nor 1.2: `1e-4` is a number, `On` and `y` are true, `0o10` and `010` are eight.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from kubectl_finetune.errors import PluginError

FieldPath = tuple[str | int, ...]
TRUE = {"y", "yes", "on", "true"}
FALSE = {"n", "no", "off", "false"}
NULL = {"", "~", "null", "Null", "NULL"}
FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
INTEGER = re.compile(r"^[-+]?(0|[1-9][0-9_]*|0[0-7_]+|0[oO][0-7_]+|0[xX][0-9a-fA-F_]+|0[bB][01_]+)$")
TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "null", "timestamp", "merge", "value")}
MAX_NODES = 100_000
MAX_DEPTH = 100


@dataclass
class Document:
    """One document: its value, the line (from 1) of each field, and the fields that are given twice."""

    value: Any
    lines: dict[FieldPath, int] = field(default_factory=dict)
    twice: list[FieldPath] = field(default_factory=list)
    written: dict[FieldPath, str] = field(default_factory=dict)
    """Plain scalars as they stand in the file, which may be read as something else."""

    def line(self, path: FieldPath) -> int:
        """The line of a field, or of the nearest one around it that is there."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read_documents(text: str) -> list[Document]:
    """Every document that is not empty; raises where the text is no YAML."""
    loader = yaml.SafeLoader(text)
    found = []
    try:
        while loader.check_node():
            node = loader.get_node()
            document = _Reader(loader).read(node) if node else None
            if document and document.value is not None:
                found.append(document)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise PluginError(f"{place}{getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise PluginError(f"nested more than {MAX_DEPTH} deep") from None
    finally:
        loader.dispose()
    return found


class _Reader:
    """Turns the nodes of one document into values."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self._loader = loader
        self._document = Document(None)
        self._nodes = 0

    def read(self, node: yaml.Node) -> Document:
        self._document.value = self._value(node, ())
        return self._document

    def _value(self, node: yaml.Node, path: FieldPath) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise PluginError("too many aliases: the document has no end")
        line = node.start_mark.line + 1
        if len(path) > MAX_DEPTH:
            raise PluginError(f"line {line}: nested more than {MAX_DEPTH} deep: is an alias inside its own anchor?")
        self._document.lines.setdefault(path, line)
        if isinstance(node, yaml.MappingNode):
            return dict(self._pairs(node, path))
        if isinstance(node, yaml.SequenceNode):
            return [self._value(child, (*path, index)) for index, child in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.style is None and node.tag in TAGS | {"tag:yaml.org,2002:str"}:
            self._document.written[path] = node.value
            return scalar(node.value)
        return node.value

    def _pairs(self, node: yaml.MappingNode, path: FieldPath) -> Iterator[tuple[str, Any]]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen and name != "<<":
                self._document.twice.append((*path, name))
            seen.add(name)
        self._loader.flatten_mapping(node)
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise PluginError(f"line {key.start_mark.line + 1}: a key must be a word")
            here = (*path, str(key.value))
            self._document.lines[here] = key.start_mark.line + 1
            yield str(key.value), self._value(child, here)


def scalar(text: str) -> Any:
    """What kubectl makes of a plain scalar."""
    if text in NULL:
        return None
    cases = {text.lower(), text.capitalize(), text.upper()}
    if text.lower() in TRUE | FALSE and text in cases:
        return text.lower() in TRUE
    if INTEGER.match(text) and (whole := _integer(text)) is not None:
        return whole
    if text[0] != "_" and FLOAT.match(text.replace("_", "")) and math.isfinite(float(text.replace("_", ""))):
        number = float(text.replace("_", ""))
        return int(number) if number.is_integer() and abs(number) < 1e21 else number
    return text


def _integer(text: str) -> int | None:
    """The number; None where nothing but a prefix is there (`0x_`), or more digits than a number has."""
    digits = text.replace("_", "")
    bare = digits.lstrip("+-")
    is_octal = len(bare) > 1 and bare[0] == "0" and bare.isdigit()
    try:
        return int(digits, 8) if is_octal else int(digits, 0)
    except ValueError:
        return None
