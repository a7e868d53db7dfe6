"""Check the schema and the rules of the API server without one; each fault has its field, value and fix."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import jsonschema
from pydantic import ValidationError

from finetune_api.crd import structural_schema
from finetune_api.spec import FineTuneJobSpec
from finetune_api.spec_rules import broken_rules
from finetune_api.yaml_document import FieldPath, drop_nulls
from kubectl_finetune.manifest.suggestions import elsewhere, nearest

KINDS = {
    "object": "a block of fields",
    "array": "a list",
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
}
_STEP = re.compile(r"[^.\[\]]+|\[\d+\]")


@dataclass(frozen=True)
class Fault:
    """A fault of one field of the spec."""

    path: FieldPath
    message: str
    fix: str = ""


def find_faults(spec: Any, written: dict[FieldPath, str]) -> list[Fault]:
    """Return every fault of the spec as kubectl sends it; rules are checked if the schema is satisfied."""
    spec = drop_nulls(spec)
    validator = jsonschema.Draft4Validator(_closed_schema())
    faults = [fault for error in validator.iter_errors(spec) for fault in _explain(error, written)]
    if faults:
        return list({fault.path: fault for fault in sorted(faults, key=_is_of_type)}.values())
    return list(dict.fromkeys(_broken(spec)))


def _is_of_type(fault: Fault) -> bool:
    """Return whether the fault is a wrong type; of two faults of a field it explains more, sorts last and wins."""
    return fault.message.startswith("must be a")


def _broken(spec: Any) -> Iterator[Fault]:
    try:
        parsed = FineTuneJobSpec.model_validate(spec)
    except ValidationError as error:
        for one in error.errors():
            yield Fault(("spec", *one["loc"]), one["msg"].removeprefix("Value error, "))
        return
    for line in broken_rules(parsed):
        place, _, message = line.partition(": ")
        what, _, fix = message.rpartition(": ")
        yield Fault(_as_path(place), what or message, fix if what else "")


def _as_path(place: str) -> FieldPath:
    return tuple(int(part[1:-1]) if part.startswith("[") else part for part in _STEP.findall(place))


@cache
def _closed_schema() -> dict[str, Any]:
    """Return the CRD's schema of the spec without unknown fields, as in kubectl's strict validation."""
    return _closed(structural_schema(FineTuneJobSpec))


def _closed(node: dict[str, Any]) -> dict[str, Any]:
    closed = dict(node)
    if "properties" in node:
        closed["properties"] = {key: _closed(child) for key, child in node["properties"].items()}
        closed["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            closed[key] = _closed(node[key])
    if node.get("x-kubernetes-list-type") == "set":
        closed["uniqueItems"] = True
    return closed


def _explain(error: Any, written: dict[FieldPath, str]) -> Iterator[Fault]:
    path: FieldPath = ("spec", *error.absolute_path)
    wanted, value = error.validator_value, error.instance
    match error.validator:
        case "additionalProperties":
            for key in value:
                if key not in error.schema.get("properties", {}):
                    yield Fault((*path, key), "is not a field", _suggest_field(key, error.schema["properties"], path))
        case "required":
            for key in wanted:
                if key not in value:
                    yield Fault((*path, key), "is missing", _description(error.schema["properties"][key]))
        case "type":
            fix = _other_type(wanted, value, written.get(path), error.schema.get("enum", ()))
            yield Fault(path, f"must be {KINDS[wanted]}, not {_kind(value)}", fix)
        case "anyOf":
            yield Fault(path, f"must be a number or a text, not {_kind(value)}", _description(error.schema))
        case "enum":
            allowed = [one if isinstance(one, str) else json.dumps(one) for one in wanted]
            near = nearest(str(value), allowed)
            yield Fault(path, f"must be one of {', '.join(allowed)}", f"did you mean {near}?" if near else "")
        case "pattern":
            yield Fault(path, "does not match the format of this field", _description(error.schema))
        case "minimum" | "maximum":
            yield Fault(path, _bound(error), _description(error.schema))
        case _:
            yield Fault(
                path,
                error.message if len(error.message) < 200 else f"breaks {error.validator}",
                _description(error.schema),
            )


def _suggest_field(key: str, properties: dict[str, Any], path: FieldPath) -> str:
    if near := nearest(key, properties):
        return f"did you mean {near}?"
    if place := elsewhere(key, structural_schema(FineTuneJobSpec), "spec"):
        return f"did you mean {place}?"
    where = ".".join(map(str, path))
    return (
        f"remove it; {where} has {', '.join(properties)}"
        if len(properties) <= 12
        else f"remove it; see kubectl explain finetunejob.{where}"
    )


def _other_type(wanted: str, value: Any, written: str | None, allowed: Iterable[str]) -> str:
    """Return how to write the value; YAML reads unquoted words such as `On` as true or false."""
    if isinstance(value, bool) and wanted == "string":
        word = written or str(value).lower()
        return f'YAML reads {word} as true or false: put it in quotes, "{nearest(word, allowed) or word}"'
    if isinstance(value, int | float) and wanted == "string":
        return f'put it in quotes: "{value if written is None else written}"'
    if isinstance(value, str) and wanted in {"integer", "number"} and re.fullmatch(r"[-+0-9.eE]+", value):
        return f"remove the quotes: {value}"
    if isinstance(value, str) and wanted == "boolean":
        return "write true or false, without quotes"
    return ""


def _bound(error: Any) -> str:
    is_least = error.validator == "minimum"
    is_open = error.schema.get("exclusiveMinimum" if is_least else "exclusiveMaximum")
    words = ("more than" if is_open else "at least") if is_least else ("less than" if is_open else "at most")
    return f"must be {words} {error.validator_value}"


def _kind(value: Any) -> str:
    for kind, name in ((bool, "true or false"), (dict, "a block of fields"), (list, "a list"), (str, "a text")):
        if isinstance(value, kind):
            return name
    return "a number" if value is not None else "nothing"


def _description(schema: dict[str, Any]) -> str:
    """Return the field's description."""
    return str(schema.get("description", ""))
