"""What to write instead of a value that the schema refuses."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from finetune_api.manifest.yaml_document import FieldPath
from finetune_client.manifest.suggestions import nearest

_NAME = "use lowercase letters, digits, - and ., with a letter or digit at both ends"
FORMATS: Mapping[str, str] = {
    r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$": (
        "use letters, digits, -, _ and ., with a letter or digit at both ends"
    ),
    r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$": (
        "use a name such as example.com/gpu: letters, digits, -, _ and ., with a letter or digit at both ends"
    ),
    r"^[ -~]*$": "use printable ASCII characters",
    r"^[0-9]+([.][0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$": "write a number with a unit, for example 24Gi",
    r"^[0-9a-f]{64}$": "write the 64 lowercase hexadecimal digits that sha256sum prints",
    r"^[A-Z][A-Z0-9_]*$": "use uppercase letters, digits and _, for example NCCL_DEBUG",
    r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$": "write an image such as registry.example.com/trainer:1.0",
    r"^[A-Za-z0-9][A-Za-z0-9_-]*([./][A-Za-z0-9_-]+)*$": "write a branch, a tag or a commit, for example main",
    r"^[A-Za-z0-9_.-]+$": "use letters, digits, _, . and -",
    r"^[-._a-zA-Z0-9]+$": "use letters, digits, -, _ and ., for example chat_template.jinja",
    r"^[A-Za-z0-9_][A-Za-z0-9._+-]*$": "write the name of a subset, for example main",
    r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$": "write a tag, for example v1",
    r"^[A-Za-z0-9_]+([.][A-Za-z0-9_]+)*$": "write the name of a module, for example q_proj",
    r"^[^\x00-\x1f\x7f]+$": "remove the control characters",
    r"^[a-z0-9-]+$": "use lowercase letters, digits and -, for example eu-west-1",
    r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$": _NAME,
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$": "use lowercase letters, digits and -, with a letter or digit at both ends",
    r"^[a-z_]{1,64}$": "use lowercase letters and _, at most 64, for example prompt",
    r"^[a-z][a-z0-9_]{0,63}$": "use lowercase letters, digits and _, at most 64, for example enable_thinking",
}
"""By the pattern of the field."""

FILL_IN = "fill-in:"
"""Beginning of the placeholders of `kubectl finetune import`; what follows is the value of the imported file."""
QUANTITY = r"^[0-9]+([.][0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
_SIZE = re.compile(r"([0-9]+(?:[.,][0-9]+)?)\s*([A-Za-z]*)")
_LOCAL_PATH = re.compile(
    r"(?:[./~][^:]*|[^:]*\.(?:jsonl|ndjson|json|csv|tsv|parquet|arrow)(?:\.(?:gz|bz2|zst))?)", re.IGNORECASE
)
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_TIME = re.compile(
    r"\s*([0-9]+(?:[.][0-9]+)?)\s*(s|m|h|d)(?:econds?|ecs?|inutes?|ins?|ours?|rs?|ays?)?(?![a-z])", re.IGNORECASE
)
_UNITS = re.compile(r"([kmgtp])i?(?:b|bytes?)?")
EXAMPLES: Mapping[str, Any] = {
    "objective": "Chat",
    "learningRate": 1e-5,
    "model.uri": "hf://owner/name",
    "dataset.train": {"uri": "s3://bucket/rows.jsonl"},
    "train.uri": "s3://bucket/rows.jsonl",
    "validation.uri": "s3://bucket/held-out.jsonl",
    "output.uri": "s3://bucket/path",
    "mlflow.endpoint": "http://mlflow.mlflow:5000",
    "initialAdapter.uri": "s3://bucket/path/adapter",
    "uri": "s3://bucket/path",
    "claimName": "models",
    "experiment": "support-bot",
    "project": "support-bot",
    "prompt": "What is your return policy?",
    "env.name": "NCCL_DEBUG",
    "env.value": "INFO",
    "targetModules": "q_proj",
    "name": "my-secret",
    "parentRef.name": "my-job",
    "jobRef.name": "my-job",
}
"""Values of fields without a default, by the end of their path."""


def suggest_quantity(text: str) -> str:
    """Return the quantity that was meant, `24Gi` for `24GB`; "" if that is not known."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        return ""
    number, unit = found[1].replace(",", "."), found[2].lower()
    if unit in {"", "core", "cores", "cpu", "cpus"}:
        return number
    size = _UNITS.fullmatch(unit)
    return f"{number}{size[1].upper()}i" if size else ""


def fix_whole(schema: Mapping[str, Any], value: Any, path: FieldPath) -> str:
    """Return the whole number within the field's bounds that was meant: 3600 for `1h`, 10 for a share of 0.1 in
    percent; "" if that is not known."""
    field = str(path[-1])
    if isinstance(value, str) and "Seconds" in field and _TIME.search(value) and not _TIME.sub("", value).strip():
        number = sum(float(count) * SECONDS[unit.lower()] for count, unit in _TIME.findall(value))
    elif isinstance(value, float) and math.isfinite(value):
        number = value * 100 if field.endswith("Percent") and 0 < value < 1 else value
    else:
        return ""
    whole = int(round(number, 6))
    is_meant = schema.get("type") == "integer" and schema.get("minimum", whole) <= whole <= schema.get("maximum", whole)
    return f"write {whole}" if is_meant else ""


def fix_format(pattern: str, value: Any) -> str:
    """Return the fix for a value that does not match the pattern of its field."""
    if pattern == QUANTITY and (quantity := suggest_quantity(str(value))):
        return f"did you mean {quantity}?"
    return FORMATS.get(pattern, "write it in the format that kubectl explain shows")


def fix_word(value: str, allowed: Iterable[str]) -> str:
    """Return the word that was meant; without one, all."""
    words = list(allowed)
    near = nearest(value, words)
    return f"did you mean {near}?" if near else f"write {' or '.join(words)}"


def fix_bound(schema: Mapping[str, Any]) -> str:
    """Return the fix for a number that is too small or too large."""
    least, most = schema.get("minimum"), schema.get("maximum")
    low = f"{'more than' if schema.get('exclusiveMinimum') else 'at least'} {least}"
    high = f"{'less than' if schema.get('exclusiveMaximum') else 'at most'} {most}"
    return f"set it to {' and '.join([low] * (least is not None) + [high] * (most is not None))}"


def fix_type(wanted: str, schema: Mapping[str, Any], path: FieldPath) -> str:
    """Return how to write a value of the wanted type."""
    match wanted:
        case "object" if "properties" in schema:
            return f"write its fields below it: {', '.join(list(schema['properties'])[:6])}"
        case "object":
            return f"write `name: value` pairs below {path[-1]}"
        case "array":
            return f"write a list, for example [{inline(sample(schema.get('items', {}), path))}]"
        case "boolean":
            return "write true or false, without quotes"
        case _:
            return f"write {inline(sample(schema, path))}, for example"


def fix_missing(schema: Mapping[str, Any], path: FieldPath) -> str:
    """Return the line to add."""
    return f"add {path[-1]}: {inline(sample(schema, path))}" + (
        f" ({' or '.join(schema['enum'])})" if "enum" in schema else ""
    )


def sample(schema: Mapping[str, Any], path: FieldPath) -> Any:
    """Return a valid value of a field: its default, or an example."""
    names = [str(part) for part in path if isinstance(part, str)]
    for length in (2, 1):
        found = EXAMPLES.get(".".join(names[-length:]))
        if found is not None and isinstance(found, dict) == ("properties" in schema):
            return [found] if schema.get("type") == "array" else found
    if "default" in schema:
        return schema["default"]
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("x-kubernetes-int-or-string"):
        return "24Gi"
    return _sample_of_type(schema, path)


def _sample_of_type(schema: Mapping[str, Any], path: FieldPath) -> Any:
    match schema.get("type"):
        case "object":
            required = schema.get("required", [])
            return {name: sample(schema["properties"][name], (*path, name)) for name in required}
        case "array":
            return [sample(schema["items"], path)] if schema.get("minItems") else []
        case "integer" | "number":
            least = schema.get("minimum", 0)
            most = schema.get("maximum", least + 2)
            return min(least + 1, (least + most) / 2) if schema.get("exclusiveMinimum") else least
        case "boolean":
            return False
    return "a" * max(1, int(schema.get("minLength", 1)))


def inline(value: Any) -> str:
    """Return a value on one line, as in a manifest."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {inline(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(inline(one) for one in value) + "]"
    return value if isinstance(value, str) else json.dumps(value)


def fix_uri(value: Any, wanted: str) -> str:
    """Return the URI that was meant, for example `hf://owner/name` for a page of the hub; "" if that is not known."""
    text = str(value).strip()
    if "s3://" in wanted and _LOCAL_PATH.fullmatch(text):
        return _fix_local(wanted)
    kind = "hf://datasets/" if "hf://datasets/" in wanted else "hf://" if "hf://" in wanted else ""
    if kind and (page := re.fullmatch(r"https?://(?:www\.)?huggingface\.co/(datasets/)?([\w.-]+/[\w.-]+)/?.*", text)):
        return f"did you mean {kind}{page[2]}?"
    if kind and re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        return f"did you mean {kind}{text}?"
    if kind == "hf://datasets/" and (model := re.fullmatch(r"hf://([\w.-]+/[\w.-]+.*)", text)):
        return f"did you mean {kind}{model[1]}?"
    if kind == "hf://" and (data := re.fullmatch(r"hf://datasets/([\w.-]+/[\w.-]+)", text)):
        return f"did you mean {kind}{data[1]}?"
    return _fix_store(text, wanted)


def _fix_local(wanted: str) -> str:
    if "pvc://" not in wanted:
        return "no pod can use a path of this machine: write s3://bucket/path"
    fix = "no pod can read a path of this machine: upload it to s3://bucket/path, or to a claim, pvc://claim/path"
    is_rows = "hf://datasets/" in wanted
    return f"{fix}; kubectl finetune validate with --rows FILE checks it here" if is_rows else fix


def _fix_store(text: str, wanted: str) -> str:
    """Return the `s3://` or `pvc://` URI that was meant; "" if that is not known."""
    if found := re.fullmatch(r"(?i:s3a?n?):/{1,3}([A-Za-z0-9.-]{3,63})(/.+)", text):
        meant = f"s3://{found[1].lower()}{re.sub('/+', '/', found[2])}"
    elif "pvc://" in wanted and (found := re.fullmatch(r"(?i:pvc):/{0,3}([a-z0-9][a-z0-9.-]*/.*)", text)):
        meant = f"pvc://{re.sub('/+', '/', found[1])}"
    else:
        return ""
    return f"did you mean {meant}?" if meant != text else ""


def fix_placeholder(value: Any) -> str:
    """Return what to write in place of a placeholder of `kubectl finetune import`; "" if the value is none."""
    text = str(value)
    if not text.startswith(FILL_IN):
        return ""
    return f"this is a placeholder: replace it by the URI of {text.removeprefix(FILL_IN)}, which no pod can read"
