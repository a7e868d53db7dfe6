"""The words of the spec mean the same with and without quotes, and a stored job keeps those that it has."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from finetune_api.handoff import config_sha256
from finetune_api.hyperparameters import FORMER_WORDS
from finetune_api.manifest.yaml_document import read_scalar
from finetune_api.schema.crd import structural_schema
from finetune_api.spec import FineTuneJobSpec

JOB: dict[str, Any] = {
    "objective": "Chat",
    "model": {"uri": "s3://models/base"},
    "dataset": {"train": {"uri": "s3://data/train.jsonl"}},
    "output": {"uri": "s3://models/out"},
}
STORED = {
    "On": "c549b4688913ebdf79ad449cab28434eff6a826742742b1e7165056e6a928dd9",
    "Off": "7b7e8d85a3beade6fa61949592b4335dd9fff77c64162662221f3961bcba8eb3",
}
"""Digests of jobs that were created with the former words."""


def words(node: dict[str, Any]) -> Iterator[str]:
    yield from (one for one in node.get("enum", ()) if isinstance(one, str))
    if listed := re.fullmatch(r"\^\(([\w|]+)\)\$", str(node.get("pattern", ""))):
        yield from listed[1].split("|")
    children = [*node.get("properties", {}).values(), node.get("items"), node.get("additionalProperties")]
    for child in children:
        if isinstance(child, dict):
            yield from words(child)


def test_every_word_but_the_former_ones_is_a_text_without_quotes() -> None:
    found = set(words(structural_schema(FineTuneJobSpec)))
    assert {"Always", "Never", "Auto", "linear", "NoSchedule"} <= found
    assert {word for word in found if read_scalar(word) != word} == set(FORMER_WORDS)


@pytest.mark.parametrize(("field", "former", "word"), [("packing", "On", "Always"), ("packing", "Off", "Never")])
def test_a_former_word_means_what_its_new_one_does(field: str, former: str, word: str) -> None:
    old, new = (
        FineTuneJobSpec.model_validate(JOB | {"hyperparameters": {field: one}}).hyperparameters.packing
        for one in (former, word)
    )
    assert (old.is_always, old.is_never) == (new.is_always, new.is_never)
    assert FORMER_WORDS[former] == word


@pytest.mark.parametrize("former", STORED)
def test_the_digest_of_a_job_with_a_former_word_is_the_one_that_it_was_created_with(former: str) -> None:
    spec = FineTuneJobSpec.model_validate(JOB | {"hyperparameters": {"packing": former}})
    assert config_sha256(spec) == STORED[former]
