"""What the status is made of: times, counts, measures, bounded texts, and the block that holds them."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, PlainSerializer, StringConstraints, WithJsonSchema

from finetune_api.blocks import Block


def _whole_seconds(value: datetime) -> datetime:
    return value.astimezone(UTC).replace(microsecond=0)


def _five_significant(value: float) -> float:
    return float(f"{value:.5g}")


Time = Annotated[
    datetime,
    AfterValidator(_whole_seconds),
    PlainSerializer(lambda value: value.strftime("%Y-%m-%dT%H:%M:%SZ"), return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
Count = Annotated[int, Field(ge=0)]
Measure = Annotated[float, AfterValidator(_five_significant)]
Word = Annotated[str, StringConstraints(max_length=64)]
Line = Annotated[str, StringConstraints(max_length=1024)]
Uri = Annotated[str, StringConstraints(max_length=1152)]
Digest = Annotated[str, StringConstraints(max_length=128)]
CountByName = Annotated[dict[Word, Count], Field(max_length=64)]


class StatusBlock(Block):
    """A part of the status; unknown fields are dropped, so that a newer status never breaks an older reader."""

    model_config = ConfigDict(extra="ignore")
