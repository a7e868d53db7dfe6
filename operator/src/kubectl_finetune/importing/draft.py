"""The spec that an import builds, where each of its fields comes from, and what could not be carried."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_api.manifest.yaml_document import FieldPath, find_value, join_path
from kubectl_finetune.importing.files import TrainingFile, has_secret

Key = str | FieldPath
"""A key of the training file: its name, or its path if it is inside another one."""


@dataclass(frozen=True)
class Options:
    """What the user gives in place of values that the file cannot have."""

    name: str = ""
    model: str = ""
    data: str = ""
    validation: str = ""
    result: str = ""
    objective: str = ""
    gpus: int | None = None


@dataclass(frozen=True)
class NotCarried:
    """A key of the training file that the manifest does not have, or has with a different meaning."""

    key: str
    line: int
    value: str
    reason: str
    fix: str
    changes_training: bool


@dataclass(frozen=True)
class ToFillIn:
    """A field of the manifest with a placeholder."""

    field: str
    key: str
    value: str
    fix: str


class NotConverted(Exception):  # noqa: N818 - named after the failure
    """A value has no counterpart."""

    def __init__(self, reason: str, fix: str = "", *, changes_training: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.fix, self.changes_training = reason, fix, changes_training


@dataclass
class Draft:
    """The state of one import."""

    file: TrainingFile
    options: Options
    defaults: Mapping[str, Any]
    """Values that the other project uses for keys that the file does not have."""
    spec: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    """By the path of a field of the spec: the key that it comes from."""
    losses: list[NotCarried] = field(default_factory=list)
    refusals: list[NotCarried] = field(default_factory=list)
    placeholders: list[ToFillIn] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    """Keys that are derived for this objective, and that the table need not look at."""

    def get(self, key: str) -> Any:
        """Return the value of a key, or the other project's default."""
        value = self.file.values.get(key)
        return self.defaults.get(key) if value is None else value

    def is_given(self, *keys: str) -> bool:
        """Return whether the file has one of these keys with a value."""
        return any(self.file.values.get(key) is not None for key in keys)

    def is_null(self, key: str) -> bool:
        """Return whether the file has this key with null, which may differ from the other project's default."""
        return key in self.file.values and self.file.values[key] is None

    def at(self, field_path: str) -> Any:
        """Return the value of a field of the spec; None if it is not set."""
        return find_value(self.spec, field_path.split("."))

    def set(self, field_path: str, value: Any, key: Key) -> None:
        """Set a field of the spec; a text with a token or a password is not copied."""
        if isinstance(value, str) and has_secret(value):
            self.lose(key, "a secret does not belong in a manifest, and is not copied", "give it in a Secret")
            return
        *blocks, name = field_path.split(".")
        block = self.spec
        for part in blocks:
            block = block.setdefault(part, {})
        block[name] = value
        self.origins[field_path] = self.name(key)

    def lose(self, key: Key, reason: str, fix: str = "", *, changes_training: bool = True) -> None:
        """Record a key that is not carried."""
        self.losses.append(self._entry(key, reason, fix, changes_training=changes_training))

    def refuse(self, key: Key, reason: str, fix: str = "") -> None:
        """Record a key that no FineTuneJob can express: the file is not imported."""
        self.refusals.append(self._entry(key, reason, fix, changes_training=True))

    def fill_in(self, field_path: str, value: str, key: Key, fix: str) -> None:
        """Record that a field has a placeholder."""
        name = self.name(key)
        shown = "-" if name.endswith(" (default)") else name
        self.placeholders.append(ToFillIn(f"spec.{field_path}", shown, value, fix))

    def name(self, key: Key) -> str:
        """Return a key as messages show it, and that it is a default if the file does not have it."""
        path = key if isinstance(key, tuple) else (key,)
        is_own = path[0] in self.file.values or str(path[0]).startswith("--")
        return join_path(path) + ("" if is_own else " (default)")

    def _entry(self, key: Key, reason: str, fix: str, *, changes_training: bool) -> NotCarried:
        path = key if isinstance(key, tuple) else (key,)
        value = self.file.shown(path)
        return NotCarried(self.name(key), self.file.line(path), value, reason, fix, changes_training)
