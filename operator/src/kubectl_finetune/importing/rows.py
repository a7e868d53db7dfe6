"""What a row of a format's table does with a key: carry it to a field, name it as lost, or refuse the file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_api.manifest.yaml_document import FieldPath
from kubectl_finetune.importing.draft import Draft, NotConverted

Row = Callable[[Draft, FieldPath, Any], None]
Table = Mapping[str, Row]
OFF: tuple[Any, ...] = (None, False, "", 0, "none", "None", "no", "false", [], {})
"""Values that switch something off, so that nothing is lost without it."""


@dataclass(frozen=True)
class Derived:
    """A function that derives fields from several keys, and these keys."""

    function: Callable[[Draft], None]
    keys: tuple[str, ...]
    follows_table: bool = False


@dataclass(frozen=True)
class Format:
    """The training files of one project."""

    name: str
    """As in `--from`."""
    title: str
    signs: frozenset[str]
    """Keys that no other format has."""
    table: Table
    """By key; a key that ends in `*` matches every name with that beginning."""
    derived: tuple[Derived, ...]
    """In this order, before the table if they do not follow it."""
    defaults: Mapping[str, Any]
    texts: frozenset[str] = frozenset()
    """Keys whose value may look like a template."""
    nulls: Mapping[str, Any] = field(default_factory=dict)
    """By key: the value that null is, if it is not the default."""

    @property
    def derived_keys(self) -> frozenset[str]:
        """The keys that the derived fields use."""
        return frozenset(key for one in self.derived for key in one.keys)


def derived(function: Callable[[Draft], None], keys: str, *, follows_table: bool = False) -> Derived:
    """Return a derivation from the keys, which are separated by spaces."""
    return Derived(function, tuple(keys.split()), follows_table)


def to(field: str, read: Callable[[Any], Any]) -> Row:
    """Carry the value to a field of the spec; None leaves the field out."""

    def carry(draft: Draft, path: FieldPath, value: Any) -> None:
        try:
            converted = read(value)
        except NotConverted as error:
            draft.lose(path, error.reason, error.fix, changes_training=error.changes_training)
            return
        if converted is not None:
            draft.set(field, converted, path)

    return carry


def lost(reason: str, fix: str = "", *, unless: tuple[Any, ...] = ()) -> Row:
    """Name the key as not carried, which changes the training; `unless` are all values with which nothing changes, in
    place of those that switch something off: where the default is on, these change it."""
    return _name_loss(reason, fix, unless, changes_training=True)


def harmless(reason: str, fix: str = "", *, unless: tuple[Any, ...] = ()) -> Row:
    """Name the key as not carried, without an effect on the training."""
    return _name_loss(reason, fix, unless, changes_training=False)


def _name_loss(reason: str, fix: str, unless: tuple[Any, ...], *, changes_training: bool) -> Row:
    def name(draft: Draft, path: FieldPath, value: Any) -> None:
        if value not in (unless or OFF):
            draft.lose(path, reason, fix, changes_training=changes_training)

    return name


def refused(reason: str, fix: str = "", *, unless: tuple[Any, ...] = ()) -> Row:
    """Refuse a file with this key."""

    def refuse(draft: Draft, path: FieldPath, value: Any) -> None:
        if not is_off(value) and value not in unless:
            draft.refuse(path, reason, fix)

    return refuse


def each(row: Row, keys: str) -> dict[str, Row]:
    """Return this row for each of the keys, which are separated by spaces."""
    return dict.fromkeys(keys.split(), row)


def is_off(value: Any) -> bool:
    """Return whether the value switches something off."""
    return value in OFF
