import json

import pytest
import yaml

from finetune_trainer.data.formats.column_map import ColumnMap, advise_field
from finetune_trainer.data.formats.columns import find_column, follow_path, name_columns


def test_at_most_twelve_columns_are_named_each_with_at_most_forty_characters() -> None:
    names = [f"c{number}" for number in range(13)]
    assert name_columns([]) == "none"
    assert name_columns(names[:12]) == ", ".join(names[:12])
    assert name_columns(names) == ", ".join(names[:12]) + " and 1 more"
    assert name_columns(["x" * 50, 7]) == f"{'x' * 40}, 7"


def test_a_name_cannot_control_a_terminal() -> None:
    assert name_columns(["a\x1b[2Jé"]) == "a\\u001b[2Jé"


@pytest.mark.parametrize(
    ("row", "found"), [({}, None), ({"a": 1, "b": 2}, "a"), ({"a": None, "b": 2}, "b"), ({"b": None, "a": None}, "a")]
)
def test_the_first_column_with_a_value_is_found_before_one_that_is_null(
    row: dict[str, object], found: str | None
) -> None:
    assert find_column(row, ("a", "b")) == found


def test_columns_are_recorded_while_a_mapped_one_is_missing() -> None:
    columns = ColumnMap({"prompt": "q", "completion": "a"})
    columns.rename({"x": 1, "q": 2})
    assert (columns.missing, list(columns.seen)) == ({"a"}, ["x", "q"])
    columns.rename({f"c{number}": 1 for number in range(20)})
    columns.rename({"y": 1})
    assert "c19" in columns.seen
    assert "y" not in columns.seen
    full = ColumnMap({"prompt": "q"})
    for names in (range(12), range(13)):
        full.rename({f"c{number}": 1 for number in names})
    assert name_columns(full.seen).endswith("c11 and 1 more")
    columns.rename({"a": 1})
    assert columns.missing == set()
    assert ColumnMap({}).rename({"x": 1}) == {"x": 1}


def test_role_and_content_are_the_names_within_each_turn() -> None:
    columns = ColumnMap({"messages": "dialog", "role": "speaker_kind", "content": "utterance"})
    turns = [{"speaker_kind": "user", "utterance": "q", "role": "ignored"}, {"speaker_kind": "bot", "text": "a"}, "x"]
    assert columns.rename({"dialog": turns, "id": 1}) == {
        "id": 1,
        "messages": [{"role": "user", "content": "q"}, {"role": "bot", "text": "a"}, "x"],
    }
    assert not columns.missing


OWN = [{"who": "user", "said": "q"}, {"who": "bot", "said": "a"}]
KNOWN = [{"role": "user", "content": "q"}, {"role": "bot", "content": "a"}]


@pytest.mark.parametrize("turns", [OWN, json.dumps(OWN), str(OWN), f" {json.dumps(OWN)}"])
@pytest.mark.parametrize(
    "column", ["messages", "turns", "prompt", "chosen", "rejected", "completion", "rejected_messages"]
)
def test_turns_in_a_string_or_in_a_column_of_a_pair_have_these_names_too(column: str, turns: object) -> None:
    columns = ColumnMap({"role": "who", "content": "said"})
    assert columns.rename({column: turns}) == {column: KNOWN}
    assert not columns.missing


def test_a_single_turn_of_a_pair_has_these_names_too() -> None:
    columns = ColumnMap({"role": "who", "content": "said"})
    assert columns.rename({"chosen": OWN[1], "rejected": {"a": 1}}) == {"chosen": KNOWN[1], "rejected": {"a": 1}}


@pytest.mark.parametrize(
    "text", ["[{", '[{"who": "user"}]', '[{"a": 1}]', '[{"who": "user", "said": "q"}, 1]', "q", " "]
)
def test_a_text_without_these_names_in_each_item_stays_as_it_is(text: str) -> None:
    row = {"prompt": text, "output": 3, "tools": text}
    assert ColumnMap({"role": "who", "content": "said"}).rename(row) == row


def test_a_name_that_no_turn_has_is_missing() -> None:
    columns = ColumnMap({"role": "who"})
    columns.rename({"messages": [{"role": "user", "content": "q"}]})
    columns.rename({"who": "not in a turn"})
    assert columns.missing == {"who"}


@pytest.mark.parametrize(
    ("row", "path", "value"),
    [
        ({"translation": {"en": "a"}}, "translation.en", "a"),
        ({"answers": {"text": ["a", "b"]}}, "answers.text.1", "b"),
        ({"a.b": 1, "a": {"b": 2}}, "a.b", 1),
        ({"a": {"b": None}}, "a.b", None),
        ({"a": [{"0": 5}]}, "a.0.0", 5),
    ],
)
def test_a_value_inside_a_column_has_a_path(row: dict[str, object], path: str, value: object) -> None:
    assert follow_path(row, path) == value
    assert ColumnMap({"prompt": path}).rename(row)["prompt"] == value


@pytest.mark.parametrize("path", ["a.x", "a.list.2", "a.list.-1", "a.text.0", "b.x", "a..b", "."])
def test_a_path_that_leads_nowhere_is_a_missing_column(path: str) -> None:
    row = {"a": {"list": [1, 2], "text": "abc"}, "b": None}
    columns = ColumnMap({"prompt": path})
    assert columns.rename(row) == row
    assert columns.missing == {path}


def test_what_is_next_to_a_path_is_not_used() -> None:
    row = {"request": {"messages": [1], "tools": [2], "model": "m", "n": None}, "response": {"text": "a"}, "note": "n"}
    columns = ColumnMap({"messages": "request.messages", "answer": "response.text"})
    assert columns.find_unused(row, {"messages", "answer"}) == ("note", "request.tools")


@pytest.mark.parametrize(
    "name",
    ["Question", "Prompt ", "a, b", "a: b", "yes", "NULL", "1", "#", "-", "", "é", "a b", "x-y.z", "{", "'", '"'],
)
def test_the_advice_on_a_name_is_yaml_that_has_it(name: str) -> None:
    field, shown = advise_field({"prompt": name})
    assert (field, yaml.safe_load(shown)) == ("dataset.columns", {"prompt": name})
