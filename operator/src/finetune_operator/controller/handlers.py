"""The shell: kopf logs in, and ends the process in order; reflectors watch with its client."""

import asyncio
import contextlib
import functools
import itertools
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, cast

import kopf

from finetune_api import names
from finetune_operator.controller.intake import Intake
from finetune_operator.controller.reflector import Receiver, Reflector, Watched
from finetune_operator.controller.rotating_ca import RotatingConnection
from finetune_operator.controller.store import Kind, Store
from finetune_operator.controller.watch_cache import WatchCache
from finetune_operator.kube.errors import Refused
from finetune_operator.policy import kueue
from finetune_operator.settings import Settings

PAGE = 700
"""Objects of one answer to a list: at about 10 KB each, some megabytes."""
KUEUE_SECONDS = 60.0
"""How often Kueue is looked for while a Job waits for it: it may be installed after the operator."""
KUEUE_PAUSE_SECONDS = 5.0
"""Pause after a search that found none, however many such Jobs are looked at."""
LOGIN_PAUSE_SECONDS = 2.0
FindKueue = Callable[[], Awaitable[str | None]]
Watch = Callable[[], Coroutine[Any, Any, None]]
OWN_OBJECTS = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"


def build_login() -> Callable[..., Awaitable[kopf.ConnectionInfo | None]]:
    """Return a login handler that can be repeated after a 401.

    kopf ends a watch forever when it has no credentials left, and ignores new ones that equal rejected ones; a rising
    priority makes them differ. The token may have been renewed, or the 401 may have been an error of the API server.
    """
    logins = itertools.count()

    async def on_login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        number = next(logins)
        if number:
            await asyncio.sleep(LOGIN_PAUSE_SECONDS)
        found = _login(**kwargs)
        return replace(found, priority=number) if found else None

    return on_login


def _login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """Log in as `cluster.Connection` does: `KUBECONFIG` wins over the pod's service account."""
    if os.environ.get("KUBECONFIG") or not os.environ.get("KUBERNETES_SERVICE_HOST"):
        return kopf.login_with_kubeconfig(**kwargs)
    found = kopf.login_with_service_account(**kwargs)
    return RotatingConnection.of(found) if found else None


def build_kopf_settings(settings: Settings) -> kopf.OperatorSettings:
    """Return settings with which kopf writes nothing and needs no rights except list and watch."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.scanning.disabled = True
    chosen.watching.connect_timeout = settings.api_timeout_seconds
    chosen.watching.initial_streaming = True
    chosen.watching.chunk_size = PAGE  # where lists are not streamed
    chosen.watching.label_selectors["batch", "jobs"] = OWN_OBJECTS
    chosen.watching.label_selectors["", "pods"] = OWN_OBJECTS
    chosen.networking.request_timeout = 4 * settings.api_timeout_seconds
    # One only: a reflector lists again by itself. Without any, kopf connects a watch again and again without a pause
    # while the API server refuses connections.
    chosen.networking.error_backoffs = (1.0,)
    return chosen


def build_reflectors(
    kind: Watched, intake: Receiver, cache: WatchCache, settings: Settings, version: str = ""
) -> list[Reflector]:
    """Return the reflectors of a kind: one for each namespace, or one for all."""
    chosen = build_kopf_settings(settings)
    namespaces: list[str | None] = [*settings.watch_namespaces] or [None]
    return [
        Reflector(kind, namespace, intake, cache, chosen, resync_seconds=settings.resync_seconds, version=version)
        for namespace in namespaces
    ]


async def watch(
    intake: Intake,
    cache: WatchCache,
    settings: Settings,
    find_kueue: FindKueue,
    more: Sequence[Watch] = (),
) -> None:
    """Watch until the process receives SIGTERM or SIGINT, or the watches end with an error, which is raised.

    `more` are the watches of optional kinds.
    """
    registry = kopf.OperatorRegistry()
    tasks: list[asyncio.Task[None]] = []
    stop = asyncio.Event()

    async def on_startup(**_: Any) -> None:
        watches: list[Watch] = [functools.partial(_reflect, intake, cache, settings, find_kueue), *more]
        for one in watches:
            task = asyncio.create_task(one())  # with kopf's credentials
            task.add_done_callback(lambda _: stop.set())  # an operator that watches nothing must not look alive
            tasks.append(task)

    async def on_cleanup(**_: Any) -> None:
        for task in tasks:
            task.cancel()

    kopf.on.login(id="login", registry=registry)(build_login())
    kopf.on.startup(id="startup", registry=registry)(on_startup)
    kopf.on.cleanup(id="cleanup", registry=registry)(on_cleanup)
    await kopf.operator(
        registry=registry,
        settings=build_kopf_settings(settings),
        # By default kopf looks up the user's name, which an arbitrary UID does not have.
        identity=cast("Any", settings.pod_name or names.MANAGED_BY),
        standalone=True,
        clusterwide=not settings.watch_namespaces,
        namespaces=settings.watch_namespaces,
        stop_flag=stop,
    )
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended


async def _reflect(intake: Intake, cache: WatchCache, settings: Settings, find_kueue: FindKueue) -> None:
    """Run the reflectors; children are listed after the jobs, because those of unknown jobs are not kept."""
    store = cache.store
    async with asyncio.TaskGroup() as group:

        async def run(*kinds: Kind, version: str = "") -> list[asyncio.Task[None]]:
            chosen = [one for kind in kinds for one in build_reflectors(kind, intake, cache, settings, version)]
            tasks = [group.create_task(one.run()) for one in chosen]
            for one in chosen:
                await one.is_listed.wait()
            return tasks

        async def run_workloads() -> list[asyncio.Task[None]]:
            try:
                version = await find_kueue()
            except Refused as problem:
                store.has_kueue = True
                intake.report_problem("workloads", problem)
                return []
            store.has_kueue = version is not None
            store.problems.pop(("workloads", None), None)
            return await run("workloads", version=version) if version else []

        await run("finetunejobs")
        await run("jobs", "pods")
        watches = await run_workloads()
        store.is_synced.set()
        while True:
            if watches:
                await _wait_for_end(watches)
            else:
                await _wait_for_need(store)
            had_kueue = store.has_kueue
            if watches or any(kueue.may_hold(one) for one in store.children):
                watches = await run_workloads()
            if watches or store.has_kueue != had_kueue:
                intake.queue_open_jobs()
            if not watches:
                await asyncio.sleep(KUEUE_PAUSE_SECONDS)


async def _wait_for_end(watches: Sequence[asyncio.Task[None]]) -> None:
    """Wait until the API server no longer serves what one of them watches, and end the others."""
    await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)
    for one in watches:
        one.cancel()
    await asyncio.wait(watches)


async def _wait_for_need(store: Store) -> None:
    """Wait until a Job that Kueue may hold was looked at, and for `KUEUE_SECONDS` at most."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(KUEUE_SECONDS):
            await store.needs_kueue.wait()
    store.needs_kueue.clear()
