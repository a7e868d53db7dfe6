"""What the blocks of the API are made of: the base class, CEL rules, and bounded strings, numbers and maps."""

import json
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel


def cel(rule: str, message: str, field_path: str | None = None) -> dict[str, Any]:
    """One `x-kubernetes-validations` entry; the message names the fix."""
    entry = {"rule": rule, "message": message}
    return entry | ({"fieldPath": field_path} if field_path else {})


def rules(*entries: dict[str, Any]) -> dict[str, Any]:
    """`json_schema_extra` that carries CEL rules."""
    return {"x-kubernetes-validations": list(entries)}


class Block(BaseModel):
    """A part of the API: camelCase on the wire, unknown fields refused, NaN and infinity refused."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


S3_URI = re.compile(r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^/\x00-\x1f\x7f]+)+/?$")
S3_URI_MESSAGE = (
    "must be s3://bucket/path: a bucket of 3 to 63 lower-case characters, and a path without empty segments or "
    "control characters"
)


def _is_s3_uri(value: str) -> str:
    if not S3_URI.match(value):
        raise ValueError(S3_URI_MESSAGE)
    return value


S3Uri = Annotated[
    str,
    StringConstraints(min_length=8, max_length=1024),
    AfterValidator(_is_s3_uri),
    Field(
        json_schema_extra=rules(
            cel(f"self.matches({json.dumps(S3_URI.pattern)})", S3_URI_MESSAGE),
            cel(
                r"!self.matches('(^|/)[.][.]?(/|$)')",
                "a path segment '.' or '..' is not allowed; write the full object key",
            ),
        )
    ),
]
SecretName = Annotated[
    str, StringConstraints(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
]
Quantity = Annotated[
    int | str,
    Field(
        json_schema_extra={
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
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

    name: SecretName
    """Name of the Secret."""
