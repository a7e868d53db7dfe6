"""docs/troubleshooting.md has an entry for every reason that a condition or an event can show, and for no other."""

import re
from pathlib import Path

import pytest

from finetune_api.handoff import TERMINAL_EXIT_CODES, ExitCode
from finetune_api.names import ConditionType, EventReason, Reason
from finetune_operator.policy.conditions import MESSAGES
from finetune_operator.policy.remediation import DISRUPTIONS, FIXES_BY_REASON

TEXT = (Path(__file__).parents[3] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in TEXT.split("\n## ")[1:]}
ENTRY = re.compile(r'^\| <a id="(\w+)"></a>`(\w+)` \| (.+) \| (.+) \| (.+) \|$', re.MULTILINE)
SHORT = re.compile(r"^\| `(\w+)` \| .+ \| .+ \|$", re.MULTILINE)
HOMES = {
    ConditionType.PUBLISHED: "Published and Complete",
    ConditionType.COMPLETE: "Published and Complete",
}
"""Sections whose title is not the condition's name; those of Failed start with it."""


def entries() -> list[tuple[str, ...]]:
    return ENTRY.findall(TEXT)


def test_every_reason_has_one_entry_and_no_entry_names_an_unknown_reason() -> None:
    assert sorted(reason for _, reason, *_ in entries()) == sorted(Reason)


def test_every_reason_of_the_exit_table_is_one_of_these_reasons() -> None:
    assert {code.reason for code in ExitCode if code is not ExitCode.OK} <= {reason.value for reason in Reason}


def test_every_entry_has_an_anchor_and_no_empty_cell() -> None:
    for anchor, reason, *cells in entries():
        assert anchor == reason.lower()
        assert all(cell.strip() for cell in cells), reason


@pytest.mark.parametrize("kind", list(ConditionType))
def test_every_condition_has_a_section_or_is_named_at_the_top(kind: ConditionType) -> None:
    top = TEXT.partition("\n## ")[0]
    assert HOMES.get(kind, kind) in SECTIONS or f"`{kind}`" in top or any(name.startswith(kind) for name in SECTIONS)


def test_a_reason_is_in_the_section_of_a_condition_that_has_a_sentence_for_it() -> None:
    for title, part in SECTIONS.items():
        for _, reason, *_ in ENTRY.findall(part):
            homes = {HOMES.get(kind, kind.value) for kind, known in MESSAGES if known == reason}
            assert not homes or title in homes or title.startswith("Failed"), (title, reason)


@pytest.mark.parametrize("reason", list(FIXES_BY_REASON))
def test_the_guide_has_the_remediation_of_the_condition(reason: str) -> None:
    (cells,) = [cells for _, found, *cells in entries() if found == reason]
    assert FIXES_BY_REASON[reason] in " ".join(cells).replace("`", "")


def test_codes_that_are_retried_are_marked_and_no_others() -> None:
    part = SECTIONS["Failed: the exit table"]
    codes = {code.reason: code for code in ExitCode}
    for _, reason, means, *_ in ENTRY.findall(part):
        if reason in codes and codes[reason] is not ExitCode.PREEMPTED:
            assert f"({codes[reason].value})" in means
            assert ("↻" in means) == (codes[reason] not in TERMINAL_EXIT_CODES), reason


def test_every_event_is_in_the_table_of_events_and_no_other() -> None:
    assert sorted(SHORT.findall(SECTIONS["Events"])) == sorted(EventReason)


def test_every_disruption_has_the_text_of_the_history() -> None:
    part = SECTIONS["Disruptions in the history"]
    assert set(SHORT.findall(part)) == set(DISRUPTIONS)
    for reason, words in DISRUPTIONS.items():
        assert f"| `{reason}` | {words} |" in part
