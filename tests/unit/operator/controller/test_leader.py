"""A leader that is paused or stopped between a read of its Lease and the write that follows."""

import asyncio
import copy
from collections.abc import Callable
from typing import Any

import pytest

from finetune_operator.controller import leader
from finetune_operator.controller.leader import Leader, LeaseLostError
from finetune_operator.kube.errors import Outdated
from finetune_operator.settings import Settings


def nobody() -> None:
    """Write nothing after the read."""


class Leases:
    """One Lease, as the API server keeps it: a write of an older version is refused."""

    def __init__(self) -> None:
        self.stored: dict[str, Any] | None = None
        self.after_read: Callable[[], None] = nobody

    async def read_lease(self, namespace: str, name: str) -> dict[str, Any] | None:
        found, pause = copy.deepcopy(self.stored), self.after_read
        self.after_read = nobody
        pause()
        return found

    async def write_lease(self, lease: dict[str, Any]) -> dict[str, Any]:
        now = (self.stored or {}).get("metadata", {}).get("resourceVersion")
        if lease["metadata"].get("resourceVersion") != now:
            raise Outdated("the object has been modified")
        self.stored = copy.deepcopy(lease)
        self.stored["metadata"]["resourceVersion"] = str(int(now or 0) + 1)
        return copy.deepcopy(self.stored)

    def write(self, **spec: Any) -> None:
        """Write as another client, whatever version there is."""
        assert self.stored is not None
        self.stored["spec"] |= spec
        self.stored["metadata"]["resourceVersion"] = str(int(self.stored["metadata"]["resourceVersion"]) + 1)


@pytest.fixture
def leases(monkeypatch: pytest.MonkeyPatch) -> Leases:
    monkeypatch.setattr(leader, "POLL_SECONDS", 0.0)
    return Leases()


def build_leader(settings: Settings, leases: Leases, identity: str = "first") -> Leader:
    return Leader(settings.model_copy(update={"lease_namespace": "system", "identity": identity}), leases)  # type: ignore[arg-type]


def test_a_leader_that_lost_its_lease_while_it_was_paused_names_the_new_one(
    settings: Settings, leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pause() -> None:
        leases.write(holderIdentity="second")
        monkeypatch.setattr(leader, "LEAD_SECONDS", 0.0)

    async def lead() -> None:
        one = build_leader(settings, leases)
        await one.acquire()
        leases.after_read = pause
        await one.hold()

    with pytest.raises(LeaseLostError, match="second"):
        asyncio.run(lead())


def test_a_leader_whose_lease_was_only_annotated_after_its_read_still_leads(settings: Settings, leases: Leases) -> None:
    async def lead() -> None:
        one = build_leader(settings, leases)
        await one.acquire()
        leases.after_read = leases.write
        holding = asyncio.create_task(one.hold())
        await asyncio.sleep(0.01)
        assert leases.after_read is nobody
        assert not holding.done()
        assert one.is_leading
        holding.cancel()

    asyncio.run(lead())


def released(settings: Settings, leases: Leases, meanwhile: Callable[[], None]) -> dict[str, Any]:
    """The Lease after a leader was stopped, and what happened since its last renewal was answered."""

    async def lead() -> None:
        one = build_leader(settings, leases)
        await one.acquire()
        meanwhile()
        await one.release()

    asyncio.run(lead())
    assert leases.stored
    return dict(leases.stored["spec"])


def test_a_leader_that_is_stopped_gives_its_lease_back_though_a_renewal_was_under_way(
    settings: Settings, leases: Leases
) -> None:
    """The renewal was written, and the process no longer waits for its answer."""
    assert "holderIdentity" not in released(settings, leases, leases.write)


def test_a_renewal_that_arrives_between_the_read_and_the_release_does_not_keep_the_lease(
    settings: Settings, leases: Leases
) -> None:
    def renew_late() -> None:
        leases.after_read = leases.write

    assert "holderIdentity" not in released(settings, leases, renew_late)


def test_a_leader_that_is_stopped_leaves_the_lease_of_another(settings: Settings, leases: Leases) -> None:
    found = released(settings, leases, lambda: leases.write(holderIdentity="second"))
    assert found["holderIdentity"] == "second"


def test_a_standby_reads_the_lease_as_soon_as_it_expires(
    settings: Settings, leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader, "POLL_SECONDS", 60.0)

    async def take_over() -> None:
        await build_leader(settings, leases).acquire()
        leases.write(leaseDurationSeconds=0.3)
        other = build_leader(settings, leases, "second")
        await asyncio.wait_for(other.acquire(), 10)

    asyncio.run(take_over())
    assert leases.stored is not None
    assert leases.stored["spec"]["leaseTransitions"] == 1
