"""Check the schema and the rules of the API server without one; each fault has its field, value and fix."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jsonschema
import yaml
from pydantic import ValidationError

from finetune_api import names
from finetune_api.blocks import Block
from finetune_api.manifest.foreign_names import explain_foreign, plain_name
from finetune_api.manifest.former_names import current_name, current_word, rename_former
from finetune_api.manifest.preflight_rules import find_preflight_faults
from finetune_api.manifest.spec_rules import broken_rules
from finetune_api.manifest.yaml_document import FieldPath, drop_nulls, read_scalar, write_document
from finetune_api.release import FineTuneReleaseSpec
from finetune_api.schema.crd import structural_schema
from finetune_api.spec import FineTuneJobSpec
from finetune_client.manifest import fixes
from finetune_client.manifest.repair import KEY, repair
from finetune_client.manifest.suggestions import elsewhere, exact, nearest

SPECS: dict[str, type[Block]] = {names.KIND: FineTuneJobSpec, names.RELEASE_KIND: FineTuneReleaseSpec}
KINDS = {
    "object": "a block of fields",
    "array": "a list",
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "quantity": "a number or a text",
}
ROOT = ("apiVersion", "kind", "metadata", "spec", "status")
UNKNOWN = "is not a field"
"""Message of a field that the API does not have."""
LIMITS = {
    "minLength": ("has fewer than {} characters", "write at least {} characters"),
    "maxLength": ("has more than {} characters", "shorten it to at most {} characters"),
    "minItems": ("has fewer than {} entries", "add entries, or remove the field"),
    "maxItems": ("has more than {} entries", "keep at most {} entries"),
    "minProperties": ("is empty", "add an entry, or remove the field"),
    "maxProperties": ("has more than {} entries", "keep at most {} entries"),
}
"""Message and fix of a limit."""
_STEP = re.compile(r"[^.\[\]]+|\[\d+\]")


@dataclass(frozen=True)
class Fault:
    """A fault of one field of the spec."""

    path: FieldPath
    message: str
    fix: str = ""


def find_faults(spec: Any, written: dict[FieldPath, str], kind: str = names.KIND) -> list[Fault]:
    """Return every fault of the spec as kubectl sends it, of a FineTuneJob or an object of the other kind.

    The rules between fields are checked as well if the schema finds faults, except those on a field whose value is not
    known because of one.
    """
    given, schema = drop_nulls(spec), _closed_schema(kind)
    spec, paths = rename_former(given) if kind == names.KIND else (given, [])
    former = [_of_former_name(path, given) for path in paths]
    found = [
        fault
        for error in jsonschema.Draft4Validator(schema).iter_errors(spec)
        for fault in _explain(error, written, kind)
    ]
    faults = {fault.path: fault for fault in sorted([*found, *_find_twice(spec, schema, ("spec",))], key=_is_of_type)}
    spec, unknown = repair(spec, faults, schema)
    for _ in range(2):
        broken, is_parsed = _broken(spec, SPECS[kind])
        if is_parsed:
            rules = [fault for fault, rule in broken if not unknown & set(re.findall(r"\w+", rule))]
            new = [_both(faults.pop(fault.path, None), fault) for fault in rules]
            return list(dict.fromkeys([*former, *faults.values(), *new]))
        plain = [replace(fault, path=_without_key(fault.path)) for fault, _ in broken]
        faults = {fault.path: fault for fault in plain} | faults
        spec, more = repair(spec, (fault.path for fault, _ in broken), schema)
        unknown |= more
    return [*former, *faults.values()]


def _both(known: Fault | None, broken: Fault) -> Fault:
    """Return the fault of a broken rule; of a value that is faulty too, with its message, because its own fix would
    break the rule."""
    return replace(broken, message=f"{known.message}; {broken.message}") if known else broken


def _of_former_name(path: FieldPath, spec: Any) -> Fault:
    name, block = current_name(path), spec
    for part in path[1:-1]:
        block = block[part]
    fix = f"remove it, {name} is there too" if name in block else f"write {name}: {fixes.inline(block[path[-1]])}"
    return Fault(path, f"is called {'.'.join(map(str, path[:-1]))}.{name} now", fix)


def _without_key(path: FieldPath) -> FieldPath:
    return path[:-1] if path[-1] == KEY else path


def _is_of_type(fault: Fault) -> bool:
    """Return whether the fault is a wrong type; of two faults of a field it explains more, sorts last and wins."""
    return fault.message.startswith("must be a")


def _broken(spec: Any, of: type[Block]) -> tuple[list[tuple[Fault, str]], bool]:
    """Return the faults that the types find, else those of the rules and of preflight, each with the text that
    names the rule's fields; and which it was."""
    try:
        parsed = of.model_validate(spec)
    except ValidationError as error:
        return [(_of_type(one), "") for one in error.errors(include_url=False)], False
    broken = [(_of_rule(place, message), rule) for place, message, rule in broken_rules(parsed)]
    if isinstance(parsed, FineTuneJobSpec):
        broken += [(Fault(*fault), str(fault.path[-1])) for fault in find_preflight_faults(parsed)]
    return broken, True


def _of_type(error: Any) -> Fault:
    path: FieldPath = ("spec", *error["loc"])
    if path[-1] == KEY:
        pattern = error.get("ctx", {}).get("pattern", "")
        return Fault(path, "is not a valid name", fixes.fix_format(pattern, error["input"]))
    if error["type"] == "too_short":
        return Fault(path, "is empty", "add an entry, or remove the field")
    return _of_message(path, error["msg"].removeprefix("Value error, "), error["input"])


def _of_message(path: FieldPath, message: str, value: Any) -> Fault:
    """Return the fault of a message with its fix, or with the URI that was meant."""
    what, _, fix = message.rpartition(": ")
    meant = fixes.fix_placeholder(value) or fixes.fix_uri(value, what)
    return Fault(path, what or fix, meant or (fix if what else "correct it"))


def _of_rule(place: str, message: str) -> Fault:
    path = tuple(int(part[1:-1]) if part.startswith("[") else part for part in _STEP.findall(place))
    what, _, fix = message.rpartition(": ")
    return Fault(path, what or message, fix if what else "")


@cache
def _closed_schema(kind: str) -> dict[str, Any]:
    """Return the CRD's schema of the spec without unknown fields, as in kubectl's strict validation."""
    return _closed(structural_schema(SPECS[kind]))


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


def _explain(error: Any, written: dict[FieldPath, str], kind: str) -> Iterator[Fault]:
    path: FieldPath = ("spec", *error.absolute_path)
    wanted, value, schema = error.validator_value, error.instance, error.schema
    match error.validator:
        case "additionalProperties":
            for key in value:
                if key not in schema.get("properties", {}):
                    fix = _suggest_indent(key, value, schema) or _suggest_field(key, value, schema, path, kind)
                    yield Fault((*path, key), UNKNOWN, fix)
        case "required":
            for key in wanted:
                if key not in value:
                    here = (*path, key)
                    yield Fault(here, "is missing", fixes.fix_missing(schema["properties"][key], here))
        case "type" | "anyOf":
            wanted = wanted if error.validator == "type" else "quantity"
            fix = fixes.fix_whole(schema, value, path) or _other_type(
                wanted, value, written.get(path), path, schema.get("enum", ())
            )
            message = f"must be {KINDS[wanted]}, not {_kind(value)}"
            yield Fault(path, message, fix or fixes.fix_type(wanted, schema, path))
        case "enum":
            allowed = [one if isinstance(one, str) else json.dumps(one) for one in wanted]
            word = current_word(path, value)
            fix = (
                f"{value} is called {word} now: write {path[-1]}: {word}"
                if word
                else fixes.fix_word(str(value), allowed)
            )
            yield Fault(path, f"must be one of {', '.join(allowed)}", fix)
        case "pattern":
            yield Fault(path, "does not match the format of this field", fixes.fix_format(wanted, value))
        case "minimum" | "maximum":
            yield Fault(path, _bound(error), fixes.fix_bound(schema))
        case "uniqueItems":
            twice = [one for index, one in enumerate(value) if one in value[:index]]
            yield Fault(path, "has an entry twice", f"remove the second {fixes.inline(twice[0])}")
        case validator:
            yield _of_limit(path, validator, wanted, value, schema)


def _of_limit(path: FieldPath, validator: str, wanted: Any, value: Any, schema: dict[str, Any]) -> Fault:
    if validator == "minLength" and path[-1] == "uri":  # its form explains more than its length
        return _of_message(path, schema["x-kubernetes-validations"][0]["message"], value)
    message, fix = LIMITS[validator]
    return Fault(path, message.format(wanted), fix.format(wanted))


def _find_twice(value: Any, schema: dict[str, Any], path: FieldPath) -> Iterator[Fault]:
    """Yield a fault for each entry of a list that has the name of an earlier one, which the API server refuses."""
    if isinstance(value, dict):
        for name, child in schema.get("properties", {}).items():
            yield from _find_twice(value.get(name), child, (*path, name))
    elif isinstance(value, list):
        known: dict[str, int] = {}
        for index, one in enumerate(value):
            keys = schema.get("x-kubernetes-list-map-keys", ())
            name = ", ".join(str(one.get(key)) for key in keys) if isinstance(one, dict) else ""
            if name and known.setdefault(name, index) != index:
                yield Fault((*path, index), f"has the {' and '.join(keys)} of entry {known[name] + 1}", "remove one")
            yield from _find_twice(one, schema.get("items", {}), (*path, index))


def suggest_for_root(key: str, kind: str) -> str:
    """Return what to do about a field next to `spec` that objects do not have: it may be one of the spec."""
    schema = _closed_schema(kind)
    if foreign := explain_foreign(key):
        return foreign
    if meant := nearest(key, ROOT) or elsewhere(key, schema):
        return f"did you mean {meant}?"
    near = nearest(key, schema["properties"])
    return f"did you mean spec.{near}?" if near else "remove it"


def _suggest_indent(key: str, given: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return the required blocks next to the key that lack it: it was written on their indent; "" if there is none."""
    properties = schema["properties"]
    below = [
        name
        for name in schema.get("required", ())
        if key in properties[name].get("required", ())
        and not (isinstance(given.get(name), dict) and key in given[name])
    ]
    return f"indent it below {' or '.join(below)}" if below else ""


def _suggest_field(key: str, given: dict[str, Any], schema: dict[str, Any], path: FieldPath, kind: str) -> str:
    """Return the field that was meant: the same words in another spelling, a name of another project, a similar one."""
    properties = schema["properties"]
    if same := next((name for name in properties if plain_name(name) == plain_name(key)), None):
        return f"did you mean {same}?"
    if foreign := explain_foreign(key):
        return foreign
    if short := exact(key, properties):
        return f"did you mean {short}?"
    if place := elsewhere(key, _closed_schema(kind)):
        return f"did you mean {place}?"
    if near := nearest(key, properties, set(schema.get("required", ())) - given.keys()):
        return f"did you mean {near}?"
    where = ".".join(map(str, path))
    return (
        f"remove it; {where} has {', '.join(properties)}"
        if len(properties) <= 12
        else f"remove it; see kubectl explain {kind.lower()}.{where}"
    )


def _other_type(wanted: str, value: Any, written: str | None, path: FieldPath, allowed: Iterable[str]) -> str:
    """Return how to write the value; YAML reads unquoted words such as `On` as true or false."""
    if isinstance(value, bool) and wanted == "string":
        word = written or str(value).lower()
        if allowed:
            meant = current_word(path, "On" if value else "Off")
            return f"YAML reads {word} as {str(value).lower()}: write {meant or ' or '.join(allowed)}"
        return f'YAML reads {word} as {str(value).lower()}: put it in quotes, "{word}"'
    if isinstance(value, int | float) and wanted == "string":
        if allowed:
            return f"write {' or '.join(allowed)}"
        return f'put it in quotes: "{value if written is None else written}"'
    if isinstance(value, str) and wanted in {"integer", "number"} and re.fullmatch(r"[-+0-9.eE]+", value):
        # Readers of YAML 1.1 such as PyYAML take `2e-4` for a text, so it is written as all of them read it.
        is_text = isinstance(yaml.safe_load(value), str)
        return f"remove the quotes: {write_document(read_scalar(value)).splitlines()[0] if is_text else value}"
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
