"""Types of the status: times, counts, measures, bounded strings, and the base class of its blocks."""

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, PlainSerializer, StringConstraints, WithJsonSchema

from finetune_api.blocks import ATOMIC, Block
from finetune_api.text.printable import printable

_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST = datetime(9999, 12, 30, tzinfo=UTC)
MAX_INTEGER = 2**53 - 1
"""The largest integer that every JSON reader represents exactly; the API server might not store a larger one."""


def _whole_seconds(value: datetime) -> datetime:
    aware = value if value.tzinfo else value.replace(tzinfo=UTC)
    if not _EARLIEST <= aware <= _LATEST:
        raise ValueError("a time is between 1970 and 9999")
    return aware.astimezone(UTC).replace(microsecond=0)


def _shown_within(limit: int) -> AfterValidator:
    """Escape what a terminal interprets; escapes are longer, so the text is cut to the limit again."""
    return AfterValidator(lambda text: printable(text)[:limit])


def _require_printable(text: str) -> str:
    if printable(text) != text:
        raise ValueError("control characters and bidirectional marks are not allowed")
    return text


def _five_significant(value: float) -> float:
    return float(f"{value:.5g}")


Time = Annotated[
    datetime,
    AfterValidator(_whole_seconds),
    PlainSerializer(lambda value: value.strftime("%Y-%m-%dT%H:%M:%SZ"), return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
Count = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
Measure = Annotated[float, AfterValidator(_five_significant)]
Word = Annotated[str, StringConstraints(max_length=64), _shown_within(64)]
Expression = Annotated[str, StringConstraints(max_length=256), _shown_within(256)]
"""A regular expression."""
Line = Annotated[str, StringConstraints(max_length=1024), _shown_within(1024)]
Name = Annotated[str, StringConstraints(max_length=253), AfterValidator(_require_printable)]
"""A name or an ID, which an escape would change to another one."""
Uri = Annotated[str, StringConstraints(max_length=1152), AfterValidator(_require_printable)]
Digest = Annotated[str, StringConstraints(min_length=64, max_length=64, pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 in lowercase hexadecimal."""
CountByName = Annotated[dict[Word, Count], Field(max_length=64, json_schema_extra=ATOMIC)]


class StatusBlock(Block):
    """Base of the status types; unknown fields are dropped, so that an older version can read a newer status."""

    model_config = ConfigDict(extra="ignore")

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON form, without absent fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


POWERS = {"": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5}
PATTERN = re.compile(r"([0-9]+(?:[.][0-9]+)?)(?:(m)|([kMGTP]?)|([KMGTP])i)")


def parse_quantity(quantity: int | str) -> int:
    """Return the number of a quantity, rounded down; raise ValueError if it is not a quantity."""
    return int(read_quantity(quantity))


def read_quantity(quantity: int | str) -> Decimal:
    """Return the exact number of a quantity; raise ValueError if it is not a quantity."""
    found = PATTERN.fullmatch(str(quantity))
    if not found:
        raise ValueError(f"{quantity!r} is not a quantity")
    number, milli, decimal, binary = found.groups()
    if milli:
        return Decimal(number) / 1000
    base, power = (1024, POWERS[binary.replace("K", "k")]) if binary else (1000, POWERS[decimal])
    return Decimal(number) * Decimal(base) ** power
