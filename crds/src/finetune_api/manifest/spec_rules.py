"""Check the CEL rules of the CRD without an API server.

Path and message of a rule come from the types; only its condition is repeated in Python, in `rule_conditions`.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from pydantic import BaseModel

from finetune_api.blocks import AT_CREATION
from finetune_api.manifest.rule_conditions import COMBINED, CONDITIONS


class BrokenRule(NamedTuple):
    """A rule that a spec breaks."""

    path: str
    message: str
    rule: str
    """The CEL text."""

    def text(self) -> str:
        """Return the field's path and the message, which names the fix."""
        return f"{self.path}: {self.message}"


def broken_rules(spec: BaseModel) -> list[BrokenRule]:
    """Return every rule that the spec breaks."""
    return [
        BrokenRule(path + below, message, rule["rule"])
        for path, rule, value in find_rules(spec, "spec")
        for below, message in _find_faults(rule, value)
    ]


def find_rules(block: BaseModel, path: str) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Yield every rule on a block, its fields and the blocks below, with the path and the value of what has it."""
    for rule in _rules(block.model_config.get("json_schema_extra")):
        yield path, rule, block
    for name, alias, rules in _fields(type(block)):
        value, here = getattr(block, name), f"{path}.{alias}"
        if value is None:
            continue
        for rule in rules:
            yield here, rule, value
        if isinstance(value, BaseModel):
            yield from find_rules(value, here)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from find_rules(item, f"{here}[{index}]")


def _find_faults(rule: dict[str, Any], value: Any) -> Iterator[tuple[str, str]]:
    """Yield the path below the block and the message. Rules about a change hold: at creation there is no old object."""
    text = str(rule["rule"]).removeprefix(AT_CREATION)
    if text in COMBINED:
        yield from COMBINED[text](value)
    elif "oldSelf" not in text and not CONDITIONS[text](value):
        yield rule.get("fieldPath", ""), rule["message"]


@cache
def _fields(block: type[BaseModel]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Return name, alias and rules of each field of a block."""
    return [
        (name, field.alias or name, [rule for extra in _extras(field) for rule in _rules(extra)])
        for name, field in block.model_fields.items()
    ]


def _extras(field: Any) -> list[Any]:
    return [field.json_schema_extra, *(getattr(one, "json_schema_extra", None) for one in field.metadata)]


def _rules(extra: object) -> list[dict[str, Any]]:
    return extra.get("x-kubernetes-validations", []) if isinstance(extra, dict) else []
