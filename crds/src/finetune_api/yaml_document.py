"""Read YAML as kubectl does, with the line of every field and the keys that are given twice.

kubectl's reader is neither YAML 1.1 nor 1.2: `1e-4` is a number, `On` and `y` are true, `0o10` and `010` are eight.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

FieldPath = tuple[str | int, ...]
TRUE = {"y", "yes", "on", "true"}
FALSE = {"n", "no", "off", "false"}
NULL = {"", "~", "null", "Null", "NULL"}
FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
INTEGER = re.compile(r"^[-+]?(0|[1-9][0-9_]*|0[0-7_]+|0[oO][0-7_]+|0[xX][0-9a-fA-F_]+|0[bB][01_]+)$")
TEXT = "tag:yaml.org,2002:str"
TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "null", "timestamp", "merge", "value", "str")}
MAX_BYTES = 4 * 1024 * 1024
MAX_NODES = 100_000
MAX_DEPTH = 100


class YamlError(Exception):
    """A text is not YAML, or exceeds a limit; the message begins with the line where one is known."""


class FileError(Exception):
    """A file cannot be read as a text."""


@dataclass
class YamlDocument:
    """One document: its value, the line (from 1) of each field, and the fields that are given twice."""

    value: Any
    lines: dict[FieldPath, int] = field(default_factory=dict)
    duplicates: list[FieldPath] = field(default_factory=list)
    written: dict[FieldPath, str] = field(default_factory=dict)
    """Unquoted scalars as the file has them; kubectl may read them as something else."""

    def line(self, path: FieldPath) -> int:
        """Return the line of a field, or of the nearest field around it that the document has."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read_text(path: Path) -> str:
    """Return the text of a file; raise FileError if it is missing, too large or not UTF-8."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise FileError(f"{path} is larger than {MAX_BYTES // 1024**2} MiB")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise FileError(f"{path} is not a text in UTF-8") from None


def read_documents(text: str) -> list[YamlDocument]:
    """Return every document that is not empty; raise YamlError if the text is not YAML."""
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
        raise YamlError(f"{place}{getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise YamlError(f"nested more than {MAX_DEPTH} deep") from None
    finally:
        loader.dispose()
    return found


class _Reader:
    """Turns the nodes of one document into values."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self._loader = loader
        self._document = YamlDocument(None)
        self._nodes = 0

    def read(self, node: yaml.Node) -> YamlDocument:
        self._document.value = self._value(node, ())
        return self._document

    def _value(self, node: yaml.Node, path: FieldPath) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise YamlError("too many aliases: the document has no end")
        line = node.start_mark.line + 1
        if len(path) > MAX_DEPTH:
            raise YamlError(f"line {line}: nested more than {MAX_DEPTH} deep: is an alias inside its own anchor?")
        self._document.lines.setdefault(path, line)
        if isinstance(node, yaml.MappingNode):
            return dict(self._pairs(node, path))
        if isinstance(node, yaml.SequenceNode):
            return [self._value(child, (*path, index)) for index, child in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.style is None and node.tag in TAGS:
            self._document.written[path] = node.value
            return read_scalar(node.value)
        return node.value

    def _pairs(self, node: yaml.MappingNode, path: FieldPath) -> Iterator[tuple[str, Any]]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen and name != "<<":
                self._document.duplicates.append((*path, name))
            seen.add(name)
        self._loader.flatten_mapping(node)
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise YamlError(f"line {key.start_mark.line + 1}: a key must be a word")
            here = (*path, str(key.value))
            self._document.lines[here] = key.start_mark.line + 1
            yield str(key.value), self._value(child, here)


def read_scalar(text: str) -> Any:
    """Return the value that kubectl reads from an unquoted scalar."""
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
    """Return the number; None for a prefix without digits (`0x_`) and for more digits than a number has."""
    digits = text.replace("_", "")
    bare = digits.lstrip("+-")
    is_octal = len(bare) > 1 and bare[0] == "0" and bare.isdigit()
    try:
        return int(digits, 8) if is_octal else int(digits, 0)
    except ValueError:
        return None


def drop_nulls(value: Any) -> Any:
    """Return the value without the fields that are null, as the API server stores it."""
    if isinstance(value, dict):
        return {key: drop_nulls(child) for key, child in value.items() if child is not None}
    return [drop_nulls(child) for child in value] if isinstance(value, list) else value


def join_path(path: FieldPath) -> str:
    """Return the path as messages show it: `spec.evaluation.prompts[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


class _Dumper(yaml.SafeDumper):
    """Quotes every text that kubectl would read as something else, for example a job that is named `1e3`."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar(TEXT, text, None if read_scalar(text) == text else "'")


_Dumper.add_representer(str, _represent_text)


def write_document(value: Any) -> str:
    """Return the value as YAML that `read_documents` and kubectl read as the same value."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))
