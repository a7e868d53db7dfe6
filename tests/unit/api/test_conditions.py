"""The table of the conditions: complete, in the reference and in `kubectl explain`, and as the operator sets them."""

from typing import Any

import job_statuses
import pytest

from finetune_api.conditions import CONDITIONS, NEUTRAL, NORMAL_FALSE, NORMAL_TRUE
from finetune_api.names import ConditionType
from finetune_api.schema.crd import reference_markdown, structural_schema
from finetune_api.status import FineTuneJobStatus

C = ConditionType
AT_TIMES = {C.QUOTA_RESERVED, C.HUB_PUSHED, C.REGISTRY_PUSHED}
"""A job has these only with a queue, a hub or a registry."""
AT_END = {*AT_TIMES, C.RUNNING, C.GRACE_PERIOD_SUFFICIENT}
"""Of an ended job these say nothing about success: no queue, no pods, perhaps no checkpoint and no push."""


def test_every_condition_has_its_meaning_and_polarity() -> None:
    assert set(CONDITIONS) == set(ConditionType)
    for kind, one in CONDITIONS.items():
        assert one.true, kind
        assert one.false, kind
        assert one.normal in {NORMAL_TRUE, NORMAL_FALSE, NEUTRAL}, kind


def test_the_reference_and_kubectl_explain_have_every_condition() -> None:
    text = structural_schema(FineTuneJobStatus)["properties"]["conditions"]["items"]["properties"]["type"][
        "description"
    ]
    reference = reference_markdown()
    for kind, one in CONDITIONS.items():
        assert f"`{kind}`: {one.true}." in text
        assert f"| `{kind}` | {one.true} | {one.false} |" in reference


def conditions_of(job: dict[str, Any]) -> dict[C, str]:
    return {C(one["type"]): one["status"] for one in job.get("status", {}).get("conditions", [])}


@pytest.mark.parametrize(
    "story", [one for one in job_statuses.STORIES if one is not job_statuses.unseen], ids=lambda story: story.__name__
)
def test_the_operator_sets_every_condition_to_a_value_of_the_table(story: Any) -> None:
    found = conditions_of(story())
    assert set(ConditionType) - AT_TIMES <= set(found) <= set(ConditionType)
    assert [kind for kind, value in found.items() if value == "Unknown" and not CONDITIONS[kind].unknown] == []


def test_a_job_that_succeeds_has_every_condition_at_its_normal_value() -> None:
    found = conditions_of(job_statuses.succeeded())
    odd = {
        kind
        for kind, one in CONDITIONS.items()
        if one.normal != NEUTRAL and kind not in AT_END and f"`{found[kind]}`" != one.normal
    }
    assert odd == set()


def test_a_job_that_fails_shows_it_in_the_conditions_that_are_normally_false() -> None:
    found = conditions_of(job_statuses.diverged())
    negative = {kind for kind, one in CONDITIONS.items() if one.normal == NORMAL_FALSE}
    assert negative == {C.FAILED, C.STALLED}
    assert {found[kind] for kind in negative} == {"True"}
    assert found[C.READY] == "False"
