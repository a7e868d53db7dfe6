"""The event of a release follows from the difference of two statuses."""

import pytest

from finetune_api.release import FineTuneReleaseStatus, ReleaseReason
from finetune_operator.release.events import derive_event

NORMAL = {"WaitingForJob", "Releasing", "WaitingForServer", "Released"}


def status(reason: str | None = None, message: str = "words", generation: int = 1) -> FineTuneReleaseStatus:
    return FineTuneReleaseStatus(reason=reason, message=message, observed_generation=generation)


@pytest.mark.parametrize("reason", ReleaseReason)
def test_a_new_reason_is_an_event_and_a_warning_if_the_release_does_not_continue(reason: ReleaseReason) -> None:
    event = derive_event(status("Other"), status(reason.value))
    assert event is not None
    assert (event.reason, event.message, event.is_warning) == (reason, "words", reason.value not in NORMAL)


def test_another_message_of_the_same_reason_is_no_event() -> None:
    assert derive_event(status("Releasing", "verified"), status("Releasing", "asked")) is None
    assert derive_event(status(), status()) is None


def test_the_same_reason_for_another_spec_is_an_event() -> None:
    event = derive_event(status("InvalidSpec", "target: missing"), status("InvalidSpec", "uri: missing", generation=2))
    assert event is not None
    assert event.message == "uri: missing"
