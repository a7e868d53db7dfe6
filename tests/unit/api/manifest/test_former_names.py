"""Former names and words: none exists in the spec, and what each is called now does."""

from typing import Any

import pytest

from finetune_api.manifest.former_names import FORMER_FIELDS, FORMER_WORDS, current_name, current_word, rename_former
from finetune_api.schema.crd import structural_schema
from finetune_api.spec import FineTuneJobSpec


def field(path: str) -> dict[str, Any]:
    """The schema of a field of the spec."""
    node = structural_schema(FineTuneJobSpec)
    for part in path.split("."):
        node = node["properties"][part]
    return node


@pytest.mark.parametrize(("path", "name"), FORMER_FIELDS.items())
def test_a_former_field_is_gone_and_its_current_name_is_there(path: str, name: str) -> None:
    block, _, former = path.rpartition(".")
    names = field(block)["properties"]
    assert former not in names
    assert name in names
    assert current_name(("spec", *path.split("."))) == name


@pytest.mark.parametrize(("path", "former"), [(path, word) for path, words in FORMER_WORDS.items() for word in words])
def test_a_former_word_is_gone_and_its_current_one_is_there(path: str, former: str) -> None:
    words = field(path)["enum"]
    assert former not in words
    assert current_word(("spec", *path.split(".")), former) in words


def test_what_has_always_had_its_name_has_no_former_one() -> None:
    assert current_name(("spec", "suspend")) == ""
    assert current_name(()) == ""
    assert current_word(("spec", "hyperparameters", "packing"), "Always") == ""
    assert current_word(("spec", "hyperparameters", "packing"), True) == ""
    assert current_word(("spec", "objective"), "On") == ""


@pytest.mark.parametrize("spec", [None, [], "text", {}, {"resources": None}, {"resources": [1]}, {"tracking": 3}])
def test_a_spec_of_any_shape_is_read(spec: Any) -> None:
    assert rename_former(spec) == (spec, [])


def test_the_given_spec_is_not_changed_and_the_current_name_wins() -> None:
    spec = {"resources": {"nodes": 2, "numNodes": 3}, "tracking": {"mlflow": {"uri": "http://m"}}}
    renamed, found = rename_former(spec)
    assert renamed == {"resources": {"numNodes": 3}, "tracking": {"mlflow": {"endpoint": "http://m"}}}
    assert found == [("spec", "resources", "nodes"), ("spec", "tracking", "mlflow", "uri")]
    assert spec["resources"] == {"nodes": 2, "numNodes": 3}
