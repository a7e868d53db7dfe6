"""The URIs of a spec: what would be shown as another text is refused, and every readable key is accepted."""

import pytest
from pydantic import TypeAdapter, ValidationError

from finetune_api.blocks import DataUri, ModelUri, S3Uri
from finetune_api.scalars import Uri

STARTS = [
    (S3Uri, "s3://bucket/a"),
    (ModelUri, "s3://bucket/a"),
    (DataUri, "s3://bucket/a"),
    (DataUri, "hf://datasets/o/n/a"),
]
OBEYED = [*map(chr, [0, 9, 10, 13, 27, 0x7F, 0x85, 0x9B]), *"\u061c\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069"]


@pytest.mark.parametrize(("kind", "start"), STARTS)
def test_a_key_with_a_character_that_a_terminal_obeys_is_refused_with_what_to_change(kind: object, start: str) -> None:
    for character in OBEYED:
        with pytest.raises(ValidationError, match="control characters or bidirectional marks"):
            TypeAdapter(kind).validate_python(f"{start}{character}b/c")


@pytest.mark.parametrize(("kind", "start"), STARTS)
@pytest.mark.parametrize("key", ["b c", "é", "日本語/データ", "עברית", "\u00a0", "\u200d", "%41+=&'\"~", "\U0001f600"])
def test_every_other_key_is_accepted_also_where_a_report_repeats_it(kind: object, start: str, key: str) -> None:
    uri = f"{start}{key}/d"
    assert TypeAdapter(kind).validate_python(uri) == uri
    assert TypeAdapter(Uri).validate_python(uri) == uri
