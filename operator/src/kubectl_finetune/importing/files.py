"""Read a training file: its values, the line of each, and texts for messages, in which secrets are hidden."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import yaml

from finetune_api.manifest.yaml_document import FieldPath, YamlDocument, find_value, read_documents
from finetune_api.manifest.yaml_faults import YamlError
from finetune_api.text.printable import printable
from finetune_client.errors import FineTuneError

LONGEST = 48
HIDDEN = "(hidden)"
PLAIN_TAGS = {"str", "int", "float", "bool", "null", "seq", "map"}
_SECRET_NAME = re.compile(
    r"((api|wandb|access|private)_?key|passw(or)?d|passphrase|secret|credential|webhook)s?($|_)"
    r"|(^|_)(auth|access|hub|hf|ms|om|wandb|user|api|bot|session|tracking|refresh|bearer)_?token$|^(token|bearer)$",
    re.IGNORECASE,
)
_SECRET_TEXT = re.compile(r"\b(hf_|sk-|gh[a-z]_|AKIA)[A-Za-z0-9_-]{6,}|(?<=://)[^/@\s]+(?=@)")
_TEMPLATE = re.compile(r"\{\{|\{%|\$\{")


@dataclass(frozen=True)
class TrainingFile:
    """A training file of another project."""

    name: str
    document: YamlDocument
    values: dict[str, Any]

    def line(self, path: FieldPath) -> int:
        """Return the line of a key; 0 if the file does not have it."""
        return self.document.line(path) if path[0] in self.values else 0

    def shown(self, path: FieldPath) -> str:
        """Return the value of a key for a message: short, in one line, without secrets."""
        value = find_value(self.values, path)
        return show(value, str(path[-1])) if value is not None else ""

    def templates(self) -> Iterator[FieldPath]:
        """Yield the keys whose value is a template that another program has to fill in."""
        for path, text in _texts(self.values, ()):
            if _TEMPLATE.search(text):
                yield path


def read_training_file(name: str, text: str) -> TrainingFile:
    """Return the file; raise FineTuneError if it is not one document of plain values."""
    try:
        documents = read_documents(text)
        _require_plain_tags(text)
    except YamlError as error:
        place = f"{name}:{error.line or 1}"
        raise FineTuneError(f"{place}: is not YAML: {error.problem}", error.fix) from None
    if len(documents) != 1 or not isinstance(documents[0].value, dict):
        raise FineTuneError(f"{name} is not one YAML or JSON object", "give the training file itself, one for each job")
    return TrainingFile(name, documents[0], documents[0].value)


def _require_plain_tags(text: str) -> None:
    """Refuse tags such as `!!python/name:os.system`, which the reader takes as plain text."""
    with suppress(yaml.YAMLError):  # JSON with tabs, which has no tags
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.TagToken) and token.value[1] not in PLAIN_TAGS:
                mark = token.start_mark
                problem = f"the tag {printable(''.join(part or '' for part in token.value))} is not allowed"
                raise YamlError(problem, "write a plain value", line=mark.line + 1, column=mark.column + 1)


def is_secret(name: str, value: Any) -> bool:
    """Return whether the value of a key with this name is a secret; a switch such as `use_auth_token: true` is not."""
    return bool(_SECRET_NAME.search(name)) and not isinstance(value, bool)


def show(value: Any, name: str = "") -> str:
    """Return a value for a message."""
    if is_secret(name, value):
        return HIDDEN
    text = value if isinstance(value, str) else json.dumps(_hide(value), ensure_ascii=False, default=str)
    text = printable(hide_secrets(text))
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def hide_secrets(text: str) -> str:
    """Return the text without tokens, and without the passwords of URLs."""
    return _SECRET_TEXT.sub(HIDDEN, text)


def has_secret(text: str) -> bool:
    """Return whether a text contains a token, or a URL with a password."""
    return bool(_SECRET_TEXT.search(text))


def _hide(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: HIDDEN if is_secret(key, one) else _hide(one) for key, one in value.items()}
    return [_hide(one) for one in value] if isinstance(value, list) else value


def _texts(value: Any, path: FieldPath) -> Iterator[tuple[FieldPath, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _texts(one, (*path, key))
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from _texts(one, (*path, index))
