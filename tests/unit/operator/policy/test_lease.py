"""Who may hold a Lease is decided by what each process has seen, not by the clocks of the others."""

from datetime import UTC, datetime
from typing import Any

import pytest

from finetune_operator.policy.lease import LEAD_SECONDS, LEASE_SECONDS, POLL_SECONDS, Election

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def election(identity: str = "a") -> Election:
    return Election("operator", "system", identity)


def held_by(identity: str, at: datetime = NOW) -> dict[str, Any]:
    lease = election(identity).claim(None, at)
    return lease | {"metadata": lease["metadata"] | {"resourceVersion": "7"}}


def test_a_lease_that_does_not_exist_is_free_and_created_with_its_holder() -> None:
    one = election()
    assert one.observe(None, 0.0)
    lease = one.claim(None, NOW)
    assert lease["metadata"] == {"name": "operator", "namespace": "system"}
    assert lease["spec"] == {
        "holderIdentity": "a",
        "leaseDurationSeconds": LEASE_SECONDS,
        "acquireTime": "2026-03-01T12:00:00.000000Z",
        "renewTime": "2026-03-01T12:00:00.000000Z",
        "leaseTransitions": 0,
    }


def test_a_renewal_keeps_the_start_and_the_version_that_was_read() -> None:
    later = election().claim(held_by("a"), NOW.replace(second=5))
    assert later["metadata"]["resourceVersion"] == "7"
    assert later["spec"]["acquireTime"] < later["spec"]["renewTime"]
    assert later["spec"]["leaseTransitions"] == 0


@pytest.mark.parametrize("written", [NOW, NOW.replace(year=2020), NOW.replace(year=2040)])
def test_another_holder_is_respected_until_its_lease_was_unchanged_for_its_duration(written: datetime) -> None:
    one = election("b")
    assert not one.observe(held_by("a", written), 100.0)
    assert not one.observe(held_by("a", written), 100.0 + LEASE_SECONDS)
    assert one.holder == "a"
    assert one.observe(held_by("a", written), 100.1 + LEASE_SECONDS)
    assert one.claim(held_by("a", written), NOW)["spec"]["leaseTransitions"] == 1


def test_each_renewal_of_the_holder_restarts_the_time() -> None:
    one = election("b")
    one.observe(held_by("a"), 100.0)
    assert not one.observe(held_by("a", NOW.replace(second=2)), 99.0 + LEASE_SECONDS)
    assert not one.observe(held_by("a", NOW.replace(second=2)), 98.0 + 2 * LEASE_SECONDS)


def test_a_released_lease_is_free_at_once() -> None:
    released = election("a").release(held_by("a"))
    assert "holderIdentity" not in released["spec"]
    assert election("b").observe(released, 100.0)


def test_a_leader_stops_writing_before_a_standby_may_take_over() -> None:
    assert LEAD_SECONDS < LEASE_SECONDS
    assert LEASE_SECONDS + 2 * POLL_SECONDS < 15
