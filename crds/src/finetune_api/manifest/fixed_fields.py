"""Fields of the spec that are fixed at creation: the rules that keep them, and what of them a digest covers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from finetune_api.blocks import Block, cel

FROZEN = "is fixed when the job is created"
INSTEAD = "create a new FineTuneJob with another name and output.uri instead"


@dataclass(frozen=True)
class FixedField:
    """A field of the spec that cannot change after creation."""

    name: str
    """Its name in a manifest."""
    is_optional: bool = False
    """Whether it may be absent, also after the API server has filled in defaults."""
    block: type[Block] | None = None
    """Its type, if parts of it can change."""
    but: tuple[str, ...] = ()
    """These parts, by their path below it."""

    def rule(self) -> dict[str, Any]:
        """Return the rule that refuses a change: of the field itself, or, if it may be absent, of the spec, because a
        rule of the field would not see that it is removed."""
        but = f", except {' and '.join(self.but)}" if self.but else ""
        message = f"{self.name} {FROZEN}{but}: {INSTEAD}"
        if self.is_optional:
            return cel(" && ".join(self._comparisons()), message, f".{self.name}")
        # The API server evaluates it at every write of the status. A rule of the field reads no field of the spec: each
        # read copies the schemas of all.
        same = "self == oldSelf"
        if self.block:
            parts = " && ".join(is_unchanged(path, given) for path, given in _parts(self.block, "", [], self.but))
            same = f"{same} || ({parts})"
        return cel(same, message)

    def dump(self, spec: BaseModel) -> Any:
        """Return what is fixed of the field, without default values; None if it is absent or has its default."""
        names = {field.alias: name for name, field in type(spec).model_fields.items()}
        key = names[self.name]
        found = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, include={key}).get(self.name)
        if self.but and isinstance(found, dict):
            for path in self.but:
                _remove(found, path.split("."))
            return found or None
        return found

    def _comparisons(self) -> Iterator[str]:
        if self.block is None:
            yield is_unchanged(self.name, [self.name])
        else:
            for path, given in _parts(self.block, self.name, [self.name], [f"{self.name}.{one}" for one in self.but]):
                yield is_unchanged(path, given)


def is_unchanged(path: str, optional: Sequence[str]) -> str:
    """Return the CEL comparison of a field with its old value; `optional` are the paths on the way that may be absent,
    from the first."""
    same = f"self.{path} == oldSelf.{path}"
    if not optional:
        return same
    new, old = (" && ".join(f"has({root}.{one})" for one in optional) for root in ("self", "oldSelf"))
    return (
        f"({new}) == ({old}) && (!({new}) || {same})" if len(optional) > 1 else f"{new} == {old} && (!{new} || {same})"
    )


def _parts(
    block: type[Block], path: str, optional: Sequence[str], but: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    """Yield path and optional ancestors of every part that is fixed; a block without exceptions is one part."""
    for field in block.model_fields.values():
        here = f"{path}.{field.alias}" if path else str(field.alias)
        given = [*optional] if field.is_required() or field.get_default() is not None else [*optional, here]
        if here in but:
            continue
        if any(one.startswith(f"{here}.") for one in but):
            yield from _parts(_block_of(field), here, given, but)
        else:
            yield here, given


def _block_of(field: FieldInfo) -> type[Block]:
    """Return the type of a block that may be optional."""
    options = get_args(field.annotation) or (field.annotation,)
    return next(one for one in options if isinstance(one, type) and issubclass(one, Block))


def _remove(found: dict[str, Any], path: Sequence[str]) -> None:
    """Remove what is at a path."""
    *blocks, name = path
    for block in blocks:
        inner = found.get(block)
        if not isinstance(inner, dict):
            return
        found = inner
    found.pop(name, None)
