"""What the types of the objectives refuse beyond the rules of the CRD."""

import pytest
from pydantic import ValidationError

from finetune_api.rewards import AnswerReward


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{type: object}", "is not JSON"),
        ("[1]", "is not a JSON schema: write an object"),
        ('{"not":' * 5000 + "{}" + "}" * 5000, "at most 16384 characters"),
        ("[" * 8000 + "]" * 8000, "is not JSON"),
    ],
)
def test_a_schema_that_is_no_json_object_is_refused_before_preflight(text: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AnswerReward.model_validate({"match": "JsonSchema", "jsonSchema": text})


@pytest.mark.parametrize("text", ["{}", "true", '{"type": "object"}', '\n  {"type": "array"}\n'])
def test_a_schema_is_kept_as_it_is_written(text: str) -> None:
    assert AnswerReward.model_validate({"match": "JsonSchema", "jsonSchema": text}).json_schema == text
