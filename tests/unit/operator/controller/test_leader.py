"""A leader that is paused or stopped between a read of its Lease and the write that follows."""

import asyncio
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from kubernetes.config import kube_config

from finetune_operator import connection
from finetune_operator.cluster import Cluster
from finetune_operator.controller import leader
from finetune_operator.controller.leader import Leader, LeaseLostError
from finetune_operator.kube.errors import Outdated
from finetune_operator.kube.objects import Key
from finetune_operator.metrics.registry import Metrics
from finetune_operator.policy import lease
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


JOB = {"metadata": {"namespace": "team", "name": "one", "uid": "u"}, "spec": {}}


class TwoServers:
    """API servers behind one address. When the first one loses its power, no request on its connections is answered;
    new connections lead to the second."""

    def __init__(self) -> None:
        self.leases = Leases()
        self.is_first_dead = False
        self.connections: list[Any] = []
        """Those to the first server, kept so that no identity is used twice."""
        self.unanswered = 0

    async def answer(self, request: web.Request) -> web.Response:
        if not self.is_first_dead:
            self.connections.append(request.transport)
        elif any(request.transport is one for one in self.connections):
            self.unanswered += 1
            await asyncio.Event().wait()
        if "/leases" not in request.path:
            await asyncio.sleep(0.1)  # so that requests at the same time need a connection each
            return web.json_response(JOB)
        if request.method == "GET":
            found = await self.leases.read_lease("", "")
            return web.json_response(found or {"message": "none"}, status=200 if found else 404)
        return web.json_response(await self.leases.write_lease(await request.json()))

    async def serve(self, folder: Path) -> tuple[Path, web.AppRunner]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{runner.addresses[0][1]}"}}
        context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
        config = {"clusters": [server], "contexts": [context], "users": [{"name": "u", "user": {}}]}
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump(config | {"apiVersion": "v1", "kind": "Config", "current-context": "x"}))
        return path, runner


async def test_a_leader_keeps_its_lease_if_the_api_server_that_it_is_connected_to_loses_its_power(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a quarter of the real times."""
    for module, name in ((leader, "POLL"), (leader, "LEAD"), (leader, "RETRY"), (connection, "REQUEST")):
        monkeypatch.setattr(module, f"{name}_SECONDS", getattr(lease, f"{name}_SECONDS") / 4)
    servers = TwoServers()
    path, runner = await servers.serve(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))  # read at the import
    cluster = Cluster(settings, Metrics())
    one = Leader(settings.model_copy(update={"lease_namespace": "system", "identity": "first"}), cluster)
    await one.acquire()
    await asyncio.gather(*(cluster.get_job(Key("team", f"job-{number}")) for number in range(8)))
    servers.is_first_dead = True
    holding = asyncio.create_task(one.hold())
    try:
        await asyncio.sleep(2 * lease.LEAD_SECONDS / 4)
        assert servers.unanswered == 1
        assert not holding.done(), holding.exception()
        assert one.may_write()
    finally:
        holding.cancel()
        await cluster.close()
        await runner.cleanup()


def test_after_an_unanswered_request_two_more_are_over_while_the_leader_may_write() -> None:
    begun = lease.POLL_SECONDS + 2 * (lease.REQUEST_SECONDS + lease.RETRY_SECONDS)
    assert begun < lease.LEAD_SECONDS
