"""Read YAML as kubectl does, with the place of every field and the keys that are given twice.

kubectl's reader is neither YAML 1.1 nor 1.2: `1e-4` is a number, `On` and `y` are true, `0o10` and `010` are eight.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from finetune_api.manifest.yaml_faults import YamlError, explain_fault, split_documents, tab_faults, without_tabs
from finetune_api.text.printable import printable

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
TAB = repr("\t")
"""A tab in the messages of the parser."""


class FileError(Exception):
    """A file cannot be read as a text."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


@dataclass
class YamlDocument:
    """One document: its value, the place of each field, and the fields that are given twice."""

    value: Any
    places: dict[FieldPath, tuple[int, int]] = field(default_factory=dict)
    """Line and column of each field, from 1."""
    duplicates: dict[FieldPath, int] = field(default_factory=dict)
    """Fields that are given twice, with the line of the first."""
    written: dict[FieldPath, str] = field(default_factory=dict)
    """Unquoted scalars as the file has them; kubectl may read them as something else."""
    path: FieldPath = ()
    """Place in the document that contains it, for an item of a List."""

    def place(self, path: FieldPath) -> tuple[int, int]:
        """Return line and column of a field, or of the nearest field around it that the document has."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, (1, 1))

    def line(self, path: FieldPath) -> int:
        """Return the line of a field, or of the nearest field around it that the document has."""
        return self.place(path)[0]

    def objects(self) -> "list[YamlDocument]":
        """Return the items of a List, or the document itself."""
        kind, items = (self.value.get("kind"), self.value.get("items")) if isinstance(self.value, dict) else ("", None)
        if not (isinstance(kind, str) and kind.endswith("List") and isinstance(items, list)):
            return [self]
        parts = [YamlDocument(item, path=(*self.path, "items", index)) for index, item in enumerate(items)]
        for name in ("places", "duplicates", "written"):
            for path, found in getattr(self, name).items():
                index = path[1] if len(path) > 1 and path[0] == "items" else None
                if isinstance(index, int) and index < len(parts):
                    getattr(parts[index], name)[path[2:]] = found
        return [one for part in parts for one in part.objects()]


def read_text(path: Path) -> str:
    """Return the text of a file; raise FileError if it is missing, too large or not UTF-8."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise FileError(f"{path} is larger than {MAX_BYTES // 1024**2} MiB", "give a file of settings, not of rows")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}", "check the path, and who may read it") from None
    except UnicodeDecodeError:
        raise FileError(f"{path} is not a text in UTF-8", "save it in UTF-8") from None


def read_documents(text: str) -> list[YamlDocument]:
    """Return every document that is not empty; raise YamlError with the first fault if the text is not YAML."""
    documents, faults = read_stream(text)
    if faults:
        raise faults[0]
    return documents


def read_stream(text: str) -> tuple[list[YamlDocument], list[YamlError]]:
    """Return every document that is not empty, and every fault; after a fault, the next document is read."""
    try:
        return list(_read(text)), []
    except YamlError as error:
        parts = list(split_documents(text))
        if len(parts) < 2:
            return _recover(text, 0, error)
    documents: list[YamlDocument] = []
    faults: list[YamlError] = []
    for lines, part in parts:
        found, wrong = _read_part(part, lines)
        documents += found
        faults += [fault.below(lines) for fault in wrong]
    return documents, faults


def _read_part(text: str, lines: int) -> tuple[list[YamlDocument], list[YamlError]]:
    try:
        return list(_read(text, lines)), []
    except YamlError as error:
        return _recover(text, lines, error)


def _recover(text: str, lines: int, error: YamlError) -> tuple[list[YamlDocument], list[YamlError]]:
    """Return the fault, or those of all lines with tabs and what the text is with spaces in their place."""
    tabs = list(tab_faults(text)) if TAB in error.problem else []
    if not tabs:
        return [], [error]
    documents, more = _read_part(without_tabs(text), lines)
    if text.lstrip().startswith("{"):  # JSON, in which tabs are allowed
        return documents, more
    return documents, tabs  # what is wrong now may follow from the replacement


def _read(text: str, lines: int = 0) -> Iterator[YamlDocument]:
    """Yield the documents of a text that begins after that number of lines."""
    loader = None
    try:
        loader = _Loader(text)
        while loader.check_node():
            node = loader.get_node()
            document = _Reader(loader, lines).read(node) if node else None
            if document and document.value is not None:
                yield document
    except yaml.YAMLError as error:
        raise explain_fault(error, text) from None
    finally:
        if loader:
            loader.dispose()


class _Loader(yaml.SafeLoader):
    """A loader that stops at nesting beyond the limit: its scanner takes quadratic time in the depth."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the next node with what it contains."""
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            problem = f"nested more than {MAX_DEPTH} deep"
            raise YamlError(problem, "remove the nesting", line=mark.line + 1, column=mark.column + 1)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Reader:
    """Turns the nodes of one document into values."""

    def __init__(self, loader: yaml.SafeLoader, lines: int) -> None:
        self._loader = loader
        self._lines = lines
        self._document = YamlDocument(None)
        self._nodes = 0

    def read(self, node: yaml.Node) -> YamlDocument:
        self._document.value = self._value(node, ())
        return self._document

    def _value(self, node: yaml.Node, path: FieldPath) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise YamlError("too many aliases: the document has no end", "write the values out")
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        if len(path) > MAX_DEPTH:
            problem = f"nested more than {MAX_DEPTH} deep: is an alias inside its own anchor?"
            raise YamlError(problem, "remove the alias", line=line, column=column)
        self._document.places.setdefault(path, (self._lines + line, column))
        if isinstance(node, yaml.MappingNode):
            return dict(self._pairs(node, path))
        if isinstance(node, yaml.SequenceNode):
            return [self._value(child, (*path, index)) for index, child in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.style is None and node.tag in TAGS:
            self._document.written[path] = node.value
            return read_scalar(node.value)
        return node.value

    def _pairs(self, node: yaml.MappingNode, path: FieldPath) -> Iterator[tuple[str, Any]]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            name = str(key.value)
            if name in seen and name != "<<":
                self._document.duplicates[(*path, name)] = seen[name]
            seen.setdefault(name, self._lines + key.start_mark.line + 1)
        self._loader.flatten_mapping(node)
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                line, column = key.start_mark.line + 1, key.start_mark.column + 1
                raise YamlError("a key must be a word", "put it in quotes", line=line, column=column)
            here = (*path, str(key.value))
            self._document.places[here] = (self._lines + key.start_mark.line + 1, key.start_mark.column + 1)
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
    """Return the number; None for a prefix without digits (`0x_`), and for one that 64 bits do not hold."""
    digits = text.replace("_", "")
    bare = digits.lstrip("+-")
    is_octal = len(bare) > 1 and bare[0] == "0" and bare.isdigit()
    try:
        whole = int(digits, 8) if is_octal else int(digits, 0)
    except ValueError:
        return None
    return whole if -(2**63) <= whole < 2**64 else None


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


def find_value(value: Any, path: Sequence[str | int]) -> Any:
    """Return the value of a field; None if it is not there."""
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return None
    return value


class _Dumper(yaml.SafeDumper):
    """Quotes every text that kubectl would read as something else, for example a job that is named `1e3`."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    if printable(text, lines=True) != text:
        return dumper.represent_scalar(TEXT, text, '"')  # the only style with escapes
    return dumper.represent_scalar(TEXT, text, None if read_scalar(text) == text else "'")


_Dumper.add_representer(str, _represent_text)


def write_document(value: Any) -> str:
    """Return the value as YAML that `read_documents` and kubectl read as the same value, and a terminal can show."""
    written = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return printable(written, lines=True)
