"""The base class of the API types."""

from typing import Any

from pydantic import BaseModel

from finetune_api.status import FineTuneJobStatus

STATUS: dict[str, Any] = {
    "conditions": [
        {
            "type": "Accepted",
            "status": "True",
            "reason": "Accepted",
            "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
    ],
    "history": [{"run": 1, "attempt": 1, "podName": "a", "podUID": "b", "result": "Failed", "reason": "Killed"}],
    "lineage": {"libraryVersions": {"torch": "2.13.0"}},
}


def changeable(value: Any) -> list[Any]:
    """Every block, list and dict in a value, itself included."""
    if isinstance(value, BaseModel):
        inner = list(value.__dict__.values())
    else:
        inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    found = [value] if isinstance(value, BaseModel | dict | list) else []
    return found + [one for part in inner for one in changeable(part)]


def test_a_deep_copy_is_equal_and_shares_nothing_that_can_be_changed() -> None:
    status = FineTuneJobStatus.model_validate(STATUS)
    copied = status.model_copy(deep=True)
    assert copied == status
    assert copied.to_wire() == status.to_wire()
    assert len(changeable(status)) == 7
    assert {id(one) for one in changeable(copied)}.isdisjoint({id(one) for one in changeable(status)})
