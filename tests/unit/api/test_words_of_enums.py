"""The words of the spec mean the same with and without quotes."""

import re
from collections.abc import Iterator
from typing import Any

from finetune_api.manifest.yaml_document import read_scalar
from finetune_api.schema.crd import structural_schema
from finetune_api.spec import FineTuneJobSpec


def words(node: dict[str, Any]) -> Iterator[str]:
    yield from (one for one in node.get("enum", ()) if isinstance(one, str))
    if listed := re.fullmatch(r"\^\(([\w|]+)\)\$", str(node.get("pattern", ""))):
        yield from listed[1].split("|")
    children = [*node.get("properties", {}).values(), node.get("items"), node.get("additionalProperties")]
    for child in children:
        if isinstance(child, dict):
            yield from words(child)


def test_every_word_is_a_text_without_quotes() -> None:
    found = set(words(structural_schema(FineTuneJobSpec)))
    assert {"Always", "Never", "Auto", "linear", "NoSchedule"} <= found
    assert not {word for word in found if read_scalar(word) != word}
