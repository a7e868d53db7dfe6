"""Rewards for answers that are JSON: the same value as a reference, or valid by a schema; also hostile schemas."""

import json
import time
from typing import Any

import pytest

from finetune_api.dataset.codes import RejectCode
from finetune_api.handoff import ExitCode
from finetune_api.rewards import Reward
from finetune_trainer.data.rows import BadRow, DataFormat, Message, PromptRow, Reference, Source
from finetune_trainer.errors import TrainerError
from finetune_trainer.rewards.completion import Completion
from finetune_trainer.rewards.computed import ComputedRewards
from finetune_trainer.rewards.json_answers import compile_schema
from finetune_trainer.rewards.references import References

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
ADA = '{"name": "Ada", "age": 36}'


def score(text: str, reference: Reference | None = None, **answer: Any) -> float:
    rewards = ComputedRewards([Reward.model_validate({"type": "Answer", "answer": answer})])
    (found,) = rewards([Completion([Message(role="user", content="?")], text, 1, ended=True, reference=reference)])
    return found


def keep(answer: str | None, columns: dict[str, Any], **settings: Any) -> PromptRow:
    references = References([Reward.model_validate({"type": "Answer", "answer": settings})])
    prompt = [Message(role="user", content="?")]
    return references.keep(PromptRow(prompt, Source("rows.jsonl", 1), DataFormat.OPENAI), answer, columns)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        (ADA, '{"age":36,\n "name":"Ada"}', True),
        (ADA, '{"age": 36.0, "name": "Ada"}', True),
        (ADA, '{"age": 37, "name": "Ada"}', False),
        (ADA, '{"name": "Ada"}', False),
        (f"```json\n{ADA}\n```", ADA, True),
        (f"```\n{ADA}```", ADA, True),
        (f"```json\r\n{ADA}\r\n```", ADA, True),
        (f"Here it is: {ADA}", ADA, False),
        ("[1, 2]", "[2, 1]", False),
        ("[1, [2]]", "[1, [2]]", True),
        ("1", "true", False),
        ("true", "true", True),
        ("null", "null", True),
        ('"4"', "4", False),
        ("NaN", "NaN", False),
        ('{"a": 1', '{"a": 1}', False),
        ("[" * 5000 + "]" * 5000, "[]", False),
        ("18446744073709551617", "18446744073709551616", False),
        ("0.1", "0.10", True),
        ("1e999999999", "1", False),
        ('{"a": 1, "a": 2}', '{"a": 2}', False),
    ],
)
def test_json_is_correct_if_it_has_the_value_of_the_reference(answer: str, reference: str, expected: bool) -> None:
    assert score(answer, Reference(answer=reference), match="Json") == float(expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (ADA, True),
        (f"```json\n{ADA}\n```", True),
        ('{"name": "Ada", "age": -1}', False),
        ('{"name": "Ada", "age": 36, "city": "London"}', False),
        ("Ada, 36", False),
        ("", False),
    ],
)
def test_one_schema_of_the_job_judges_the_answers_to_all_rows(answer: str, expected: bool) -> None:
    assert score(answer, match="JsonSchema", jsonSchema=json.dumps(PERSON)) == float(expected)


def test_a_row_can_have_a_schema_of_its_own_as_text_or_as_an_object() -> None:
    for schema in (json.dumps(PERSON), PERSON, [{"type": "array"}, PERSON]):
        row = keep(None, {"schema": schema}, match="JsonSchema", column="schema")
        assert score(ADA, row.reference, match="JsonSchema", column="schema") == 1.0
        assert score("{}", row.reference, match="JsonSchema", column="schema") == 0.0


def test_the_group_of_a_pattern_can_be_the_json() -> None:
    settings = {"match": "JsonSchema", "jsonSchema": json.dumps(PERSON), "extract": "Pattern", "pattern": "<a>(.*)</a>"}
    assert score(f"I think. <a>{ADA}</a>", **settings) == 1.0
    assert score(ADA, **settings) == 0.0


def test_a_job_with_its_own_schema_needs_no_reference_in_its_rows() -> None:
    reward = Reward.model_validate({"type": "Answer", "answer": {"match": "JsonSchema", "jsonSchema": "{}"}})
    assert References([reward]).is_empty


@pytest.mark.parametrize(
    ("columns", "settings", "words"),
    [
        ({"schema": "{"}, {"match": "JsonSchema", "column": "schema"}, "is not JSON"),
        ({"schema": {"type": "text"}}, {"match": "JsonSchema", "column": "schema"}, "is not a JSON schema"),
        ({"value": "Ada"}, {"match": "Json", "column": "value"}, "is not JSON"),
        ({"value": {"a": 1}}, {"match": "Exact", "column": "value"}, "give a text, a number, or a list of them"),
    ],
)
def test_a_row_whose_reference_no_answer_can_equal_is_rejected(
    columns: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadRow, match=words) as refused:
        keep(None, columns, **settings)
    assert refused.value.code is RejectCode.NO_REFERENCE


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$ref": "http://127.0.0.1:9/schema"}, "refers to 'http://127.0.0.1:9/schema'"),
        ({"$ref": "file:///etc/passwd"}, "refers to 'file:///etc/passwd'"),
        ({"$ref": "#/$defs/none"}, "refers to '#/\\$defs/none', which it does not have"),
        ({"$id": "http://127.0.0.1:9/", "$dynamicRef": "other#a"}, "refers to 'other#a'"),
        ({"$defs": {"a": {"$anchor": "a"}}, "$ref": "#a"}, "refers to '#a', which is not part of it"),
        ({"items": {"$id": "http://127.0.0.1:9/"}}, "has a part with an identifier of its own"),
        ({"properties": {"a": {"type": "objet"}}}, "is not a JSON schema that can be used at properties/a/type"),
        ({"pattern": "(?=a)b"}, "is not a JSON schema that can be used at pattern.*look-around"),
        ({"pattern": "(a{1000}){1000}{1000}"}, "is not a JSON schema that can be used"),
        ({"$schema": "http://127.0.0.1:9/draft"}, "is not a JSON schema that can be used"),
    ],
)
def test_an_unusable_schema_of_the_job_is_an_invalid_config_that_names_its_field(schema: Any, words: str) -> None:
    with pytest.raises(TrainerError, match=f"rlhf.rewards\\[0\\].answer.jsonSchema {words}") as refused:
        score("1", match="JsonSchema", jsonSchema=json.dumps(schema))
    assert refused.value.code is ExitCode.INVALID_CONFIG


@pytest.mark.parametrize("keyword", ["$ref", "$dynamicRef", "$recursiveRef"])
def test_a_schema_whose_references_multiply_is_refused(keyword: str) -> None:
    doubling = {f"a{at}": {"anyOf": [{keyword: f"#/$defs/a{at + 1}"}] * 2} for at in range(40)}
    with pytest.raises(ValueError, match=r"has [\d,]+ parts with those that it refers to, of at most 10,000"):
        compile_schema(json.dumps({"$defs": doubling | {"a40": {"const": 1}}, keyword: "#/$defs/a0"}))


def test_a_schema_nested_too_deep_is_refused() -> None:
    with pytest.raises(ValueError, match=r"is nested too deep|is not JSON"):
        compile_schema('{"not":' * 990 + "{}" + "}" * 990)


def test_a_schema_may_refer_to_itself() -> None:
    tree = {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False}
    assert score('{"next": {"next": {}}}', match="JsonSchema", jsonSchema=json.dumps(tree)) == 1.0
    assert score('{"next": {"prev": {}}}', match="JsonSchema", jsonSchema=json.dumps(tree)) == 0.0


def test_names_and_data_in_a_schema_are_no_keywords() -> None:
    by_name = {"id": {"type": "string"}, "$id": {"type": "string"}, "default": {"$ref": "#/$defs/a%20b"}}
    schema = {
        "$id": "http://127.0.0.1:9/own",
        "properties": by_name | {"own": {"$ref": "http://127.0.0.1:9/own#/$defs/a%20b"}},
        "default": {"$ref": "http://127.0.0.1:9/"},
        "$defs": {"a b": {"const": 1}},
    }
    assert score('{"id": "x", "default": 1, "own": 1}', match="JsonSchema", jsonSchema=json.dumps(schema)) == 1.0
    assert score('{"default": 2}', match="JsonSchema", jsonSchema=json.dumps(schema)) == 0.0
    assert score('{"own": 2}', match="JsonSchema", jsonSchema=json.dumps(schema)) == 0.0


def test_a_list_in_a_column_has_alternatives_of_which_one_can_be_a_list() -> None:
    row = keep(None, {"value": [[{"a": 1}, {"b": 2}], {"c": 3}]}, match="Json", column="value")
    for answer, expected in (('[{"a": 1}, {"b": 2}]', 1.0), ('{"c": 3}', 1.0), ('{"a": 1}', 0.0)):
        assert score(answer, row.reference, match="Json", column="value") == expected


def test_a_pattern_of_a_schema_takes_no_longer_for_a_hostile_answer() -> None:
    started = time.process_time()
    answer = json.dumps("a" * 100_000 + "b")
    assert score(answer, match="JsonSchema", jsonSchema=json.dumps({"pattern": "^(a+)+$"})) == 0.0
    assert time.process_time() - started < 1


def test_a_number_with_a_huge_exponent_is_neither_an_answer_nor_a_reference() -> None:
    huge = '{"a": 1e1000000000000000000}'
    assert score(huge, Reference(answer='{"a": 1}'), match="Json") == 0.0
    row = PromptRow([Message(role="user", content="?")], Source("a", 1), DataFormat.PROMPT_COMPLETION)
    rewards = References([Reward.model_validate({"type": "Answer", "answer": {"match": "Json"}})])
    with pytest.raises(BadRow):
        rewards.keep(row, huge, {})
