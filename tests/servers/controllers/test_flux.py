"""Flux's own controllers fetch a repository, apply its jobs, wait for them, report what is refused, and prune."""

import json
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from git_server import serving_repositories
from guide_repository import NAME, TEAM, GuideRepository, documented
from waiting import wait_until

Kubectl = Callable[..., str]
Object = dict[str, Any]
OPERATOR = "finetune-operator"
REFUSED = "rows.jsonl: 0 of 5 rows can be trained on"


@pytest.fixture(scope="module", autouse=True)
def _controllers(program: Any, source: Any, install: Any, running: Any, free_port: Any) -> Iterator[None]:
    """Run them; each test has its own repository, and its own namespace for Flux's objects."""
    for name in ("source-controller", "kustomize-controller"):
        install(source(name) / "config" / "crd" / "bases")
    quiet = ("--metrics-addr=0", "--health-addr=0", "--requeue-dependency=1s")
    artifacts = f"127.0.0.1:{free_port()}"
    storage = ("--storage-path=.", f"--storage-addr={artifacts}", f"--storage-adv-addr={artifacts}")
    of_source = [program("source-controller"), *quiet, *storage]
    with running(of_source), running([program("kustomize-controller"), *quiet]):
        yield


class Flux:
    """The guide's Kustomization of a repository, in a namespace of its own."""

    def __init__(self, world: Any, kubectl: Kubectl, repository: GuideRepository) -> None:
        self.namespace = f"flux-{uuid.uuid4().hex[:6]}"
        self._world, self._kubectl, self._repository = world, kubectl, repository

    @property
    def revision(self) -> str:
        """The last commit, as Flux names it."""
        return f"main@sha1:{self._repository.revision}"

    def start(self, address: str, **changes: Any) -> None:
        """Create the source, the Kustomization of the operator, and the team's with changes to its spec."""
        team = documented("kustomize.toolkit")
        team["spec"] = {name: value for name, value in (team["spec"] | changes).items() if value is not None}
        assert team["metadata"]["name"] == TEAM
        assert team["spec"]["dependsOn"] == [{"name": OPERATOR}]
        assert team["spec"]["sourceRef"] == {"kind": "GitRepository", "name": NAME}
        of_operator = {"path": "./operator", "interval": "10m", "prune": False, "wait": True}
        operator = {**team, "metadata": {"name": OPERATOR}}
        operator["spec"] = of_operator | {"sourceRef": team["spec"]["sourceRef"]}
        source = {
            "apiVersion": "source.toolkit.fluxcd.io/v1",
            "kind": "GitRepository",
            "metadata": {"name": NAME},
            "spec": {"interval": "10m", "url": f"{address}/{NAME}", "ref": {"branch": "main"}},
        }
        self._kubectl("create", "namespace", self.namespace)
        for one in (source, operator, team):
            one["metadata"]["namespace"] = self.namespace
            self._kubectl("apply", "-f", "-", stdin=json.dumps(one))
        self.pull()

    def pull(self) -> None:
        """Ask source-controller for the last commit, as `flux reconcile source git` does; ends when it has it."""
        asked = f"reconcile.fluxcd.io/requestedAt={self._repository.revision}"
        self._kubectl("annotate", "gitrepository", NAME, "-n", self.namespace, "--overwrite", asked)
        where = ("source.toolkit.fluxcd.io", "v1", self.namespace, "gitrepositories", NAME)

        def fetched() -> bool:
            found = self._world.custom.get_namespaced_custom_object(*where).get("status", {})
            return bool(found.get("artifact", {}).get("revision") == self.revision)

        wait_until(fetched, lambda: str(self._world.custom.get_namespaced_custom_object(*where).get("status")))

    def team(self) -> Object:
        """The team's Kustomization."""
        where = ("kustomize.toolkit.fluxcd.io", "v1", self.namespace, "kustomizations", TEAM)
        found: Object = self._world.custom.get_namespaced_custom_object(*where)
        return found

    def condition(self, kind: str = "Ready") -> Object:
        """A condition of the team's Kustomization."""
        conditions = self.team().get("status", {}).get("conditions", [])
        return next((one for one in conditions if one["type"] == kind), {})

    def wait_ready(self, status: str, reason: str) -> str:
        """Wait for a verdict on the last commit; its message."""

        def verdict() -> str:
            found, last = self.condition(), self.team().get("status", {}).get("lastAttemptedRevision")
            as_asked = (found.get("status"), found.get("reason"), last) == (status, reason, self.revision)
            return str(found["message"]) if as_asked else ""

        return wait_until(verdict, lambda: f"{reason}: {json.dumps(self.team().get('status'), indent=1)}")

    def delete(self) -> None:
        """Delete the Kustomization with what it applied."""
        self._kubectl("delete", "kustomization", "--all", "-n", self.namespace, "--timeout=60s")
        self._kubectl("delete", "namespace", self.namespace, "--wait=false")


@pytest.fixture
def repository(world: Any, spec: Object, tmp_path: Path) -> GuideRepository:
    return GuideRepository(tmp_path / "git", world.namespace, spec)


@pytest.fixture
def flux(
    world: Any, operator: Any, kubectl: Kubectl, repository: GuideRepository, tmp_path: Path
) -> Iterator[Callable[..., Flux]]:
    """Create the source and the Kustomizations, with changes to the team's spec."""
    made = Flux(world, kubectl, repository)
    with serving_repositories(tmp_path / "git") as address:

        def start(**changes: Any) -> Flux:
            made.start(address, **changes)
            return made

        yield start
        made.delete()


Start = Callable[..., Flux]


def finish(world: Any, trainer: Any, name: str) -> None:
    world.end(trainer, 0, world.published(name))
    world.wait_phase("Succeeded", name)


@pytest.mark.parametrize("judged_by", ["the expressions of the guide", "kstatus"])
def test_a_kustomization_is_ready_when_its_jobs_are_complete_and_then_applies_the_next_commit(
    world: Any, repository: GuideRepository, flux: Start, judged_by: str
) -> None:
    repository.commit({"v1": {}})
    team = flux(**({"healthCheckExprs": None} if judged_by == "kstatus" else {}))
    trainer = world.pass_preflight("v1")
    world.run(trainer)
    world.wait_phase("Training", "v1")
    held = team.condition()
    assert (held["status"], held["reason"]) == ("Unknown", "Progressing")
    assert "Running health checks" in team.condition("Healthy")["message"]
    repository.commit({"v1": {}, "v2": {}})
    team.pull()
    assert team.condition() == held
    assert world.jobs() == ["v1-1", "v1-preflight"]
    finish(world, trainer, "v1")
    second = world.pass_preflight("v2")
    world.run(second)
    assert team.condition()["status"] == "Unknown"
    finish(world, second, "v2")
    assert "Applied revision" in team.wait_ready("True", "ReconciliationSucceeded")


def test_a_failed_job_fails_its_kustomization_at_once_until_a_commit_replaces_it(
    world: Any, repository: GuideRepository, flux: Start
) -> None:
    repository.commit({"broken": {}, "good": {}})
    team = flux()
    good = world.pass_preflight("good")
    world.run(good)
    pod = world.pod_of("broken-preflight")
    world.run(pod)
    world.end(pod, 65, world.report("Failed", "broken", message=REFUSED))
    named = f"FineTuneJob/{world.namespace}/broken status: 'Failed'"
    assert named in team.wait_ready("False", "HealthCheckFailed")
    failed = world.condition("Failed", "broken")
    assert failed["status"] == "True"
    assert REFUSED in failed["message"]
    repository.commit({"good": {}})
    team.pull()
    finish(world, good, "good")
    team.wait_ready("True", "ReconciliationSucceeded")
    wait_until(lambda: world.jobs() == ["good-1", "good-preflight"], lambda: str(world.jobs()))


def test_a_change_of_a_fixed_field_is_reported_with_its_fix_and_pruning_removes_everything(
    world: Any, repository: GuideRepository, flux: Start
) -> None:
    repository.commit({"v1": {}})
    team = flux(wait=None)
    trainer = world.pass_preflight("v1")
    team.wait_ready("True", "ReconciliationSucceeded")
    repository.commit({"v1": {"model": {"uri": "s3://bucket/models/other"}}})
    team.pull()
    message = team.wait_ready("False", "ReconciliationFailed")
    assert re.search(r"FineTuneJob/\S+/v1 .*spec\.model: .* create a new FineTuneJob", message), message
    assert world.pod_of("v1-1").metadata.uid == trainer.metadata.uid
    repository.commit({"v1": {}})
    team.pull()
    team.wait_ready("True", "ReconciliationSucceeded")
    assert world.get("v1")["metadata"]["generation"] == 1
    repository.commit({"v2": {"suspend": True}})
    team.pull()
    team.wait_ready("True", "ReconciliationSucceeded")
    wait_until(lambda: world.jobs() == world.pods() == [], lambda: f"{world.jobs()} {world.pods()}")


def test_the_patch_of_the_guide_applies_every_job_suspended(
    world: Any, repository: GuideRepository, flux: Start
) -> None:
    repository.commit({"v1": {}, "v2": {}}, patches=documented("kustomize.config.k8s.io")["patches"])
    team = flux()
    team.wait_ready("True", "ReconciliationSucceeded")
    for name in ("v1", "v2"):
        assert world.get(name)["spec"]["suspend"] is True
        world.wait_phase("Suspended", name)
    assert world.jobs() == []
