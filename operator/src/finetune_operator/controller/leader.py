"""Hold the Lease by which one of several replicas reconciles, and the others wait."""

import asyncio
import logging
import time
from datetime import UTC, datetime

from finetune_operator.cluster import Cluster
from finetune_operator.kube.errors import AlreadyExists, ClusterError, Outdated
from finetune_operator.policy.lease import LEAD_SECONDS, POLL_SECONDS, RETRY_SECONDS, Election
from finetune_operator.settings import Settings

log = logging.getLogger("finetune_operator")
A_MOMENT = 0.1
"""Seconds after a Lease's end at which a standby reads it again."""
RELEASE_TRIES = 3
"""A renewal that was under way when this process was stopped may be written in between."""


class LeaseLostError(Exception):
    """Another process holds the Lease, or it could not be renewed in time."""


class Leader:
    """The part of this process in the election of its release; without a namespace for the Lease it always leads."""

    def __init__(self, settings: Settings, cluster: Cluster) -> None:
        self._cluster = cluster
        self._is_alone = not settings.lease_namespace
        self._election = Election(settings.lease_name, settings.lease_namespace, settings.identity)
        self._renewed = float("-inf")
        self._is_leading = False
        self._problem = ""

    def may_write(self) -> bool:
        """Whether no other process can hold the Lease yet; a process that was paused reads this before it writes."""
        return self._is_alone or time.monotonic() - self._renewed < LEAD_SECONDS

    @property
    def is_leading(self) -> bool:
        """Whether this process reconciles."""
        return self._is_leading

    @property
    def other_leader(self) -> str:
        """Who leads instead of this process; empty if there is no leader, or if it could not be read."""
        return "" if self._is_leading or self._problem else self._election.holder

    async def acquire(self) -> None:
        """Wait until this process holds the Lease."""
        shown = ""
        while not self._is_alone and not await self._try():
            words = self._problem or f"{self.other_leader} leads"
            if words != shown:
                log.log(
                    logging.WARNING if self._problem else logging.INFO,
                    "waiting for Lease %s: %s", self._election.name, words,
                )  # fmt: skip
            shown = words
            until_expiry = self._election.seconds_left(time.monotonic()) + A_MOMENT
            is_sooner = not self._problem and A_MOMENT <= until_expiry < POLL_SECONDS
            await asyncio.sleep(until_expiry if is_sooner else POLL_SECONDS)
        self._is_leading = True
        if not self._is_alone:
            log.info("leading: this process holds Lease %s", self._election.name)

    async def hold(self) -> None:
        """Renew the Lease.

        Raises:
            LeaseLostError: another process has it, or it was not renewed for `LEAD_SECONDS`.
        """
        while not self._is_alone:
            await asyncio.sleep(RETRY_SECONDS if self._problem else POLL_SECONDS)
            is_held = await self._try()
            if not self.may_write() or not (is_held or self._problem):
                self._is_leading = False
                raise LeaseLostError(f"Lease {self._election.name}: {await self._describe_loss()}")
        await asyncio.Event().wait()

    async def release(self) -> None:
        """Give the Lease back, if this process holds it."""
        if self._is_alone or not self.may_write():
            return
        problem: ClusterError | None = None
        for _ in range(RELEASE_TRIES):
            try:
                lease = await self._cluster.read_lease(self._election.namespace, self._election.name)
                self._election.observe(lease, time.monotonic())
                if lease and self._election.holder == self._election.identity:
                    await self._cluster.write_lease(self._election.release(lease))
            except Outdated as outdated:
                problem = outdated
            except ClusterError as other:
                problem = other
                break
            else:
                return
        log.warning("Lease %s not released, it expires by itself: %s", self._election.name, problem)

    async def _describe_loss(self) -> str:
        """Return who leads now: after a pause, the request that failed was one from before it."""
        try:
            lease = await self._cluster.read_lease(self._election.namespace, self._election.name)
        except ClusterError as problem:
            return self._problem or str(problem)
        self._election.observe(lease, time.monotonic())
        holder = self._election.holder
        return f"{holder} leads" if holder not in {"", self._election.identity} else self._problem or "expired"

    async def _try(self) -> bool:
        """Take or renew the Lease; return whether this process holds it."""
        began = time.monotonic()
        try:
            lease = await self._cluster.read_lease(self._election.namespace, self._election.name)
            self._problem = ""
            if not self._election.observe(lease, time.monotonic()):
                return False
            written = await self._cluster.write_lease(self._election.claim(lease, datetime.now(UTC)))
        except AlreadyExists:
            return False
        except ClusterError as problem:
            self._problem = str(problem)
            return False
        self._election.observe(written, time.monotonic())
        self._renewed = began
        return True
