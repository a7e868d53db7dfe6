"""Building blocks of the API types: the base class, CEL rules, and bounded strings, numbers and maps."""

import json
import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel as to_plain_camel

from finetune_api.endpoints import ENDPOINT, ENDPOINT_MESSAGE, is_endpoint

AT_CREATION = "oldSelf.hasValue() || "
"""What makes a rule hold for every object that exists already."""


def cel(rule: str, message: str, field_path: str | None = None, *, at_creation: bool = False) -> dict[str, Any]:
    """Return one `x-kubernetes-validations` entry; the message names the fix.

    With `at_creation`, objects that exist already may break the rule: for a rule on fields that are fixed anyway.
    """
    entry = {"rule": f"{AT_CREATION}{rule}" if at_creation else rule, "message": message}
    entry |= {"fieldPath": field_path} if field_path else {}
    return entry | ({"optionalOldSelf": True} if at_creation else {})


def combined_cel(rule: str, message: str, expression: str, field_path: str) -> dict[str, Any]:
    """Return one entry for several rules, whose message is a CEL expression; `message` is the one without its fix.

    The API server evaluates each rule at each write of the status, too. Most of the time is for reading fields of large
    blocks, so that one rule that reads a field once is faster than many that each read it.
    """
    return cel(rule, message, field_path) | {"messageExpression": expression}


def rules(*entries: dict[str, Any]) -> dict[str, Any]:
    """Return `json_schema_extra` with CEL rules."""
    return {"x-kubernetes-validations": list(entries)}


def with_rules(*entries: dict[str, Any]) -> ConfigDict:
    """Return the configuration of a block with these CEL rules."""
    return ConfigDict(json_schema_extra=rules(*entries))


def with_rule(rule: str, message: str, field_path: str | None = None) -> ConfigDict:
    """Return the configuration of a block with one CEL rule."""
    return with_rules(cel(rule, message, field_path))


ATOMIC_LIST: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}
"""A list that server-side apply replaces as a whole, because its entries have no name."""
SET: dict[str, Any] = {"x-kubernetes-list-type": "set"}
"""A list of values, each of which has its own owner in server-side apply."""
ATOMIC: dict[str, Any] = {"x-kubernetes-map-type": "atomic"}
"""A map or block that server-side apply replaces as a whole, because its entries have a meaning only together."""
GRANULAR: dict[str, Any] = {"x-kubernetes-map-type": "granular"}
"""A map whose entries each have their own owner in server-side apply."""


def map_list(*keys: str) -> dict[str, Any]:
    """Return the type of a list whose entries server-side apply merges by these fields; no two may be the same."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [*keys]}


_ACRONYM = re.compile(r"(?<=[a-z0-9])(Gpu|Uid|Uri|Sha256)(?=[A-Z]|$)")


def to_camel(name: str) -> str:
    """Return the name of a field on the wire; an acronym has one case, as in `podUID` and `uid`."""
    return _ACRONYM.sub(lambda found: found.group().upper(), to_plain_camel(name))


class Block(BaseModel):
    """Base of the API types: camelCase on the wire; unknown fields, NaN and infinity are refused."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        allow_inf_nan=False,
    )

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Return a copy with copies of its blocks, lists and dicts; all other values are immutable.

        The operator copies each status before it decides, and pydantic's own copy takes ten times as long.
        """
        copied = self.model_copy()
        for name, value in copied.__dict__.items():
            if isinstance(value, Block | list | dict):
                copied.__dict__[name] = _copy(value)
        return copied


def _copy(value: Any) -> Any:
    if isinstance(value, Block):
        return value.__deepcopy__()
    if isinstance(value, list):
        return [_copy(one) for one in value]
    return {name: _copy(one) for name, one in value.items()} if isinstance(value, dict) else value


def matching(pattern: re.Pattern[str], message: str) -> AfterValidator:
    """Return the validator of a text that must match the pattern in full."""

    def check(value: str) -> str:
        if not pattern.fullmatch(value):  # `$` would accept a line feed
            raise ValueError(message)
        return value

    return AfterValidator(check)


def _require_endpoint(value: str) -> str:
    if not is_endpoint(value):
        raise ValueError(ENDPOINT_MESSAGE)
    return value


def _uri_rules(pattern: re.Pattern[str], message: str) -> Any:
    """Return a field with the pattern as a rule with a message, which a schema's own `pattern` cannot have."""
    no_dots = "a path segment '.' or '..' is not allowed: write the full object key"
    whole = cel(f"self.matches({json.dumps(pattern.pattern)})", message)
    return Field(json_schema_extra=rules(whole, cel(r"!self.matches('(^|/)[.][.]?(/|$)')", no_dots)))


_SEGMENTS = "(/[^/\\x00-\\x1f\\x7f-\\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]+)"
"""Segments of a key without the characters that `printable` escapes: a report repeats the URI."""
_S3 = f"s3://[a-z0-9][a-z0-9.-]{{1,61}}[a-z0-9]{_SEGMENTS}+/?"
REPOSITORY = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_S3_SENTENCE = (
    "a bucket of 3 to 63 lower-case characters, and a path without empty segments, control characters or "
    "bidirectional marks"
)
S3_URI = re.compile(f"^{_S3}$")
S3_URI_MESSAGE = f"must be s3://bucket/path: {_S3_SENTENCE}"
_CLAIM = f"pvc://[a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?{_SEGMENTS}*/?"
MODEL_URI = re.compile(f"^({_S3}|hf://{REPOSITORY}|{_CLAIM})$")
MODEL_URI_MESSAGE = f"must be hf://owner/name, pvc://claim/path, or s3://bucket/path: {_S3_SENTENCE}"
DATA_URI = re.compile(f"^({_S3}|hf://datasets/{REPOSITORY}{_SEGMENTS}*/?|{_CLAIM})$")
DATA_URI_MESSAGE = f"must be hf://datasets/owner/name[/path], pvc://claim/path, or s3://bucket/path: {_S3_SENTENCE}"

STORAGE_SCHEME = "s3://"


def is_under(uri: str, prefixes: list[str]) -> bool:
    """Return whether a URI of storage begins with one of these prefixes, which end with a slash, and stays there."""
    return uri.startswith(tuple(prefixes)) and not {".", ".."} & set(uri.split("/"))


FILE_URI = re.compile(f"^({_S3}|{_CLAIM})$")
FILE_URI_MESSAGE = f"must be pvc://claim/path, or s3://bucket/path: {_S3_SENTENCE}"

_LENGTH = StringConstraints(min_length=8, max_length=1024)
S3Uri = Annotated[str, _LENGTH, matching(S3_URI, S3_URI_MESSAGE), _uri_rules(S3_URI, S3_URI_MESSAGE)]
ModelUri = Annotated[str, _LENGTH, matching(MODEL_URI, MODEL_URI_MESSAGE), _uri_rules(MODEL_URI, MODEL_URI_MESSAGE)]
FileUri = Annotated[str, _LENGTH, matching(FILE_URI, FILE_URI_MESSAGE), _uri_rules(FILE_URI, FILE_URI_MESSAGE)]
DataUri = Annotated[str, _LENGTH, matching(DATA_URI, DATA_URI_MESSAGE), _uri_rules(DATA_URI, DATA_URI_MESSAGE)]
Revision = Annotated[
    str,
    StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*([./][A-Za-z0-9_-]+)*$"),
]
Endpoint = Annotated[
    str,
    StringConstraints(max_length=512),
    AfterValidator(_require_endpoint),
    Field(json_schema_extra=rules(cel(f"self.matches({json.dumps(ENDPOINT.pattern)})", ENDPOINT_MESSAGE))),
]
ObjectName = Annotated[
    str, StringConstraints(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
]
SecretName = ObjectName
Quantity = Annotated[
    int | str,
    Field(
        json_schema_extra={
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "minimum": 0,
            "pattern": r"^[0-9]+([.][0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$",
            "maxLength": 32,
        }
    ),
]
LabelValue = Annotated[str, StringConstraints(max_length=63, pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")]
QualifiedName = Annotated[
    str,
    StringConstraints(
        min_length=1,
        max_length=316,
        pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
    ),
]
ModuleName = Annotated[
    str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_]+([.][A-Za-z0-9_]+)*$")
]
Text = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class SecretRef(Block):
    """A Secret in the job's own namespace."""

    model_config = ConfigDict(json_schema_extra=ATOMIC)

    name: SecretName
    """Name of the Secret."""


class JobReference(Block):
    """Another FineTuneJob in the same namespace."""

    model_config = ConfigDict(json_schema_extra=ATOMIC)

    name: ObjectName
    """Name of the FineTuneJob."""
