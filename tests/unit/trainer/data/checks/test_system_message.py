"""`dataset.systemMessage` stands before the turns of every row that has no system message of its own."""

from typing import Any

import pytest

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}
OWN = {"role": "system", "content": "Be polite."}


def turns(row: Any) -> list[Any]:
    found: list[Any] = row.turns()
    return found


@pytest.mark.parametrize(
    ("objective", "row", "expected"),
    [
        ("Chat", {"messages": [ASKED, ANSWER]}, [SYSTEM, ASKED, ANSWER]),
        ("Chat", {"messages": [OWN, ASKED, ANSWER]}, [OWN, ASKED, ANSWER]),
        ("Chat", {"messages": [OWN | {"role": "developer"}, ASKED, ANSWER]}, [OWN, ASKED, ANSWER]),
        ("Instruction", {"instruction": "Why?", "output": "Because."}, [SYSTEM, ASKED, ANSWER]),
        ("Instruction", {"instruction": "Why?", "output": "Because.", "system": "Be polite."}, [OWN, ASKED, ANSWER]),
        ("DPO", {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}, [SYSTEM, ASKED, ANSWER]),
        ("KTO", {"prompt": "Why?", "completion": "Because.", "label": True}, [SYSTEM, ASKED, ANSWER]),
        ("RLHF", {"prompt": "Why?"}, [SYSTEM, ASKED]),
    ],
    ids=["chat", "its own", "developer", "Alpaca", "Alpaca with its own", "pair", "judged", "prompt"],
)
def test_a_row_without_a_system_message_gets_the_datasets(check: Any, objective: str, row: Any, expected: Any) -> None:
    (found,), summary = check(row, objective=objective, system_message="Be brief.")
    assert turns(found) == expected
    assert summary.accepted == 1


def test_a_row_that_has_the_message_already_repeats_one_without_it(check: Any) -> None:
    _, summary = check({"messages": [ASKED, ANSWER]}, {"messages": [SYSTEM, ASKED, ANSWER]}, system_message="Be brief.")
    assert (summary.accepted, dict(summary.rejected_by_code)) == (1, {"DUPLICATE": 1})


def test_every_pair_of_a_ranking_has_the_message_once(check: Any) -> None:
    ranking = {"prompt": "Why?", "responses": ["a", "b", "c"], "scores": [3, 2, 1]}
    rows, _ = check(ranking, objective="DPO", system_message="Be brief.")
    assert len(rows) > 1
    assert all(row.prompt == [SYSTEM, ASKED] for row in rows)


def test_the_number_of_a_bad_turn_is_that_in_the_file(check: Any) -> None:
    rows = {"messages": [ASKED, ASKED | {"content": ""}, ANSWER]}
    (plain,), _ = check(rows)
    (with_message,), _ = check(rows, system_message="Be brief.")
    assert with_message.detail == plain.detail


def test_a_plain_text_has_no_message(check: Any) -> None:
    (row,), _ = check({"text": "A text."}, objective=None, system_message="Be brief.")
    assert row.text == "A text."
