"""Labels of what runs that another client overwrites, as `kubectl label --all --overwrite` does."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from job_operator import Operator
from job_world import World

from finetune_api import names
from finetune_operator.kube.objects import Job, Pod


def is_ours(obj: Any) -> bool:
    return bool(obj["metadata"]["labels"].get(names.LABEL_MANAGED_BY) == names.MANAGED_BY)


class Labelled(World):
    """An API server that selects by label, as the real one does for the operator's lists and watches."""

    def objects(self, kind: str) -> list[Any]:
        found = super().objects(kind)
        return found if kind == names.PLURAL else [one for one in found if is_ours(one)]

    async def list_children(self, key: Any) -> tuple[Job, ...]:
        await self._called()
        return tuple(Job.from_object(one) for one in self.jobs.values() if is_ours(one))

    async def list_pods(self, key: Any) -> tuple[Pod, ...]:
        await self._called()
        return tuple(Pod.from_object(one) for one in self.pods.values() if is_ours(one))


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.mark.parametrize("label", [names.LABEL_MANAGED_BY, names.LABEL_COMPONENT])
@pytest.mark.parametrize("hides_pods", [True, False])
def test_a_trainer_whose_labels_were_overwritten_trains_alone_to_its_end(
    loop: Any, hides_pods: bool, label: str
) -> None:
    world = Labelled()
    operator = Operator(world, loop)

    def step() -> None:
        operator.look()
        world.control()
        for pod in world.pods_in("Pending"):
            world.start(pod)
        for pod in world.pods_in("Running"):
            if pod["metadata"]["labels"][names.LABEL_COMPONENT] == names.Component.PREFLIGHT:
                world.publish(pod)
        world.now += timedelta(seconds=5)

    for _ in range(5):
        step()
    (trainer,) = world.live_trainers()
    for obj in [*world.jobs.values(), *(world.pods.values() if hides_pods else ())]:
        obj["metadata"]["labels"] = obj["metadata"]["labels"] | {label: "Helm"}
    for _ in range(12):
        step()
        assert sorted(world.jobs) == ["one-1", "one-preflight"]
        assert world.status().condition("Running").status == "True"
    world.pods[trainer]["metadata"]["labels"][names.LABEL_COMPONENT] = names.Component.TRAINER  # which the world reads
    world.publish(world.pods[trainer])
    for _ in range(3):
        step()
    assert (world.status().phase, world.status().runs, world.status().failures) == ("Succeeded", 1, None)


def test_a_job_whose_trainer_job_is_in_the_lists_costs_no_request(loop: Any) -> None:
    world = Labelled()
    operator = Operator(world, loop)
    for _ in range(5):
        operator.look()
        world.control()
        for pod in world.pods_in("Pending"):
            world.start(pod)
        for pod in world.pods_in("Running"):
            if world.component(pod) == names.Component.PREFLIGHT:
                world.publish(pod)
    operator.look()
    operator.look()
    assert world.live_trainers()
    assert world.calls == 0
